# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Which law do I sample from?
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/which_law.ipynb)
#
# Labels, scores and densities all belong to one law: a Gaussian around every datum. Its *kernel* decides
# whether samples copy the data, blur it, or generalize; its *frame* decides in which coordinates.

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
import numpy as np

QUICK = os.environ.get("MCSCORE_QUICK") == "1"  # the tests run this notebook in miniature
n = 300 if QUICK else 1000
key = jax.random.key(0)

# %% [markdown]
# ## On the plane
# Two thin spiral arms. An isotropic kernel must choose between copying and blurring, for it is as wide
# across an arm as along it. A *local* kernel takes the shape of its cluster, and rows and kernel together
# keep every cluster's covariance. `Auto()` chooses frame, number of clusters and bandwidth by held-out
# likelihood.

# %%
x = np.asarray(mcs.datasets.two_spirals(key, n))
laws = {
    "isotropic, h = 0.02": mcs.mixture(x, kernel=mcs.Isotropic(0.02)),
    "isotropic, h = 0.15": mcs.mixture(x, kernel=mcs.Isotropic(0.15)),
    "local, chosen": mcs.mixture(x, kernel=mcs.Auto()),
}
mcs.plotting.plot_samples(
    {name: law.sample(key, 2 * n) for name, law in laws.items()}, title="samples of each law"
)

# %%
print(laws["local, chosen"].report)

# %% [markdown]
# The density is in closed form, so it can be drawn and integrated. Brighter is denser.

# %%
axis = jnp.linspace(-2.4, 2.4, 140)
grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
densities = {name: jnp.exp(law.log_prob(grid)).reshape(140, 140) for name, law in laws.items()}
print(
    {name: round(float(p.sum() * (axis[1] - axis[0]) ** 2), 3) for name, p in densities.items()},
    "(mass)",
)
mcs.plotting.plot_densities(densities, extent=(-2.4, 2.4, -2.4, 2.4))

# %% [markdown]
# And so is the score, at every noise level:

# %%
law = laws["local, chosen"]
frame = law.frame  # fields live in the law's own coordinates
mcs.plotting.plot_score(
    lambda y: mcs.score(y, 0.1, law, mcs.Cosine()),
    frame.forward(x),
    title="score at t = 0.1, local kernel",
)

# %% [markdown]
# ## On a real table
# Thirty measurements of 569 tumors, several of them heavy-tailed. Three questions to every law: how likely
# are held-out rows, can a classifier tell samples from them (0.5: it cannot), and are samples nearer to the
# training rows than to held-out ones (0.5: no copying)?

# %%
train, test = mcs.datasets.split(key, mcs.datasets.breast_cancer(), 0.7, 0.3)
candidates = {
    "isotropic h = 0.2, affine": (mcs.Isotropic(0.2), mcs.Affine()),
    "isotropic h = 0.7, affine": (mcs.Isotropic(0.7), mcs.Affine()),
    "whitened h = 0.7, affine": (mcs.Whitened(0.7), mcs.Affine()),
    "local, affine": (mcs.Local(0.9, clusters=4), mcs.Affine(whiten=True)),
    "local, Gaussianized": (mcs.Local(0.9, clusters=4), mcs.Gaussianize()),
    "Auto()": (mcs.Auto(), None),
}
scale = train.std(0)
print(f"{'law':28}{'log-likelihood':>15}{'classifier':>12}{'nearer':>8}")
for name, (kernel, frame) in candidates.items():
    law = mcs.mixture(train, kernel=kernel, frame=frame)
    samples = np.asarray(law.sample(key, len(test)))
    accuracy = mcs.metrics.classifier_accuracy(key, samples, test)
    nearer = mcs.metrics.memorization(samples / scale, train / scale, test / scale).share
    print(f"{name:28}{float(law.log_prob(test).mean()):15.2f}{accuracy:12.2f}{nearer:8.2f}")

# %% [markdown]
# The Gaussianized frame sends every column to normal scores first, so that marginals are right whatever the
# kernel, and a value far out costs its logarithm instead of its square. To stay closer to the data than the
# likelihood asks for, divide the chosen bandwidth: `mcs.Auto(closeness=2.0)`.
