"""Imputation, observations, posteriors, dynamics and diagnostics against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal

import mcscore as mcs
from mcscore import inference
from tests.conftest import X64

COVARIANCE = np.array([[2, 0.6, -0.8], [0.6, 1, 0.3], [-0.8, 0.3, 1.5]])
ROWS = np.random.default_rng(3).multivariate_normal([1, 2, 3], COVARIANCE, 2000)


@pytest.fixture(scope="module")
def law():
    kernel = mcs.Local(0.6, clusters=3, partitions=2)
    return mcs.mixture(ROWS, kernel=kernel, frame=mcs.Affine())


# --- missing values ------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [[0], [2, 1], []], ids=str)
def test_masked_entries_have_the_conditional_law(law, key, known):
    row, lost = np.array([1.5, 1.0, 2.0]), [j for j in range(3) if j not in known]
    table = np.full((1, 3), np.nan)
    table[0, known] = row[known]
    filled = inference.impute(key, law, table, draws=10_000)
    assert filled.shape == (10_000, 1, 3) and np.isfinite(filled).all()
    assert (filled[:, 0, known] == row[known]).all()
    exact = law if not known else law.condition(known, row[known])
    drawn = np.asarray(exact.sample(jax.random.fold_in(key, 99), 10_000), np.float64)
    for j, column in zip(lost, drawn.T, strict=True):
        assert kstest(filled[:, 0, j], column).pvalue > 1e-3
    if len(lost) > 1:
        own = np.corrcoef(filled[:, 0, lost].T)
        np.testing.assert_allclose(own, np.corrcoef(drawn.T), atol=0.08)


def test_patterns_are_kept_apart_and_known_entries_to_the_bit(law, key):
    table = ROWS[:40].astype(np.float32)
    table[np.random.default_rng(0).random(table.shape) < 0.4] = np.nan
    filled = inference.impute(key, law, table, draws=3)
    assert filled.dtype == np.float32 and np.isfinite(filled).all()
    known = np.isfinite(table)
    for draw in filled:
        np.testing.assert_array_equal(draw[known].view(np.uint32), table[known].view(np.uint32))
    whole = ROWS[:5]
    np.testing.assert_array_equal(inference.impute(key, law, whole)[0], whole)


def test_tables_that_cannot_be_filled(law, key):
    with pytest.raises(
        ValueError, match="rows: expected numbers or NaN, got inf in column 1, row 0"
    ):
        inference.impute(key, law, [[0.0, np.inf, np.nan]])
    with pytest.raises(ValueError, match=r"rows: expected shape \(b, 3\)"):
        inference.impute(key, law, [[0.0, np.nan]])
    with pytest.raises(ValueError, match="impute: the empirical measure"):
        inference.impute(key, mcs.mixture(ROWS, kernel=mcs.Dirac()), [[0.0, 1.0, np.nan]])


# --- observations --------------------------------------------------------------------------------

SEEN = (
    np.array([[1, 0.5, 0], [0, 1, 1.0]]),
    np.array([2.0, 4.5]),
    np.array([[0.3, 0.1], [0.1, 0.5]]),
)


def test_an_observation_of_a_gaussian_is_the_kalman_update(tol):
    matrix, values, noise = SEEN
    law = mcs.mixture(ROWS, kernel=mcs.Local(1.0, 1, 1), frame=mcs.Affine(whiten=True))
    mean, covariance = ROWS.mean(0), np.cov(ROWS.T, bias=True)
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + noise)
    after = mean + gain @ (values - matrix @ mean), covariance - gain @ matrix @ covariance
    expected = multivariate_normal(*after).logpdf(ROWS[:20])
    found = law.observe(matrix, values, noise).log_prob(ROWS[:20])
    np.testing.assert_allclose(found, expected, atol=tol(1e-8, 1e-3))


def test_an_observation_of_a_mixture_is_bayes_rule(law, tol):
    matrix, values, noise = SEEN
    likelihood = multivariate_normal([0, 0], noise).logpdf(ROWS[:30] @ matrix.T - values)
    joint = np.asarray(law.log_prob(ROWS[:30])) + likelihood
    after = np.asarray(law.observe(matrix, values, noise).log_prob(ROWS[:30]))
    np.testing.assert_allclose(np.std(joint - after), 0, atol=tol(1e-8, 1e-3))
    one = law.observe([[0.0, 1.0, 0.0]], [2.5], 1e-6)  # nearly exact: a condition
    exact = law.condition([1], [2.5])
    rows = ROWS[:10, [0, 2]]
    np.testing.assert_allclose(
        one.marginal([0, 2]).log_prob(rows), exact.log_prob(rows), atol=tol(1e-3, 2e-2)
    )


def test_observations_that_do_not_fit(law):
    with pytest.raises(ValueError, match=r"matrix: expected shape \(m, 3\)"):
        law.observe([[1.0, 0.0]], [0.0], 1.0)
    with pytest.raises(ValueError, match="covariance: expected a symmetric, positive definite"):
        law.observe([[1.0, 0.0, 0.0]], [0.0], -1.0)
    with pytest.raises(ValueError, match="covariance: expected a symmetric"):
        law.observe([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.0, 0.0], [[0.3, 0.2], [0.1, 0.2]])
    with pytest.raises(ValueError, match="values: expected finite"):
        law.observe([[1.0, 0.0, 0.0]], [np.nan], 1.0)
    bent = mcs.mixture(ROWS, kernel=mcs.Whitened(0.3), frame=mcs.Gaussianize())
    with pytest.raises(ValueError, match="observe: expected a law in an affine frame"):
        bent.observe([[1.0, 0.0, 0.0]], [0.0], 1.0)


@pytest.mark.parametrize("moves", [0, 20])
def test_a_posterior_by_weights_is_the_exact_one(law, key, moves):
    if moves:
        pytest.importorskip("blackjax")
    matrix, values, noise = SEEN
    inverse = jnp.asarray(np.linalg.inv(noise), law.dtype)

    def log_likelihood(x):
        miss = x @ jnp.asarray(matrix.T, x.dtype) - jnp.asarray(values, x.dtype)[None]
        return -jnp.einsum("bi,ij,bj->b", miss, inverse, miss) / 2

    found = inference.posterior(key, law, log_likelihood, moves=moves, n=1000)
    exact = law.observe(matrix, values, noise)
    drawn = np.asarray(exact.sample(key, 20_000), np.float64)
    assert found.effective_sample_size > 1000
    np.testing.assert_allclose(np.mean(found.draws, 0), drawn.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(np.asarray(found.draws).T), np.cov(drawn.T), atol=0.12)
    if moves:  # what resampling repeats is told apart again
        assert len(np.unique(np.asarray(found.draws)[:, 0])) > 900
    with pytest.raises(ValueError, match="log_likelihood: expected a number for each"):
        inference.posterior(key, law, lambda x: x)
    tied = mcs.mixture(np.round(ROWS[:300]), kernel=mcs.Local(0.5, 2, 1), frame=mcs.Affine())
    with pytest.raises(ValueError, match="moves: expected 0 for a law with tied columns"):
        inference.posterior(key, tied, lambda x: x[:, 0], moves=3)


# --- dynamics ------------------------------------------------------------------------------------


def ou(m, times, seed=0, dt=0.1, mu=1.2, sigma=0.3):
    """Return exact paths of dx = (mu - x) dt + sigma dW, its decay and its deviation per step."""
    rng = np.random.default_rng([5, seed])
    decay = np.exp(-dt)
    deviation = sigma * np.sqrt((1 - decay**2) / 2)
    x = [rng.uniform(0, 2.5, (m, 1))]
    for _ in range(times):
        x.append(mu + (x[-1] - mu) * decay + deviation * rng.standard_normal((m, 1)))
    return np.stack(x, 1), decay, deviation


@pytest.mark.once
@pytest.mark.skipif(X64, reason="in float32, as users: float64 has no native kernel")
def test_ornstein_uhlenbeck_by_steps_and_in_the_long_run(key):
    paths, decay, deviation = ou(15_000, 4)
    quick = dict(pairs=20_000, epochs=60)
    step = inference.fit_dynamics(key, paths, **quick)
    for x0 in (0.2, 1.2, 2.2):
        after = np.asarray(step.step(key, np.full((20_000, 1), x0)), np.float64)
        assert abs(after.mean() / (1.2 + (x0 - 1.2) * decay) - 1) < 0.02
        assert abs(after.std() / deviation - 1) < 0.05
    path = np.asarray(step.rollout(key, np.full((10_000, 1), 0.5), 60), np.float64)
    assert path.shape == (61, 10_000, 1) and (path[0] == 0.5).all()
    assert abs(path[-1].mean() / 1.2 - 1) < 0.03
    assert abs(path[-1].std() / (0.3 / np.sqrt(2)) - 1) < 0.06


@pytest.mark.once
def test_parameters_and_paths_that_do_not_fit(key):
    rng = np.random.default_rng(0)
    rate = rng.uniform(-1, 1, (300, 1))
    paths = np.cumsum(
        np.concatenate([np.zeros((300, 1)), rate + 0.1 * rng.standard_normal((300, 4))], 1), 1
    )
    quick = dict(pairs=400, epochs=2, kernel=mcs.Local(0.5, 2, 1), frame=mcs.Affine())
    step = inference.fit_dynamics(key, paths, rate, **quick)
    assert step.rollout(key, [0.0, 0.0], 3, parameters=[[-1.0], [1.0]]).shape == (4, 2, 1)
    one = step.rollout(key, np.zeros((2, 1)), 3, parameters=[0.5])
    assert one.shape == (4, 2, 1) and np.isfinite(np.asarray(one)).all()
    for call, message in (
        (lambda: step.rollout(key, [0.0], 1), "parameters: expected 1 parameters"),
        (lambda: step.rollout(key, np.zeros((2, 3)), 1), r"x0: expected shape \(m, 1\)"),
        (lambda: step.rollout(key, np.zeros((3, 1)), 1, [[1.0], [2.0]]), "one for each of 3"),
        (lambda: inference.fit_dynamics(key, np.zeros(3)), "paths: expected shape"),
        (lambda: inference.fit_dynamics(key, [[0.0, np.nan]]), "paths: expected finite"),
        (
            lambda: inference.fit_dynamics(key, paths, rate[:3]),
            r"parameters: expected shape \(300, p\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# --- diagnostics ---------------------------------------------------------------------------------


@pytest.mark.once
def test_coverage_tells_a_right_law_from_a_narrow_one(key):
    kernel = mcs.Local(1.0, clusters=1, partitions=1)
    law = mcs.mixture(ROWS[:1500, :2], condition=ROWS[:1500, 2:], kernel=kernel, frame=mcs.Affine())
    found = inference.coverage(key, law, ROWS[1500:, :2], ROWS[1500:, 2:], draws=100)
    assert found.calibrated and found.ranks.shape == (500, 2)
    assert all(kstest(column, "uniform").pvalue > 1e-3 for column in found.ranks.T)
    middle = ROWS[:1500, :2].mean(0)
    narrow = mcs.mixture(
        middle + (ROWS[:1500, :2] - middle) / 2, condition=ROWS[:1500, 2:], kernel=kernel,
        frame=mcs.Affine(),
    )  # fmt: skip
    assert not inference.coverage(
        key, narrow, ROWS[1500:, :2], ROWS[1500:, 2:], draws=100
    ).calibrated


@pytest.mark.once
def test_moves_from_next_to_no_effective_draw(key):
    law = mcs.mixture(ROWS[:500, :2], kernel=mcs.Whitened(0.3))

    def narrow(x):
        return -1e8 * ((x - 1) ** 2).sum(1)

    found = inference.posterior(key, law, narrow, n=50, moves=20)
    assert found.effective_sample_size < 1.01
    assert len(np.unique(np.asarray(found.draws), axis=0)) > 5
    with pytest.raises(ValueError, match="moves: expected 0 for a law with columns that float32"):
        inference.posterior(
            key,
            mcs.mixture(ROWS[:, :1] + 1e7, kernel=mcs.Local(0.5, 1), frame=mcs.Affine()),
            narrow,
            moves=1,
        )


class Folded:
    """A right law whose density is unknown at a part of the points, as a generator's is at folds."""

    def __init__(self, law):
        self.law = law

    def __getattr__(self, name):
        return getattr(self.law, name)

    def log_prob(self, x, condition):
        x = np.asarray(x)
        return np.where(x[:, 0] > 1.8, np.nan, self.law.log_prob(x, condition=condition))


@pytest.mark.once
def test_coverage_leaves_out_what_has_no_density(key):
    kernel = mcs.Local(1.0, clusters=1, partitions=1)
    law = mcs.mixture(ROWS[:1500, :2], condition=ROWS[:1500, 2:], kernel=kernel, frame=mcs.Affine())
    with pytest.warns(UserWarning, match="density is unknown"):
        found = inference.coverage(key, Folded(law), ROWS[1500:, :2], ROWS[1500:, 2:], draws=100)
    assert found.calibrated and len(found.levels) < len(found.ranks) == 500
    assert not np.isnan(found.levels).any()
    with pytest.raises(ValueError, match="law: expected one with conditions"):
        inference.coverage(key, law.joint, ROWS[:9], ROWS[:9, :0], draws=50)


def test_the_rank_of_data_is_even_and_that_of_what_lies_outside_is_none(law, key):
    fresh = np.random.default_rng(8).multivariate_normal([1, 2, 3], COVARIANCE, 500)
    assert kstest(np.asarray(inference.rank(key, law, fresh)), "uniform").pvalue > 1e-3
    assert float(inference.rank(key, law, [[20.0, -20.0, 20.0]])[0]) == 0


@pytest.mark.once
def test_diagnostics_of_integers_names_and_numbers_that_are_none(key):
    r = np.random.default_rng(1)
    c = r.normal(size=(900, 1))
    law = mcs.mixture(
        r.poisson(np.exp(0.5 * c + 1)), condition=c, kernel=mcs.Local(0.6, 4, 2), frame=mcs.Affine()
    )
    own = np.asarray(law.sample(key, 400, condition=c[:400]))  # the law's own draws: calibrated
    found = inference.coverage(jax.random.fold_in(key, 1), law, own, c[:400], draws=100)
    assert found.calibrated and abs(found.ranks.mean() - 0.5) < 0.05
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        inference.coverage(key, law, [[np.nan]], [[0.0]])
    with pytest.raises(ValueError, match="rows: expected finite numbers"):
        inference.rank(key, law.joint, [[np.nan, 0.0]])


def test_observations_and_posteriors_at_an_offset(key):
    r = np.random.default_rng(2)
    c = r.normal(size=(1500, 1))
    rows = np.concatenate([2 * c + 0.3 * r.normal(size=(1500, 1)), c], 1) + 1e7
    law = mcs.mixture(rows, kernel=mcs.Local(0.4, 3, 1), frame=mcs.Affine())
    after = np.asarray(law.observe([[1.0, 0.0]], [1e7 + 1.3], 1e-4).sample(key, 2000)) - 1e7
    assert abs(after[:, 0].mean() - 1.3) < 0.005
    found = inference.posterior(key, law, lambda x: -((x[:, 0] - 1e7 - 1) ** 2) / 0.02)
    draws = np.asarray(found.draws) - 1e7
    assert abs(draws[:, 0].mean() - 1) < 0.05 and len(np.unique(draws[:, 0])) > 200
    none = inference.posterior(key, law, lambda x: np.where(x[:, 0] > 1e7 + 1, 0.0, -np.inf))
    assert (np.asarray(none.draws)[:, 0] > 1e7 + 1).all()


@pytest.mark.once
def test_counts_that_are_known_tell_no_more_than_they_do(key):
    """Their places within the interval are ordered by the other columns; a draw takes one of them."""
    r = np.random.default_rng(0)
    c = r.poisson(3, (2000, 1)).astype(float)
    x = r.normal(size=(2000, 1)) + 2 * c
    law = mcs.mixture(np.concatenate([x, c], 1), kernel=mcs.Auto(), key=key)
    for at in (2.0, 3.0):
        filled = mcs.inference.impute(key, law, np.full((3000, 2), [np.nan, at]))[0, :, 0]
        np.testing.assert_allclose(filled.std(), 1, atol=0.12)


@pytest.mark.once
def test_paths_that_start_where_nothing_was_seen(key):
    r = np.random.default_rng(0)
    paths = r.uniform(-1, 1, (300, 1)) + np.cumsum(r.normal(0, 0.1, (300, 4)), 1)
    quick = dict(pairs=500, epochs=2, kernel=mcs.Local(1.0, clusters=1, partitions=1))
    step = mcs.inference.fit_dynamics(key, paths, r.uniform(0, 1, 300), **quick)
    assert step.rollout(key, [0.0], 2, 0.5).shape == (3, 1, 1)
    with pytest.warns(UserWarning, match="data"):
        step.rollout(key, [50.0], 2, 0.5)
    with pytest.raises(ValueError, match="x0: expected finite numbers"):
        step.rollout(key, [np.nan], 2, 0.5)


def test_missing_values_as_pandas_and_numpy_have_them(law, key):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"a": pandas.array([1, None], "Int64"), "b": [0.5, 1.0], "c": [2.0, None]}
    )
    masked = np.ma.masked_array([[1.0, 0.5, 9.0]], [[False, False, True]])
    for rows in (frame, masked):
        filled = inference.impute(key, law, rows)
        assert np.isfinite(filled).all() and filled[0, 0, :2].tolist() == [1.0, 0.5]
