r"""Diffrax's solvers, and a multistep one of third order: one velocity evaluation per step.

Adams and Bashforth's method integrates the parabola through the last three velocities,

    y_{n+1} = y_n + c_0 f_n + c_1 f_{n-1} + c_2 f_{n-2},

with (23, -16, 5)/12 times the step where steps are equal. The flow is so smooth in the canonical clock
that looking back replaces the Runge-Kutta stages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
from diffrax import Bosh3 as Bosh3
from diffrax import Dopri5 as Dopri5
from diffrax import Euler as Euler

Solver = diffrax.AbstractSolver
Controller = diffrax.AbstractStepSizeController


class _History(NamedTuple):
    """The last two velocities and how far back each was taken, counted from the next step's start."""

    first: Any
    second: Any
    back: Any
    further: Any


class AdamsBashforth(diffrax.AbstractSolver):
    """Adams-Bashforth of order 3, for given steps (equal or not; it estimates no error).

    ``steps + 2`` velocity evaluations: the first step is a midpoint step.

    >>> import mcscore as mcs
    >>> law = mcs.mixture([[1.0, 0.0], [0.0, 1.0]], kernel=mcs.Isotropic(0.5))
    >>> z = jax.random.normal(jax.random.key(0), (4, 2))
    >>> mcs.transport(z, law, mcs.Linear(), solver=mcs.flows.AdamsBashforth(), steps=20).shape
    (4, 2)
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    def order(self, terms: Any) -> int:
        """Return 3."""
        return 3

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """Return the velocity."""
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> _History:
        """Return a history on a straight line, such that the first step is a midpoint step."""
        control = terms.contr(t0, t1)
        now = terms.vf(t0, y0, args)
        half = jax.tree.map(lambda y, f: y + f * control / 2, y0, now)
        middle = terms.vf((t0 + t1) / 2, half, args)
        first, second = (
            jax.tree.map(lambda f, m, k=k: f + 2 * k * (f - m), now, middle) for k in (1, 2)
        )
        return _History(first, second, control, 2 * control)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: _History,
        made_jump: Any,
    ) -> tuple[Any, None, dict[str, Any], _History, diffrax.RESULTS]:
        """Integrate the parabola through the velocities at 0, ``-a`` and ``-b`` over one step ``h``."""
        first, second, a, b = solver_state
        h = terms.contr(t0, t1)
        now = terms.vf(t0, y0, args)
        c1 = -(h**3 / 3 + h**2 * b / 2) / (a * (b - a))
        c2 = (h**3 / 3 + h**2 * a / 2) / (b * (b - a))
        c0 = h - c1 - c2
        y1 = jax.tree.map(
            lambda y, f0, f1, f2: y + c0 * f0 + c1 * f1 + c2 * f2, y0, now, first, second
        )
        history = _History(now, first, h, h + a)
        return y1, None, dict(y0=y0, y1=y1), history, diffrax.RESULTS.successful
