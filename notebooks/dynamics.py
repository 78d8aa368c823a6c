# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Learning a stochastic system
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/dynamics.ipynb)
#
# You have observed paths of a system, and know no equation. A one-step sampler of the next state, learned from pairs of
# successive states, makes new paths of any length, ten thousand at a time.

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
import matplotlib.pyplot as plt
import numpy as np

QUICK = os.environ.get("MCSCORE_QUICK") == "1"  # the tests run this notebook in miniature
key, rng = jax.random.key(0), np.random.default_rng(0)
INK, ACCENT, MUTED = "#1b3a57", "#d1495b", "#8d99a6"
small = dict(pairs=500, epochs=2) if QUICK else {}

# %% [markdown]
# ## Two wells
# A particle in a double well, pushed about by noise: `dx = (x - x^3) dt + 0.5 dW`. We observe short pieces of its paths,
# a tenth of a time unit long: far too short to see it change wells.

# %%
DT = 0.01


def advance(x):
    for _ in range(5):
        x = x + (x - x**3) * DT / 5 + 0.5 * np.sqrt(DT / 5) * rng.standard_normal(x.shape)
    return x


paths = [rng.uniform(-2, 2, (500 if QUICK else 15_000, 1))]
for _ in range(10):
    paths.append(advance(paths[-1]))
start = time.perf_counter()
system = mcs.inference.fit_dynamics(key, np.stack(paths, 1), **small)
print(f"learned from {10 * len(paths[0])} transitions in {time.perf_counter() - start:.0f} s")

# %% [markdown]
# ## Long paths
# Three thousand steps from the left well, learned and true. Dashed: the central 90 % of learned states.

# %%
steps, count = (50, 200) if QUICK else (3000, 2000)
x0 = np.full((count, 1), -1.0)
learned = np.asarray(system.rollout(jax.random.key(1), x0, steps))[..., 0]
true = [x0]
for _ in range(steps):
    true.append(advance(true[-1]))
true = np.stack(true)[..., 0]
mcs.plotting.plot_paths({"truth": true, "learned": learned}, step=DT, title="from the left well")

# %% [markdown]
# ## What was learned
# Drift and noise at every state, from the sampler's own steps, beside the equation. And the time of the first change
# of wells, which no observed path shows and in which the smallest errors of the drift add up.

# %%
at = np.linspace(-1.7, 1.7, 18)
many = np.repeat(at, 2_000 if QUICK else 40_000)[:, None]
moved = np.asarray(system.step(key, many) - many, np.float64).reshape(len(at), -1)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.9))
axes[0].plot(at, at - at**3, color=MUTED, lw=4, label="equation")
axes[0].plot(at, moved.mean(1) / DT, "o", ms=4, color=ACCENT, label="learned")
axes[0].set(xlabel="state", title="drift")
axes[0].legend(frameon=False)
axes[1].plot(at, np.full_like(at, 0.5), color=MUTED, lw=4)
axes[1].plot(at, moved.std(1) / np.sqrt(DT), "o", ms=4, color=ACCENT)
axes[1].set(xlabel="state", title="noise", ylim=(0.4, 0.6))
for paths_of, color, name in ((true, MUTED, "truth"), (learned, ACCENT, "learned")):
    stayed = (np.maximum.accumulate(paths_of, 0) < 0.5).mean(1)
    axes[2].semilogy(DT * np.arange(len(stayed)), stayed, color=color, label=name)
axes[2].set(xlabel="time", title="share still in the left well")
figure.tight_layout()

# %% [markdown]
# ## A parameter
# One more argument: the height of the barrier differs from path to path, and is then chosen.


# %%
def advance_in(x, height):
    return x + 4 * height * (x - x**3) * DT + 0.5 * np.sqrt(DT) * rng.standard_normal(x.shape)


height = rng.uniform(0.1, 0.5, (500 if QUICK else 15_000, 1))
paths = [rng.uniform(-2, 2, height.shape)]
for _ in range(10):
    paths.append(advance_in(paths[-1], height))
family = mcs.inference.fit_dynamics(key, np.stack(paths, 1), height, **small)
steps = 50 if QUICK else 1000
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
for axis, h in zip(axes, (0.15, 0.3, 0.45), strict=True):
    x = x0
    for _ in range(steps):
        x = advance_in(x, h)
    last = family.rollout(jax.random.key(2), x0, steps, [h])[-1, :, 0]
    axis.hist(x[:, 0], 50, range=(-2, 2), density=True, color=MUTED, alpha=0.5, label="truth")
    axis.hist(
        last,
        50,
        range=(-2, 2),
        density=True,
        histtype="step",
        color=ACCENT,
        lw=1.4,
        label="learned",
    )
    axis.set(title=f"barrier {h}", xlabel=f"state after {steps} steps")
axes[0].legend(frameon=False)
figure.tight_layout()
