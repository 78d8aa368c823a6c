"""Data to try the method on: planar sets, Gaussian mixtures of known density, real tables, files.

2-D sets are pure functions ``name(key, n) -> (n, 2)``; small real tables are functions of nothing:
``wine() -> (178, 13)``. The large ones of the literature are read by ``uci(name, root)`` and downloaded by
``fetch(name, root)``.
"""

from mcscore.datasets.download import fetch
from mcscore.datasets.gaussians import EIGHT_GAUSSIANS, GaussianMixture, random_gaussian_mixture
from mcscore.datasets.literature import SOURCES, Source, Splits, uci
from mcscore.datasets.planar import (
    TWO_DIMENSIONAL,
    checkerboard,
    circles,
    eight_gaussians,
    moons,
    pinwheel,
    rings,
    swiss_roll,
    two_spirals,
)
from mcscore.datasets.reading import read
from mcscore.datasets.tables import TABLES, breast_cancer, digits, iris, split, wine

__all__ = [
    "EIGHT_GAUSSIANS",
    "SOURCES",
    "TABLES",
    "TWO_DIMENSIONAL",
    "GaussianMixture",
    "Source",
    "Splits",
    "breast_cancer",
    "checkerboard",
    "circles",
    "digits",
    "eight_gaussians",
    "fetch",
    "iris",
    "moons",
    "pinwheel",
    "random_gaussian_mixture",
    "read",
    "rings",
    "split",
    "swiss_roll",
    "two_spirals",
    "uci",
    "wine",
]
