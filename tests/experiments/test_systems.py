"""Stochastic systems of known truth: their moves, the errors, and a run that resumes."""

import jax
import numpy as np
import pytest

import mcscore as mcs
from mcscore.experiments import systems


def rng():
    return np.random.default_rng(0)


def test_ornstein_uhlenbeck_ends_where_it_must():
    system = systems.SYSTEMS["Ornstein-Uhlenbeck 1-D"]
    x, parameters = systems.observe(system, 20_000, rng())
    assert x.shape == (20_000, 101, 1) and parameters is None
    decay = np.exp(-1)
    start = x[:, 0, 0] - 1.2
    end = x[:, -1, 0] - 1.2
    np.testing.assert_allclose(np.mean(end - decay * start), 0, atol=0.005)
    spread = 0.3 * np.sqrt((1 - decay**2) / 2)
    np.testing.assert_allclose(np.std(end - decay * start), spread, rtol=0.02)


def test_growth_and_drift_have_their_moments():
    r = rng()
    one = np.ones((200_000, 1))
    grown = systems.SYSTEMS["geometric Brownian motion"].move(one, one[:, :0], r)
    np.testing.assert_allclose(grown.mean(), np.exp(0.02), atol=1e-3)
    np.testing.assert_allclose(np.log(grown).std(), 0.1, rtol=0.01)
    moved = systems.SYSTEMS["drift with a parameter"].move(0 * one, 0.5 * one, r)
    np.testing.assert_allclose(moved.mean(), 0.005, atol=1e-3)
    np.testing.assert_allclose(moved.std(), 0.1, rtol=0.01)


@pytest.mark.parametrize("y", [-0.05, 0.0, 0.4, 1.05])
def test_the_root_of_a_noisy_square_has_its_posterior(y):
    root = systems.SYSTEMS["root of a noisy square"].move
    x = root(np.full((60_000, 1), y), np.zeros((60_000, 0)), rng())[:, 0]
    grid = np.linspace(-1, 1, 4001)
    density = np.exp(-((y - grid**2) ** 2) / 0.02)
    share = np.cumsum(density) / density.sum()
    found = np.searchsorted(np.sort(x), grid) / len(x)
    assert np.abs(found - share).max() < 0.01


def test_errors_are_in_the_units_they_say():
    x = rng().standard_normal((50_000, 2)) * [1, 5]
    assert max(systems._errors(x, x).values()) < 1e-4
    moved = systems._errors(x * [1, 1.1] + [0.5, 0], x)
    np.testing.assert_allclose(moved["mean"], 0.5, atol=0.01)
    np.testing.assert_allclose(moved["deviation"], 0.1, atol=1e-6)
    np.testing.assert_allclose(moved["distribution"], 0.197, atol=0.01)  # 2 Phi(1/4) - 1
    scaled = systems._errors(np.add(x, [0.5, 0]), x, scale=np.array([10.0, 10.0]))
    np.testing.assert_allclose(scaled["mean"], 0.05, atol=1e-6)


@pytest.mark.once
def test_a_run_resumes_and_shows_what_it_found(tmp_path):
    small = dict(only="double well", quick=True, network=mcs.MLP(width=8, depth=1))
    found = systems.run(jax.random.key(0), tmp_path, **small)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "paths.png").stat().st_size > 10_000
    finished = (folder / "results.json").stat().st_mtime_ns
    assert systems.run(jax.random.key(0), tmp_path, **small) == found
    assert (folder / "results.json").stat().st_mtime_ns == finished
    text = systems.as_text(found)
    assert "double well" in text and "mean, 1 step" in text
    with pytest.raises(ValueError, match="only: expected one of"):
        systems.run(jax.random.key(0), tmp_path, only="tripple well")
