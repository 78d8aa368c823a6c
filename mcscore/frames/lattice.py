"""Lattices: the step on which all values of a column lie, found from the values."""

from __future__ import annotations

import numpy as np

MOST_STEPS = 1e6  # in the range of a column: finer steps tell nothing
EVIDENCE = 20.0  # nats against chance
FEW = 1000  # values that are looked at first


def lattice_of(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return origin and step of the lattice that holds the different ``values`` (k,), sorted; (0, 0) if none.

    Steps are sought among the decimal fractions and their multiples, also where the values were rounded to
    float32, and, where most values repeat (``counts``), as the least difference or a part of it. Values that
    are on the lattice by chance count against it: one with a probability of e^-20 or less is believed.

    >>> lattice_of(np.array([0.0, 0.5, 2.0]), np.array([9, 9, 9]))
    (0.0, 0.5)
    """
    span, reach = float(np.ptp(values)), float(np.abs(values).max())
    if not span > 0:
        return 0.0, 0.0
    digits = int(np.floor(np.log10(MOST_STEPS / span)))
    if abs(digits) < 300:
        single = np.array_equal(values, values.astype(np.float32))
        for relative in (1e-14, 2.0**-24)[: 1 + single]:
            few, *_ = _whole(values[:: len(values) // FEW + 1], digits, relative)
            if not few.all():  # as a rule that tells
                continue
            near, whole, room = _whole(values, digits, relative)
            if near.all() and -np.log(np.minimum(2 * room, 1)).sum() >= EVIDENCE:
                parts = np.gcd.reduce(np.diff(whole).astype(np.int64))
                step = float(parts * 10.0**-digits if digits < 0 else parts / 10.0**digits)
                return _origin(values[0], step, reach), step
    if (counts > 1).mean() < 0.5 or len(values) < 4:
        return 0.0, 0.0
    least = np.diff(values).min()
    for part in range(1, 5):
        steps = np.rint((values - values[0]) / least * part)
        step = (values[-1] - values[0]) / steps[-1]
        room = 1e-3 + 2.0**-22 * reach / step
        off = np.abs((values - values[0]) / step - steps)
        evidence = -(len(values) - 2) * np.log(min(2 * room, 1))
        if steps[-1] <= 1e4 and (off <= room).all() and evidence >= EVIDENCE:
            return _origin(values[0], float(step), reach), float(step)
    return 0.0, 0.0


def _whole(
    values: np.ndarray, digits: int, relative: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which values are whole units of ``10^-digits``, how many, and what rounding allows."""
    scaled = values * 10.0**digits if digits >= 0 else values / 10.0**-digits
    whole, room = np.rint(scaled), relative * np.abs(scaled) + 1e-9
    return np.abs(scaled - whole) <= room, whole, room


def _origin(value: float, step: float, reach: float) -> float:
    origin = float(value - step * np.rint(value / step))
    return 0.0 if abs(origin) <= min(1e-6 * step + 2.0**-22 * reach, 1e-2 * step) else origin
