"""Labeled pairs ``(z, x)`` as a value: noise, and the data points to which the reverse ODE carries it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mcscore._arrays import pytree, shapes
from mcscore.frames import Identity


class PairsReport(NamedTuple):
    """How the labels were made, and how exact they are.

    ``error_rms`` and ``error_median`` are distances per coordinate between the labels of
    ``error_sample`` trajectories and a tight solve of the same ODE, in the mixture's units; ``switched``
    is the share of them more than half a standard deviation of the law away: they went to another mode.
    ``mismatch`` is by how much mean and deviation of the labels differ from the law's, in its deviations:
    what the schedule leaves of the law at ``t = 1`` beyond these two.
    """

    pairs: int
    nonfinite: int
    evaluations: int | None
    error_sample: int
    error_rms: float
    error_median: float
    switched: float
    mismatch: float


@pytree(dropped=["report"])
@dataclass(frozen=True, eq=False)
class Pairs:
    """Noise ``z`` and labels ``x``, row by row; unpacks as ``z, x = pairs``, or ``z, c, x``.

    Attributes:
        z: Noise (n, d).
        x: Labels (n, d), in the coordinates of ``frame``.
        frame: Map between the user's units and those coordinates.
        c: Conditions (n, k) of the labels, in the coordinates of ``condition_frame``; None without any.
        condition_frame: Map between the user's units and those coordinates.
        report: ``PairsReport``; None for pairs made by hand and for whatever a transformation returns.
    """

    z: Any
    x: Any
    frame: Any = Identity()
    c: Any = None
    condition_frame: Any = Identity()
    report: PairsReport | None = field(default=None, repr=False)
    __repr__ = shapes

    def __iter__(self) -> Iterator[Any]:
        return iter((self.z, self.x) if self.c is None else (self.z, self.c, self.x))

    def labels(self) -> Any:
        """Return the labels (n, d) in the user's units, ties restored."""
        return self.frame.restore(self.frame.inverse(self.x))
