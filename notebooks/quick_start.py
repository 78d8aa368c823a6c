# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # mcscore: quick start
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/quick_start.ipynb)
#
# From raw points to one-step samples, every stage by hand.

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

QUICK = os.environ.get("MCSCORE_QUICK") == "1"  # the tests run this notebook in miniature
n, n_pairs, epochs = (500, 1_000, 2) if QUICK else (5_000, 40_000, 60)
key = jax.random.key(0)

# %% [markdown]
# ## 1. The law
# Data, standardized. Diffused to `x_t = alpha x + sigma z` its density is a Gaussian mixture with one
# component per datum, so its score is known in closed form; no network is trained for it.

# %%
x = mcs.datasets.two_spirals(key, n)
x = (x - x.mean(0)) / x.std(0)
law = mcs.mixture(x, kernel=mcs.Isotropic(0.03))
schedule = mcs.Cosine()
mcs.plotting.plot_score(lambda y: mcs.score(y, 0.15, law, schedule), x, title="score at t = 0.15")

# %% [markdown]
# The paper's estimator uses a mini-batch of the data. It comes with its standard error:

# %%
s, se = mcs.minibatch_score(key, x[:3], 0.5, law, schedule, batch_size=500)
print("mini-batch", s[0], "+-", se[0], "\nexact     ", mcs.score(x[:3], 0.5, law, schedule)[0])

# %% [markdown]
# ## 2. Labels
# The reverse ODE carries noise to data, deterministically: each trajectory is a labeled pair.

# %%
z = jax.random.normal(key, (3000, 2))
mcs.plotting.plot_trajectories(mcs.trajectory(z, law, schedule, points=60))

# %%
pairs = mcs.generate_pairs(key, law, schedule, n=n_pairs)
pairs.report

# %% [markdown]
# ## 3. Supervised learning
# A plain network learns `z -> x` by least squares. Sampling is one forward pass.

# %%
gen, history = mcs.train(key, pairs, epochs=epochs)
mcs.plotting.plot_history({"two spirals": history})

# %%
samples = gen.sample(key, n)
fresh = mcs.datasets.two_spirals(jax.random.key(1), n)
fresh = (fresh - fresh.mean(0)) / fresh.std(0)
print("sliced Wasserstein to fresh data:", mcs.metrics.sliced_wasserstein(key, samples, fresh))
print(
    "share of samples nearer to training than to fresh rows:",
    mcs.metrics.memorization(samples, x, fresh).share,
)
mcs.plotting.plot_samples({"data": x, "labels": pairs.x[:n], "generated, one step": samples})

# %% [markdown]
# ## All in one call
# `mcs.fit(key, table)` standardizes, labels and trains; the generator speaks the table's units and saves
# to one file.

# %%
options = dict(pairs=500, epochs=2) if QUICK else dict(pairs=20_000)
gen = mcs.fit(key, mcs.datasets.wine(), **options)
gen.save("wine.safetensors")
jnp.round(mcs.load("wine.safetensors").sample(key, 3)[:, :6], 2)
