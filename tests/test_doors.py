"""The doors: what users hand in works, or one sentence says which argument, what was expected, what came."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import mcscore as mcs
from mcscore._arrays import enable_x64
from tests.conftest import X64

KEY = jax.random.key(0)
X = np.random.default_rng(5).standard_normal((200, 3))
LAW = mcs.mixture(X, kernel=mcs.Whitened(0.4))
S = mcs.Cosine()
SMALL = dict(network=mcs.MLP(width=8, depth=1), epochs=1, refine=0)
as_users = pytest.mark.skipif(X64, reason="annotations are checked first, in tests in float64 only")
CONSTANT = np.c_[X, np.ones(200)]
NAMED = pd.DataFrame(CONSTANT, columns=list("abcd"))
GAP = pd.DataFrame({"a": pd.array([1, pd.NA]), "b": [1, 2]})

REFUSED = {
    "missing": (lambda: mcs.mixture(GAP), "missing entry in column 'a', row 1"),
    "complex": (lambda: mcs.mixture(X + 1j), "x: expected real numbers, got complex128"),
    "words": (lambda: mcs.mixture(np.array([[1, 2], [3, "a"]], object)), "x: expected a table of numbers"),
    "cube": (lambda: mcs.mixture(X[None]), "x: expected a non-empty table"),
    "weights": (lambda: mcs.mixture(X, weights="visits"), "weights: expected a number per row"),
    "given nothing": (lambda: LAW.condition([0]), r"values: expected shape \(1,\), got \(0,\)"),
    "seed": (lambda: mcs.fit(0, X), "key: expected a random key, got 0"),
    "constant, affine": (lambda: mcs.mixture(CONSTANT, frame=mcs.Affine()), "column 3 is constant"),
    "constant, named": (lambda: mcs.mixture(NAMED, frame=mcs.Gaussianize()), "column 'd' is constant"),
    "constant, frame alone": (lambda: mcs.Affine().fit(np.ones((5, 2))), "column 0 is constant"),
    "one row": (lambda: mcs.mixture(X[:1], frame=mcs.Gaussianize()), "x: expected at least two rows, got 1"),
    "one row, auto": (lambda: mcs.mixture(X[:1], kernel=mcs.Auto()), "x: expected .* rows, got 1"),
    "one row, frame alone": (lambda: mcs.Affine().fit(X[:1]), "x: expected at least two rows, got 1"),
    "condition, infinite": (lambda: LAW.condition([0], [np.inf]), "values: expected finite"),
    "condition, far": (lambda: LAW.condition([0], [1e200 if X64 else 1e30]), "values: .* too far outside"),
    "mask": (lambda: LAW.marginal([True, False, True]), "columns: expected a list of indices"),
    "swapped": (lambda: mcs.score(X, 0.5, X, S), r"mixture: .* got ndarray of shape \(200, 3\)"),
    "law first": (lambda: mcs.score(LAW, 0.5, X, S), "mixture: expected"),
    "schedule, flow": (lambda: mcs.transport(X, S, LAW), "mixture: expected a value such as mcs.mixture"),
    "late": (lambda: mcs.score(X, 1.5, LAW, S), r"t: expected times in \[0, 1\], got 1.5"),
    "early": (lambda: mcs.denoise(X, np.full(200, -0.1), LAW, S), r"t: expected times in \[0, 1\]"),
    "no time": (lambda: mcs.log_density(X, np.nan, LAW, S), r"t: expected times in \[0, 1\]"),
    "times": (lambda: mcs.velocity(X, np.ones(3), LAW, S), "t: expected a scalar or one time per query"),
    "h infinite": (lambda: mcs.mixture(X, kernel=mcs.Isotropic(np.inf)), "h: expected a positive bandwidth"),
    "h a word": (lambda: mcs.mixture(X, kernel=mcs.Isotropic("a")), "h: expected a .*, got 'a'"),
    "h no number": (lambda: mcs.mixture(X, kernel=mcs.Whitened(np.nan)), "h: expected a positive bandwidth"),
    "h too fine": (lambda: mcs.mixture(X, kernel=mcs.Isotropic(1e-30)), "kernel: Isotropic.* finer than"),
    "closeness": (lambda: mcs.Auto(closeness=0), "closeness: expected a positive number"),
    "clusters": (lambda: mcs.Auto(most_clusters=0), "most_clusters: expected an integer of at least 1"),
    "partitions": (lambda: mcs.Auto(partitions=0), "partitions: expected an integer of at least 1"),
    "no frames": (lambda: mcs.Auto(frames=()), "frames: expected one candidate"),
    "knots": (lambda: mcs.Gaussianize(knots=1), "knots: expected an integer of at least 2"),
    "projections": (lambda: mcs.metrics.sliced_wasserstein(KEY, X, X, projections=0), "projections:"),
    "shares": (lambda: mcs.datasets.split(KEY, X, 0.5, -0.5), "shares: expected positive numbers"),
    "share": (lambda: mcs.datasets.split(KEY, X, (1.5,)), "shares: expected positive numbers"),
}  # fmt: skip


@as_users
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 220


@pytest.mark.parametrize(
    "dtype", [">f8", ">f4", np.longdouble, np.float16, np.int16, np.uint8, bool]
)
def test_any_numbers(dtype):
    x = (np.abs(3 * X) if np.dtype(dtype).kind in "u" else 3 * X).astype(dtype)
    law = mcs.mixture(x, kernel=mcs.Whitened(0.4))
    plain = x.astype(np.float32 if law.dtype == np.float32 else np.float64)
    expected = mcs.mixture(plain, kernel=mcs.Whitened(0.4)).log_prob(plain[:9])
    np.testing.assert_allclose(law.log_prob(x[:9]), expected, rtol=1e-4)
    assert np.isfinite(mcs.score(plain[0], 0.5, law, S)).all()


@pytest.mark.once
@as_users
def test_numpy_s_integers(tmp_path):
    assert LAW.sample(KEY, np.int64(5)).shape == (5, 3)
    network = mcs.MLP(width=np.int64(8), depth=np.int32(1))
    numbers = dict(pairs=np.int64(300), epochs=np.int64(1), refine=np.int64(0))
    gen = mcs.fit(KEY, X, network=network, kernel=mcs.Whitened(0.4), **numbers)
    gen.save(tmp_path / "model.safetensors")
    assert mcs.load(tmp_path / "model.safetensors").sample(KEY, np.int16(4)).shape == (4, 3)


def test_one_point_where_many_are_taken():
    """Points (d,) count as one row."""
    for function in (mcs.score, mcs.denoise, mcs.velocity, mcs.log_density, mcs.divergence):
        np.testing.assert_array_equal(function(X[0], 0.5, LAW, S), function(X[:1], 0.5, LAW, S))
    for function in (mcs.transport, mcs.encode):
        np.testing.assert_array_equal(function(X[0], LAW, S), function(X[:1], LAW, S))
    np.testing.assert_array_equal(LAW.log_prob(pd.Series(X[0])), LAW.log_prob(X[:1]))


def test_conditions_by_mapping_and_rows_by_name():
    law = mcs.mixture(NAMED[["a", "b", "c"]], kernel=mcs.Whitened(0.4))
    one, other = law.condition({"b": 0.2, "a": -1}), law.condition(["a", "b"], [-1, 0.2])
    np.testing.assert_allclose(one.log_prob(X[:5, 2:]), other.log_prob(X[:5, 2:]), rtol=1e-5)
    row = NAMED.loc[3, ["c", "a", "b"]]
    np.testing.assert_allclose(law.log_prob(row), LAW.log_prob(X[3:4]), rtol=1e-5)
    with pytest.raises(ValueError, match="expected the columns 'a', 'b', 'c', got 'd' besides"):
        law.log_prob(NAMED)


def test_tables_of_other_libraries():
    names, weights = ["a", "b", "c"], None
    frames = [pd.DataFrame(X, columns=names)]
    for library in ("polars", "pyarrow"):
        module = pytest.importorskip(library)
        make = module.table if library == "pyarrow" else module.DataFrame
        frames.append(make({name: X[:, j] for j, name in enumerate(names)}))
    for frame in frames:
        law = mcs.mixture(frame, kernel=mcs.Whitened(0.4), weights=weights)
        assert law.columns == ("a", "b", "c")
        np.testing.assert_allclose(law.log_prob(frame), LAW.log_prob(X), rtol=1e-5)
        turned = frame.select(names[::-1]) if hasattr(frame, "select") else frame[names[::-1]]
        np.testing.assert_allclose(law.log_prob(turned), LAW.log_prob(X), rtol=1e-5)
        assert law.condition(["b"], [0.1]).columns == ("a", "c")


def test_tensors():
    torch = pytest.importorskip("torch")
    law = mcs.mixture(torch.tensor(X), kernel=mcs.Whitened(0.4))
    np.testing.assert_allclose(law.log_prob(torch.tensor(X)), LAW.log_prob(X), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "controller",
    [
        diffrax.StepTo(ts=jnp.linspace(0, 1, 40)),
        diffrax.StepTo(ts=jnp.linspace(1, 0, 40)),
        diffrax.ConstantStepSize(),
        diffrax.PIDController(rtol=1e-5, atol=1e-5),
        diffrax.ClipStepSizeController(
            diffrax.PIDController(1e-5, 1e-5), store_rejected_steps=None
        ),
    ],
    ids=["shares", "shares, downwards", "constant", "adaptive", "clipped"],
)
@pytest.mark.parametrize(
    "clock", [mcs.CanonicalClock(), mcs.TimeClock()], ids=["canonical", "time"]
)
def test_diffrax_s_controllers(controller, clock):
    z = jax.random.normal(KEY, (8, 3), LAW.dtype)
    expected = mcs.transport(z, LAW, mcs.VP(), steps=60)
    found = mcs.transport(z, LAW, mcs.VP(), clock=clock, stepsize_controller=controller)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    back = mcs.encode(found, LAW, mcs.VP(), clock=clock, stepsize_controller=controller)
    np.testing.assert_allclose(back, z, atol=2e-2)


@pytest.mark.parametrize(
    "options", [dict(), dict(stepsize_controller=diffrax.PIDController(1e-4, 1e-4))]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_row_is_its_own_only(options, bad):
    z = X[:8].copy()
    z[3, 1] = bad
    with jax.debug_nans(False), jax.debug_infs(False):
        found = np.asarray(mcs.transport(z, LAW, S, **options))
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, 0)).all()


@pytest.mark.once
@pytest.mark.skipif(X64, reason="double precision is on")
def test_double_precision_as_a_context():
    """Worker threads take it from the caller; outside, what was made inside says what it needs."""
    with enable_x64(True):
        law = mcs.mixture(X, kernel=mcs.Whitened(0.4))
        pairs = mcs.generate_pairs(KEY, law, S, 300)
        gen, _ = mcs.train(KEY, pairs, network=mcs.MLP(width=8, depth=1), epochs=1)
        made = mcs.fit(KEY, X, pairs=300, kernel=mcs.Local(0.5, 2), **SMALL)
    assert {law.dtype for law in (pairs.z, made.params["Dense_0"]["bias"])} == {np.dtype(float)}
    calls = [
        lambda: law.log_prob(X),
        lambda: law.sample(KEY, 3),
        lambda: law.condition([0], [0.1]),
        lambda: law.marginal([0]),
        lambda: mcs.score(X, 0.5, law, S),
        lambda: mcs.transport(X, law, S),
        lambda: gen.sample(KEY, 3),
        lambda: gen(X),
        lambda: gen.density(X),
        lambda: made.sample_and_log_prob(KEY, 3),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="made in float64, which JAX has disabled here"):
            call()
