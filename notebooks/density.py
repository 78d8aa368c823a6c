# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A density from a one-step sampler
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/density.ipynb)
#
# `gen(z)` maps noise to data in one pass. Newton's method runs it backwards, and the change of variables turns it
# into a density, each value with a certificate. The law behind it has a density in closed form: the two must agree.

# %%
try:
    import mcscore as mcs
except ImportError:  # in Colab
    from IPython import get_ipython

    source = "mcscore[plot,data] @ git+https://github.com/mcscore/mcscore"
    get_ipython().run_line_magic("pip", f"install --quiet '{source}'")
    import mcscore as mcs

import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

QUICK = os.environ.get("MCSCORE_QUICK") == "1"  # the tests run this notebook in miniature
options = dict(pairs=500, epochs=2, refine=0) if QUICK else dict(pairs=40_000)
key = jax.random.key(0)

# %% [markdown]
# ## On the plane
# The density of the law in closed form, of the network by inversion, and where its value is certified: the
# equation `gen(z) = x` is solved and the map does not fold.

# %%
x = mcs.datasets.moons(key, 500 if QUICK else 4000)
made = mcs.fit_stages(key, x, kernel=mcs.Auto(), **options)
gen, law = made.generator, made.mixture
side = 20 if QUICK else 160
low, high = x.min(0) - 0.3, x.max(0) + 0.3
axes = [np.linspace(a, b, side) for a, b in zip(low, high, strict=True)]
grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
found = gen.density(grid)
network = np.nan_to_num(np.exp(found.log_prob)).reshape(side, side)
closed = np.exp(law.log_prob(grid)).reshape(side, side)
extent = [low[0], high[0], low[1], high[1]]
mcs.plotting.plot_densities(
    {"law, closed form": closed, "network, inverted": network},
    extent=extent,
    title="density of moons",
)

# %%
cell = float(np.prod((high - low) / (side - 1)))
print(f"mass of the network's density  {network.sum() * cell:.4f}")
print(f"mean difference at draws       {made.agreement.error:.3f} nats")
print(f"certified                      {made.agreement.certified:.1%}")

# %% [markdown]
# ## Conditionals
# A mixture of Gaussians stays one when some of its columns are known: `law.condition` is exact, again a law, and runs
# under `vmap`. Curves: the second coordinate where the first is given. Bars: fresh rows of the true law near there.

# %%
fresh = np.asarray(mcs.datasets.moons(jax.random.key(1), 5_000 if QUICK else 400_000))
slices, heights = np.array([-0.6, 0.5, 1.4], np.float32), jnp.linspace(low[1], high[1], 300)
curves = jax.vmap(lambda at: law.condition([0], at[None]).log_prob(heights[:, None]))(slices)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True)
for axis, at, curve in zip(axes, slices, np.exp(curves), strict=True):
    near = fresh[np.abs(fresh[:, 0] - at) < 0.02, 1]
    axis.hist(near, 60, range=(low[1], high[1]), density=True, color="#9fb4c7")
    axis.plot(heights, curve, color="#1b3a57")
    axis.set(title=f"first coordinate {at:.1f}", xlabel="second coordinate")
axes[0].set_ylabel("density")
figure.tight_layout()

# %% [markdown]
# ## Anomalies in a real table
# Fit benign tumors only (30 columns), then score rows that were not used: benign ones and malignant ones. The
# log density alone tells them apart.

# %%
table, benign = load_breast_cancer(return_X_y=True)
inside, outside = table[benign == 1], table[benign == 0]
train, test = mcs.datasets.split(key, inside, 0.7, 0.3)
made = mcs.fit_stages(
    key, train, kernel=mcs.Local(1.0, clusters=1, partitions=1), frame=mcs.Gaussianize(), **options
)
gen, law = made.generator, made.mixture
truth = np.repeat([0, 1], [len(test), len(outside)])
for name, score in (("law", law.log_prob), ("network", gen.log_prob)):
    values = -np.concatenate([score(test), score(outside)])
    values = np.where(np.isnan(values), np.nanmax(values), values)  # no noise gives such a row
    print(f"{name:8} area under the ROC curve  {roc_auc_score(truth, values):.3f}")

# %%
figure, axis = plt.subplots(figsize=(5.4, 3))
bins = np.linspace(-150, 120, 50)
for rows, label, color in (
    (test, "benign, held out", "#1b3a57"),
    (outside, "malignant", "#d1495b"),
):
    axis.hist(np.clip(law.log_prob(rows), -150, 120), bins, alpha=0.7, label=label, color=color)
axis.set(xlabel="log density under the benign law (cut at -150)", ylabel="rows")
axis.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## Columns that are missing
# Hide the ten means of every held-out tumor and draw them two hundred times, given the other twenty columns. Do the
# intervals between the draws' quantiles hold as many of the hidden values as they promise?

# %%
hidden, known = np.arange(10), np.arange(10, 30)
draw = jax.jit(jax.vmap(lambda key, at: law.condition(known, at).sample(key, 200)))
drawn = draw(jax.random.split(key, len(test)), np.asarray(test[:, known], np.float32))
spread = np.diff(np.quantile(train[:, hidden], [0.05, 0.95], 0), axis=0)
for share in (0.5, 0.9):
    left, right = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2], 1)
    covered = np.mean((left <= test[:, hidden]) & (test[:, hidden] <= right))
    print(f"intervals of {share:.0%} hold {covered:.1%} of the hidden values")
print(
    f"width of the last: {np.mean((right - left) / spread):.0%} of those without the other columns"
)

# %% [markdown]
# ## Interpolation
# Between two tumors, a straight line in the table's units runs through averages, likelier than either end and
# than most real rows. The great circle in noise keeps the norm of `z`, and its rows stay as typical as the ends.

# %%
ends = gen.density(test[:2]).z
share = jnp.linspace(0, 1, 30)[:, None]
angle = jnp.arccos(jnp.sum(ends[0] * ends[1]) / jnp.prod(jnp.linalg.norm(ends, axis=1)))
circle = (jnp.sin((1 - share) * angle) * ends[0] + jnp.sin(share * angle) * ends[1]) / jnp.sin(
    angle
)
curved, straight = gen(circle), (1 - share) * test[0] + share * test[1]
figure, axis = plt.subplots(figsize=(5.4, 3))
axis.plot(share, law.log_prob(curved), color="#1b3a57", label="in noise")
axis.plot(share, law.log_prob(straight), color="#d1495b", label="in the table's units")
axis.set(xlabel="share of the way", ylabel="log density of the law")
axis.legend(frameon=False)
figure.tight_layout()
