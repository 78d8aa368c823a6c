"""Tied values: found, spread, and put back in draws."""

import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore.frames.ties import dequantized
from tests.frames.test_frames import COLUMNS, KEY, RNG


def test_ties_are_found_and_spread():
    x = np.stack([RNG.integers(0, 5, 1000), RNG.standard_normal(1000)], 1).astype(float)
    spread, tied, _ = dequantized(KEY, x)
    assert list(tied) == [0] and tied[0] == 1
    assert np.abs(spread[:, 0] - x[:, 0]).max() <= 0.5 and len(np.unique(spread[:, 0])) == 1000
    np.testing.assert_array_equal(np.round(spread[:, 0]), x[:, 0])
    np.testing.assert_array_equal(spread[:, 1], x[:, 1])


def test_ties_by_rounding_of_float32_do_not_count():
    rng = np.random.default_rng(0)
    x = (2 * rng.standard_normal((300_000, 3)) + 300).astype(np.float32).astype(float)
    x[::3, 1] = 300.0  # an atom
    x[:, 2] = np.round(x[:, 2], 2)  # a lattice
    assert len(np.unique(x[:, 0])) < 0.95 * len(x)
    spread, tied, ties = dequantized(KEY, x)
    np.testing.assert_array_equal(spread[:, 0], x[:, 0])
    assert list(tied) == [1, 2] and abs(tied[1] - 1 / 3) < 0.01 and tied[2] > 0.99
    assert ties[0, 1, 0] == 300.0


def test_draws_go_back_to_ties(tmp_path, key):
    n = 2000
    table = np.stack([COLUMNS["integers"][:n], COLUMNS["atom"][:n], COLUMNS["normal"][:n]], 1)
    law = mcs.mixture(table, kernel=mcs.Local(0.9, clusters=3), frame=mcs.Gaussianize())
    draws = np.asarray(law.sample(key, 4000))
    assert set(np.unique(draws[:, 0])) == {0.0, 1.0, 2.0, 3.0}
    share = np.mean(table[:, 1] == 0)  # the kernel carries a little of an atom's mass off it
    assert share - 0.1 < np.mean(draws[:, 1] == 0) < share + 0.03
    assert len(np.unique(draws[:, 2])) > 3900
    net = mcs.MLP(width=4, depth=1)
    gen = mcs.Generator(net.init(key, 3, law.dtype), law.frame, net)
    gen.save(tmp_path / "g.safetensors")
    samples = gen.sample(key, 100)
    assert set(np.unique(samples[:, 0])) <= {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_array_equal(mcs.load(tmp_path / "g.safetensors").sample(key, 100), samples)


@pytest.mark.slow
def test_likelihood_cannot_be_bought_on_ties():
    """The density at an atom stays near what spreading it over 1 % of the range gives."""
    x = np.stack([COLUMNS["atom"], COLUMNS["normal"]], 1)
    kernel = mcs.Auto(partitions=1, most_clusters=40)
    law = mcs.mixture(x, kernel=kernel, frame=mcs.Gaussianize())
    at_atom = law.log_prob(jnp.asarray([[0.0, 0.0]]))
    assert float(at_atom[0]) < np.log(0.5 / 0.02 * 0.4) + 1.5
    assert set(law.report.tied) == {0}
