"""Generators: networks from noise to data, the labeled pairs that teach them, and their densities."""

from mcscore.generators.generator import Generator, load
from mcscore.generators.inversion import Density, jacobian, pull_back, push_forward
from mcscore.generators.labelling import Labelling, generate_pairs
from mcscore.generators.networks import MLP
from mcscore.generators.noise import Normal, Sobol
from mcscore.generators.pairs import Pairs, PairsReport
from mcscore.generators.refinement import Agreement, Refinement, agreement, refine
from mcscore.generators.training import History, Training, recalibrated, train

__all__ = [
    "MLP",
    "Agreement",
    "Density",
    "Generator",
    "History",
    "Labelling",
    "Normal",
    "Pairs",
    "PairsReport",
    "Refinement",
    "Sobol",
    "Training",
    "agreement",
    "generate_pairs",
    "jacobian",
    "load",
    "pull_back",
    "push_forward",
    "recalibrated",
    "refine",
    "train",
]
