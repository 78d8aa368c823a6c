"""The law of rows with holes, by stochastic EM that starts from a Gaussian's exact one."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator
from mcscore._numbers import column_numbers, names_of, numbers
from mcscore._validation import Table, as_key, at_least
from mcscore.inference.imputation import check_finite, impute, with_nan
from mcscore.mixtures import Auto, Kernel, Mixture, mixture

ROUNDS = 3
STEPS, SLOW = 200, 1e-4  # of EM, at most; the change of a correlation that ends it
ROWS = 20_000  # that a Gaussian's EM sees, at most


def mixture_of_incomplete(
    key: Array,
    rows: Any,
    *,
    rounds: int = ROUNDS,
    kernel: Kernel = Auto(),
    weights: Any = None,
    groups: Any = None,
    **options: Any,
) -> Mixture:
    """Return the law of rows of which some entries are missing: all take part with what they know.

    Right where entries are missing for reasons that the row's other entries tell ("at random"); the law of
    the complete rows alone then is not. By stochastic EM (Celeux and Diebolt 1985): what is missing is drawn
    from the law of the round before, exactly, and the law built anew. The start are draws of a Gaussian,
    fitted to all rows by EM (Dempster, Laird and Rubin 1977).

    Approximations: what a row lacks stands in the law as one draw, so held-out likelihoods count draws as
    data. Where a column is never seen beside some values of the others, it stays there what the Gaussian
    says. A kernel that widens the law (``Isotropic``, ``Whitened`` without ``preserve``) does so every round.

    Args:
        key: Random key.
        rows: (n, d), NaN (or masked, or pandas' NA) where missing.
        rounds: How often what is missing is drawn anew.
        kernel: See ``mixture``; one with a density.
        weights: Weights of the rows, (n,); rows of weight 0 are left out.
        groups: Groups of the rows, (n,), see ``mixture``.
        **options: Options of ``mixture``, except ``condition``: condition the law instead.

    Raises:
        ValueError: If a column or a row holds no number, or ``rows`` hold infinities; as ``mixture``.

    >>> import mcscore as mcs
    >>> x = np.random.default_rng(0).standard_normal((300, 2)) @ [[1, 0.9], [0, 0.4]]
    >>> x[x[:, 0] > 0.5, 1] = np.nan
    >>> law = mixture_of_incomplete(jax.random.key(0), x, kernel=mcs.Whitened(0.3, preserve=True))
    >>> drawn = law.sample(jax.random.key(1), 5000)  # of columns with mean 0
    >>> bool(np.nanmean(x[:, 1]) < -0.3 < drawn[:, 1].mean())
    True
    """
    at_least(1, rounds=rounds)
    if options.get("condition") is not None:
        raise ValueError("condition: expected None; condition the law of all columns instead")
    if not kernel.has_density:
        raise ValueError(f"kernel: expected one with a density, such as mcs.Auto(), got {kernel}")
    key, names = as_key(key), names_of(rows)
    table = numbers(with_nan(rows), "rows", names)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"rows: expected a non-empty table (n, d), got shape {table.shape}")
    for name, given in (("weights", weights), ("groups", groups)):
        if given is not None and np.shape(given) != (len(table),):
            raise ValueError(f"{name}: expected shape ({len(table)},), got {np.shape(given)}")
    if weights is not None:
        kept = np.asarray(weights) != 0
        table, weights = table[kept], np.asarray(weights)[kept]
        groups = None if groups is None else np.asarray(groups)[kept]
    check_finite(table)
    lost = np.isnan(table)
    for axis, what in enumerate(("column", "row")):
        for j in np.flatnonzero(lost.all(axis)):
            raise ValueError(f"rows: expected a number in every {what}, got none in {what} {j}")

    def learned(k: int) -> Mixture:
        part = Table.of(table, weights, columns=names, name="rows")
        own: Any = dict(kernel=kernel, groups=groups, key=jax.random.fold_in(key, k)) | options
        return mixture(part, **own)

    if not lost.any():
        return learned(0)
    share = np.ones(len(table)) if weights is None else np.asarray(weights, np.float64)
    source = host_generator(jax.random.fold_in(key, 2 * rounds + 1))
    told = {**(options.get("bounds") or {}), **(options.get("periodic") or {})}
    inside = column_numbers(list(told), table.shape[1], names) if told else []
    table = table.copy()
    start = _as_gaussian(source, table.astype(np.float64), lost, share / share.sum(), inside)
    table[lost] = start[lost]
    with warnings.catch_warnings():  # those of the last round are enough
        warnings.simplefilter("ignore")
        law = learned(0)
        for k in range(1, rounds + 1):
            holes = np.where(lost, np.nan, table)
            table[:] = impute(jax.random.fold_in(key, rounds + k), law, holes)[0]
            law = learned(k) if k < rounds else law
    return learned(rounds)


def _as_gaussian(
    source: np.random.Generator,
    x: np.ndarray,
    lost: np.ndarray,
    share: np.ndarray,
    inside: list[int],
) -> np.ndarray:
    """Return rows (n, d) with draws for what is ``lost``, given what each row knows, of a Gaussian.

    Columns ``inside`` stay within what was seen; where values repeat, draws go to the nearest of them.
    """
    seen = np.where(lost, 0, share[:, None])
    seen = seen / seen.sum(0)
    center = np.sum(np.where(lost, 0, x) * seen, 0)
    scale = np.sqrt(np.sum(np.where(lost, 0, x - center) ** 2 * seen, 0))
    scale = np.where(scale > 0, scale, 1)
    y = (x - center) / scale
    part = source.permutation(len(x))[:ROWS]
    mean, covariance = _em(y[part], lost[part], share[part] / share[part].sum())
    filled = y.copy()
    for index, gone, told, rest in _regressions(y, lost, mean, covariance):
        values, vectors = np.linalg.eigh(rest)
        noise = source.standard_normal(told.shape) * np.sqrt(np.maximum(values, 0))
        filled[np.ix_(index, gone)] = told + noise @ vectors.T
    filled = filled * scale + center
    for j, (column, gone) in enumerate(zip(filled.T, lost.T, strict=True)):
        known = np.unique(x[~gone, j])
        if len(known) < 0.5 * np.sum(~gone):
            middle = (known[1:] + known[:-1]) / 2
            column[gone] = known[np.searchsorted(middle, column[gone])]
        elif j in inside:
            column[gone] = np.clip(column[gone], known[0], known[-1])
    return filled


def _em(y: np.ndarray, lost: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of a Gaussian of which rows ``y`` (n, d) are seen in part."""
    d = y.shape[1]
    mean, covariance = np.zeros(d), np.eye(d)
    for _ in range(STEPS):
        filled, extra = y.copy(), np.zeros((d, d))
        for index, gone, told, rest in _regressions(y, lost, mean, covariance):
            filled[np.ix_(index, gone)] = told
            extra[np.ix_(gone, gone)] += share[index].sum() * rest
        before, mean = covariance, share @ filled
        covariance = (filled - mean).T @ (share[:, None] * (filled - mean)) + extra
        if np.abs(covariance - before).max() < SLOW:
            break
    return mean, covariance


def _regressions(y: np.ndarray, lost: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> Any:
    """Yield of each pattern of holes its rows, which columns are lost, their means and covariance then.

    Those of a Gaussian given what each row knows.
    """
    patterns, of_row = np.unique(lost, axis=0, return_inverse=True)
    order = np.argsort(of_row.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(of_row.reshape(-1)))
    for gone, index in zip(patterns, np.split(order, ends[:-1]), strict=True):
        if gone.any():
            own = covariance[np.ix_(~gone, ~gone)]
            own = own + 1e-6 * np.eye(len(own))  # columns may depend on each other
            slope = np.linalg.solve(own, covariance[np.ix_(~gone, gone)])
            rest = covariance[np.ix_(gone, gone)] - covariance[np.ix_(gone, ~gone)] @ slope
            yield index, gone, mean[gone] + (y[np.ix_(index, ~gone)] - mean[~gone]) @ slope, rest
