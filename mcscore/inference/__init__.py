"""Inference: missing values, dynamics, observations, and whether a law is calibrated."""

from mcscore.inference.bayesian import to_arviz, to_numpyro
from mcscore.inference.diagnostics import Coverage, coverage, rank
from mcscore.inference.dynamics import Dynamics, fit_dynamics
from mcscore.inference.imputation import impute
from mcscore.inference.incomplete import mixture_of_incomplete
from mcscore.inference.posteriors import Posterior, posterior

__all__ = [
    "Coverage",
    "Dynamics",
    "Posterior",
    "coverage",
    "fit_dynamics",
    "impute",
    "mixture_of_incomplete",
    "posterior",
    "rank",
    "to_arviz",
    "to_numpyro",
]
