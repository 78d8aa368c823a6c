"""How fast is one evaluation of the score, beside what else could compute it on this machine?

    python benchmarks/score.py --out benchmarks/results/score.jsonl

Throughput in 1e9 (query, row) pairs per second, float32, rows and queries in memory, medians with
quartiles over rounds in which every rival has a turn (a shared machine's speed changes by the second),
at noise 0.5 and 0.1 of the data's standard deviation. On a CPU ours is timed with AVX2 and by XLA too.
Rivals: the paper's formula as a PyTorch broadcast (b x n x d), PyTorch's ``scaled_dot_product_attention``
with an extra key column for the bias, KeOps, naive JAX ``vmap``, scikit-learn's ``KernelDensity`` (density
only). A million rows at noise 0.05 are timed with and without leaving rows out. Ceilings: the native kernel's
innermost loop alone, a thread per core (``of_loop`` is the share of it); matrix products and ``exp`` in XLA.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from clock import Results, measure, measure_in_turn, parser

import mcscore as mcs
from mcscore.jet import Evaluation, native
from mcscore.mixtures.covariances import clustered_blocks, shrunk_clusters
from mcscore.mixtures.value import BLOCK_ROWS

SCHEDULE = mcs.Rectified()  # noise beside the data: s = t / (1 - t)


def torch_rivals(x, y, t, most_pairs):
    """Return the paper's broadcast and the fused attention as functions of nothing, if torch is here."""
    try:
        import torch
    except ImportError:
        return {}
    alpha, sigma = 1 - t, t
    device = "cuda" if torch.cuda.is_available() and jax.devices()[0].platform == "gpu" else "cpu"
    tx, ty = (torch.tensor(np.asarray(a), device=device) for a in (x, y))
    torch.backends.cuda.matmul.allow_tf32 = False

    def finish(out):
        if device == "cuda":
            torch.cuda.synchronize()
        return np.float32(out[0, 0].item())

    def paper():
        difference = ty[:, None] - alpha * tx[None]
        scores = -difference / sigma**2
        weights = torch.exp(-(difference**2).sum(-1) / (2 * sigma**2))
        return finish((weights[..., None] * scores).sum(1) / weights.sum(1, keepdim=True))

    def attention():
        # softmax((alpha y . x - alpha^2 |x|^2 / 2) / sigma^2): one more column carries the bias.
        # Keys and values padded to one width, a multiple of 8: else torch leaves its fused kernels.
        d = tx.shape[1]
        pad = lambda a: torch.nn.functional.pad(a, (0, -(-(d + 1) // 8) * 8 - a.shape[1]))[
            None, None
        ]
        keys = torch.cat([tx, (tx**2).sum(1, keepdim=True)], 1)
        queries = torch.cat([ty, torch.full_like(ty[:, :1], -alpha / 2)], 1)
        mean = torch.nn.functional.scaled_dot_product_attention(
            pad(queries), pad(keys), pad(tx), scale=alpha / sigma**2
        )[0, 0, :, :d]
        return finish((alpha * mean - ty) / sigma**2)

    out = {"PyTorch fused attention": attention}
    if importlib.util.find_spec("pykeops"):  # compiles with the machine's C++ compiler
        from pykeops.torch import LazyTensor

        def keops():
            queries, rows = LazyTensor(ty[:, None, :].contiguous()), LazyTensor(tx[None])
            logits = -((queries - alpha * rows) ** 2).sum(-1) / (2 * sigma**2)
            return finish((alpha * logits.sumsoftmaxweight(rows, axis=1) - ty) / sigma**2)

        out["KeOps"] = keops
    if len(x) * len(y) * x.shape[1] <= most_pairs:
        out["the paper's formula, PyTorch"] = paper
    return out


@jax.jit
def naive(y, x, t):
    def one(query):
        logits = -jnp.sum((query - (1 - t) * x) ** 2, 1) / (2 * t**2)
        return ((1 - t) * jax.nn.softmax(logits) @ x - query) / t**2

    return jax.vmap(one)(y)


@partial(jax.jit, static_argnums=2)
def attention(y, x, t):
    """JAX's own attention, at the accuracy of float32, with one more column for the bias."""
    keys = jnp.concatenate([x, jnp.sum(x**2, 1, keepdims=True)], 1)
    queries = jnp.concatenate([y, jnp.full_like(y[:, :1], -(1 - t) / 2)], 1)
    values = jnp.pad(x, ((0, 0), (0, 1)))
    heads = (a[None, :, None, :] for a in (queries, keys, values))
    with jax.default_matmul_precision("highest"):
        mean = jax.nn.dot_product_attention(*heads, scale=(1 - t) / t**2)
    return ((1 - t) * mean[0, :, 0, : x.shape[1]] - y) / t**2


def relative_error(found, y, x, t):
    """Return the error of ``found`` beside NumPy's float64."""
    y, x = y.astype(np.float64), x.astype(np.float64)
    alpha, sigma = (float(v) for v in SCHEDULE(jnp.float32(t)))
    logits = -((y[:, None] - alpha * x[None]) ** 2).sum(2) / (2 * sigma**2)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    exact = (alpha * (weights @ x) / weights.sum(1, keepdims=True) - y) / sigma**2
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def all_cores():
    """Work that touches no memory, as much on every core: its seconds tell how much machine there is."""

    def work(_):
        numbers = np.full(8192, 0.5, np.float32)
        for _ in range(1000):
            np.exp(numbers, out=numbers)
            numbers.fill(0.5)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(work, range(os.cpu_count())))
    return np.float32(0)


def ceilings(results, d):
    rng = np.random.default_rng(0)
    a, b, c = (
        jnp.asarray(rng.standard_normal(s), jnp.float32)
        for s in ((1024, d), (d, 1024), (1024, 1024))
    )
    product = jax.jit(partial(jnp.matmul, precision="highest"))
    exp = jax.jit(jnp.exp)
    for name, function, pairs in (
        (
            "two products (1024 x d x 1024, 1024 x 1024 x d)",
            lambda: (product(a, b), product(c, b.T)),
            2**20,
        ),
        ("exp", lambda: exp(c), 2**20),
    ):
        clock = measure(function, seconds=0.3)
        results.add(kind="ceiling", name=name, d=d, gpairs=pairs / clock["median"] / 1e9)
    return kernel_loop(results, d) if a.device.platform == "cpu" and native.targets() else None


def kernel_loop(results, d):
    """Return what the native kernel's innermost loop does alone, a thread per core, in Gpair/s."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:

        def loops():
            pairs = threads.map(partial(native.loop, d), [200_000] * os.cpu_count())
            return np.float32(sum(pairs))

        pairs, clock = float(loops()), measure(loops, seconds=0.3)
    gpairs = pairs / clock["median"] / 1e9
    results.add(kind="ceiling", name="the kernel's innermost loop", d=d, gpairs=gpairs)
    return gpairs


def clustered(law, x):
    """Return the law with clusters, each with a basis and variances of its own, instead of ``Dirac()``."""
    rng, weights = np.random.default_rng(1), np.full(len(x), 1 / len(x))
    table = x.astype(float)
    clusters = shrunk_clusters(table, weights, [rng.integers(0, 4, len(x))])
    blocks = clustered_blocks(jax.random.key(0), table, weights, clusters, 0.5, BLOCK_ROWS)
    return dataclasses.replace(
        law, blocks=jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), blocks)
    )


def entries_of(x, y, t):
    """Return ours and the rivals as functions of nothing, ours first."""
    b, n, d = len(y), *x.shape
    law, cpu = mcs.mixture(x, kernel=mcs.Dirac()), jax.devices()[0].platform == "cpu"
    jx, jy = jnp.asarray(x), jnp.asarray(y)
    entries = {"mcscore.score": lambda: mcs.score(jy, t, law, SCHEDULE)}
    for kernel in ("avx2", "xla") if cpu and n <= 20_000 else ():
        if kernel == "xla" or kernel in native.targets()[1:]:
            other = dataclasses.replace(law, evaluation=Evaluation(kernel=kernel))
            entries[f"mcscore.score, {kernel}"] = partial(mcs.score, jy, t, other, SCHEDULE)
    if cpu and b * n > 2**31:
        every = dataclasses.replace(law, evaluation=Evaluation(negligible=0.0))
        entries["mcscore.score, no row left out"] = lambda: mcs.score(jy, t, every, SCHEDULE)
        return entries | {"machine": all_cores}
    if min(b, n) >= 1000 and n <= 20_000:
        local = clustered(law, x)
        entries["mcscore.score, local kernel"] = lambda: mcs.score(jy, t, local, SCHEDULE)
    if b * n <= 2**27 and (d <= 6 or cpu):  # on a GPU XLA compiles for minutes
        entries["naive JAX vmap"] = lambda: naive(jy, jx, t)
    if b * n <= 2**27:
        entries["jax.nn.dot_product_attention"] = lambda: attention(jy, jx, t)
    entries |= torch_rivals(x, y, t, 2**28)
    if cpu and b * n <= 2**24:
        from sklearn.neighbors import KernelDensity

        tree = KernelDensity(bandwidth=t / (1 - t)).fit(x)
        entries["scikit-learn KDE (density only)"] = lambda: tree.score_samples(y / (1 - t))
    return entries | {"machine": all_cores}


def main() -> None:
    options = parser(__doc__).parse_args()
    results = Results(options.out, __doc__.splitlines()[0])
    shapes = [(5000, 1000, 6), *((4096, 16384, d) for d in (2, 6, 21, 43))]
    shapes += [(1024, n, 6) for n in (100_000, 1_000_000)]
    cases = [*itertools.product(shapes, (0.5, 0.1))]
    cases += [((4096, 1_000_000, d), 0.05) for d in (2, 6)]
    if options.quick:
        cases = [((64, 256, 2), 0.5), ((1000, 1000, 2), 0.1)]
    rng = np.random.default_rng(0)
    loops = {d: ceilings(results, d) for d in sorted({d for (*_, d), _ in cases})}
    for (b, n, d), noise in cases:
        t = noise / (1 + noise)
        x = rng.standard_normal((n, d)).astype(np.float32)
        y = (1 - t) * x[rng.integers(0, n, b)] + t * rng.standard_normal((b, d))
        y = y.astype(np.float32)
        entries = entries_of(x, y, t)
        reference = None
        clocks = measure_in_turn(
            entries,
            rounds=1 if options.quick else 5,
            seconds=0.05 if options.quick else 0.8,
        )
        about = dict(rows=n, d=d, noise=noise)
        machine = clocks.pop("machine")
        results.add(kind="machine", name="exp in cache, a thread per core", **about, **machine)
        for name, clock in clocks.items():
            reference = reference or clock["median"]
            results.add(
                kind="score",
                name=name,
                queries=b,
                **about,
                gpairs=b * n / clock["median"] / 1e9,
                of_loop=loops[d] and b * n / clock["median"] / 1e9 / loops[d],
                seconds=clock["median"],
                spread=(clock["high"] - clock["low"]) / clock["median"],
                first=clock["first"],
                times_ours=clock["median"] / reference,
            )
        if n <= 20_000:
            found = np.asarray(entries["mcscore.score"]())[:64]
            error = relative_error(found, y[:64], x, t)
            results.add(
                kind="accuracy", name="mcscore.score", queries=64, **about, relative_error=error
            )


if __name__ == "__main__":
    main()
