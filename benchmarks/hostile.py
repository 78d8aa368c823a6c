"""Hostile arguments, right or wrong, for ``faults.py``: tables, numbers, counts, keys, weights.

``calls`` lists every public function with good arguments, and for each argument the values that replace it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pandas as pd

import mcscore as mcs

KEY, S = jax.random.key(0), mcs.Cosine()
R = np.random.default_rng(5)
X = R.standard_normal((60, 3))
LAW = mcs.mixture(X, kernel=mcs.Whitened(0.4))
POINTS = mcs.mixture(X, kernel=mcs.Isotropic(0.4))
GIVEN = mcs.mixture(X[:, :2], condition=X[:, 2:], kernel=mcs.Whitened(0.4))
Q = X[:4].astype(np.float32)
PAIRS = mcs.Pairs(jax.numpy.asarray(X, "float32"), jax.numpy.asarray(2 * X, "float32"))
SMALL = dict(network=mcs.MLP(width=8, depth=1), epochs=1)
GEN = mcs.train(KEY, PAIRS, **SMALL, encoder=True)[0]

# --- hostile values, by what an argument is ------------------------------------------------------


def placed(x: np.ndarray, value: Any) -> np.ndarray:
    """Return ``x`` with one entry replaced."""
    x = np.array(x, np.float64)
    x[tuple(R.integers(size) for size in x.shape)] = value
    return x


def table(x: np.ndarray) -> list[Any]:
    """Return what users hand in where a table is meant, right or wrong."""
    numbers = [np.nan, np.inf, -np.inf, 1e300, 1e38, 5e-324, 1e-30, -0.0]
    frame = pd.DataFrame(x, columns=[f"c{j}" for j in range(x.shape[1])])
    return [
        *(placed(x, value) for value in numbers),
        *(x.astype(kind) for kind in ("f2", "f4", ">f8", "i2", "u1", "i8", "c8", "O", "S5", "?")),
        *(x[:0], x[:, :0], x[0], x[None], x[:1], x.T, x[:, :1], np.c_[x, x], x[::-1], x[:, ::-1]),
        *(x.tolist(), [*x.tolist()[:1], [0.0]], [], None, "table", 3, object(), {}, {0: x}, set()),
        *(
            np.ma.masked_less(x, 0),
            np.ma.array(x),
            frame,
            frame[frame.columns[::-1]],
            x.astype("M8[s]"),
        ),
        *(frame.assign(more=1.0), frame.astype(object), frame.astype("category"), x * 0, x * 0 + 7),
        *(x * 1e30, x * 1e-30, x + 1e9, np.asfortranarray(x), x.view(np.recarray), iter(x), [*x]),
        *(
            np.where(x > 0, "a", "b"),
            np.where(x > 0, None, x),
            jax.numpy.asarray(x),
            frame.to_dict(),
        ),
    ]


def numbers(*good: Any) -> list[Any]:
    """Return what may stand where a number is meant."""
    bad = [
        -1,
        0,
        1.5,
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        5e-324,
        "1",
        None,
        [],
        [1, 2],
        {},
        object(),
    ]
    arrays = [
        np.float32(0.5),
        np.int8(1),
        np.array(0.5),
        np.ones(3),
        np.nan * np.ones(4),
        np.bool_(True),
    ]
    return [*good, *bad, *arrays, True, 10**40, -(10**40), 1j, b"1"]


def counts() -> list[Any]:
    """Return what may stand where a count is meant, none of them large."""
    return [c for c in numbers(1, 3) if not (isinstance(c, int | float) and 1e4 < c < 1e299)]


def weights(n: int) -> list[Any]:
    """Return what may stand where a weight for each of ``n`` rows is meant."""
    w = np.ones(n)
    single = [placed(w, value) for value in (np.nan, np.inf, -1, 0, 1e300, 5e-324)]
    return [
        *single,
        w[:-1],
        w[None],
        0 * w,
        w * 1e-300,
        w * 1e300,
        "w",
        1.0,
        [],
        w.astype(object),
        w > 0,
    ]


KEYS = [
    0,
    None,
    "key",
    np.zeros(2, np.uint32),
    jax.random.PRNGKey(1),
    jax.random.split(KEY),
    [KEY],
    1.5,
]
VALUES = [
    None,
    0,
    "cosine",
    X,
    object(),
    mcs.Cosine,
    mcs.Linear(),
    mcs.Whitened(0.4),
    LAW,
    POINTS,
    S,
    KEY,
]
COLUMNS = [
    [0],
    [3],
    [-1],
    [0, 0],
    [],
    [0, 1, 2],
    "c0",
    None,
    1.5,
    [True, False],
    ["c9"],
    {0: 1.0},
    {5: 1.0},
]

# --- every public function: how it is called, and what each of its arguments may be ---------------

Call = tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]


def calls() -> dict[str, Call]:
    """Return for each function how it is called, good arguments, and hostile ones for each."""
    field = dict(x_t=Q, t=0.4, mixture=LAW, schedule=S)
    of_field = dict(x_t=table(Q), t=numbers(0.0, 1.0), mixture=VALUES, schedule=VALUES)
    flow = dict(mixture=LAW, schedule=S, steps=2)
    of_flow = dict(mixture=VALUES, schedule=VALUES, steps=counts())
    kernels = [mcs.Isotropic, mcs.Whitened, mcs.Local]
    condition = table(X[:4, 2:])
    found: dict[str, Call] = {
        name: (getattr(mcs, name), field, of_field)
        for name in ("score", "denoise", "log_density", "divergence", "velocity")
    }
    found |= {
        "minibatch_score": (
            mcs.minibatch_score, dict(key=KEY, **field | dict(mixture=POINTS), batch_size=8),
            dict(key=KEYS, **of_field, batch_size=counts()),
        ),
        "transport": (mcs.transport, dict(z=Q, **flow), dict(z=table(Q), **of_flow)),
        "encode": (mcs.encode, dict(x=Q, **flow), dict(x=table(Q), **of_flow)),
        "mixture": (
            mcs.mixture, dict(x=X, kernel=mcs.Whitened(0.4)),
            dict(
                x=table(X), kernel=VALUES, weights=weights(60), groups=weights(60), key=KEYS,
                frame=[*VALUES, mcs.Affine(), mcs.Identity()], condition=[*table(X[:, :1]), *COLUMNS],
                bounds=[{0: (-9, 9)}, {0: (0, 0)}, {7: (0, 1)}, {0: 1}, {0: "a"}, [], {0: (5, None)}],
                periodic=[{0: 9.0}, {0: -1}, {0: 0}, {0: math.nan}, {9: 1.0}, "c0", {0: (1, 1)}],
            ),
        ),
        "kernel": (lambda kind, h: mcs.mixture(X, kernel=kernels[kind](h)), dict(kind=0, h=0.4),
                   dict(h=numbers(0.3))),
        "subsample": (
            mcs.chunked.subsample, dict(key=KEY, source=X, rows=5), dict(key=KEYS, rows=counts())
        ),
        "log_prob": (LAW.log_prob, dict(x=X[:4]), dict(x=table(X[:4]))),
        "sample": (LAW.sample, dict(key=KEY, n=3), dict(key=KEYS, n=counts())),
        "condition": (
            lambda **a: LAW.condition(**a).log_prob(X[:2, 1:]), dict(columns=[0], values=[0.1]),
            dict(columns=COLUMNS, values=numbers([0.2])),
        ),
        "marginal": (lambda **a: LAW.marginal(**a).variance, dict(columns=[0]), dict(columns=COLUMNS)),
        "observe": (
            lambda **a: LAW.observe(**a).variance,
            dict(matrix=np.eye(3)[:1], values=[0.2], covariance=[[0.1]]),
            dict(matrix=table(np.eye(3)[:1]), values=numbers([0.1]), covariance=numbers([[0.2]])),
        ),
        "log_prob given": (
            GIVEN.log_prob, dict(x=X[:4, :2], condition=X[:4, 2:]),
            dict(x=table(X[:4, :2]), condition=condition),
        ),
        "sample given": (
            GIVEN.sample, dict(key=KEY, n=4, condition=[0.3]),
            dict(key=KEYS, n=counts(), condition=condition),
        ),
        "support": (GIVEN.support, dict(condition=[0.3]), dict(condition=condition)),
        "generate_pairs": (
            mcs.generate_pairs, dict(key=KEY, n=20, steps=2, error_sample=0, mixture=POINTS, schedule=S),
            dict(key=KEYS, n=counts(), **of_flow, chunk_size=counts(), minibatch=counts()),
        ),
        "train": (
            mcs.train, dict(key=KEY, pairs=PAIRS, **SMALL),
            dict(key=KEYS, pairs=VALUES, epochs=numbers(2), batch_size=counts(), network=VALUES,
                 validation=numbers(0.2), ema=numbers(0.9), optimizer=VALUES, patience=counts()),
        ),
        "fit": (
            mcs.fit, dict(key=KEY, x=X, pairs=20, refine=0, kernel=mcs.Whitened(0.4), **SMALL),
            dict(key=KEYS, x=[*table(X)], pairs=counts(), kernel=VALUES, schedule=VALUES,
                 labelling=[{}, dict(steps=2), dict(steps=-1), dict(stepz=1), [], None, dict(noise=1)]),
        ),
        "gen.sample": (GEN.sample, dict(key=KEY, n=3), dict(key=KEYS, n=counts())),
        "gen.encode": (GEN.encode, dict(x=Q), dict(x=table(Q))),
        "gen.density": (GEN.density, dict(x=Q), dict(x=table(Q))),
        "impute": (
            mcs.inference.impute, dict(key=KEY, law=LAW, rows=placed(X[:4], np.nan)),
            dict(key=KEYS, law=VALUES, rows=table(X[:4]), draws=counts()),
        ),
        "posterior": (
            mcs.inference.posterior,
            dict(key=KEY, law=LAW, log_likelihood=lambda x: -x[:, 0] ** 2, n=5, proposals=50),
            dict(key=KEYS, law=VALUES, log_likelihood=[None, 0, "p", X, LAW], n=counts(), proposals=counts()),
        ),
        "sliced_wasserstein": (
            mcs.metrics.sliced_wasserstein, dict(key=KEY, x=X, y=X + 1),
            dict(key=KEYS, x=table(X), y=table(X), projections=counts(), x_weights=weights(60)),
        ),
        "energy_distance": (
            mcs.metrics.energy_distance, dict(x=X, y=X + 1),
            dict(x=table(X), y=table(X), y_weights=weights(60)),
        ),
        "column_kl": (
            mcs.metrics.column_kl, dict(x=X, y=X + 1),
            dict(x=table(X), y=table(X), bandwidth=numbers(0.3), points=counts()),
        ),
        "split": (
            lambda **a: mcs.datasets.split(a["key"], a["x"], a["share"]), dict(key=KEY, x=X, share=0.3),
            dict(key=KEYS, x=table(X), share=numbers(0.5)),
        ),
    }  # fmt: skip
    return found


ALSO = {  # an argument's other names in messages
    "x": "rows|table|column|points|start|n", "x_t": "x|start", "z": "x|start", "h": "bandwidth|kernel",
    "kernel": "mixture", "law": "mixture", "matrix": "values", "covariance": "values",
    "y": "values|x", "rows": "x|column",
    "condition": "column|values", "values": "condition", "kind": "h", "share": "shares", "bounds": "column",
    "periodic": "column", "columns": "column|values", "log_likelihood": "likelihood", "x_weights": "weights",
    "y_weights": "weights", "weights": "kernel|x", "schedule": "mixture|t", "n": "pairs|proposals",
    "pairs": "validation|n", "labelling": "steps|noise", "key": "random", "proposals": "n",
}  # fmt: skip
