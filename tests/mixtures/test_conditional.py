"""Laws with a condition for every query: against closed forms, laws conditioned one by one, and draws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal, norm

import mcscore as mcs
from mcscore.jet import Evaluation

RNG = np.random.default_rng(7)
COVARIANCE = np.array(
    [[2, 0.6, -0.8, 0.3], [0.6, 1, 0.3, 0.2], [-0.8, 0.3, 1.5, 0.1], [0.3, 0.2, 0.1, 0.7]]
)
ROWS = RNG.multivariate_normal([1, 2, 3, -1], COVARIANCE, 3000)
EVALUATIONS = ["xla", *(("native",) if mcs.jet.native.targets() else ())]


def bent(n, seed=0):
    """Return c (n, 1) and x = (sin 2c, 0.3 c^2) with noise (0.1, 0.2), (n, 2)."""
    rng = np.random.default_rng([9, seed])
    c = rng.uniform(-2, 2, (n, 1))
    return c, middle(c) + rng.standard_normal((n, 2)) * [0.1, 0.2]


def middle(c):
    return np.concatenate([np.sin(2 * c), 0.3 * c**2], 1)


def regression(rows):
    """Return the slope, the remaining covariance and the mean: two first columns given the others."""
    covariance, mean = np.cov(rows.T, bias=True), rows.mean(0)
    slope = covariance[:2, 2:] @ np.linalg.inv(covariance[2:, 2:])
    return slope, covariance[:2, :2] - slope @ covariance[2:, :2], mean


@pytest.fixture(scope="module")
def gaussian():
    kernel = mcs.Local(1.0, clusters=1, partitions=1)
    return mcs.mixture(ROWS[:, :2], condition=ROWS[:, 2:], kernel=kernel, frame=mcs.Affine())


@pytest.fixture(scope="module")
def local():
    kernel = mcs.Local(0.5, clusters=4, partitions=2)
    return mcs.mixture(ROWS[:, :2], condition=ROWS[:, 2:], kernel=kernel, frame=mcs.Gaussianize())


def test_a_gaussian_given_its_columns_is_the_regression(gaussian, key, tol):
    slope, left, mean = regression(ROWS)
    x, c = ROWS[:40, :2] + 0.1, ROWS[:40, 2:] - 0.2
    middles = mean[:2] + (c - mean[2:]) @ slope.T
    expected = [multivariate_normal(m, left).logpdf(row) for m, row in zip(middles, x, strict=True)]
    np.testing.assert_allclose(gaussian.log_prob(x, condition=c), expected, atol=tol(1e-9, 1e-4))
    found = gaussian.frame.inverse(gaussian.mean(gaussian.conditions(c)))
    np.testing.assert_allclose(found, middles, atol=tol(1e-9, 1e-4))
    drawn = np.asarray(gaussian.sample(key, 100_000, condition=c[0]), np.float64)
    scale = np.sqrt(np.diag(left) / 100_000)
    assert (np.abs(drawn.mean(0) - middles[0]) < 5 * scale).all()
    np.testing.assert_allclose(np.cov(drawn.T), left, atol=0.03)


def test_queries_agree_with_laws_conditioned_one_by_one(local, tol):
    x, c = ROWS[::300, :2] + 0.1, ROWS[::300, 2:] - 0.1
    together = np.asarray(local.log_prob(x, condition=c))
    for row, given, value in zip(x, c, together, strict=True):
        part = local.at(given)
        np.testing.assert_allclose(part.log_prob(row[None])[0], value, atol=tol(1e-8, 1e-3))
    one = local.log_prob(x, condition=c[0])
    np.testing.assert_allclose(one[0], together[0], atol=tol(1e-9, 1e-4))


@pytest.mark.parametrize("kernel", EVALUATIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_fields_are_derivatives_of_the_density(local, kernel, alpha, tol):
    """Score and Laplacian by autodiff of the log density, in either kernel; velocity from the score."""
    law = replace(local, evaluation=Evaluation(kernel=kernel))
    schedule = mcs.Linear(eps=0.2)
    t = (1 - alpha) / 0.8 if alpha else 1.0
    y, c = np.asarray(law.frame.forward(ROWS[:6, :2])) + 0.1, ROWS[:6, 2:]
    y = jnp.asarray(y, law.dtype)
    if alpha < 0.3:
        t = 1.0

    def log_p(row, given):
        return mcs.log_density(row[None], t, law, schedule, condition=given[None])[0]

    conditions = jnp.asarray(c, law.dtype)
    score = mcs.score(y, t, law, schedule, condition=c)
    np.testing.assert_allclose(
        score, jax.vmap(jax.grad(log_p))(y, conditions), atol=tol(1e-8, 2e-3)
    )
    hessian = jax.vmap(jax.hessian(log_p))(y, conditions)
    laplacian = mcs.divergence(y, t, law, schedule, condition=c)
    np.testing.assert_allclose(
        laplacian, jnp.trace(hessian, axis1=1, axis2=2), rtol=tol(1e-7, 1e-2), atol=tol(1e-7, 2e-2)
    )
    denoised = mcs.denoise(y, t, law, schedule, condition=c)
    signal, variance, *_ = schedule.rates(jnp.asarray(t, law.dtype))
    np.testing.assert_allclose(
        denoised, (y + variance * score) / signal, atol=tol(1e-8, 2e-3) / float(signal)
    )


def test_transformations_of_the_density(local, tol):
    """By row under ``jit``, ``vmap`` and ``grad``, also with respect to the condition."""
    x, c = jnp.asarray(ROWS[:5, :2], local.dtype), jnp.asarray(ROWS[:5, 2:], local.dtype)

    def log_p(row, given):
        return local.log_prob(row[None], condition=given[None])[0]

    whole = local.log_prob(x, condition=c)
    np.testing.assert_allclose(jax.jit(jax.vmap(log_p))(x, c), whole, atol=tol(1e-9, 1e-3))
    slopes = jax.vmap(jax.grad(log_p, argnums=1))(x, c)
    step = tol(1e-5, 1e-2)
    for j in range(2):
        moved = jnp.eye(2, dtype=c.dtype)[j : j + 1] * step
        up, down = (local.log_prob(x, condition=c + s * moved) for s in (1, -1))
        np.testing.assert_allclose(slopes[:, j], (up - down) / (2 * step), atol=tol(1e-5, 5e-2))


def test_the_flow_carries_noise_to_the_conditional_law_and_back(gaussian, key, tol):
    slope, left, mean = regression(ROWS)
    c = ROWS[:2000, 2:]
    z = jax.random.normal(key, (2000, 2), gaussian.dtype)
    for schedule in (mcs.Cosine(), mcs.Linear()):
        y = mcs.transport(z, gaussian, schedule, condition=c)
        back = mcs.encode(y, gaussian, schedule, condition=c)
        np.testing.assert_allclose(back, z, atol=tol(1e-4, 1e-3))
        x = np.asarray(gaussian.frame.inverse(y)) - (mean[:2] + (c - mean[2:]) @ slope.T)
        assert np.abs(x.mean(0)).max() < 5 * np.sqrt(left.max() / 2000)
        white = np.linalg.solve(np.linalg.cholesky(left + 0.0), x.T)
        if isinstance(schedule, mcs.Cosine):
            assert all(kstest(column, norm.cdf).pvalue > 1e-3 for column in white)


@pytest.mark.once
def test_draws_follow_their_conditions(key):
    c, x = bent(3000)
    law = mcs.mixture(x, condition=c, kernel=mcs.Local(0.4, clusters=20, partitions=4))
    at = np.repeat([[-1.0], [0.3], [1.2]], 4000, 0)
    drawn = np.asarray(law.sample(key, len(at), condition=at)).reshape(3, 4000, 2)
    np.testing.assert_allclose(drawn.mean(1), middle(at[::4000]), atol=0.05)
    np.testing.assert_allclose(drawn.std(1) / [[0.1, 0.2]], 1, atol=0.2)
    ranks = [np.asarray(law.at([g]).sample(key, 4000)) for g in at[::4000, 0]]
    for own, one in zip(drawn, ranks, strict=True):  # the same law by another road
        np.testing.assert_allclose(own.mean(0), one.mean(0), atol=5 * 0.2 / 4000**0.5)


@pytest.mark.once
def test_auto_chooses_by_the_likelihood_given_the_condition(key):
    c, x = bent(2500)
    fresh_c, fresh = bent(2000, seed=1)
    law = mcs.mixture(x, condition=c, kernel=mcs.Auto(), key=key)
    truth = norm.logpdf((fresh - middle(fresh_c)) / [0.1, 0.2]).sum(1).mean() - np.log(0.02)
    found = float(np.mean(np.asarray(law.log_prob(fresh, condition=fresh_c))))
    assert truth - 0.1 < found < truth and abs(law.report.log_likelihood - found) < 0.1


@pytest.mark.once
def test_auto_follows_humps_that_no_regression_has(key):
    r = np.random.default_rng(8)
    c, fresh_c = r.uniform(0.5, 2, (3000, 1)), r.uniform(0.5, 2, (2000, 1))
    x, fresh = (
        r.choice([-1, 1], a.shape) * np.sin(2 * a) + 0.1 * r.normal(size=a.shape)
        for a in (c, fresh_c)
    )
    law = mcs.mixture(x, condition=c, kernel=mcs.Auto(), key=key)
    density = sum(norm.pdf(fresh, sign * np.sin(2 * fresh_c), 0.1) for sign in (-1, 1)) / 2
    found = float(np.mean(np.asarray(law.log_prob(fresh, condition=fresh_c))))
    assert np.log(density).mean() - 0.1 < found and "by_condition" not in law.report.kernel
    assert any(trial.condition_h is not None for trial in law.report.curve)


@pytest.mark.once
def test_auto_takes_linear_regression_where_rows_tell_no_more(key):
    """Its moments are then exact but for those of the noise: an excess of about five parameters / 2n nats."""
    r = np.random.default_rng(5)
    c, fresh_c = r.uniform(-2, 2, (3000, 1)), r.uniform(-2, 2, (4000, 1))
    x, fresh = (a * [2.0, -1.0] + r.normal(0, [0.1, 0.5], (len(a), 2)) for a in (c, fresh_c))
    law = mcs.mixture(x, condition=c, kernel=mcs.Auto(), key=key)
    assert law.report.kernel.startswith("Local(h=1.0, clusters=1, partitions=1")
    truth = norm.logpdf(fresh, fresh_c * [2.0, -1.0], [0.1, 0.5]).sum(1)
    assert abs(np.mean(truth - np.asarray(law.log_prob(fresh, condition=fresh_c)))) < 0.005


@pytest.mark.once
def test_auto_sees_a_product_that_no_line_has(key):
    r = np.random.default_rng(6)
    c = r.uniform(-1, 1, (6000, 2))
    x = (0.8 * c[:, 0] * c[:, 1] + r.normal(size=6000))[:, None]
    law = mcs.mixture(x, condition=c, kernel=mcs.Auto(), key=key)
    for corner in ([0.8, 0.8], [0.8, -0.8]):
        mean = float(np.mean(law.sample(key, 20_000, condition=corner)))
        assert abs(mean - 0.8 * corner[0] * corner[1]) < 0.25


@pytest.mark.once
def test_auto_tells_a_weak_signal_from_noise_by_clusters_of_conditions(key):
    """A drift is a hundredth of a step: clusters of both follow the noise, those of conditions do not."""
    r = np.random.default_rng(7)
    c = r.uniform(-1.5, 1.5, (40_000, 1))
    x = 0.4 * np.sin(3 * c) + r.normal(size=c.shape)
    law = mcs.mixture(x, condition=c, kernel=mcs.Auto(), key=key)
    assert "by_condition=True" in law.report.kernel
    at = np.linspace(-1.4, 1.4, 29)[:, None]
    error = np.asarray(law.frame.inverse(law.mean(law.conditions(at)))) - 0.4 * np.sin(3 * at)
    assert np.sqrt(np.mean(error**2)) < 0.03


@pytest.mark.once
@pytest.mark.parametrize(
    "make", [lambda r: r.random(1000) < 0.5, lambda r: r.poisson(3, 1000)], ids=["binary", "counts"]
)
def test_conditions_of_few_values_do_not_tell_what_they_condition(make, key):
    """Spread in the order of x, the places of their ties would: draws had a third of their deviation."""
    r = np.random.default_rng(0)
    c = make(r).astype(float)[:, None]
    x = r.normal(size=(1000, 1)) + 4 * c
    law = mcs.mixture(x, condition=c, kernel=mcs.Auto(), key=key)
    for at in (0.0, 1.0):
        drawn = np.asarray(law.sample(key, 4000, condition=[at]), np.float64)
        np.testing.assert_allclose(drawn.std(), 1, atol=0.15)
        np.testing.assert_allclose(drawn.mean(), 4 * at, atol=0.3)
    assert law.report.log_likelihood < norm.entropy() * -1 + 0.1


def test_conditions_that_do_not_fit(local):
    good = ROWS[:3, :2]
    for condition, message in {
        "none": (None, "needed here, 2 values"),
        "narrow": ([1.0], r"expected shape \(b, 2\)"),
        "many": (ROWS[:2, 2:], "one for each of 3 rows"),
        "nan": ([np.nan, 0.0], "expected finite"),
    }.values():
        with pytest.raises(ValueError, match=f"condition: .*{message}"):
            local.log_prob(good, condition=condition)
        if condition is not None and message != "one for each of 3 rows":
            with pytest.raises(ValueError, match=f"condition: .*{message}"):
                local.sample(jax.random.key(0), 3, condition=condition)
    with pytest.warns(UserWarning, match="condition: 1 of 1 lie where there is next to no data"):
        local.log_prob(good[:1], condition=[30.0, -30.0])
    assert float(local.support([30.0, -30.0]).outside[0]) > 3
    assert float(local.support(ROWS[0, 2:]).outside[0]) == 0
    plain = mcs.mixture(ROWS, kernel=mcs.Whitened(0.3))
    with pytest.raises(ValueError, match="condition: this law has none"):
        mcs.score(ROWS[:2], 0.5, plain, mcs.Cosine(), condition=[1.0])
    with pytest.raises(ValueError, match="condition: expected a row for each of 3000"):
        mcs.mixture(ROWS[:, :2], condition=ROWS[:5, 2:], kernel=mcs.Whitened(0.3))


def test_conditions_by_name(key):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(ROWS[:300], columns=list("abcd"))
    kernel = mcs.Local(0.6, clusters=2, partitions=1)
    law = mcs.mixture(table, condition=["d", "b"], kernel=kernel, frame=mcs.Affine())
    assert law.columns == ("a", "c") and law.condition_columns == ("d", "b")
    by_array = law.log_prob(ROWS[:4, [0, 2]], condition=ROWS[:4, [3, 1]])
    by_frame = law.log_prob(table[["c", "a"]][:4], condition=table[["b", "d"]][:4])
    np.testing.assert_array_equal(by_array, by_frame)
    one = law.log_prob(ROWS[:1, [0, 2]], condition={"b": ROWS[0, 1], "d": ROWS[0, 3]})
    np.testing.assert_allclose(one, by_array[:1], atol=1e-4)
    drawn = law.sample(key, 3, condition={"b": 1.0, "d": -1.0}, as_frame=True)
    assert list(drawn.columns) == ["a", "c"]


def test_a_width_of_their_own_along_conditions(key):
    """Rows far along the condition count less; what is left of ``x`` given ``c`` stays as wide."""
    kernel = mcs.Local(0.6, clusters=1, partitions=1)
    options = dict(condition=ROWS[:, 2:], frame=mcs.Affine())
    wide = mcs.mixture(ROWS[:, :2], kernel=kernel, **options)
    narrow = mcs.mixture(ROWS[:, :2], kernel=replace(kernel, condition_h=0.2), **options)
    at = ROWS[0, 2:]
    sizes = [float(law.support(at).effective_sample_size[0]) for law in (narrow, wide)]
    assert sizes[0] < 0.3 * sizes[1]
    np.testing.assert_allclose(narrow.width, wide.width, rtol=0.05)


def test_columns_that_float32_cannot_hold(key):
    """With an offset of 1e7 densities and draws are computed on the host, in float64, as of other laws."""
    shift = np.array([1e7, -1e7])
    kernel = mcs.Local(1.0, clusters=1, partitions=1)
    options = dict(condition=ROWS[:, 2:], kernel=kernel, frame=mcs.Affine())
    near = mcs.mixture(ROWS[:, :2], **options)
    far = mcs.mixture((ROWS[:, :2] + shift).astype(np.float64), **options)
    x, c = ROWS[:20, :2], ROWS[:20, 2:]
    np.testing.assert_allclose(
        far.log_prob(x + shift, condition=c), near.log_prob(x, condition=c), atol=1e-3
    )
    drawn = np.asarray(far.sample(key, 500, condition=c[0]))
    assert drawn.dtype == np.float64 and len(np.unique(drawn[:, 0])) > 490


def test_number_of_queries_makes_no_new_programs(local):
    from mcscore.mixtures import conditional

    x, c = ROWS[:300, :2], ROWS[:300, 2:]
    local.log_prob(x[:200], condition=c[:200])
    before = [f._cache_size() for f in (conditional._log_prob, conditional._support)]
    for n in (197, 199, 220):
        local.log_prob(x[:n], condition=c[:n])
    assert before == [f._cache_size() for f in (conditional._log_prob, conditional._support)]


def test_a_split_knows_the_marginal_that_the_jet_does(local, tol):
    from mcscore.jet import log_density, marginal
    from mcscore.mixtures import splits

    blocks = local.joint.blocks
    along = np.asarray(local.joint.frame.part([2, 3], 4)[1])
    c = jnp.asarray(local.prior.frame.forward(ROWS[:50, 2:]), local.dtype)
    exact = log_density(c, 1.0, 0.0, marginal(blocks, jnp.asarray(along, local.dtype)))
    own = splits._marginal(jax.tree.map(np.asarray, blocks), along)
    own = jax.tree.map(lambda a: jnp.asarray(a, local.dtype), own)
    np.testing.assert_allclose(log_density(c, 1.0, 0.0, own), exact, atol=tol(1e-9, 1e-3))


def test_laws_without_a_density_and_conditions_without_a_rest():
    with pytest.raises(ValueError, match=r"kernel: expected one with a density .* got Dirac\(\)"):
        mcs.mixture(ROWS[:9, :2], condition=ROWS[:9, 2:])
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(ROWS[:9], columns=list("abcd"))
    with pytest.raises(ValueError, match="condition: expected fewer than all columns"):
        mcs.mixture(table, condition=list("abcd"), kernel=mcs.Whitened(0.3))
    with pytest.raises(ValueError, match="condition: x has a column 'a' too"):
        mcs.mixture(table[["a", "b"]], condition=table[["a"]], kernel=mcs.Whitened(0.3))
    with pytest.raises(ValueError, match="condition: expected"):
        mcs.mixture(ROWS[:9], condition=3, kernel=mcs.Whitened(0.3))
    with pytest.raises(ValueError, match="by_condition: expected a law with a condition"):
        mcs.mixture(ROWS[:9], kernel=mcs.Local(0.5, clusters=1, by_condition=True))
    plain = mcs.mixture(ROWS, kernel=mcs.Whitened(0.3))
    for call in (
        lambda c: plain.log_prob(ROWS[:2], condition=c),
        lambda c: plain.sample(jax.random.key(0), 2, condition=c),
    ):
        with pytest.raises(ValueError, match="condition: this law has none"):
            call([1.0])


def test_what_an_attack_found(gaussian, key):
    """No rows, traced laws, one row of many conditions, far conditions, and columns by themselves."""
    x, c = ROWS[:5, :2], ROWS[:5, 2:]
    assert gaussian.log_prob(x[:0], condition=c[:0]).shape == (0,)
    assert gaussian.sample(key, 0, condition=c[:0]).shape == (0, 2)
    plain = gaussian.log_prob(x, condition=c)
    inside = jax.jit(lambda law: law.log_prob(x, condition=c))(gaussian)
    np.testing.assert_allclose(inside, plain, atol=1e-4)
    drawn = jax.jit(lambda law: law.sample(key, 5, condition=c))(gaussian)
    assert np.isfinite(np.asarray(drawn)).all()
    many = jax.vmap(lambda given: gaussian.log_prob(x[:1], condition=given)[0])(
        jnp.asarray(c, gaussian.dtype)
    )
    each = [gaussian.log_prob(x[:1], condition=given)[0] for given in c]
    np.testing.assert_allclose(many, each, atol=1e-3)
    rows = np.random.default_rng(0).normal(size=(300, 2))
    near = mcs.mixture(rows, condition=rows[:, 0], kernel=mcs.Isotropic(0.1))
    with pytest.warns(UserWarning, match="next to no data"):
        far = near.log_prob(rows[:1], condition=[1e3])
    np.testing.assert_allclose(far, near.at([1e3]).log_prob(rows[:1]), rtol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize("frame", [mcs.Affine(), mcs.Gaussianize()], ids=["affine", "Gaussianized"])
def test_the_probability_of_an_atom_given_a_condition_is_that_of_draws(frame, key):
    r = np.random.default_rng(0)
    c = r.normal(size=(1500, 1))
    x = np.where(
        r.random((1500, 1)) < 1 / (1 + np.exp(-c)), 0.0, np.exp(c + r.normal(size=(1500, 1)))
    )
    law = mcs.mixture(x, condition=c, kernel=mcs.Local(), frame=frame)
    for given in (-1.0, 0.0, 1.0):
        share = np.mean(np.asarray(law.sample(key, 20_000, condition=[given])) == 0)
        told = float(np.exp(law.log_prob([[0.0]], condition=[given])[0]))
        assert abs(told - share) < 0.03
