"""What is found of columns: steps, levels at any distance, atoms; and of none that are continuous."""

import numpy as np
import pytest

import mcscore as mcs
from mcscore.frames import placed
from mcscore.frames.columns import column_of
from mcscore.frames.lattice import lattice_of
from tests.frames.test_frames import COLUMNS, KEY, RNG
from tests.frames.test_ties import AUTO, LOCAL, rng, share_agrees, zeros_before_a_gap


def test_continuous_columns_stay_as_they_are():
    x = np.stack([COLUMNS[name] for name in ("normal", "cauchy")], 1)
    (way,) = placed(KEY, x, np.full(len(x), 1 / len(x)))
    assert way.x is x and not any(way.columns)
    inner = mcs.Identity()
    assert way.frame(inner) is inner
    r = np.random.default_rng(0)
    single = (2 * r.standard_normal((300_000, 1)) + 300).astype(np.float32).astype(float)
    assert len(np.unique(single)) < 0.95 * len(single)  # ties by rounding of float32 do not count
    assert not any(placed(KEY, single, np.full(len(single), 1 / len(single)))[0].columns)


@pytest.mark.parametrize(
    "values, step",
    [
        (np.arange(0, 40) / 2, 0.5),
        (np.arange(1000, 9000, 7), 7.0),
        (np.arange(300).astype(np.float32) * np.float32(0.01), 0.01),
        (1.7e9 + 60.0 * np.arange(50), 60.0),
        (np.arange(-500, 500) * 1e-12, 1e-12),
        (np.arange(30) / 3 + 0.123456, 1 / 3),
        (RNG.standard_normal(300), 0.0),
        (RNG.uniform(size=3000).astype(np.float32), 0.0),
        (np.exp(np.arange(12.0)), 0.0),
    ],
)
def test_steps_are_found(values, step):
    values = np.unique(values.astype(float))
    origin, found = lattice_of(values, np.full(len(values), 9))
    assert abs(found - step) <= 1e-6 * step
    if step:
        places = (values - origin) / found
        assert np.abs(places - np.round(places)).max() < 0.01


def test_far_rows_of_no_weight_do_not_widen_atoms():
    x = zeros_before_a_gap()[:, :1]
    far = np.append(x, 1e6 * (1 + np.arange(3000.0))[:, None], 0)
    weights = np.where(np.arange(6000) < 3000, 1, 1e-13)
    rooms = [
        way.columns[0].rooms[:, 0]
        for way in (
            *placed(KEY, x, np.full(3000, 1 / 3000)),
            *placed(KEY, far, weights / weights.sum()),
        )
        if not any(way.heaped)
    ]
    np.testing.assert_allclose(rooms[1], rooms[0], rtol=0.01)


@pytest.mark.once
@pytest.mark.parametrize(
    "levels", [(0, 5, 10, 20, 50), (1, 2, 4, 8, 16), (0, 10, 100), tuple(np.arange(16) ** 3)]
)
@pytest.mark.parametrize("kernel", [AUTO, LOCAL], ids=["auto", "local"])
def test_levels_at_uneven_distances_are_the_only_ones(levels, kernel):
    """No draw between them, though they lie on a lattice."""
    r = rng()
    column = r.choice(np.array(levels, float), 1500)
    x = np.stack([column, np.log1p(column) + 0.3 * r.standard_normal(1500)], 1)
    law = mcs.mixture(x, kernel=kernel, frame=mcs.Gaussianize())
    draws = np.asarray(law.sample(KEY, 20_000), np.float64)
    assert set(np.unique(draws[:, 0])) == set(levels)
    for level in levels if kernel is AUTO else ():
        share_agrees(x, draws, lambda a, level=level: a[:, 0] == level, 4)


@pytest.mark.parametrize("name", COLUMNS)
def test_equal_weights_and_nearly_equal_ones_find_the_same(name):
    x = COLUMNS[name]
    equal = np.full(len(x), 1 / len(x))
    nearly = equal * (1 + 1e-9 * (np.arange(len(x)) == 0))
    one, other = (
        column_of(x, equal),
        column_of(x, nearly),
    )  # sorted without the rows' numbers, and with
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert (one.kind, one.lattice, one.apart) == (other.kind, other.lattice, other.apart)
        for part in ("repeated", "values", "level", "cells", "atoms"):
            assert np.array_equal(getattr(one, part), getattr(other, part))
        assert np.array_equal(one.values[one.level], x)
