# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # More rows, more devices
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/scaling.ipynb)
#
# Every stage is compiled for whatever JAX finds: a laptop's CPU, Colab's GPU, a TPU. This notebook measures yours, divides the
# work among several devices, and ends with a table that need not fit into memory. On Colab choose *Runtime > Change runtime type*
# first.

# %%
try:
    import mcscore as mcs
except ImportError:  # in Colab
    from IPython import get_ipython

    source = "mcscore[plot,data] @ git+https://github.com/mcscore/mcscore"
    get_ipython().run_line_magic("pip", f"install --quiet '{source}'")
    import mcscore as mcs

import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

QUICK = os.environ.get("MCSCORE_QUICK") == "1"  # the tests run this notebook in miniature
device = jax.devices()[0]
key = jax.random.key(0)
print(f"{len(jax.devices())} x {device.device_kind}, JAX {jax.__version__}")


def seconds(function, repeats=5):
    """Return the median time of a compiled call, waiting for its result."""
    jax.block_until_ready(function())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


# %% [markdown]
# ## One evaluation of the score
# Its cost is (queries x rows) pairs, each two short products and one exponential. Throughput levels off once the device is
# full; memory does not grow, because nothing of that size is ever held.

# %%
counts = [1_000, 4_000] if QUICK else [1_000, 4_000, 16_000, 64_000, 256_000]
if device.platform != "cpu" and not QUICK:
    counts += [1_000_000]
queries = 512 if QUICK else 2048 if device.platform == "cpu" else 16_384
speed = {}
for d in (2, 6, 21, 43):
    y = jax.random.normal(key, (queries, d))
    speed[d] = []
    for rows in counts:
        law = mcs.mixture(np.asarray(jax.random.normal(key, (rows, d))), kernel=mcs.Isotropic(0.3))
        taken = seconds(lambda: mcs.score(y, 0.4, law, mcs.Cosine()), 3)
        speed[d].append(queries * rows / taken / 1e9)
figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
for (d, values), color in zip(
    speed.items(), ("#1b3a57", "#2e8b76", "#d1495b", "#b8860b"), strict=True
):
    axis.loglog(counts, values, "o-", color=color, label=f"d = {d}")
axis.set(
    xlabel="rows",
    ylabel="billion pairs per second",
    title=f"score, {queries:,} queries, {device.device_kind}",
)
axis.grid(alpha=0.25, which="both", lw=0.5)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# For scale: the committed benchmark (`benchmarks/results/score_h100.jsonl`, 4,096 x 16,384) has 61, 51, 51 and 43 billion pairs
# per second on one H100, and about 1 to 2 on two cores of a server's CPU.
#
# ## Labels
# A trajectory is solved in a few dozen evaluations of the score. A chunk is solved in one compiled program; the host only collects.

# %%
rows = 1_000 if QUICK else 10_000
x = np.asarray(mcs.datasets.random_gaussian_mixture(key, 6).sample(key, rows), np.float32)
law = mcs.mixture(x, kernel=mcs.Local(0.7, 8))
for chunk in (500,) if QUICK else (1_000, 5_000, 20_000):
    z = jax.random.normal(key, (chunk, 6))
    taken = seconds(lambda: mcs.transport(z, law, mcs.Cosine()), 3)
    print(f"{chunk:7,} labels of {rows:,} rows: {taken:7.3f} s, {chunk / taken:10,.0f} per second")

# %% [markdown]
# ## Several devices
# Queries are independent: with a mesh the same calls run on all its devices, and give the same numbers. On a CPU, set
# `jax.config.update("jax_num_cpu_devices", 4)` before JAX is first used to have several.

# %%
mesh = jax.make_mesh((len(jax.devices()),), ("devices",))
y = law.sample(key, 512 * len(jax.devices()))
with jax.set_mesh(mesh):
    nats = law.log_prob(y)
print(nats.sharding, "largest difference:", float(jnp.abs(nats - law.log_prob(y)).max()))

# %% [markdown]
# ## A table larger than memory
# Rows on disk are read in chunks. A few hundred thousand of them, drawn at random, say nearly as much as all; where every row has
# to count, the law comes in parts. It is the average of its parts' laws.

# %%
many = 4_000 if QUICK else 200_000
table = np.lib.format.open_memmap("rows.npy", "w+", "float32", (many, 6))
table[:] = mcs.datasets.random_gaussian_mixture(key, 6).sample(key, many)
table.flush()

some = mcs.chunked.subsample(key, "rows.npy", many // 10)
tenth = mcs.mixture(some, kernel=mcs.Local(0.5, 8))
whole = mcs.chunked.mixture("rows.npy", "law", kernel=mcs.Local(0.5, 8), rows=many // 4)

fresh = np.asarray(mcs.datasets.random_gaussian_mixture(key, 6).sample(jax.random.key(1), 500))
for name, a_law in {"a tenth of the rows": tenth, "all rows, in four parts": whole}.items():
    print(f"{name}: {float(np.mean(a_law.log_prob(fresh))):.3f} nats per fresh row")

# %% [markdown]
# ## What to turn
# - `generate_pairs(..., chunk_size=...)`: larger chunks fill a GPU; a CPU is full with 5,000.
# - `mcs.mixture(x, evaluation=mcs.jet.Evaluation(queries=...))`: queries evaluated together; by default as suits the device.
# - `MLP(products="bfloat16")` trains in half precision where the device has units for it; keep float32 for densities.
# - `fit(..., checkpoint="folder")` keeps labels and training as they come, and resumes after an interruption.
