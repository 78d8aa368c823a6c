"""Which method samples best, has the best density, and at what cost, on the same rows in the same run?

    python benchmarks/rivals.py --data FOLDER --out benchmarks/results/rivals.jsonl

Ours: the law (``mixture``: closed form, no training), the law that nothing is searched for (``Local()`` in
Gaussianized columns, two clusterings instead of four in whitened ones, a kernel density), and the one-step
generator (``fit``).
Rivals, each with early stopping on a tenth of the rows or a choice among settings by held-out likelihood:
scikit-learn's KernelDensity and GaussianMixture, flowjax's MAF and spline coupling flow, flow matching with
the network of our generator (straight paths, sampled and scored by an ODE), a vine copula (pyvinecopulib:
local-likelihood pairs, kernel margins), ForestDiffusion's flow of boosted trees where a table is small
enough to end within ten minutes, and the paper's method (``experiments.published``, with --paper-pairs and
--paper-steps instead of its 200,000 and 20,000, a third of both where its network is wider than 1,000; hours
of its PyTorch scripts at full size are extrapolated from a few of their steps).

Test rows against draws, columns standardized: sliced Wasserstein of all 100,000; means over five sets of as
many draws as test rows of the accuracy of a classifier (0.5: it cannot tell), KL per column and share
nearer to training rows (0.5: no copying); standard errors over the sets; the sliced Wasserstein distance that
equal laws exceed in one of twenty comparisons (``evaluation.chance``), and the figures of the training rows
themselves, drawn with replacement. Mean held-out log-likelihood in nats; how many of 100,000 draws are not
finite or beyond 100 deviations; seconds to train and to draw those 100,000, the second time (compiled).
scikit-learn's small tables are split into training and test rows --splits times: means over the splits,
seconds of the first (where everything is compiled).
"""

from __future__ import annotations

import importlib
import time
import traceback
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
from clock import FOLDER, NAMES, Results, parser
from flow_matching import Rival, flow_matching, standardized
from labels import paper_seconds
from laws import flow, tables
from threadpoolctl import threadpool_limits

import mcscore as mcs
from mcscore.experiments import evaluation, published

DRAWS = 100_000
FOREST = 500  # entries of a table, at most, for five splits within ten minutes
METRICS = ("sliced_wasserstein", "classifier", "column_kl", "memorization")


def law(kernel, frame=None):
    def build(train, quick) -> Rival:
        made = mcs.mixture(train, kernel=kernel, frame=frame)
        return Rival(made.sample, made.log_prob, made.report.kernel)

    return build


def training_rows(train, quick) -> Rival:
    """Return the reference: what the training rows score, drawn with replacement."""
    return Rival(lambda key, n: train[np.asarray(jax.random.choice(key, len(train), (n,)))], None)


def generator(train, quick) -> Rival:
    settings: dict = {}
    if quick:
        tiny = mcs.MLP(width=8, depth=1)
        settings = dict(kernel=mcs.Local(0.7, 2), pairs=500, epochs=1, refine=0, network=tiny)
    made = mcs.fit_stages(jax.random.key(0), train, **settings)
    return Rival(made.generator.sample, made.generator.log_prob, made.mixture.report.kernel)


def scikit(models, note):
    """Return a builder that keeps the model with the best likelihood on a tenth of the rows."""

    def build(train, quick) -> Rival:
        frame, x, log_det = standardized(train)
        inner, held = mcs.datasets.split(jax.random.key(1), x, 0.9, 0.1)
        candidates = models(quick, x.shape[1])[: 2 if quick else None]
        best = max(candidates, key=lambda make: make().fit(inner).score(held))
        model = best().fit(x)

        def sample(key, n):
            seed = int(jax.random.bits(key, dtype=jnp.uint32))
            if hasattr(model, "means_"):
                model.random_state = seed
                drawn = model.sample(n)[0]  # component by component: mix them
                np.random.default_rng(seed).shuffle(drawn)
            else:
                drawn = model.sample(n, random_state=seed)
            return frame.inverse(drawn)

        def log_prob(y):
            return model.score_samples(frame.forward(np.asarray(y, np.float64))) + log_det

        return Rival(sample, log_prob, note(model))

    return build


def kernel_densities(quick, d):
    from sklearn.neighbors import KernelDensity

    return [lambda h=h: KernelDensity(bandwidth=h) for h in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)]


def gaussian_mixtures(quick, d):
    from sklearn.mixture import GaussianMixture

    return [
        lambda k=k: GaussianMixture(k, reg_covar=1e-4, random_state=0)
        for k in (1, 2, 4, 8, 16, 32, 64)
    ]


def flowjax(kind):
    def build(train, quick) -> Rival:
        log_prob, sample, note = flow(kind, quick)(train)
        return Rival(sample, log_prob, note)

    return build


def vine_copula(train, quick) -> Rival:
    import pyvinecopulib

    families = [pyvinecopulib.BicopFamily.tll]
    controls = pyvinecopulib.FitControlsVinecop(family_set=families, num_threads=2)
    model = pyvinecopulib.Vinedist.from_data(train, controls=controls)

    def sample(key, n):
        return model.sample(n, seeds=[int(jax.random.bits(key, dtype=jnp.uint32)) >> 1])

    return Rival(sample, model.logpdf, "local-likelihood pairs, kernel margins")


def forest_flow(train, quick) -> Rival:
    from ForestDiffusion import ForestDiffusionModel

    if train.size > FOREST:
        raise TimeoutError(f"more than {FOREST:,} entries take more than ten minutes")
    small = dict(n_t=3, duplicate_K=2) if quick else {}
    model = ForestDiffusionModel(train, diffusion_type="flow", n_jobs=2, seed=0, **small)

    def sample(key, n):
        np.random.seed(int(jax.random.bits(key, dtype=jnp.uint32)) >> 1)  # noqa: NPY002 (its own)
        return model.generate(batch_size=n)

    return Rival(sample, None, "flow, default settings")


def paper(name, pairs, steps):
    def build(train, quick) -> Rival:
        width = published.WIDTHS.get(name, 256)
        share = 3 if width > 1000 else 1
        settings = published.Settings(width=width, pairs=pairs // share, steps=steps // share)
        if quick:
            settings = published.Settings(width=8, pairs=100, steps=20, euler=10)
        law, made = published.label(jax.random.key(0), np.asarray(train, np.float32), settings)
        model, _ = published.train(jax.random.key(1), made, settings)
        inside = lambda y: np.asarray(law.frame.forward(np.asarray(y, np.float64)), np.float32)

        def log_prob(y):  # of its law: the network has no density
            at = mcs.log_density(inside(y), 0.0, law, published.SCHEDULE)
            return np.asarray(at) + np.asarray(law.frame.log_det(np.asarray(y, np.float64)))

        return Rival(model.sample, log_prob, f"{settings.pairs} pairs, {settings.steps} steps")

    return build


def paper_hours(train, width: int) -> float:
    """Return hours of the scripts' labels and training at full size, from a few steps in PyTorch."""
    import torch

    d = train.shape[1]
    rng = np.random.default_rng(0)
    rows, z = (rng.standard_normal((n, d)).astype(np.float32) for n in (1000, 5000))
    labels = 40 * paper_seconds(rows, z, 500, 2)
    net = torch.nn.Sequential(
        torch.nn.Linear(d, width), torch.nn.Tanh(), torch.nn.Linear(width, width),
        torch.nn.Tanh(), torch.nn.Linear(width, d),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    part = 20_000  # of 200,000 pairs: cost is proportional
    z, x = (torch.randn(part, d) for _ in range(2))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        optimizer.zero_grad()
        ((net(z) - x) ** 2).sum(1).mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return (labels + 20_000 * 200_000 / part * min(seconds)) / 3600


def judge(rival: Rival, train, test, draws: int = DRAWS) -> dict:
    """Return every column of the table for one trained rival."""
    np.asarray(rival.sample(jax.random.key(8), draws))
    start = time.perf_counter()
    samples = np.asarray(rival.sample(jax.random.key(9), draws), np.float64)
    seconds = time.perf_counter() - start
    finite = np.isfinite(samples).all(1)
    far = finite & (np.abs(samples - train.mean(0)) > 100 * train.std(0)).any(1)
    with threadpool_limits(1, user_api="openmp"):  # sleeping threads double the classifier's time
        found = evaluation.judge(jax.random.key(10), samples, train, test, mmd_rows=0)
    out: dict = dict(
        sampling_seconds=seconds,
        nonfinite=int((~finite).sum()),
        beyond_100_deviations=int(far.sum()),
    )
    for name in METRICS:
        out |= {key: found[key] for key in (name, f"{name}_error")}
    out["memorization_threshold"] = found["memorization_threshold"]
    if rival.log_prob is not None:
        values = np.asarray(rival.log_prob(test), np.float64)
        known = np.isfinite(values)
        out |= dict(log_likelihood=float(values[known].mean()), unknown=int((~known).sum()))
    return out


def over_splits(found: list[dict]) -> dict:
    """Return means over splits, sums of counts, and each split's metrics, from which errors follow."""
    if len(found) == 1:
        return found[0]
    names = [name for name in found[0] if not name.endswith("_error")]
    metrics = [name for name in (*METRICS, "log_likelihood") if name in names]
    every = {name: [one[name] for one in found] for name in names}
    out: dict = {
        k: sum(v) if isinstance(v[0], int) else float(np.mean(v)) for k, v in every.items()
    }
    out["splits"] = {name: [float(f"{value:.4g}") for value in every[name]] for name in metrics}
    return out | {name: found[0][name] for name in ("sampling_seconds", "training_seconds")}


def parts(name: str, train, test, splits: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return training and test rows: of a small table, several times."""
    if name not in mcs.datasets.TABLES:
        return [(np.asarray(train, np.float64), np.asarray(test, np.float64))]
    table = mcs.datasets.TABLES[name]()
    found = (mcs.datasets.split(jax.random.key(seed), table, 0.7, 0.3) for seed in range(splits))
    return [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in found]


def main() -> None:
    modules = ("flowjax.flows", "sklearn.covariance", "sklearn.mixture", "sklearn.neighbors")
    for module in (*modules, "pyvinecopulib", "ForestDiffusion"):
        with suppress(ModuleNotFoundError):  # a rival that is not installed is a failed line
            importlib.import_module(module)  # no rival's seconds shall pay for imports
    options = parser(
        __doc__, data=FOLDER, only=NAMES, rivals=dict(nargs="+", help="names of the rivals to run"),
        **{
            "paper-pairs": dict(type=int, default=10_000, help="default: 10000"),
            "paper-steps": dict(type=int, default=2000, help="default: 2000"),
            "splits": dict(type=int, default=5, help="of small tables; default: 5"),
        },
    ).parse_args()  # fmt: skip
    results = Results(options.out, __doc__.splitlines()[0], data=options.only, rival=options.rivals)
    for name, train, test in tables(options.data, options.quick):
        if options.only and name not in options.only:
            continue
        divided = parts(name, train, test, 2 if options.quick else options.splits)
        train = divided[0][0]
        times = 5 if options.quick else 60
        chance = [
            evaluation.chance(jax.random.key(11), *part, times)["sliced_wasserstein_threshold"]
            for part in divided
        ]
        rivals = {
            "mcscore, law": law(mcs.Local(0.7, 2) if options.quick else mcs.Auto()),
            "mcscore, law by rule": law(mcs.Local(), mcs.Gaussianize()),
            "mcscore, law by rule, whitened": law(mcs.Local(partitions=2), mcs.Affine(whiten=True)),
            "mcscore, kernel density": law(mcs.Whitened(preserve=True), mcs.Affine()),
            "mcscore, one step": generator,
            "scikit-learn KDE": scikit(kernel_densities, lambda m: f"h = {m.bandwidth}"),
            "scikit-learn Gaussian mixture": scikit(
                gaussian_mixtures, lambda m: f"{m.n_components} components"
            ),
            "flowjax MAF": flowjax("maf"),
            "flowjax spline": flowjax("spline"),
            "flow matching": flow_matching,
            "vine copula": vine_copula,
            "ForestDiffusion": forest_flow,
            "the paper's method": paper(name, options.paper_pairs, options.paper_steps),
            "training rows": training_rows,
        }
        for rival, build in rivals.items():
            if options.rivals and rival not in options.rivals:
                continue
            about = dict(data=name, rows=len(train), d=train.shape[1], rival=rival)
            if not options.quick:
                jax.clear_caches()  # every rival compiles for itself; and memory maps are finite
            try:
                found = []
                for (rows, held), limit in zip(divided, chance, strict=True):
                    start = time.perf_counter()
                    made = build(rows, options.quick)
                    seconds = time.perf_counter() - start
                    figures = judge(made, rows, held, 1000 if options.quick else DRAWS)
                    figures["sliced_wasserstein_threshold"] = limit
                    found.append(dict(training_seconds=seconds) | figures)
            except Exception as error:  # a rival that fails is a line of the table, not its end
                traceback.print_exc()
                results.add(**about, failed=f"{type(error).__name__}: {error}"[:200])
                continue
            figures = over_splits(found)
            if rival == "the paper's method" and not options.quick:
                figures["full_size_hours"] = paper_hours(train, published.WIDTHS.get(name, 256))
            results.add(**about, **figures, note=made.note)


if __name__ == "__main__":
    main()
