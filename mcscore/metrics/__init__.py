"""Distances between two sets of rows, and what samplers are judged by. Arrays in, scalars out.

All compare rows in the units they come in: standardize first where columns differ in scale. Weights of the
rows, where given, are their shares of the law, not counts: pairs of a row with itself are left out.
"""

from __future__ import annotations

import warnings
from typing import Any

from mcscore.metrics.columns import Moments, column_kl, column_moments
from mcscore.metrics.distances import MMD, energy_distance, mmd, sliced_wasserstein
from mcscore.metrics.samplers import (
    Memorization,
    classifier_accuracy,
    effective_sample_size,
    memorization,
)

__all__ = [
    "MMD",
    "Memorization",
    "Moments",
    "classifier_accuracy",
    "column_kl",
    "column_moments",
    "effective_sample_size",
    "energy_distance",
    "memorization",
    "mmd",
    "sliced_wasserstein",
]


def __getattr__(name: str) -> Any:
    if name != "memorisation":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "metrics.memorisation is now metrics.memorization", DeprecationWarning, stacklevel=2
    )
    return memorization
