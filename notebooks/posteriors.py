# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Posteriors in seconds
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/posteriors.ipynb)
#
# A simulator turns parameters into data. Which parameters could have made the data that we saw? Simulate pairs, learn
# the parameters *given* the data, and ask for any observation.

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

# %% [markdown]
# ## Two moons
# Two parameters, uniform in a square, and two numbers of data. Most data have two crescents of parameters that explain
# them. Ten thousand simulations are all that is learned from.


# %%
def simulate(theta):
    angle, radius = (
        rng.uniform(-np.pi / 2, np.pi / 2, len(theta)),
        rng.normal(0.1, 0.01, len(theta)),
    )
    ring = np.stack([np.cos(angle) * radius + 0.25, np.sin(angle) * radius], 1)
    return ring + np.stack([-abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], 1) / np.sqrt(2)


theta = rng.uniform(-1, 1, (500 if QUICK else 10_000, 2))
data = simulate(theta)
start = time.perf_counter()
law = mcs.mixture(theta, condition=data, kernel=mcs.Auto(), bounds={0: (-1, 1), 1: (-1, 1)})
print(f"law of {len(theta)} simulations: {time.perf_counter() - start:.1f} s, {law.report.kernel}")

# %% [markdown]
# ## One observation
# The law's draws beside exact ones. These turn the simulator round: a point of the ring tells the parameters but for a
# sign.


# %%
def exact(observed, n):
    radius, angle = rng.normal(0.1, 0.01, 20 * n), rng.uniform(-np.pi / 2, np.pi / 2, 20 * n)
    ring = np.stack([np.cos(angle) * radius + 0.25, np.sin(angle) * radius], 1)
    total, difference = ((ring - observed) * np.sqrt(2) * [1, -1]).T
    possible = total >= 0
    total *= rng.choice([-1, 1], len(total))
    found = np.stack([total - difference, total + difference], 1) / 2
    return found[possible & (abs(found) <= 1).all(1)][:n]


observed = np.array([0.0, 0.0])
sets = {"exact": exact(observed, 3000)}
sets["law"] = np.asarray(law.sample(key, 3000, condition=observed))
mcs.plotting.plot_samples(sets, title="parameters, given data (0, 0)")

# %% [markdown]
# ## Is it calibrated?
# For fresh simulations, in which highest-density region of its posterior does the truth lie? If the law is right the
# levels are uniform, and the curve stays within the band. Above it posteriors are a little wider than they need be.

# %%
fresh = rng.uniform(-0.9, 0.9, (60 if QUICK else 400, 2))
check = mcs.inference.coverage(key, law, fresh, simulate(fresh), draws=30 if QUICK else 200)
print(f"distance from uniform {check.distance:.3f}, chance allows {check.band:.3f}")
mcs.plotting.plot_calibration(check.levels, check.band, title="calibration of the law")

# %% [markdown]
# ## A posterior for each of a hundred thousand observations
# The network answers any condition in one forward pass: fit it once, then every observation is one row. What has two
# parts it joins by a thin bridge, as every continuous map of noise must; for a few observations take the law.

# %%
small = dict(pairs=500, epochs=2) if QUICK else dict(pairs=200_000)
ends = {0: (-1, 1), 1: (-1, 1)}
gen = mcs.fit(key, theta, condition=data, bounds=ends, encoder=False, refine=0, **small)
many = simulate(rng.uniform(-1, 1, (1_000 if QUICK else 100_000, 2)))
gen.sample(key, len(many), condition=many)  # compiles
start = time.perf_counter()
draws = np.asarray(gen.sample(key, len(many), condition=many))
print(f"{len(many)} posteriors, a draw of each: {time.perf_counter() - start:.2f} s")
sets["network"] = np.asarray(gen.sample(key, 3000, condition=observed))
mcs.plotting.plot_samples(sets, title="parameters, given data (0, 0)")

# %% [markdown]
# ## Data that no simulation resembles
# A condition far from all simulations has no answer in them: `support` says how many kernels share the weight and how far
# outside it lies, in nats; sampling warns.

# %%
for name, at in (("typical", [0.0, 0.0]), ("far away", [3.0, 3.0])):
    known = law.support([at])
    print(
        f"{name:9} kernels {known.effective_sample_size[0]:7.1f}   outside {known.outside[0]:.1f} nats"
    )

# %% [markdown]
# ## When the likelihood is known
# Then no simulation is needed: exact draws of the prior are weighed. Here the prior is a law learned from rows, the
# measurement their product, seen with a noise of 0.05.

# %%
x = mcs.datasets.moons(key, 500 if QUICK else 4000)
prior = mcs.mixture(x, kernel=mcs.Auto())
found = mcs.inference.posterior(
    key, prior, lambda x: -((x[:, 0] * x[:, 1] - 0.5) ** 2) / (2 * 0.05**2)
)
print(f"{len(found.draws)} draws, as good as {found.effective_sample_size:.0f} independent ones")
figure, axis = plt.subplots(figsize=(4.4, 3.4))
axis.scatter(*np.asarray(x).T, s=2, color=MUTED, label="prior's rows")
axis.scatter(*np.asarray(found.draws[:2000]).T, s=2, color=ACCENT, label="posterior")
axis.set(xlabel="first coordinate", ylabel="second coordinate")
axis.legend(frameon=False, markerscale=4)
figure.tight_layout()
