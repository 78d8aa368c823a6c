"""The law of a table that is larger than memory, its parts' laws in files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import host_generator, library_of, settled
from mcscore._optional import as_dataframe
from mcscore._validation import as_key, at_least
from mcscore.chunked.rows import Source, deal
from mcscore.flows.fields import Points, evaluate
from mcscore.frames import AffineFrame, FrameKind, GaussianizedFrame, Identity
from mcscore.jet import Evaluation, Jet, merge
from mcscore.mixtures.building import check_law, choose_law
from mcscore.mixtures.files import read_law, save_law
from mcscore.mixtures.kernels import Choice, Kernel, Local
from mcscore.mixtures.selection import Auto
from mcscore.mixtures.value import Mixture
from mcscore.schedules import Schedule, Time
from mcscore.storage import Checkpoint, kept, write_text


@dataclass(frozen=True)
class ChunkedMixture:
    """The average of laws in files, of parts of a table; made by ``mixture`` or ``load``.

    Attributes:
        folder: Where they are.
        run: Of which run.
        sizes: Rows of each.
        evaluation: How they are evaluated.
    """

    folder: Path
    run: str
    sizes: tuple[int, ...]
    evaluation: Evaluation = Evaluation()

    @property
    def shares(self) -> np.ndarray:
        """Each part's share of the rows."""
        return np.asarray(self.sizes) / sum(self.sizes)

    def part(self, number: int) -> Mixture:
        """Return the law of a part."""
        law: Any = read_law(_path(self.folder, number), **_about(self.run, number, len(self.sizes)))
        return replace(law, evaluation=self.evaluation)

    def parts(self) -> Iterator[Mixture]:
        """Return the laws of all parts, the next one read while one is used."""
        part, parts = settled(self.part), len(self.sizes)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(part, 0)
            for number in range(1, parts + 1):
                law = ahead.result()
                if number < parts:
                    ahead = pool.submit(part, number)
                yield law

    def log_prob(self, x: Any) -> Float[Array, "b"]:
        """Return the log density at ``x`` (b, d), nats, in the user's units; one pass over the parts.

        Raises:
            ValueError: As a mixture's.
        """
        total: Any = -jnp.inf
        for share, law in zip(self.shares, self.parts(), strict=True):
            total = jnp.logaddexp(total, law.log_prob(x) + np.log(share).astype(law.dtype))
        return total

    def sample(self, key: Array, n: int, *, as_frame: bool = False) -> Any:
        """Return ``n`` exact, independent draws (n, d), in the user's units, as a mixture does."""
        at_least(0, n=n)
        number_key, order_key, *keys = jax.random.split(as_key(key), 2 + len(self.sizes))
        counts = host_generator(number_key).multinomial(int(n), self.shares)
        drawn, names = [], None
        for count, own, law in zip(counts, keys, self.parts(), strict=True):
            drawn.append(law.sample(own, int(count)))
            names = law.columns
        order = host_generator(order_key).permutation(int(n))
        x = library_of(drawn[0]).concatenate(drawn)[
            order
        ]  # NumPy's of columns too fine for float32
        return as_dataframe(x, names) if as_frame else x

    def evaluate(self, x_t: Points, t: Time, schedule: Schedule, *, laplacian: bool = False) -> Jet:
        """Return log density, score and, if asked for, Laplacian of the diffused law, see ``flows``.

        Args:
            x_t: Queries (b, d), in the coordinates of the parts' frame.
            t: Time in ``[0, 1]``, a scalar or one per query.
            schedule: How the law is diffused.
            laplacian: Whether to compute the Laplacian too.

        Raises:
            ValueError: If the parts have frames of their own: there are ties, bounds or periods.
        """
        jet, frame = None, None
        for share, law in zip(self.shares, self.parts(), strict=True):
            if frame is not None and not _equal(frame, law.frame):
                raise ValueError(
                    "evaluate: parts of tables with ties, bounds or periods have coordinates of their own"
                )
            frame = law.frame
            own = evaluate(x_t, t, law, schedule, laplacian=laplacian)
            own = own._replace(log_p=own.log_p + np.log(share).astype(law.dtype))
            jet = own if jet is None else merge(jet, own)
        assert jet is not None  # there is one part at least
        return jet

    def score(self, x_t: Points, t: Time, schedule: Schedule) -> Float[Array, "b d"]:
        """Return ``grad log p_t(x_t)`` of all rows, exactly; arguments and errors as of ``evaluate``."""
        return self.evaluate(x_t, t, schedule).field


def mixture(
    source: Source,
    folder: str | os.PathLike,
    *,
    rows: int = 250_000,
    kernel: Kernel = Auto(),
    frame: FrameKind | None = None,
    bounds: Mapping[Any, Any] | None = None,
    periodic: Mapping[Any, Any] | None = None,
    key: Array | None = None,
    evaluation: Evaluation | None = None,
) -> ChunkedMixture:
    """Return the law of all rows of a table that may be larger than memory.

    Rows are dealt at random into parts of equal size in ``folder``, where there has to be room for a copy of
    the table meanwhile. The first part decides about frame, clusters and bandwidth; every part's law is kept
    in a file, and an interrupted call goes on behind the last. With several parts a `Local` kernel needs
    no partitions of its own: theirs average too.

    Args:
        source: A table, see ``tables``; it is read twice, so that an iterator will not do.
        folder: Of the parts' laws.
        rows: Rows per part, at most: what memory depends on (2 GiB for 250,000 of 8 columns with `Auto`).
            There may be 200 parts.
        kernel: As ``mcs.mixture`` takes it, like the options that follow.
        frame: Coordinates.
        bounds: Ends of columns, by name or number.
        periodic: Periods of columns, by name or number.
        key: Random key.
        evaluation: How the law is evaluated.

    Raises:
        ValueError: If the source is no table of finite numbers, or ends when read once; as ``mcs.mixture``;
            if the folder belongs to other data or settings.

    >>> import tempfile
    >>> law = mixture(np.random.default_rng(0).normal(size=(90, 2)), tempfile.mkdtemp(), rows=50)
    >>> law.sizes, law.log_prob([[0.0, 0.0]]).shape
    ((45, 45), (1,))
    """
    at_least(5, rows=rows)
    check_law(kernel, frame)
    if isinstance(source, Iterator):
        raise ValueError(
            "source: expected a table that can be read twice, got an iterator; give a function that "
            "returns it"
        )
    key = jax.random.key(0) if key is None else as_key(key)
    deal_key, law_key = jax.random.split(key)
    folder = Path(folder).absolute()
    options: dict[str, Any] = dict(bounds=bounds, periodic=periodic)
    settings = dict(key=key, kernel=kernel, frame=frame, rows=int(rows)) | options
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with deal(deal_key, source, int(rows), folder) as dealt:
        settings |= dict(source=dealt.digest, columns=dealt.columns, dtype=str(dealt.dtype))
        store, parts = Checkpoint(folder, settings), len(dealt.sizes)
        kinds = [_kinds(folder, store.run, number, parts) for number in range(parts)]
        how: Any = dict(kernel=kernel, frame=frame)
        for number in range(parts) if None in kinds else ():
            if number > 0 and kinds[number] is not None:
                continue
            own, table = jax.random.fold_in(law_key, number), dealt.part(number)
            try:
                law, chosen = choose_law(table, key=own, **how, **options)
            except ValueError as error:
                store.forget()
                where = f" (in part {number} of {parts}, of {len(table)} rows; see rows=)"
                raise ValueError(f"{error}{where if parts > 1 else ''}") from error
            if number == 0:  # found again if it is there
                how = _as_the_first(chosen, law, parts)
            if kinds[number] is None:
                save_law(law, _path(folder, number), **_about(store.run, number, parts))
                kinds[number] = _kinds_of(law)
    _warn_of_kinds(kinds, dealt.columns)
    write_text(folder / "law.json", json.dumps(dict(run=store.run, sizes=dealt.sizes)))
    return load(folder, evaluation)


def load(folder: str | os.PathLike, evaluation: Evaluation | None = None) -> ChunkedMixture:
    """Return the law that ``mixture`` has completed in a folder.

    Raises:
        ValueError: If there is none, or not all of it.
    """
    folder = Path(folder).absolute()
    told: Any = kept(folder / "law.json") or {}
    run, sizes = told.get("run"), told.get("sizes")
    counts = isinstance(sizes, list) and sizes and all(isinstance(n, int) and n > 0 for n in sizes)
    if not counts or not isinstance(run, str):
        raise ValueError(f"folder: {folder} has no complete law of chunked.mixture")
    for path in (_path(folder, number) for number in range(len(sizes))):
        if not path.exists():
            raise ValueError(f"folder: {path.name} is gone from {folder}")
    evaluation = Evaluation.on(jax.local_devices()[0]) if evaluation is None else evaluation
    return ChunkedMixture(folder, run, tuple(sizes), evaluation)


def _path(folder: Path, number: int) -> Path:
    return folder / f"law-{number:05d}.safetensors"


def _about(run: str, number: int, parts: int) -> dict[str, str]:
    """Return what a part's file says of its place, so that none is taken for another."""
    return dict(run=run, part=f"{number} of {parts}")


def _kinds(folder: Path, run: str, number: int, parts: int) -> dict[int, str] | None:
    """Return the kinds of columns of a part's law, if there is one.

    Warns of one that is damaged or another's.
    """
    path = _path(folder, number)
    if not path.exists():
        return None
    try:
        return _kinds_of(read_law(path, **_about(run, number, parts)))
    except ValueError as error:
        warnings.warn(f"folder: {error}; it is made again", RuntimeWarning, stacklevel=3)
        return None


def _kinds_of(law: Any) -> dict[int, str]:
    return {} if law.report is None else law.report.kinds


def _warn_of_kinds(kinds: list[Any], columns: tuple[str, ...] | None) -> None:
    """Warn of columns that repeat values in some parts as they do not in others."""
    for j in sorted({j for part in kinds for j in part}):
        found = sorted({part.get(j, "continuous") for part in kinds})
        if len(found) > 1:
            name = j if columns is None else repr(columns[j])
            warnings.warn(
                f"source: in some parts column {name} is {found[0]}, in others {found[1]}: densities at "
                "values that repeat are rough; larger parts (rows=) agree",
                RuntimeWarning,
                stacklevel=3,
            )


def _as_the_first(chosen: Choice, law: Mixture, parts: int) -> dict[str, Any]:
    """Return kernel and frame of all parts, as the first has chosen them."""
    kernel: Any = chosen.kernel
    if isinstance(kernel, Local):  # the parts' laws average as partitions do
        kernel = replace(kernel, partitions=-(-kernel.partitions // parts))
    plain = isinstance(law.frame, Identity | AffineFrame | GaussianizedFrame)
    return dict(kernel=kernel, frame=law.frame if plain else chosen.frame)


def _equal(one: Any, other: Any) -> bool:
    """Return whether two frames are the same."""
    same = jax.tree.structure(one) == jax.tree.structure(other)
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=False)
    return same and all(np.array_equal(a, b) for a, b in leaves)
