"""Fields of the diffused law, and the flow between noise and data that its velocity drives."""

from mcscore.flows.clocks import CanonicalClock, TimeClock
from mcscore.flows.fields import denoise, divergence, evaluate, log_density, score, velocity
from mcscore.flows.flow import Flow, encode, evaluations, solve_flow, trajectory, transport
from mcscore.flows.minibatch import ScoreEstimate, minibatch_score
from mcscore.flows.solvers import AdamsBashforth

__all__ = [
    "AdamsBashforth",
    "CanonicalClock",
    "Flow",
    "ScoreEstimate",
    "TimeClock",
    "denoise",
    "divergence",
    "encode",
    "evaluate",
    "evaluations",
    "log_density",
    "minibatch_score",
    "score",
    "solve_flow",
    "trajectory",
    "transport",
    "velocity",
]
