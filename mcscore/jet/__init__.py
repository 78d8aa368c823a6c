"""The jet of log p: density, score and Laplacian of a mixture in blocks, in one pass over its rows."""

from mcscore.jet import native
from mcscore.jet.blocks import Blocks, Evaluation
from mcscore.jet.conditioning import conditional, divided, marginal
from mcscore.jet.readings import Coefficients, Denoiser, Jet, Reading, Score, Velocity, merge
from mcscore.jet.sampling import draw
from mcscore.jet.sharding import shard
from mcscore.jet.streaming import log_density, stream

__all__ = [
    "Blocks",
    "Coefficients",
    "Denoiser",
    "Evaluation",
    "Jet",
    "Reading",
    "Score",
    "Velocity",
    "conditional",
    "divided",
    "draw",
    "log_density",
    "marginal",
    "merge",
    "native",
    "shard",
    "stream",
]
