"""Training-free score estimation and supervised one-step generative models in JAX.

After Liu, Yang, Zhang, Bao, Cao and Zhang, arXiv 2310.14458. The whole method is one call,
``fit(key, x)``; every stage is a pure function of its own:

    schedules   Linear, Cosine, VP, VE, Rectified          t -> (alpha, sigma)
    the law     mixture, kernels, frames                   rows -> a Gaussian mixture in blocks
    fields      score, denoise, log_density, divergence, velocity, minibatch_score
    flow        transport (noise -> data), encode (data -> noise)
    supervision generate_pairs, train                      a network learns z -> x
"""

from mcscore import datasets, metrics, plotting
from mcscore.density import Density, effective_sample_size
from mcscore.fields import (
    ScoreEstimate,
    denoise,
    divergence,
    evaluate,
    log_density,
    minibatch_score,
    score,
    velocity,
)
from mcscore.flow import CanonicalClock, Flow, TimeClock, encode, solve_flow, trajectory, transport
from mcscore.frames import Affine, Gaussianize, Identity
from mcscore.generator import Generator, load
from mcscore.jet import Jet, merge
from mcscore.kernels import Dirac, Isotropic, Local, Whitened
from mcscore.mixtures import Mixture, mixture
from mcscore.networks import MLP
from mcscore.pairs import Normal, Pairs, Sobol, generate_pairs
from mcscore.pipeline import Fit, fit, fit_stages
from mcscore.refinement import Refinement, refine
from mcscore.report import Report
from mcscore.schedules import VE, VP, Cosine, Linear, Rectified, Schedule
from mcscore.selection import Auto
from mcscore.solvers import AdamsBashforth
from mcscore.training import History, train

__version__ = "0.1.0"

__all__ = [
    "MLP", "VE", "VP", "AdamsBashforth", "Affine", "Auto", "CanonicalClock", "Cosine", "Density", "Dirac",
    "Fit", "Flow", "Gaussianize", "Generator", "History", "Identity", "Isotropic", "Jet", "Linear",
    "Local", "Mixture", "Normal", "Pairs", "Rectified", "Refinement", "Report", "Schedule",
    "ScoreEstimate", "Sobol", "TimeClock", "Whitened", "datasets", "denoise", "divergence",
    "effective_sample_size", "encode", "evaluate", "fit", "fit_stages", "generate_pairs", "load",
    "log_density", "merge", "metrics", "minibatch_score", "mixture", "plotting", "refine", "score",
    "solve_flow", "train", "trajectory", "transport", "velocity",
]  # fmt: skip
