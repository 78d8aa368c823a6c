"""Does the one-step generator keep the law of its labels, and is its density that of the law?

    python benchmarks/generator.py --data FOLDER --out benchmarks/results/generator.jsonl

``fit`` with default options; for some sets also refined further, and the training alone (whose seconds are
then given) with another width or bfloat16 products. Generated samples against label samples: accuracy of a
classifier (0.5: it cannot tell them apart), worst relative error of a column's standard deviation and of an
eigenvalue of the covariance, these two at the noise of labels that training has not seen, so that sampling
noise cancels. ``gen.log_prob`` against ``mixture.log_prob`` at 5,000 draws from the law: mean absolute error
in nats where certified, share certified; in two dimensions also its total mass. Seconds to fit, to sample
100,000 points, and for 10,000 log densities, each after a first call. FOLDER holds ``.npz`` files with an
array ``train``.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from clock import FOLDER, NAMES, Results, measure, parser

import mcscore as mcs

REFINED = ("eight_gaussians", "8 Gaussians, d = 5")
WIDER = ("8 Gaussians, d = 5",)
TRAINED = {  # networks to train on the same pairs
    "eight_gaussians": [mcs.MLP(), mcs.MLP(products="bfloat16")],
    "breast cancer": [mcs.MLP(width=192)],
    "miniboone": [mcs.MLP(width=192)],
}
REFINING = 4000  # further steps


def problems(folder: Path | None, quick: bool):
    key = jax.random.key(0)
    for name in (
        ("eight_gaussians",) if quick else ("eight_gaussians", "checkerboard", "two_spirals")
    ):
        draw = mcs.datasets.TWO_DIMENSIONAL[name]
        yield name, np.asarray(draw(key, 200 if quick else 5000))
    if quick:
        return
    for d, rows in ((5, 5000), (8, 20_000)):
        law = mcs.datasets.random_gaussian_mixture(jax.random.key(d), d, 8)
        yield f"8 Gaussians, d = {d}", np.asarray(law.sample(key, rows))
    yield "breast cancer", mcs.datasets.breast_cancer()
    for path in sorted(folder.glob("*.npz")) if folder else ():
        yield path.stem.removesuffix("_partial"), np.load(path)["train"]


def mass(generator, x) -> float:
    """Return the integral of a two-dimensional density by the rule of rectangles."""
    low, high = x.min(0) - x.std(0), x.max(0) + x.std(0)
    axes = [np.linspace(a, b, 300) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    density = np.nan_to_num(np.exp(np.asarray(generator.log_prob(grid))))
    return float(density.sum() * np.prod((high - low) / 299))


def deviation(samples, labels) -> float:
    """Return the worst relative error of a column's standard deviation."""
    return float(np.abs(samples.std(0) / labels.std(0) - 1).max())


def spectrum(samples, labels) -> float:
    """Return the worst relative error of an eigenvalue of the covariance, columns scaled and cut at 1e-3.

    Cut, so that one far draw of a heavy tail does not decide.
    """
    low, high = np.quantile(labels, [0.001, 0.999], 0)
    found, true = (
        np.linalg.eigvalsh(np.cov((np.clip(a, low, high) / (high - low)).T))
        for a in (samples, labels)
    )
    return float(np.abs(found / true - 1).max())


def timed(function) -> float:
    return measure(function)["median"]


def judge(gen, law, fresh) -> dict:
    """Return every figure of one generator against the law and fresh labels."""
    key = jax.random.key(1)
    labels = np.asarray(fresh.labels())
    paired = np.asarray(gen.frame.restore(gen(fresh.z)))
    half = min(len(labels) // 2, 10_000)
    samples = np.asarray(gen.sample(key, 10_000))
    at = law.frame.inverse(mcs.jet.draw(jax.random.key(2), law.blocks, 5000))
    found = gen.density(at)
    certified = np.asarray(found.certified)
    error = np.abs(np.asarray(found.log_prob) - np.asarray(law.log_prob(at)))[certified]
    return dict(
        classifier=mcs.metrics.classifier_accuracy(
            jax.random.key(6), samples[:half], labels[-half:]
        ),
        deviation=deviation(paired, labels),
        spectrum=spectrum(paired, labels),
        density_error=float(error.mean()),
        density_error_median=float(np.median(error)),
        certified=float(certified.mean()),
        mass=mass(gen, labels) if law.dimension == 2 else None,
        sample_seconds=timed(partial(gen.sample, key, 100_000)),
        log_prob_seconds=timed(partial(gen.log_prob, samples)),
    )


def main() -> None:
    options = parser(__doc__, data=FOLDER, only=NAMES).parse_args()
    results = Results(options.out, __doc__.splitlines()[0], data=options.only)
    key = jax.random.key(1)
    for name, x in problems(options.data, options.quick):
        if options.only and name not in options.only:
            continue
        settings: dict = {}
        if options.quick:
            tiny = mcs.MLP(width=8, depth=1)
            settings = dict(kernel=mcs.Local(0.7, 2), pairs=500, epochs=1, refine=0, network=tiny)
        made = mcs.fit_stages(key, x, **settings)
        law = made.mixture
        about = dict(data=name, rows=len(x), d=x.shape[1], kernel=law.report.kernel)
        stages = {stage: round(seconds, 1) for stage, seconds in made.seconds.items()}
        total = sum(made.seconds.values())
        fresh = mcs.generate_pairs(jax.random.key(4), law, made.schedule, len(made.pairs.z))
        judged = partial(judge, law=law, fresh=fresh)
        found = judged(made.generator)
        results.add(**about, variant="default", **found, fit_seconds=total, stages=stages)
        if name in REFINED and not options.quick:
            start = time.perf_counter()
            refined, _ = mcs.refine(key, made.generator, law, made.pairs, steps=REFINING)
            seconds = total + time.perf_counter() - start
            variant = f"and refine(steps={REFINING})"
            results.add(**about, variant=variant, **judged(refined), fit_seconds=seconds)
        if name in WIDER and not options.quick:
            start = time.perf_counter()
            wide = mcs.fit_stages(key, x, network=mcs.MLP(width=192), refine=6000)
            seconds = time.perf_counter() - start
            variant = "MLP(width=192), refine=6000"
            results.add(**about, variant=variant, **judged(wide.generator), fit_seconds=seconds)
        for network in TRAINED.get(name, ()) if not options.quick else ():
            start = time.perf_counter()
            plain, _ = mcs.train(key, made.pairs, network=network, encoder=True)
            seconds = time.perf_counter() - start
            variant = f"not refined, MLP(width={network.width}), {network.products} products"
            results.add(**about, variant=variant, **judged(plain), fit_seconds=seconds)


if __name__ == "__main__":
    main()
