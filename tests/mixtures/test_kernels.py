"""Local kernels, in closed form and on hostile rows."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import gaussian_kde

import mcscore as mcs
from mcscore.jet.sampling import draw
from mcscore.mixtures import covariances, kernels
from mcscore.mixtures.clustering import clusterings
from mcscore.mixtures.layout import mean_of
from tests import reference
from tests.conftest import X64
from tests.reference import equal_weights, two_clusters

RNG, KEY = np.random.default_rng(0), jax.random.key(0)

KERNELS = {
    "isotropic": mcs.Isotropic(0.3),
    "isotropic, preserving": mcs.Isotropic(0.3, preserve=True),
    "whitened": mcs.Whitened(0.3),
    "whitened, preserving": mcs.Whitened(0.3, preserve=True),
    "local": mcs.Local(0.6, clusters=2, partitions=1),
    "local, partitions": mcs.Local(0.5, clusters=3, partitions=3),
    "local, fewer rows": mcs.Local(0.5, clusters=2, partitions=2, most_rows=300),
}
LAWS = {
    name: mcs.mixture(two_clusters(), kernel=kernel, block_rows=64)
    for name, kernel in KERNELS.items()
}


def components(law):
    """Return means, weights and covariances of every component, in float64."""
    points, log_weights = (np.asarray(a, np.float64) for a in law.points())
    b = law.blocks
    bases = np.broadcast_to(np.eye(law.dimension), (len(b.centers), *[law.dimension] * 2))
    bases = bases if b.bases is None else np.asarray(b.bases, np.float64)
    covariances = np.einsum("kij,kj,klj->kil", bases, np.asarray(b.variances, np.float64), bases)
    covariances = np.repeat(covariances, b.rows.shape[1], 0)
    kept = np.isfinite(log_weights)
    return points[kept], np.exp(log_weights[kept]), covariances[kept]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
def test_jet_matches_the_loop(name, t):
    law = LAWS[name]
    y = np.asarray(draw(jax.random.key(1), law.blocks, 12), np.float32).astype(np.float64)
    found = mcs.flows.evaluate(jnp.asarray(y), t, law, mcs.Rectified())
    expected = reference.jet(y, 1 - t, t, *components(law))
    bound = 1e-9 if X64 else 1e-4
    for part, value in zip(found, expected, strict=True):
        assert np.linalg.norm(part - value) < bound * np.linalg.norm(value)


@pytest.mark.parametrize("name", KERNELS)
def test_readings_and_derivatives(name):
    law = LAWS[name]
    x = draw(jax.random.key(2), law.blocks, 5)
    schedule = mcs.VP()
    density = lambda row: mcs.log_density(row[None], 0.3, law, schedule)[0]  # noqa: E731
    score = mcs.score(x, 0.3, law, schedule)
    bound = dict(rtol=1e-8 if X64 else 2e-3, atol=1e-8 if X64 else 2e-3)
    np.testing.assert_allclose(score, jax.vmap(jax.grad(density))(x), **bound)
    alpha, sigma = schedule(0.3)
    np.testing.assert_allclose(
        mcs.denoise(x, 0.3, law, schedule), (x + sigma**2 * score) / alpha, **bound
    )
    drift, diffusion = schedule.drift(0.3), schedule.diffusion(0.3)
    expected = drift * x - diffusion / 2 * score
    np.testing.assert_allclose(mcs.velocity(x, 0.3, law, schedule), expected, **bound)


@pytest.mark.parametrize("name", KERNELS)
def test_there_and_back(name, key):
    law, tight = LAWS[name], dict(solver=diffrax.Dopri5(), steps=80)
    z = jax.random.normal(key, (20, 3), law.dtype)
    x = mcs.transport(z, law, mcs.Cosine(), **tight)
    np.testing.assert_allclose(
        mcs.encode(x, law, mcs.Cosine(), **tight), z, atol=1e-4 if X64 else 5e-3
    )


@pytest.mark.parametrize("name", KERNELS)
def test_flow_density_is_the_closed_form(name, key):
    """log p_0(G(z)) = log p_1(m + v z) + d log v - log |det dG/dz|, by central differences.

    Noise starts at the law's own mean m and deviation v at t = 1.
    """
    law, schedule = LAWS[name], mcs.Linear(eps=1e-4)
    z = jax.random.normal(key, (4, 3), law.dtype)
    h = 1e-5 if X64 else 1e-2
    shifts = h * jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3), -jnp.eye(3)])
    moved = (z[:, None] + shifts[None]).astype(law.dtype).reshape(-1, 3)
    ends = mcs.transport(moved, law, schedule, solver=diffrax.Dopri5(), steps=60).reshape(4, 7, 3)
    x, jacobian = ends[:, 0], (ends[:, 1:4] - ends[:, 4:]) / (2 * h)
    alpha, sigma = schedule(1.0)
    v = jnp.sqrt(alpha**2 * law.variance + sigma**2)
    start = mcs.log_density(alpha * mean_of(law.blocks)[None] + v * z, 1.0, law, schedule)
    along = start + 3 * jnp.log(v) - jnp.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(
        along, mcs.log_density(x, 0.0, law, schedule), atol=1e-5 if X64 else 2e-2
    )


def test_a_wide_kernel_needs_few_rows(monkeypatch, key):
    """Rows that the kernel blurs are left out, at a Kullback-Leibler divergence of about 0.002 nats."""
    x, kernel = two_clusters(n=4000), mcs.Local(0.9, clusters=2, partitions=1)
    few = mcs.mixture(x, kernel=kernel)
    monkeypatch.setattr(covariances, "BLURRED", 1e-9)
    every = mcs.mixture(x, kernel=kernel)
    stored = [np.isfinite(law.blocks.log_weights).sum() for law in (few, every)]
    assert stored[0] < 200 and stored[1] == 4000
    y = every.sample(key, 20_000)
    assert abs(float(jnp.mean(every.log_prob(y) - few.log_prob(y)))) < 0.005


def test_partitions_differ():
    x = RNG.standard_normal((300, 2))
    w = equal_weights(x)
    first, second = (
        found.labels for found in clusterings([(x, w, 5, KEY), (x, w, 5, jax.random.key(1))])
    )
    again = clusterings([(x, w, 5, KEY)])[0].assign(x)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


def test_clusters_are_samples_of_overlapping_components():
    rng = np.random.default_rng(0)
    which = rng.integers(2, size=20_000)
    x = rng.standard_normal((20_000, 2)) * np.array([[1.0, 1.0], [2.0, 0.5]])[which]
    x[:, 0] += 2 * which
    labels = clusterings([(x, equal_weights(x), 2, KEY)])[0].labels
    assert max(x[labels == c, 0].std() for c in (0, 1)) > 1.6  # cut at a border: 1.33
    x = x[:4000]
    law = mcs.mixture(x, kernel=mcs.Local(1.0, clusters=2, partitions=1))
    one, two = (
        jax.scipy.stats.norm.logpdf(x, np.array([[2.0 * k, 0]]), np.array([scale])).sum(1)
        for k, scale in ((0, [1.0, 1.0]), (1, [2.0, 0.5]))
    )
    truth = jnp.logaddexp(one, two) - jnp.log(2)
    assert float(jnp.mean(truth - law.log_prob(x))) < 0.012  # nats; cut at a border: 0.025


def test_limits_of_the_bandwidth():
    x = two_clusters()
    near = mcs.mixture(x, kernel=mcs.Local(1e-3, clusters=2, partitions=1))
    points = np.asarray(components(near)[0])
    order, expected = np.lexsort(points.T), np.lexsort(x.T)
    np.testing.assert_allclose(points[order], x[expected], atol=1e-4)  # h -> 0: the data
    one = mcs.mixture(x, kernel=mcs.Whitened(1.0, preserve=True))
    gaussian = jax.scipy.stats.multivariate_normal.logpdf
    y = jnp.asarray(x[:5], one.dtype)
    log_p = jax.vmap(gaussian, (0, None, None))(
        y, jnp.asarray(x.mean(0)), jnp.asarray(np.cov(x.T, bias=True))
    )
    np.testing.assert_allclose(
        one.log_prob(y), log_p, atol=0.05
    )  # h = 1: one Gaussian, up to shrinkage


def test_local_by_rule_has_as_many_clusters_as_each_has_rows_per_column_and_scotts_bandwidth():
    x = two_clusters()
    assert int(np.sqrt(400 / 3)) == 11
    scott = (400 / 11) ** (-1 / 7)
    law, same = (mcs.mixture(x, kernel=k) for k in (mcs.Local(), mcs.Local(scott, 11)))
    np.testing.assert_array_equal(law.blocks.variances, same.blocks.variances)
    assert law.report.kernel == same.report.kernel == repr(mcs.Local(scott, 11))
    fewer = mcs.Local(most_rows=440).by_rule(400.0, 3)  # 10 rows of each cluster are stored
    assert fewer.h == pytest.approx(10 ** (-1 / 7))


@pytest.mark.parametrize("name", ["pinwheel", "checkerboard"])
def test_the_rule_is_near_the_best_bandwidth(name, key):
    points = np.asarray(mcs.datasets.TWO_DIMENSIONAL[name](key, 4000))
    train, test = np.split((points - points.mean(0)) / points.std(0), 2)

    def score(h):
        return float(mcs.mixture(train, kernel=mcs.Local(h, partitions=1)).log_prob(test).mean())

    assert score(None) > max(map(score, (0.2, 0.4, 0.6, 0.8, 1.0))) - 0.03


def test_whitened_by_rule_is_scipys_kernel_density_of_weighted_rows():
    x, weights = two_clusters(), np.random.default_rng(0).uniform(0.1, 1, 400)
    law = mcs.mixture(x, kernel=mcs.Whitened(), weights=weights)
    expected = gaussian_kde(x.T, weights=weights)  # its bandwidth is Scott's rule
    # Ours has a shrunk covariance.
    np.testing.assert_allclose(law.log_prob(x), expected.logpdf(x.T), atol=0.05)
    assert law.report.kernel == repr(mcs.Whitened(float(expected.factor)))


def test_weights_count():
    """A row of weight two is two rows."""
    x = two_clusters(60)
    double = np.concatenate([x, x[:10]])
    weights = np.where(np.arange(60) < 10, 2.0, 1.0)
    y = jnp.asarray(x[::7])
    for kernel in (mcs.Whitened(0.3), mcs.Isotropic(0.3, preserve=True)):
        first = mcs.mixture(x, kernel=kernel, weights=weights).log_prob(y)
        np.testing.assert_allclose(first, mcs.mixture(double, kernel=kernel).log_prob(y), atol=0.05)


def test_effective_sample_size_counts_components():
    law = mcs.mixture(
        np.zeros((50, 2)) + RNG.standard_normal((50, 2)) * 1e-6, kernel=mcs.Isotropic(1.0)
    )
    np.testing.assert_allclose(law.effective_sample_size(jnp.zeros((1, 2))), 50, rtol=1e-4)
    apart = mcs.mixture(np.array([[0.0], [1e3]]), kernel=mcs.Isotropic(1.0))
    np.testing.assert_allclose(apart.effective_sample_size(jnp.zeros((1, 1))), 1, rtol=1e-4)


@pytest.mark.parametrize(
    "kernel", [mcs.Local(1.5, 2), mcs.Local(0.5, 0), mcs.Local(0.5, 2, partitions=0)]
)
def test_bad_kernels_are_named(kernel):
    with pytest.raises(ValueError, match=r"expected (an integer of )?at"):
        mcs.mixture(two_clusters(), kernel=kernel)


def test_reports_do_not_recompile(key):
    from mcscore.flows import fields

    x = two_clusters(100)
    laws = [mcs.mixture(x + shift, kernel=mcs.Isotropic(0.3)) for shift in (0.0, 1.0)]
    mcs.score(jnp.zeros((1, 3)), 0.5, laws[0], mcs.Cosine())
    before = fields.at_times._cache_size()
    mcs.score(jnp.zeros((1, 3)), 0.5, laws[1], mcs.Cosine())
    assert fields.at_times._cache_size() == before


@pytest.mark.parametrize("unit", [1e-15, 1e-7, 1e9])
@pytest.mark.parametrize("name", KERNELS)
def test_units_change_nothing(name, unit):
    """A law of rows in other units is the law in other units, without a frame to standardize them."""
    x, kernel = two_clusters().astype(np.float64), KERNELS[name]
    plain = isinstance(kernel, mcs.Isotropic)
    changed = mcs.Isotropic(kernel.h * unit, kernel.preserve) if plain else kernel
    law = mcs.mixture(x, kernel=kernel, block_rows=64)
    other = mcs.mixture(unit * x, kernel=changed, block_rows=64)
    expected = np.asarray(law.log_prob(x[:20])) - 3 * np.log(unit)
    found = np.asarray(other.log_prob(unit * x[:20]))
    np.testing.assert_allclose(found, expected, atol=1e-6 if X64 else 2e-3)


def test_what_single_precision_cannot_hold_is_refused():
    x = two_clusters().astype(np.float32)
    for kernel in (mcs.Isotropic(1e-10), mcs.Whitened(1e-9)):
        with pytest.raises(ValueError, match="finer than float32 resolves"):
            _in_single(x, kernel)
    with pytest.raises(ValueError, match="underflow float32"):
        _in_single(1e-20 * x, mcs.Whitened(0.3))
    assert np.isfinite(
        _in_single(1e-20 * x, mcs.Whitened(0.3), mcs.Affine()).log_prob(1e-20 * x)
    ).all()
    with pytest.raises(ValueError, match=r"values of column 1 reach .* float32 cannot resolve"):
        _in_single(x * np.array([1, 1e-37, 1], np.float32), mcs.Whitened(0.3))


def _in_single(x, kernel, frame=None):
    return mcs.mixture(np.asarray(x, np.float32), kernel=kernel, frame=frame)


@pytest.mark.once
@pytest.mark.parametrize("kernel", [mcs.Local(0.5, clusters=6), mcs.Auto(most_clusters=8)])
@pytest.mark.parametrize("weighted", [False, True])
def test_partitions_of_large_tables_share_the_rows_out(monkeypatch, kernel, weighted):
    monkeypatch.setattr(kernels, "ENOUGH", 4000)
    own = kernels.rows_of_partitions(KEY, 16_002, 4)
    assert np.array_equal(np.sort(np.concatenate(own)), np.arange(16_002))
    assert kernels.rows_of_partitions(KEY, 15_999, 4) == [slice(None)] * 4

    rng = np.random.default_rng(0)
    x = two_clusters(n=25_000) @ rng.standard_normal((3, 3))
    weights = rng.exponential(size=len(x)) if weighted else np.ones(len(x))
    weights /= weights.sum()
    law = mcs.mixture(x[:20_000], weights=weights[:20_000], kernel=kernel, frame=mcs.Affine())
    points, masses, spreads = components(law)
    inside = np.asarray(law.frame.forward(x[:20_000]), np.float64)
    shares = weights[:20_000] / weights[:20_000].sum()
    mean, center = (
        masses @ points,
        shares @ inside,
    )  # moments of all rows, though each is of one partition
    assert np.allclose(mean, center, atol=1e-5)
    spread = np.einsum("n,nij->ij", masses, spreads) + (masses * (points - mean).T) @ (
        points - mean
    )
    expected = (shares * (inside - center).T) @ (inside - center)
    assert np.allclose(spread, expected, atol=0.02 * np.abs(expected).max())
    monkeypatch.undo()
    whole = mcs.mixture(x[:20_000], weights=weights[:20_000], kernel=kernel, frame=mcs.Affine())
    gap = np.asarray(law.log_prob(x[20_000:])) - np.asarray(whole.log_prob(x[20_000:]))
    assert abs(gap.mean()) < 0.02
