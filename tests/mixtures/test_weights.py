"""Weights are repeated rows: for every kernel, frame, choice and metric; and equal rows are weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore.frames import merged
from mcscore.mixtures.selection import _held_out

KEY = jax.random.key(3)
SINGLE = jnp.zeros(()).dtype == jnp.float32


def rows(n=300, d=2, seed=5):
    return np.random.default_rng(seed).standard_normal((n, d)) @ [[1.0, 0.5], [0.0, 2.0]]


def repeated(x, seed=6):
    times = np.random.default_rng(seed).integers(1, 5, len(x))
    return np.repeat(x, times, 0), times.astype(float)


@pytest.mark.parametrize("frame", [mcs.Identity(), mcs.Affine(whiten=True), mcs.Gaussianize()])
@pytest.mark.parametrize(
    "kernel",
    [
        mcs.Isotropic(0.4),
        mcs.Isotropic(0.4, preserve=True),
        mcs.Whitened(0.4),
        mcs.Whitened(),
        mcs.Local(0.5, clusters=3, partitions=2),
        mcs.Local(),
        mcs.Auto(partitions=1, most_clusters=4),
    ],
)
def test_integer_weights_are_repeated_rows(kernel, frame):
    x = rows()
    twice, times = repeated(x)
    by_rows = mcs.mixture(twice, kernel=kernel, frame=frame, key=KEY)
    by_weights = mcs.mixture(x, weights=times, kernel=kernel, frame=frame, key=KEY)
    at = rows(50, seed=8)
    np.testing.assert_allclose(by_rows.log_prob(at), by_weights.log_prob(at), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_rows.variance, by_weights.variance, rtol=1e-5)
    assert (
        abs(by_rows.report.copies - np.mean(times[np.repeat(range(300), times.astype(int))] > 1))
        < 1e-9
    )
    assert by_rows.report.rows == len(twice) and by_weights.report.copies == 0


@pytest.mark.parametrize("kernel", [mcs.Whitened(0.3), mcs.Local(0.3, clusters=2), mcs.Auto()])
def test_rows_of_no_weight_do_not_matter(kernel):
    x = rows(500)
    far = np.concatenate([x, 1e3 + 100 * rows(2500, seed=9)])
    weights = np.where(np.arange(len(far)) < 500, 1.0, 1e-12)
    options = dict(kernel=kernel, frame=mcs.Affine(whiten=True))
    draws = np.asarray(mcs.mixture(far, weights=weights, **options).sample(KEY, 20_000))
    np.testing.assert_allclose(np.cov(draws.T), np.cov(x.T), rtol=0.25, atol=0.2)


def test_the_law_s_variance_is_its_own():
    x = np.concatenate([rows(2000), 30 + rows(2000, seed=9)])
    weights = np.where(np.arange(4000) < 2000, 1.0, 0.05)
    for kernel in (mcs.Isotropic(0.3), mcs.Whitened(0.3), mcs.Local(0.3, clusters=3)):
        law = mcs.mixture(x, weights=weights, kernel=kernel, frame=mcs.Affine())
        y = np.asarray(law.frame.forward(law.sample(KEY, 200_000)), float)
        assert abs(float(law.variance) / y.var(0).mean() - 1) < 0.03


def chain(x, seed=7):
    """A Metropolis chain's repeats: every state stays for a while."""
    times = np.random.default_rng(seed).geometric(0.3, len(x))
    return np.repeat(x, times, 0)


@pytest.mark.once
@pytest.mark.parametrize("make", [chain, lambda x: np.concatenate([x, x])])
def test_copies_do_not_mislead_the_choice(make):
    x, fresh = rows(600), rows(4000, seed=10)
    auto = mcs.Auto(partitions=2, most_clusters=16)
    plain, copied = (mcs.mixture(table, kernel=auto, key=KEY) for table in (x, make(x)))
    likelihoods = [float(np.mean(law.log_prob(fresh))) for law in (plain, copied)]
    assert abs(likelihoods[0] - likelihoods[1]) < 0.1
    assert abs(copied.report.log_likelihood - likelihoods[1]) < 0.2
    assert copied.report.copies > 0.5 and "rows with a copy" in str(copied.report)


@pytest.mark.once
def test_groups_are_held_out_together():
    """Near copies, one subject's rows: the likelihood of a new subject's is told only by groups."""
    r = np.random.default_rng(12)
    subjects = np.repeat(rows(80), 12, 0)
    x, groups = subjects + 0.01 * r.standard_normal(subjects.shape), np.repeat(range(80), 12)
    auto, fresh = mcs.Auto(partitions=1, most_clusters=80), rows(4000, seed=10)
    alone = mcs.mixture(x, kernel=auto, key=KEY)
    law = mcs.mixture(x, kernel=auto, key=KEY, groups=[f"subject {g}" for g in groups])
    assert np.mean(law.log_prob(fresh)) > np.mean(alone.log_prob(fresh)) + 1
    assert abs(law.report.log_likelihood - float(np.mean(law.log_prob(fresh)))) < 1
    with pytest.raises(ValueError, match="groups: expected a label for each of 960 rows"):
        mcs.mixture(x, kernel=auto, groups=groups[:-1])
    with pytest.raises(ValueError, match="groups: expected two"):
        mcs.mixture(x, kernel=auto, groups=np.zeros(960))


def test_what_are_copies():
    r = np.random.default_rng(1)
    share = lambda x: merged(x, np.full(len(x), 1 / len(x))).share  # noqa: E731
    assert share(r.poisson(2, (500, 2)).astype(float)) == 0  # few values, many equal rows
    both = np.where(r.random((500, 1)) < 0.4, 0, r.random((500, 2)))
    assert share(both) == 0  # zeros together
    assert share(np.append(r.random(500), np.zeros(50))[:, None]) == 0  # an atom
    x = r.random((500, 2))
    assert share(x[r.integers(0, 500, 500)]) > 0.5  # a bootstrap
    assert share(np.append(x, [[-0.0, 1.0], [0.0, 1.0]], 0)) == pytest.approx(2 / 502)
    doubled = np.repeat(np.column_stack([r.integers(0, 3, 300), r.random(300)]), 2, 0)
    kept = merged(doubled, np.full(600, 1 / 600))
    assert kept.share == 1 and len(kept.kept) == 300
    np.testing.assert_allclose(kept.weights, 1 / 300)


def test_metrics_take_weights():
    x, y = rows(120), rows(150, seed=9) + 1
    (xx, wx), (yy, wy) = repeated(x), repeated(y, 11)
    weights = dict(x_weights=wx, y_weights=wy)
    wasserstein = [
        mcs.metrics.sliced_wasserstein(KEY, *tables, **given, projections=2000)
        for tables, given in (((x, y), weights), ((xx, yy), {}))
    ]
    assert abs(wasserstein[0] / wasserstein[1] - 1) < 0.02
    kl = [mcs.metrics.column_kl(x, y, **weights), mcs.metrics.column_kl(xx, yy)]
    np.testing.assert_allclose(*kl, rtol=0.02)
    moments = mcs.metrics.column_moments(x, weights=wx), mcs.metrics.column_moments(xx)
    np.testing.assert_allclose(*moments, rtol=1e-9, atol=1e-9)
    pairs = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2).mean()  # noqa: E731
    energy = mcs.metrics.energy_distance(x, y, **weights)
    biased = 2 * pairs(xx, yy) - sum(
        pairs(a, a) / (1 - np.sum((w / w.sum()) ** 2)) for a, w in ((xx, wx), (yy, wy))
    )
    assert abs(energy - biased) < 1e-4
    value, threshold = mcs.metrics.mmd(KEY, x, x, x_weights=wx, y_weights=wx)
    assert value < threshold < mcs.metrics.mmd(KEY, x, y, **weights).value


@pytest.mark.parametrize("offset, unit", [(1e6, 1e-3), (1.7e9, 1.0), (0.0, 1e-20), (-5e3, 1.0)])
def test_metrics_do_not_depend_on_offset_and_unit(offset, unit):
    x, y, z = rows(200), rows(200, seed=9) + 0.3, rows(200, seed=13)
    far = [offset + unit * a for a in (x, y, z)]
    near = [(a - offset) / unit for a in far]  # rounded as they are
    m = mcs.metrics
    for metric, scale in (
        (lambda x, y: m.sliced_wasserstein(KEY, x, y), unit),
        (m.energy_distance, unit),
        (lambda x, y: m.mmd(KEY, x, y).value, 1),
        (m.column_kl, 1),
        (lambda x, y: m.memorization(x, x, y).share, 1),
        (lambda x, y: m.memorization(y, x, z[:200] * unit + offset if x is far[0] else z).share, 1),
    ):
        found, expected = metric(*far[:2]), metric(*near[:2])
        np.testing.assert_allclose(found / scale, expected, rtol=2e-3, atol=1e-5)
    assert m.memorization(far[0], far[0], far[1]).share == 1


@pytest.mark.once
def test_metrics_of_sparse_columns_and_many_rows_are_numbers():
    r = np.random.default_rng(2)
    x, y = (np.where(r.random((400, 2)) < 0.9, 0, r.random((400, 2))) for _ in range(2))
    assert np.isfinite(mcs.metrics.mmd(KEY, x, y)).all()
    assert np.isfinite(mcs.metrics.mmd(KEY, 0 * x, 0 * x)).all()
    assert np.isfinite(mcs.metrics.energy_distance(r.random((47_000, 1)), r.random((10, 1))))


@pytest.mark.once
@pytest.mark.parametrize("sizes", [[90, 10], [99, 1], [10, 90], [40, 30, 30], [1] * 100])
def test_groups_of_any_sizes_make_folds(sizes):
    """Every fold trains on half of the rows at least, whichever group comes first."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(4):
        order, held = _held_out(np.random.default_rng(seed), 100, 3, groups, 1000)
        assert len(order) == 100 and held
        for fold in held:
            assert 0 < fold.sum() <= 50
            assert not set(groups[fold]) & set(groups[~fold])
    auto = mcs.Auto(partitions=1, most_clusters=4)
    assert np.isfinite(mcs.mixture(rows(100), kernel=auto, groups=groups).report.log_likelihood)


def test_one_group_is_left():
    auto, groups = mcs.Auto(partitions=1, most_clusters=4), [0] * 90 + [1] * 10
    with pytest.raises(ValueError, match="groups: expected two groups at least"):
        mcs.mixture(rows(100), kernel=auto, groups=groups, weights=[1] * 90 + [0] * 10)
    with pytest.raises(ValueError, match="groups: expected two groups at least"):
        _held_out(np.random.default_rng(0), 100, 3, np.zeros(100, int), 1000)


def test_rows_in_messages_are_those_of_the_table():
    with pytest.raises(ValueError, match="got nan in column 0, row 2"):
        mcs.mixture([[0.0], [1.0], [np.nan]], weights=[0, 1, 1])
    with pytest.raises(ValueError, match=r"holds -1 in row 3, outside"):
        mcs.mixture([[9.0], [1.0], [2.0], [-1.0]], weights=[0, 1, 1, 1], bounds={0: (0, None)})


def test_huge_weights_are_weights():
    law = mcs.mixture(rows(50), weights=[1e308] * 50, kernel=mcs.Isotropic(0.5))
    plain = mcs.mixture(rows(50), kernel=mcs.Isotropic(0.5))
    np.testing.assert_array_equal(law.log_prob(rows(9)), plain.log_prob(rows(9)))
