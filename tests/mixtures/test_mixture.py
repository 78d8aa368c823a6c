import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import mcscore as mcs
from mcscore.jet.sampling import pick_rows
from mcscore.mixtures import value


def test_rows_and_weights_survive_blocking():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1000, 3)), rng.random(1000)
    law = mcs.mixture(x, weights=w, block_rows=64)
    points, log_weights = law.points()
    kept = np.isfinite(np.asarray(log_weights))
    order = np.lexsort(np.asarray(points)[kept].T)
    expected = np.lexsort(x.astype(law.dtype).T)
    np.testing.assert_allclose(np.asarray(points)[kept][order], x[expected], atol=1e-6)
    np.testing.assert_allclose(
        np.exp(np.asarray(log_weights)[kept][order]), (w / w.sum())[expected], rtol=1e-5
    )
    assert kept.mean() > 0.85  # padding


def test_drawing_follows_the_weights(key):
    w = np.array([1.0, 2.0, 3.0, 0.0, 4.0])
    law = mcs.mixture(np.arange(5.0)[:, None], weights=w, kernel=mcs.Isotropic(1e-3), block_rows=2)
    n = 40_000
    drawn = np.round(np.asarray(law.sample(key, n))[:, 0])
    share = np.array([(drawn == v).mean() for v in range(5)])
    np.testing.assert_allclose(share, w / w.sum(), atol=4 * 0.5 / np.sqrt(n))
    block, row = pick_rows(key, law.blocks.log_weights, n)
    assert np.isfinite(np.asarray(law.blocks.log_weights)[np.asarray(block), np.asarray(row)]).all()


def test_subsample_has_the_size_asked_for(key):
    law = mcs.mixture(np.random.default_rng(0).standard_normal((50, 2)), kernel=mcs.Isotropic(0.3))
    for rows in (1, 10, 3000):
        part = law.subsample(key, rows)
        log_weights = np.asarray(part.blocks.log_weights)
        assert np.isfinite(log_weights).sum() == rows
        np.testing.assert_allclose(np.exp(log_weights).sum(), 1, rtol=1e-5)


def test_density_integrates_to_one_and_matches_samples(key):
    law = mcs.mixture(
        mcs.datasets.moons(key, 200), kernel=mcs.Isotropic(0.2), frame=mcs.Affine(whiten=True)
    )
    axis = jnp.linspace(-4, 4, 161)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = jnp.exp(law.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(mass, 1, atol=1e-3)
    drawn = law.sample(key, 20_000)
    assert mcs.metrics.sliced_wasserstein(key, drawn, law.sample(jax.random.key(9), 20_000)) < 0.02


def test_numbers_of_rows_share_programs_and_do_not_matter(key):
    law = mcs.mixture(mcs.datasets.moons(key, 100), kernel=mcs.Isotropic(0.2), frame=mcs.Affine())
    x = law.sample(key, 1000)
    every = law.log_prob(x)
    programs = value._sample._cache_size(), value._log_prob._cache_size()
    for n in (900, 931, 1024):
        assert law.sample(key, n).shape == (n, 2)
        part = law.log_prob(x[:n])
        assert part.shape == (min(n, 1000),)
        np.testing.assert_allclose(part, every[:n], rtol=1e-6)
    assert programs == (value._sample._cache_size(), value._log_prob._cache_size())
    assert law.sample(key, 0).shape == (0, 2) and law.log_prob(x[:0]).shape == (0,)
    with pytest.raises(ValueError, match="n: expected an integer of at least 0, got -1"):
        law.sample(key, -1)
    for wrong in (x[:, :1], x[0, :1]):
        with pytest.raises(ValueError, match=r"x: expected shape \(b, 2\), got"):
            law.log_prob(wrong)


def test_methods_run_inside_jit_with_the_law_outside(key):
    law = mcs.mixture(mcs.datasets.moons(key, 100), kernel=mcs.Isotropic(0.2), frame=mcs.Affine())
    x = law.sample(key, 5)
    for method in (law.log_prob, law.effective_sample_size):
        np.testing.assert_allclose(jax.jit(lambda x, m=method: m(x))(x), method(x), rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda k: law.sample(k, 5))(key), x, rtol=1e-5)


def test_offset_survives_float64_input():
    x = 1e6 + np.random.default_rng(0).standard_normal((300, 2))
    law = mcs.mixture(x.astype(np.float64), kernel=mcs.Isotropic(0.3), frame=mcs.Affine())
    np.testing.assert_allclose(np.asarray(law.points()[0]).std(0), 1, rtol=1e-2)


BAD = {
    "rank": (np.zeros(3), "non-empty table"),
    "empty": (np.zeros((0, 2)), "non-empty table"),
    "no columns": (np.zeros((2, 0)), "non-empty table"),
    "nan": (np.array([[0.0, np.nan], [1.0, 2.0]]), "got nan in column 1, row 0"),
    "inf": (pd.DataFrame({"a": [0.0, 1.0], "mass": [np.inf, 0]}), "inf in column 'mass'"),
    "text": (pd.DataFrame({"a": [0.0, 1.0], "name": ["x", "y"]}), "'name'"),
    "ragged": ([[1.0], [1.0, 2.0]], "table of numbers"),
    "complex": (np.ones((2, 2)) * 1j, "real numbers"),
    "huge": (np.array([[1e200], [1.0]]), "overflows"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_bad_tables_are_named(case):
    x, message = BAD[case]
    with pytest.raises(ValueError, match="x: .*" + message):
        mcs.mixture(x)


def test_the_same_key_gives_the_same_law_and_another_another():
    x = np.random.default_rng(0).normal(size=(300, 2)).round(1)  # ties, too
    kernel, frame = mcs.Local(0.5, 4, most_rows=200), mcs.Gaussianize()
    first, again, other = (
        mcs.mixture(x, kernel=kernel, frame=frame, key=jax.random.key(k)) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.log_prob(x), again.log_prob(x))
    assert (first.log_prob(x) != other.log_prob(x)).all()


@pytest.mark.parametrize("w", [[1.0], [-1.0, 1.0], [0.0, 0.0], [np.nan, 1.0]])
def test_bad_weights_are_named(w):
    with pytest.raises(ValueError, match="weights: expected"):
        mcs.mixture(np.eye(2), weights=w)


def test_kernels_say_what_they_cannot_do(key):
    with pytest.raises(ValueError, match="h: expected a positive"):
        mcs.mixture(np.eye(2), kernel=mcs.Isotropic(0.0))
    with pytest.raises(ValueError, match="empirical measure"):
        mcs.mixture(np.eye(2)).log_prob(np.eye(2))
    with pytest.raises(ValueError, match="rows: expected an integer of at least 1"):
        mcs.mixture(np.eye(2)).subsample(key, 0)


FRAMES = {"identity": mcs.Identity(), "affine": mcs.Affine(), "whiten": mcs.Affine(whiten=True)}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_invert_and_know_their_jacobian(name, tol):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 3)) * 10 + 50
    frame = FRAMES[name].fit(x)
    y = frame.forward(jnp.asarray(x))
    np.testing.assert_allclose(frame.inverse(y), x, rtol=tol(1e-10, 1e-4))
    jacobian = jax.vmap(jax.jacfwd(lambda row: frame.forward(row[None])[0]))(jnp.asarray(x[:5]))
    expected = jnp.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(frame.log_det(jnp.asarray(x[:5])), expected, atol=tol(1e-10, 1e-4))
    if name != "identity":
        np.testing.assert_allclose(frame.forward(x).std(0), 1, rtol=1e-6)


def test_a_law_of_any_shape_compiles_nothing(compiled):
    for n in (90, 137, 211):
        x = np.random.default_rng(0).standard_normal((n, 3))
        mcs.mixture(x, kernel=mcs.Local(0.7, 3), frame=mcs.Affine(whiten=True))
        assert not compiled or n == 90  # EM and the division of keys, the first time
        compiled.clear()


def test_columns_of_different_units_are_warned_of_unless_a_frame_is_given():
    x = np.random.default_rng(0).standard_normal((50, 3)) * [1.0, 1e-4, 5.0]
    with pytest.warns(UserWarning, match=r"column 2 spreads [456]e\+04 times as far as column 1"):
        mcs.mixture(x, kernel=mcs.Whitened())
    mcs.mixture(x, kernel=mcs.Whitened(), frame=mcs.Affine())
    mcs.mixture(x * [1, 1e2, 1], kernel=mcs.Whitened())
    x[:, 1] = 0.1  # constant, its deviation not quite zero: no spread to compare
    assert x[:, 1].std() > 0
    mcs.mixture(x, kernel=mcs.Isotropic(0.1))
