"""The native kernel beside XLA in float64: the same jets for all shapes, transformations and neighbors."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore.jet import Evaluation, native, stream
from mcscore.jet.streaming import log_density
from tests.conftest import X64

needs_kernel = pytest.mark.skipif(not native.targets(), reason="the native kernel is not built")
single = pytest.mark.skipif(X64, reason="the native kernel is for float32")
XLA = Evaluation(kernel="xla")
RNG = np.random.default_rng(20)


def law_of(d, kernel, rows=900, block_rows=150):
    x = RNG.standard_normal((rows, d)) @ RNG.standard_normal((d, d))
    return mcs.mixture(x, kernel=kernel, frame=mcs.Affine(whiten=True), block_rows=block_rows)


def close(found, expected, tolerance):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@needs_kernel
@single
@pytest.mark.parametrize("target", native.targets())
@pytest.mark.parametrize("s", [1.0, 0.1, 0.03])
@pytest.mark.parametrize("kernel", [mcs.Isotropic(0.1), mcs.Local(0.5, 6, 2)], ids=["one", "local"])
@pytest.mark.parametrize("d", [1, 2, 6, 9, 30])
def test_native_jets_are_those_of_float64(d, kernel, s, target):
    law = law_of(d, kernel)
    q = RNG.standard_normal((83, d)).astype(np.float32)
    q[-9:] *= 30  # far off the data
    for alpha in (np.float32(0.8), np.linspace(0.5, 0.9, 83, dtype=np.float32)):
        ask = (q, alpha, (s * alpha) ** 2, law.blocks)
        expected = stream(*ask, laplacian=True, evaluation=XLA)
        for negligible in (0.0, 1e-6):
            how = Evaluation(kernel=target, negligible=negligible)
            second, first = (stream(*ask, laplacian=lap, evaluation=how) for lap in (True, False))
            for found in (first, second):
                close(found.field, expected.field, 1e-4)
                np.testing.assert_allclose(found.log_p, expected.log_p, rtol=1e-4, atol=1e-4)
            close(second.laplacian, expected.laplacian, 1e-3)
            close(log_density(*ask, evaluation=how), first.log_p, 1e-6)


@needs_kernel
def test_a_kernel_built_for_another_jaxlib_is_left_alone(monkeypatch):
    """Its registration would stop the whole backend, at the first computation."""
    monkeypatch.setattr(native, "_interface", lambda: 7)
    with pytest.warns(UserWarning, match="built for another jaxlib .* installed is 7"):
        assert native.targets.__wrapped__() == ()


def hostile(rng, d):
    """Return blocks with far centers, columns of all scales or constant, equal and closed rows, bases."""
    k, r = rng.choice([1, 2, 5]), rng.choice([1, 63, 130])
    rows = rng.standard_normal((k, r, d)) * 10.0 ** rng.uniform(-2, 1, d)
    rows[..., 0] *= rng.random() < 0.5
    rows[:] = rows[:, :1] if rng.random() < 0.3 else rows
    log_weights = np.log(rng.random((k, r))) - rng.exponential(20, (k, r)) * (rng.random() < 0.5)
    log_weights[rng.random((k, r)) < 0.3] = -np.inf
    log_weights[0, 0] = 0
    centers = rng.standard_normal((k, d)) * rng.choice([0, 5, 300])
    bases = np.linalg.qr(rng.standard_normal((k, d, d)))[0] if rng.random() < 0.5 else None
    variances = 10.0 ** rng.uniform(-4, 0, (k, d)) * (rng.random() < 0.7)
    parts = (rows, log_weights, centers, bases, variances)
    return mcs.jet.Blocks(*(None if a is None else jnp.asarray(a, jnp.float32) for a in parts))


@needs_kernel
@single
@pytest.mark.parametrize("seed", range(12))
def test_hostile_laws_are_as_exact(seed):
    rng = np.random.default_rng(seed)
    d = int(rng.choice([1, 2, 3, 7, 13]))
    blocks = hostile(rng, d)
    alpha, s = np.float32(rng.choice([0, 1e-3, 0.9])), np.float32(10 ** rng.uniform(-1.5, 1))
    which = rng.integers(0, len(blocks.rows), 40)
    q = alpha * np.asarray(blocks.centers)[which] + s * rng.standard_normal((40, d)) * np.resize(
        [[1], [9]], (40, 1)
    )
    ask = (jnp.asarray(q, jnp.float32), alpha, s**2, blocks)
    expected = stream(*ask, laplacian=True, evaluation=XLA)
    for target in native.targets():
        for second in (False, True):
            found = stream(*ask, laplacian=second, evaluation=Evaluation(kernel=target))
            close(found.field, expected.field, 1e-4)
            np.testing.assert_allclose(found.log_p, expected.log_p, rtol=2e-5, atol=2e-5)


@needs_kernel
@single
@pytest.mark.parametrize(
    ("d", "kernel"),
    [(4, mcs.Local(0.5, 12, 2)), (2, mcs.Isotropic(0.1)), (12, mcs.Isotropic(0.1))],
    ids=["local", "two", "wide"],
)
@pytest.mark.parametrize("second", [False, True])
def test_a_query_s_jet_does_not_depend_on_its_neighbors(d, kernel, second):
    """To the bit: vectors of queries decide together what they look at, but every lane for itself counts."""
    law = law_of(d, kernel)
    q = RNG.standard_normal((300, d)).astype(np.float32)
    for s in (2.0, 0.5, 0.05):
        whole = stream(q, 1.0, s**2, law.blocks, laplacian=second)
        parts = [
            stream(q[i : i + 7], 1.0, s**2, law.blocks, laplacian=second) for i in range(0, 300, 7)
        ]
        for name in ("log_p", "field", "laplacian")[: 2 + second]:
            together = np.concatenate([np.asarray(getattr(part, name)) for part in parts])
            np.testing.assert_array_equal(getattr(whole, name), together)


@needs_kernel
@single
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_grid_stands_for_the_rows_of_few_columns(d):
    law = law_of(d, mcs.Isotropic(0.05), rows=4000, block_rows=1000)
    q = (RNG.standard_normal((500, d)) * [[3.0] if i % 3 else [1.0] for i in range(500)]).astype(
        np.float32
    )
    exact = Evaluation(kernel="native", negligible=0.0)
    for s in (30.0, 10.0, 0.7, 0.3):
        quick, slow = (
            stream(q, 1.0, s**2, law.blocks, evaluation=e) for e in (Evaluation(), exact)
        )
        assert s < 30 or np.abs(quick.log_p - slow.log_p).max() > 0  # another sum
        np.testing.assert_allclose(quick.log_p, slow.log_p, atol=5e-5, rtol=2e-6)
        close(quick.field, slow.field, 2e-5)


@needs_kernel
@single
def test_what_is_left_out_is_negligible():
    law = law_of(2, mcs.Isotropic(0.02), rows=4000)
    q = np.asarray(law.points()[0])[::40]
    exact, quick = (
        stream(q, 1.0, 1e-3, law.blocks, evaluation=Evaluation(kernel="native", negligible=share))
        for share in (0.0, 0.01)
    )
    lost = np.asarray(exact.log_p - quick.log_p)
    assert lost.max() <= 0.0101
    assert lost.max() > 1e-6  # something was left out


@needs_kernel
@single
def test_transformations_agree_with_xla():
    law = law_of(3, mcs.Isotropic(0.2))
    slow = dataclasses.replace(law, evaluation=XLA)
    q = jnp.asarray(RNG.standard_normal((20, 3)), jnp.float32)
    t = jnp.linspace(0.2, 0.8, 20)

    def one(law):
        return lambda x, t: mcs.score(x[None], t, law, mcs.Linear())[0]

    def loss(law):
        return lambda x: jnp.sum(mcs.score(x, 0.3, law, mcs.Linear()) ** 2)

    for transformed in (
        lambda law: jax.vmap(one(law))(q, t),
        lambda law: jax.jit(jax.vmap(one(law), (0, None)))(q, 0.4),
        lambda law: jax.vmap(one(law), (None, 0))(q[0], t),
        lambda law: jax.grad(loss(law))(q),
        lambda law: jax.vmap(jax.jacfwd(one(law)))(q, t),
        lambda law: jax.vmap(lambda c: law.condition([0], c[None]).log_prob(q[:, 1:]))(q[:5, 0]),
    ):
        close(transformed(law), transformed(slow), 1e-4)
    calls = str(jax.make_jaxpr(jax.vmap(one(law)))(q, t)).count("ffi_call")
    assert calls == 1  # of all queries


@needs_kernel
@single
def test_bad_numbers_stay_where_they_are():
    law = law_of(2, mcs.Isotropic(0.2))
    q = np.zeros((40, 2), np.float32)
    q[3, 1], q[17, 0] = np.nan, np.inf
    found = stream(q, 1.0, 0.1, law.blocks, laplacian=True)
    for part in found:
        bad = ~np.isfinite(np.asarray(part)).reshape(40, -1).all(1)
        assert list(np.flatnonzero(bad)) == [3, 17]
    assert stream(q[:0], 1.0, 0.1, law.blocks).field.shape == (0, 2)
    empty = dataclasses.replace(
        law.blocks, log_weights=jnp.full_like(law.blocks.log_weights, -jnp.inf)
    )
    assert np.isneginf(np.asarray(stream(q[:2], 1.0, 0.1, empty).log_p)).all()


@pytest.mark.skipif(os.environ.get("MCSCORE_KERNEL") == "xla", reason="left out on purpose")
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
def test_where_a_compiler_is_the_kernel_is_built():
    """Without it every other test here is skipped, and a fault in its source would go unseen."""
    assert native.targets()


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel: expected one of 'xla'"):
        Evaluation(kernel="cuda")
    with pytest.raises(ValueError, match="negligible: expected a share"):
        Evaluation(negligible=-1.0)


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told(tmp_path):
    root = Path(__file__).parents[2]
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(root / "mcscore", tmp_path / "mcscore", ignore=ignored)
    made = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={"CC": "false", "CXX": "false", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0
    assert "no native kernel, everything is computed in XLA" in made.stderr
    assert not list(tmp_path.glob("mcscore/jet/_native*"))


@pytest.mark.parametrize("target", [*native.targets(), "xla"])
@pytest.mark.parametrize(
    "kernel",
    [mcs.Isotropic(0.3), mcs.Whitened(0.4), mcs.Local(0.5, 5, 2)],
    ids=["one", "whole", "local"],
)
def test_from_far_away_all_laws_are_one_gaussian(kernel, target):
    """Ten times as far, scores are ten times as large and log densities a hundred times."""
    x = RNG.standard_normal((300, 3)) @ RNG.standard_normal((3, 3))
    law = mcs.mixture(x, kernel=kernel, evaluation=Evaluation(kernel=target))
    schedule, far = mcs.Cosine(), 10.0 ** np.arange(4, 15)
    for t in (0.02, 0.4):
        q = jnp.asarray(far[:, None] * np.array([1.0, -2.0, 0.5]), law.dtype)
        log_p = np.asarray(mcs.log_density(q, t, law, schedule), np.float64) / far**2
        np.testing.assert_allclose(log_p, log_p[-1], rtol=5e-3)
        for reading in (mcs.score, mcs.velocity, mcs.denoise):
            field = np.asarray(reading(q, t, law, schedule), np.float64) / far[:, None]
            tolerance = 5e-3 * np.abs(field[-1]).max()
            np.testing.assert_allclose(field, np.tile(field[-1], (len(far), 1)), atol=tolerance)
        assert np.isfinite(mcs.divergence(q, t, law, schedule)).all()
