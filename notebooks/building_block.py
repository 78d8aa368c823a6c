# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The score as a building block
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mcscore/mcscore/blob/main/notebooks/building_block.ipynb)
#
# No network, no training: `score(x_t, t, law, schedule)` is a pure function of arrays. It goes under `jit`, `vmap`
# and `grad`, takes schedules of your own, and drops into samplers of your own. The story: from a score to
# Bayesian inference with a prior that is nothing but data.

# %%
try:
    import mcscore as mcs
except ImportError:  # in Colab
    from IPython import get_ipython

    source = "mcscore[plot,data] @ git+https://github.com/mcscore/mcscore"
    get_ipython().run_line_magic("pip", f"install --quiet '{source}'")
    import mcscore as mcs

import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

QUICK = os.environ.get("MCSCORE_QUICK") == "1"  # the tests run this notebook in miniature
n = 300 if QUICK else 5000
key = jax.random.key(0)
x = mcs.datasets.pinwheel(key, n)
law, schedule = mcs.mixture(x, kernel=mcs.Isotropic(0.05)), mcs.Cosine()

# %% [markdown]
# ## It is a derivative, in closed form
# The score is the gradient of the log density, and its divergence the Laplacian. Automatic differentiation agrees.

# %%
points = 2 * jax.random.normal(key, (200, 2))
log_p = lambda y: mcs.log_density(y[None], 0.3, law, schedule)[0]
by_autodiff = jax.vmap(jax.grad(log_p))(points)
laplacian = jax.vmap(lambda y: jnp.trace(jax.hessian(log_p)(y)))(points)
exact = mcs.score(points, 0.3, law, schedule)
print("score:     ", float(jnp.abs(exact - by_autodiff).max()))
print("divergence:", float(jnp.abs(mcs.divergence(points, 0.3, law, schedule) - laplacian).max()))

# %% [markdown]
# ## A schedule of your own
# A frozen dataclass with `alpha(t)` and `variance(t)`, registered as a pytree; its rates come by one Jacobian-vector
# product. `vmap` over time shows what one point is taken for, from hardly any noise to almost nothing else.


# %%
@mcs.pytree()
@dataclass(frozen=True)
class Cubed(mcs.Schedule):
    """Noise that comes late: ``alpha = 1 - t^3``, ``sigma = t``."""

    def alpha(self, t):
        """Return the scale of the signal."""
        return 1 - t**3

    def variance(self, t):
        """Return the variance of the noise."""
        return t**2


times = jnp.linspace(0.02, 0.98, 60)
start = jnp.array([[0.4, 1.0]])
guess = jax.vmap(lambda t: mcs.denoise(start, t, law, Cubed())[0])(times)
figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
axis.scatter(*x.T, s=2, c="#8d99a6", linewidths=0)
dots = axis.scatter(*guess.T, c=times, s=14, cmap="viridis", zorder=3)
axis.plot(*start[0], "x", color="#d1495b", ms=9, mew=2)
axis.set(title="E[x | the cross, noise level t]", aspect="equal", xticks=[], yticks=[])
figure.colorbar(dots, label="t")
plt.show()

# %% [markdown]
# ## A solver of your own
# DDIM is three lines in a `scan`. The library's integrator needs fewer evaluations for the same end points.


# %%
def ddim(z, steps):
    """Return the points to which DDIM carries noise in equal steps of time."""
    grid = jnp.linspace(1, 0, steps + 1)

    def step(x_t, pair):
        (a, s), (a_next, s_next) = schedule(pair[0]), schedule(pair[1])
        clean = mcs.denoise(x_t, pair[0], law, schedule)
        return a_next * clean + s_next * (x_t - a * clean) / s, None

    return jax.lax.scan(step, z, jnp.stack([grid[:-1], grid[1:]], 1))[0]


z = jax.random.normal(key, (100 if QUICK else 1000, 2))
tight = mcs.transport(z, law, schedule, steps=100)
rms = lambda end: float(jnp.sqrt(jnp.mean((end - tight) ** 2)))
for steps in (10, 30, 100):
    print(f"DDIM, {steps:4} evaluations: {rms(jax.jit(ddim, static_argnums=1)(z, steps)):.1e}")
print(f"transport, 28 evaluations: {rms(mcs.transport(z, law, schedule)):.1e}")

# %% [markdown]
# ## A prior made of data
# Observe the radius of an unknown point, with noise. The posterior's score is the prior's plus the likelihood's, so
# Langevin dynamics samples it; importance weights of draws from the law are the exact answer to compare with.

# %%
radius, noise = 1.3, 0.1
log_likelihood = lambda y: -((jnp.linalg.norm(y) - radius) ** 2) / (2 * noise**2)


@jax.jit
def langevin(key, y):
    """Return points after annealed Langevin steps on prior and likelihood."""

    def step(y, inputs):
        key, t = inputs
        size = 0.02 * (0.02 + t) ** 2
        drift = mcs.score(y, t, law, mcs.Rectified()) + jax.vmap(jax.grad(log_likelihood))(y)
        return y + size * drift + jnp.sqrt(2 * size) * jax.random.normal(key, y.shape), None

    count = 300 if QUICK else 3000
    times = jnp.linspace(0.6, 0.02, count)
    return jax.lax.scan(step, y, (jax.random.split(key, count), times))[0]


posterior = langevin(key, jax.random.normal(key, (300 if QUICK else 3000, 2)))
draws = law.sample(key, 20 * n)
weights = jax.nn.softmax(jax.vmap(log_likelihood)(draws))
exact = draws[jax.random.choice(key, len(draws), (len(posterior),), p=weights)]
mcs.plotting.plot_samples(
    {"prior: the data": x, "posterior, Langevin": posterior, "posterior, exact": exact},
    title=f"given: radius = {radius} ± {noise}",
)

# %% [markdown]
# ## Less data per evaluation
# The paper's estimator takes a mini-batch of rows. Its standard error comes with it and tells the true error wherever the
# law has been; far off, where few rows carry all the weight, it is too small, and `effective_sample_size` says so.

# %%
t = 0.5
alpha, sigma = schedule(t)
typical = alpha * x[:200] + sigma * jax.random.normal(key, x[:200].shape)
truth = mcs.score(typical, t, law, schedule)
sizes = [50, 100] if QUICK else [50, 100, 200, 500, 1000, 2000]
keys = jax.random.split(key, 20)
real, claimed = [], []
for size in sizes:
    one = lambda key: mcs.minibatch_score(key, typical, t, law, schedule, batch_size=size)
    estimate, error = jax.vmap(one)(keys)
    real.append(float(jnp.sqrt(jnp.mean((estimate - truth[None]) ** 2))))
    claimed.append(float(jnp.sqrt(jnp.mean(error**2))))
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
axis.loglog(sizes, real, "o-", label="error", color="#1b3a57")
axis.loglog(sizes, claimed, "s--", label="its standard error", color="#d1495b")
axis.set(xlabel="rows per mini-batch", ylabel="score, RMS", title=f"Monte Carlo score at t = {t}")
axis.grid(alpha=0.25, which="both", lw=0.5)
axis.legend(frameon=False)
plt.show()
