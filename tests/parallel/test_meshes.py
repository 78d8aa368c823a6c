"""Queries and rows over the devices of a mesh: equal results, divided results, no more messages than said."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mcscore as mcs
from mcscore.flows import flow
from mcscore.parallel import places_of

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(500, 3))
X[:, 1] += X[:, 0] ** 2
SCHEDULE = mcs.Cosine()
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
MESSAGE = r"= \S+ (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\("


@pytest.fixture(scope="module")
def law():
    return mcs.mixture(X, kernel=mcs.Local(0.4, clusters=5, partitions=1), block_rows=32)


@pytest.fixture(scope="module")
def given():
    return mcs.mixture(X[:, :2], condition=X[:, 2:], kernel=mcs.Local(0.4, clusters=5))


def asked(law, q):
    """Return every kind of answer of a law to queries, conditions behind where it has some."""
    d = law.dimension
    about = dict(condition=q[:, d:]) if law.condition_dimension else {}
    q = q[:, :d]
    times = jnp.linspace(0.1, 0.9, len(q), dtype=q.dtype)
    found = dict(
        score=mcs.score(q, 0.3, law, SCHEDULE, **about),
        times=mcs.denoise(q, times, law, SCHEDULE, **about),
        density=mcs.log_density(q, 0.3, law, SCHEDULE, **about),
        log_prob=law.log_prob(q, **about),
        flow=mcs.transport(q, law, SCHEDULE, **about),
        path=mcs.trajectory(q, law, SCHEDULE, points=4, **about)[-1],
    )
    if not law.condition_dimension:
        found["divergence"] = mcs.divergence(q, 0.3, law, SCHEDULE)
        found["ess"] = law.effective_sample_size(q)
    return found


def compare(found, expected, spec, tol):
    for name, value in found.items():
        scale = 1 + np.abs(np.asarray(expected[name])).max()
        np.testing.assert_allclose(value, expected[name], atol=tol * scale, err_msg=name)
        axes = value.sharding.spec[0] if len(value.sharding.spec) else None
        if value.sharding.mesh.shape.get("q", 1) > 1:  # along one device a spec says nothing
            assert axes in (spec, (spec,) if spec else None), (name, value.sharding)


def queries(n=48):
    return jnp.asarray(np.random.default_rng(1).normal(size=(n, 3)), jnp.zeros(()).dtype)


def check_all(law, given, count, kind, tol):
    """Compare one device with ``count``, queries over them, then rows, then both."""
    q = queries()
    mesh = jax.make_mesh((count,), ("q",), axis_types=(kind,))
    divided = jax.device_put(q, NamedSharding(mesh, PartitionSpec("q")))
    whole = [(one, asked(one, q)) for one in (law, given)]
    for one, expected in whole:
        compare(asked(one, divided), expected, "q", tol)
        with jax.set_mesh(mesh):
            compare(asked(one, q), expected, "q", tol)
            uneven = queries()[: count + 1]
            found = {name: value[: count + 1] for name, value in expected.items()}
            del found["times"]
            got = asked(one, uneven)
            compare({name: got[name] for name in found}, found, None, tol)
    shape = (count // 2, 2) if count > 2 else (1, 2)
    mesh = jax.make_mesh(shape, ("q", "rows"), axis_types=(kind, kind))
    divided = jax.device_put(q, NamedSharding(mesh, PartitionSpec("q")))
    for one, expected in whole:
        over = mcs.jet.shard(one, mesh, "rows")
        assert len(over.blocks.rows) % 2 == 0
        compare(asked(over, q), expected, None, tol)
        compare(asked(over, divided), expected, "q", tol)


@pytest.mark.once
def test_two_devices_find_what_one_does(law, given):
    check_all(law, given, 2, AxisType.Auto, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "kind"), [(4, "Auto"), (8, "Explicit")])
def test_more_devices_find_what_one_does(count, kind):
    code = f"""
import jax
jax.config.update("jax_num_cpu_devices", {count})
from jax.sharding import AxisType
from tests.parallel import test_meshes as t
import mcscore as mcs
assert len(jax.devices()) == {count}
laws = t.law.__wrapped__(), t.given.__wrapped__()
t.check_all(*laws, {count}, AxisType.{kind}, 1e-5)
print("equal")
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]


def test_nothing_waits_for_another_device(law):
    """No message in a solve over queries; three reductions for rows, however many there are."""
    mesh = jax.make_mesh((2,), ("q",), axis_types=(AxisType.Auto,))
    q = queries()
    places = places_of((), mesh=mesh)
    options = (mcs.CanonicalClock(), flow.diffrax.Bosh3(), 5, None, True, None)
    program = flow._solve_whole.lower(q, None, law, SCHEDULE, None, options, places).compile()
    assert not re.findall(MESSAGE, program.as_text())
    sizes = []
    for rows in (100, 500):
        over = mcs.jet.shard(mcs.mixture(X[:rows], kernel=mcs.Isotropic(0.3)), mesh)
        score = jax.jit(lambda a, over: mcs.score(a, 0.3, over, SCHEDULE))
        sizes.append(re.findall(MESSAGE, score.lower(q, over).compile().as_text()))
    assert sizes[0] == sizes[1] and 1 <= len(sizes[0]) <= 3, sizes


def test_a_flow_starts_from_the_mean_of_all_rows():
    """Also where the schedule leaves much of the mean at t = 1."""
    mesh, q = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,)), queries(8)
    far = mcs.mixture(X + np.array([0, 0, 300]), kernel=mcs.Local(0.4, clusters=5), block_rows=32)
    over = mcs.jet.shard(far, mesh)
    found, expected = (mcs.transport(q, one, mcs.Linear()) for one in (over, far))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_gradients_go_through_rows_of_several_devices(law):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    over, q = mcs.jet.shard(law, mesh), queries(8)
    found, expected = (jax.grad(lambda a, law=one: law.log_prob(a).sum())(q) for one in (over, law))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.once
@KINDS
def test_labels_and_samples_of_several_devices(law, kind, key):
    mesh = jax.make_mesh((2,), ("q",), axis_types=(kind,))
    plain = mcs.generate_pairs(key, law, SCHEDULE, 203, chunk_size=101)
    over = mcs.generate_pairs(key, law, SCHEDULE, 203, chunk_size=101, mesh=mesh)
    np.testing.assert_allclose(plain.x, over.x, atol=1e-5)
    options = dict(network=mcs.MLP(8, 2), epochs=3, batch_size=37, encoder=True)
    gen, history = mcs.train(key, plain, **options)
    divided, losses = mcs.train(key, plain, mesh=mesh, **options)
    np.testing.assert_allclose(losses.train_loss, history.train_loss, rtol=1e-4)
    np.testing.assert_allclose(losses.validation_loss, history.validation_loss, rtol=1e-4)
    np.testing.assert_allclose(divided(plain.z), gen(plain.z), atol=1e-3)
    drawn = gen.sample(key, 9000, mesh=mesh)
    np.testing.assert_allclose(drawn, gen.sample(key, 9000), atol=1e-5)
    assert drawn.sharding.spec[0] == "q" and gen.sample(key, 3, mesh=mesh).shape == (3, 3)
    x = jax.device_put(np.asarray(drawn)[:64], NamedSharding(mesh, PartitionSpec("q")))
    np.testing.assert_allclose(gen.encode(x), gen.encode(np.asarray(x)), atol=1e-5)
    found, expected = gen.density(x).log_prob, gen.density(np.asarray(x)).log_prob
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found.sharding.spec[0] == "q"


@pytest.mark.once
@KINDS
def test_a_whole_fit_over_the_devices_of_a_context(kind, key):
    mesh = jax.make_mesh((2,), ("q",), axis_types=(kind,))
    options = dict(kernel=mcs.Local(0.4, clusters=4), pairs=300, epochs=2, refine=0)
    options |= dict(network=mcs.MLP(8, 2), encoder=False)
    plain = mcs.fit_stages(key, X, **options)
    with jax.set_mesh(mesh):
        over = mcs.fit_stages(key, X, **options)
    np.testing.assert_allclose(over.pairs.x, plain.pairs.x, atol=1e-4)
    np.testing.assert_allclose(over.history.train_loss, plain.history.train_loss, rtol=1e-4)
    np.testing.assert_allclose(over.generator(X[:9]), plain.generator(X[:9]), atol=1e-3)


def test_meshes_that_do_not_fit(law):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"axis: expected one of \('rows',\), got 'q'"):
        mcs.jet.shard(law, mesh, "q")
    over = mcs.jet.shard(law, mesh)
    with pytest.raises(ValueError, match="law: divided over 'rows' already"):
        mcs.jet.shard(over, mesh)
    other = jax.make_mesh((2,), ("q",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match="mesh: expected one with the law's axis 'rows'"):
        mcs.generate_pairs(jax.random.key(0), over, SCHEDULE, 10, mesh=other)
