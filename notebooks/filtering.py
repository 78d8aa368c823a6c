# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Filtering with exact observations
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/filtering.ipynb)
#
# A filter forecasts an ensemble of states, then weighs it with a measurement. Here the forecast becomes a mixture of
# Gaussians, whose update by a linear measurement is exact: `law.observe(H, y, covariance)` is a law again, and its draws
# are the new ensemble.

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
import matplotlib.pyplot as plt
import numpy as np

QUICK = os.environ.get("MCSCORE_QUICK") == "1"  # the tests run this notebook in miniature
key, rng = jax.random.key(0), np.random.default_rng(0)
INK, ACCENT, MUTED = "#1b3a57", "#d1495b", "#8d99a6"


def analysis(key, ensemble, h, y, noise, kernel):
    """Return the ensemble after a measurement y = h x + noise."""
    law = mcs.mixture(ensemble, kernel=kernel, frame=mcs.Affine())
    return np.asarray(law.observe(h, y, noise).sample(key, len(ensemble)), np.float64)


# %% [markdown]
# ## Where the truth is known: a linear system
# An oscillator of which the position alone is measured. The Kalman filter is exact here. One Gaussian is the forecast's
# law, and the ensemble of two thousand states has to follow it.

# %%
A, Q = np.array([[0.99, 0.14], [-0.14, 0.99]]), 0.01 * np.eye(2)
H, R = np.array([[1.0, 0.0]]), np.array([[0.1]])
count, times = (200, 5) if QUICK else (2000, 60)
state, mean, covariance = np.array([1.0, 0.0]), np.zeros(2), np.eye(2)
ensemble = rng.standard_normal((count, 2))
kernel = mcs.Local(1.0, clusters=1, partitions=1)
kept = []
for k in range(times):
    state = A @ state + rng.multivariate_normal(np.zeros(2), Q)
    y = H @ state + rng.multivariate_normal(np.zeros(1), R)
    mean, covariance = A @ mean, A @ covariance @ A.T + Q
    gain = covariance @ H.T @ np.linalg.inv(H @ covariance @ H.T + R)
    mean, covariance = mean + gain @ (y - H @ mean), covariance - gain @ H @ covariance
    ensemble = ensemble @ A.T + rng.multivariate_normal(np.zeros(2), Q, count)
    ensemble = analysis(jax.random.fold_in(key, k), ensemble, H, y, R, kernel)
    kept.append([*state, *mean, *np.sqrt(np.diag(covariance)), *ensemble.mean(0), *ensemble.std(0)])
kept = np.array(kept)
error = abs(kept[:, 6:8] - kept[:, 2:4]) / kept[:, 4:6]
print(
    f"mean off by {error.mean():.3f} of Kalman's deviation, chance alone {0.8 / np.sqrt(count):.3f}"
)
print(f"deviation over Kalman's {np.mean(kept[:, 8:] / kept[:, 4:6]):.3f}")
figure, axis = plt.subplots(figsize=(7, 2.8))
axis.fill_between(
    range(times),
    kept[:, 3] - 2 * kept[:, 5],
    kept[:, 3] + 2 * kept[:, 5],
    color=MUTED,
    alpha=0.3,
    lw=0,
)
axis.plot(kept[:, 3], color=MUTED, lw=3, label="Kalman filter, two deviations")
axis.plot(kept[:, 7], color=ACCENT, label="ensemble")
axis.plot(kept[:, 1], "k.", ms=4, label="truth")
axis.set(xlabel="time", ylabel="velocity, never measured")
axis.legend(frameon=False, ncols=3, loc="upper center")
figure.tight_layout()

# %% [markdown]
# ## Lorenz 63
# Three coordinates, chaos, the first one measured every half time unit with a noise of variance 2: forecasts are bent, and
# no Gaussian. A mixture of local Gaussians beside the ensemble Kalman filter, which is one Gaussian with the same
# ensemble.


# %%
def lorenz(x, dt=0.01, steps=50):
    def slope(x):
        a, b, c = x.T
        return np.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)

    for _ in range(steps):
        k1 = slope(x)
        k2 = slope(x + dt / 2 * k1)
        k3 = slope(x + dt / 2 * k2)
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + dt * k3))
    return x


H, R = np.array([[1.0, 0.0, 0.0]]), np.array([[2.0]])
count, times = (200, 4) if QUICK else (1000, 150)
start = lorenz(rng.standard_normal((1, 3)), steps=2000)
truth, measured = [], []
state = start
for _ in range(times):
    state = lorenz(state)
    truth.append(state[0])
    measured.append(H @ state[0] + rng.multivariate_normal(np.zeros(1), R))
truth = np.array(truth)
followed = {}
for name, kernel in (
    ("one Gaussian", mcs.Local(1.0, clusters=1, partitions=1)),
    ("mixture", mcs.Local(0.3, clusters=6, partitions=1)),
):
    ensemble, means = start + 3 * rng.standard_normal((count, 3)), []
    for k in range(times):
        ensemble = lorenz(ensemble)
        ensemble = analysis(jax.random.fold_in(key, k), ensemble, H, measured[k], R, kernel)
        means.append(ensemble.mean(0))
    followed[name] = np.array(means)
    error = np.sqrt(np.mean((followed[name] - truth)[times // 4 :] ** 2))
    print(f"{name:13} root mean squared error {error:.2f}")

# %%
figure, axes = plt.subplots(3, 1, figsize=(8, 5), sharex=True)
for j, axis in enumerate(axes):
    axis.plot(truth[:, j], "k.", ms=4, label="truth")
    for (name, means), color in zip(followed.items(), (MUTED, ACCENT), strict=True):
        axis.plot(means[:, j], color=color, label=name)
    axis.set(ylabel=("first, measured", "second", "third")[j])
axes[0].legend(frameon=False, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.25))
axes[-1].set(xlabel="measurement")
figure.tight_layout()
