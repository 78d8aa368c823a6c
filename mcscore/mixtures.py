r"""Mixtures: the data law ``p_0 = sum_i w_i N(m_i, C)`` in the coordinates of its frame.

``mixture(x, ...)`` checks the rows, fits the frame, and lets the kernel lay them out in blocks. The
result is a pytree of arrays: it crosses ``jit``, ``vmap`` and ``grad`` like any other argument, and
mixtures of equal shapes share one compiled program.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mcscore.frames import Dequantized, Identity, dequantized
from mcscore.jet import Blocks, stream
from mcscore.kernels import Dirac, Isotropic, Kernel, clustered_blocks  # noqa: F401 (doctests)
from mcscore.metrics import memorisation
from mcscore.selection import Auto, Trial, choose

BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Report:
    """What a user should know of a law before trusting it; ``str`` and ``to_json`` tell it.

    Attributes:
        rows: Rows of positive weight.
        columns: Number of columns.
        kernel: The kernel, chosen or given.
        frame: The frame, chosen or given.
        blocks: Blocks stored, each padded to the longest.
        padding: Share of the storage that is padding.
        log_likelihood: Held-out, mean in nats per row and the user's units (``Auto`` only).
        memorisation: Share of draws from the training part's law nearer to a training row than to any
            of as many held-out rows; 0.5 means no copying (``Auto`` only).
        effective_sample_size: Median number of components that share a draw's density at ``t = 0``.
        tied: Share of tied rows in columns where values repeat (integers, atoms).
        curve: Every trial of ``Auto``.
    """

    rows: int
    columns: int
    kernel: str
    frame: str
    blocks: int
    padding: float
    log_likelihood: float | None = None
    memorisation: float | None = None
    effective_sample_size: float | None = None
    tied: dict[int, float] = field(default_factory=dict)
    curve: list[Trial] = field(default_factory=list)

    # As part of a mixture it must not tell mixtures of equal shapes apart, or each would recompile.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report)

    def __hash__(self) -> int:
        return 0

    def to_json(self) -> str:
        """Return everything as JSON."""
        plain = asdict(self) | {"curve": [trial._asdict() for trial in self.curve]}
        return json.dumps(plain, indent=1)

    def __str__(self) -> str:
        lines = {
            "rows x columns": f"{self.rows} x {self.columns}",
            "kernel": self.kernel,
            "frame": self.frame,
            "stored blocks": f"{self.blocks} ({self.padding:.0%} padding)",
            "held-out log-likelihood": _number(self.log_likelihood, "nats"),
            "nearer to training rows": _number(self.memorisation, "(0.5: no copying)"),
            "effective sample size": _number(self.effective_sample_size, "components"),
            "columns with ties": ", ".join(f"{j} ({s:.0%})" for j, s in self.tied.items())
            or "none",
        }
        width = max(map(len, lines))
        return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.3g} {unit}"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """The data law, blocked. Build it with ``mixture``.

    Attributes:
        blocks: Rows, weights and kernels, in the coordinates of the frame.
        width: Reference width ``h`` of the kernel; 0 for the empirical measure.
        variance: Variance of the law, averaged over its coordinates.
        frame: Map between the user's columns and the blocks' coordinates.
        report: How the law was chosen; takes no part in equality or compilation.
    """

    blocks: Blocks
    width: Any
    variance: Any
    frame: Any
    report: Report = field(metadata={"static": True})

    @property
    def dimension(self) -> int:
        """Number of columns ``d``."""
        return self.blocks.rows.shape[-1]

    @property
    def dtype(self) -> Any:
        """Precision of the law."""
        return self.blocks.rows.dtype

    def points(self) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
        """Return the centres ``m_i`` and log weights, padding (log weight ``-inf``) included."""
        rows, bases = self.blocks.rows, self.blocks.bases
        if bases is not None:
            rows = jnp.einsum("krd,ked->kre", rows, bases, precision="highest")
        points = rows + self.blocks.centres[:, None]
        return points.reshape(-1, self.dimension), self.blocks.log_weights.reshape(-1)

    def subsample(self, key: Array, rows: int) -> Mixture:
        """Return the law of ``rows`` data drawn with replacement, by weight: the paper's mini-batch.

        Safe under ``jit`` and ``vmap`` (``rows`` is static). O(n + rows d) time.

        >>> law = mixture(np.eye(3), kernel=Dirac())
        >>> law.subsample(jax.random.key(0), 10).blocks.rows.shape
        (1, 10, 3)
        """
        if rows < 1:
            raise ValueError(f"rows: expected at least 1, got {rows}")
        if self.blocks.bases is not None:
            raise ValueError(
                "subsample: expected an isotropic kernel, got one with local covariances"
            )
        block, row = pick_rows(key, self.blocks.log_weights, rows)
        points = self.blocks.centres[block] + self.blocks.rows[block, row]

        count = -(-rows // BLOCK_ROWS)  # unsorted points: equal blocks in the order of the draw
        size = -(-rows // count)
        pad = count * size - rows
        points = jnp.concatenate([points, jnp.broadcast_to(points[:1], (pad, self.dimension))])
        points = points.reshape(count, size, self.dimension)
        equal = -jnp.log(jnp.asarray(rows, self.dtype))
        log_weights = jnp.where(jnp.arange(count * size) < rows, equal, -jnp.inf)
        centres = points.mean(1)
        blocks = Blocks(
            points - centres[:, None],
            log_weights.reshape(count, size),
            centres,
            None,
            jnp.broadcast_to(self.blocks.variances[:1], centres.shape),
        )
        return replace(self, blocks=blocks)

    def log_prob(self, x: ArrayLike) -> Float[Array, "b"]:
        """Return ``log p_0(x)`` in nats, ``x`` (b, d) and the density in the user's units.

        Raises:
            ValueError: If the kernel is ``Dirac()``, whose law has no density.

        >>> law = mixture([[0.0], [1.0]], kernel=Isotropic(1.0))
        >>> law.log_prob(jnp.zeros((1, 1))).shape
        (1,)
        """
        self.require_width("log_prob")
        return _log_prob(jnp.asarray(x, self.dtype), self)

    def require_width(self, what: str) -> None:
        """Raise ``ValueError`` if the law is known to be a sum of point masses."""
        if not is_traced(self.width) and self.width == 0:
            raise ValueError(
                f"{what}: the empirical measure (kernel=Dirac()) is undefined without noise; "
                "use a kernel with a width, such as Isotropic(h), or a schedule with sigma(0) > 0"
            )

    def sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Return ``n`` exact, independent draws from the law, in the user's units, ties restored.

        >>> mixture(np.eye(2), kernel=Isotropic(0.1)).sample(jax.random.key(0), 5).shape
        (5, 2)
        """
        return _sample(key, self, n)

    def effective_sample_size(self, x: ArrayLike) -> Float[Array, "b"]:
        """Return ``1 / sum_i w_i(x)^2``: how many components share the density at ``x``, (b, d).

        The square of a Gaussian is a Gaussian of half the variance, so this is one more log density.
        """
        self.require_width("effective_sample_size")
        return _effective_sample_size(jnp.asarray(x, self.dtype), self)

    def summary(self, key: Array | None = None) -> Report:
        """Return the report, completed by the effective sample size at 200 draws."""
        if not is_traced(self.width) and self.width == 0:
            return self.report
        draws = self.sample(jax.random.key(0) if key is None else key, 200)
        size = float(jnp.median(self.effective_sample_size(draws)))
        return replace(self.report, effective_sample_size=size)


@jax.jit
def _log_prob(x: Array, law: Mixture) -> Array:
    one = jnp.ones((), x.dtype)
    log_p = stream(law.frame.forward(x), one, jnp.zeros_like(one), law.blocks, exact=True).log_p
    return log_p + law.frame.log_det(x)


@jax.jit
def _effective_sample_size(x: Array, law: Mixture) -> Array:
    blocks, y = law.blocks, law.frame.forward(x)
    log_volume = jnp.sum(jnp.log(4 * jnp.pi * blocks.variances), 1, keepdims=True) / 2
    squared = replace(
        blocks, log_weights=2 * blocks.log_weights - log_volume, variances=blocks.variances / 2
    )
    one = jnp.ones((), x.dtype)
    log_p, log_squares = (stream(y, one, 0 * one, part).log_p for part in (blocks, squared))
    return jnp.exp(2 * log_p - log_squares)


@partial(jax.jit, static_argnums=2)
def _sample(key: Array, law: Mixture, n: int) -> Array:
    return law.frame.restore(law.frame.inverse(draw(key, law.blocks, n)))


def draw(key: Array, blocks: Blocks, n: int) -> Float[Array, "n d"]:
    """Return ``n`` independent draws from the law of the blocks, in their coordinates."""
    pick, noise = jax.random.split(key)
    block, row = pick_rows(pick, blocks.log_weights, n)
    z = jax.random.normal(noise, (n, blocks.rows.shape[-1]), blocks.rows.dtype)
    y = blocks.rows[block, row] + jnp.sqrt(blocks.variances)[block] * z
    if blocks.bases is not None:
        y = jnp.einsum("nd,ned->ne", y, blocks.bases[block], precision="highest")
    return y + blocks.centres[block]


def pick_rows(key: Array, log_weights: Float[Array, "k r"], n: int) -> tuple[Array, Array]:
    """Return ``n`` (block, row) indices drawn by weight, O(k r + n log r).

    In two stages: one float32 uniform could not tell 10^7 rows apart.
    """
    first, second = jax.random.split(key)
    dtype = log_weights.dtype
    mass = jnp.exp(jax.nn.logsumexp(log_weights, 1))
    total = jnp.cumsum(mass)
    block = jnp.searchsorted(
        total, jax.random.uniform(first, (n,), dtype) * total[-1], side="right"
    )
    within = jnp.cumsum(jnp.exp(log_weights), 1)
    target = jax.random.uniform(second, (n,), dtype) * within[block, -1]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        left = within[block, middle] > target
        return jnp.where(left, low, middle + 1), jnp.where(left, middle, high)

    width = log_weights.shape[1]
    start = jnp.zeros_like(block), jnp.full_like(block, width - 1)
    row = jax.lax.fori_loop(0, max(width - 1, 1).bit_length(), halve, start)[1]
    return block, row


def mixture(
    x: Any,
    *,
    kernel: Kernel = Dirac(),
    weights: Any = None,
    frame: Any = None,
    block_rows: int = BLOCK_ROWS,
) -> Mixture:
    """Return the law of the rows of ``x``: one Gaussian (or point) per row.

    Host code, in float64; the result has the precision of ``x`` (float32 unless x64 is enabled).

    Args:
        x: Data, (n, d), anything NumPy can view as a table of finite numbers.
        kernel: Which Gaussian each row carries.
        weights: Non-negative weights of the rows, (n,); equal by default. Rows of weight 0 are left out.
        frame: Coordinates of the law (``Identity()``, ``Affine()``, ``Gaussianize()``), fitted to ``x``;
            by default the identity, or what ``Auto()`` chooses.
        block_rows: Rows evaluated together, at most.

    Raises:
        ValueError: If ``x`` is not a non-empty table of finite numbers, or ``weights`` do not fit.

    >>> law = mixture(np.eye(3), kernel=Isotropic(0.5))
    >>> law.dimension, law.blocks.rows.shape
    (3, (1, 3, 3))
    """
    table, dtype = as_table(x)
    weights = _as_weights(weights, len(table))
    table, weights = table[weights > 0], weights[weights > 0]
    frames = kernel.frames if isinstance(kernel, Auto) and frame is None else (frame or Identity(),)
    spread = Dequantized(table, {}, None)
    if any(getattr(candidate, "dequantize", False) for candidate in frames):
        spread = dequantized(table)
        table = spread.x

    evidence: dict[str, Any] = {}
    chosen: Any = frames[0]
    if isinstance(kernel, Auto):
        choice = choose(table, weights, kernel, frames)
        draws = draw(jax.random.key(kernel.seed), choice.training_law, len(choice.held))
        evidence = dict(
            log_likelihood=choice.log_likelihood,
            memorisation=memorisation(draws, choice.training, choice.held).share,
            curve=choice.curve,
        )
        chosen, kernel = choice.frame, choice.kernel
        fitted = chosen.fit(table, weights)
        blocks = clustered_blocks(
            fitted.forward(table),
            weights,
            choice.labels,
            choice.kernel.h,
            block_rows,
            most_rows=choice.kernel.most_rows,
        )
    else:
        fitted = chosen if hasattr(chosen, "forward") else chosen.fit(table, weights)
        blocks = kernel.lay_out(fitted.forward(table), weights, block_rows)
    kept = np.isfinite(blocks.log_weights)
    report = Report(
        rows=len(table),
        columns=table.shape[1],
        kernel=repr(kernel),
        frame=repr(chosen),
        blocks=len(kept),
        padding=1 - float(kept.mean()),
        tied=spread.share,
        **evidence,
    )
    return Mixture(
        jax.tree.map(lambda a: jnp.asarray(a, dtype), blocks),
        jnp.asarray(_width(blocks), dtype),
        jnp.asarray(_variance(blocks), dtype),
        fitted if spread.ties is None else replace(fitted, ties=spread.ties),
        report,
    )


def _width(blocks: Blocks) -> float:
    """Return the kernel's width, a geometric mean over directions and blocks; 0 for point masses."""
    if not blocks.variances.any():
        return 0.0
    mass = np.exp(blocks.log_weights).sum(1)
    width = np.exp(mass @ np.log(blocks.variances).mean(1) / 2)
    # Of unequal directions the narrow ones ask for steps: 0.7 was best on POWER and MINIBOONE.
    return float(width if blocks.bases is None else 0.7 * width)


def _variance(blocks: Blocks) -> float:
    """Return the law's variance per coordinate, within and between its blocks."""
    weights = np.exp(blocks.log_weights)
    mass = weights.sum(1)
    within = (weights[..., None] * blocks.rows**2).sum() + mass @ blocks.variances.sum(1)
    spread = blocks.centres - mass @ blocks.centres
    return float(within + mass @ (spread**2).sum(1)) / blocks.centres.shape[1]


def is_traced(value: Any) -> bool:
    """Return whether ``value`` is only known inside a transformation, so that it cannot be checked."""
    return isinstance(value, jax.core.Tracer)  # type: ignore[attr-defined]


def as_table(x: Any, name: str = "x") -> tuple[Float[np.ndarray, "n d"], Any]:
    """Return ``x`` as float64 (n, d) and the precision it came with; ``ValueError`` says what is wrong."""
    columns = getattr(x, "columns", None)  # a DataFrame's own names read better than numbers
    try:
        array = np.asarray(x)
        table = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a table of numbers, got {_describe(x)}") from error
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            f"{name}: expected a non-empty table (rows, columns), got shape {table.shape}"
        )
    if np.iscomplexobj(array):
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        label = column if columns is None else repr(columns[column])
        raise ValueError(
            f"{name}: expected finite numbers, got {table[row, column]} in column {label}, row {row} "
            f"({len(np.unique(bad[:, 0]))} rows affected)"
        )
    floating = np.issubdtype(array.dtype, np.floating) and array.dtype.itemsize >= 4
    dtype = jax.dtypes.canonicalize_dtype(array.dtype if floating else np.float64)
    largest = np.abs(table).max(0)
    if (largest > np.sqrt(np.finfo(dtype).max)).any():
        raise ValueError(
            f"{name}: values of column {int(np.argmax(largest))} reach {largest.max():.3g}, whose square "
            f"overflows {dtype}; rescale the column"
        )
    return table, dtype


def _as_weights(weights: Any, n: int) -> np.ndarray:
    weights = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"weights: expected shape ({n},), one per row, got {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("weights: expected finite, non-negative numbers with a positive sum")
    return weights / weights.sum()


def _describe(x: Any) -> str:
    dtypes = getattr(x, "dtypes", None)
    if dtypes is not None and hasattr(dtypes, "items"):
        text = [f"{name!r} ({dtype})" for name, dtype in dtypes.items() if dtype.kind not in "iufb"]
        return f"non-numeric columns {', '.join(text)}" if text else "a ragged table"
    return f"{type(x).__name__} of {getattr(x, 'dtype', 'mixed entries')}"


__all__ = ["BLOCK_ROWS", "Mixture", "Report", "as_table", "draw", "mixture"]
