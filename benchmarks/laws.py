"""How good is the law chosen by ``Auto()``, against fixed kernels and flows trained on the same rows?

    python benchmarks/laws.py --data FOLDER --out benchmarks/results/laws.jsonl

FOLDER holds ``*_partial.npz`` files with arrays ``train`` and ``test``; without it only scikit-learn's
tables and 2-D sets are used. Held-out log-likelihood (mean and median, nats), accuracy of a classifier
that tells samples from test rows (0.5: it cannot), share of samples nearer to training than to held-out
rows (0.5: no copying), both means over five draws; seconds.
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from clock import FOLDER, NAMES, Results, parser

import mcscore as mcs


def tables(folder: Path | None, quick: bool):
    if folder:
        for path in sorted(folder.glob("*.npz")):
            arrays = np.load(path)
            yield path.stem.removesuffix("_partial"), arrays["train"], arrays["test"]
    for name in ("wine",) if quick else ("breast_cancer", "wine", "iris"):
        yield name, *mcs.datasets.split(jax.random.key(0), mcs.datasets.TABLES[name](), 0.7, 0.3)
    for name in () if quick else ("checkerboard", "two_spirals", "pinwheel"):
        points = np.asarray(mcs.datasets.TWO_DIMENSIONAL[name](jax.random.key(0), 10_000))
        yield name, points[:5000], points[5000:]


def kernel_law(train, kernel, frame=None):
    law = mcs.mixture(train, kernel=kernel, frame=frame)
    return law.log_prob, law.sample, law.report.kernel


def best_of(kernels):
    """Choose among fixed bandwidths on a tenth of the training rows, as a careful user would."""

    def build(train):
        inner, held = mcs.datasets.split(jax.random.key(1), train, 0.9, 0.1)
        score = lambda k: float(
            mcs.mixture(inner, kernel=k, frame=mcs.Affine()).log_prob(held).mean()
        )
        return kernel_law(train, max(kernels, key=score), mcs.Affine())

    return build


def flow(kind: str, quick: bool):
    def build(train):
        import paramax
        from flowjax.bijections import RationalQuadraticSpline
        from flowjax.distributions import StandardNormal, Transformed
        from flowjax.flows import coupling_flow, masked_autoregressive_flow
        from flowjax.train import fit_to_data

        frame = mcs.Affine().fit(np.asarray(train, np.float64))
        x, d = (
            jnp.asarray(frame.forward(np.asarray(train, np.float64)), jnp.float32),
            train.shape[1],
        )
        keys = jax.random.split(jax.random.key(0))
        base = StandardNormal((d,))
        if kind == "maf":
            model = masked_autoregressive_flow(keys[0], base_dist=base, flow_layers=8)
        else:
            spline = RationalQuadraticSpline(knots=10, interval=5)
            model = coupling_flow(keys[0], base_dist=base, transformer=spline, flow_layers=8)
        options = dict(
            max_epochs=2 if quick else 200, max_patience=10, batch_size=256, learning_rate=1e-3
        )
        model, _ = fit_to_data(keys[1], model, x, show_progress=False, **options)
        model = paramax.unwrap(model)
        assert isinstance(model, Transformed)
        log_det = float(np.asarray(frame.log_det(np.zeros((1, d))))[0])
        log_prob = jax.jit(lambda y: model.log_prob(y) + log_det)
        scaled = lambda y: log_prob(
            jnp.asarray(frame.forward(np.asarray(y, np.float64)), jnp.float32)
        )
        sample = lambda key, n: frame.inverse(model.sample(key, (n,)))
        return scaled, sample, kind

    return build


def main() -> None:
    options = parser(__doc__, data=FOLDER, only=NAMES).parse_args()
    widths = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    rivals = {
        "Auto": lambda train: kernel_law(train, mcs.Auto()),
        "one Gaussian": lambda train: kernel_law(
            train, mcs.Whitened(1.0, preserve=True), mcs.Affine()
        ),
        "best Isotropic": best_of([mcs.Isotropic(h) for h in widths]),
        "best Whitened": best_of([mcs.Whitened(h) for h in widths]),
        "flowjax spline": flow("spline", options.quick),
        "flowjax MAF": flow("maf", options.quick),
    }
    results = Results(options.out, __doc__.splitlines()[0], data=options.only)
    for name, train, test in tables(options.data, options.quick):
        if options.only and name not in options.only:
            continue
        for rival, build in rivals.items():
            start = time.perf_counter()
            log_prob, sample, note = build(train)
            seconds = time.perf_counter() - start
            values = np.asarray(log_prob(test), np.float64)
            scale = np.asarray(train, np.float64).std(0)
            scaled = [np.asarray(a, np.float64) / scale for a in (train, test)]
            accuracies, shares, largest, nonfinite = [], [], 0.0, 0
            for seed in range(1 if options.quick else 5):
                samples = np.asarray(sample(jax.random.key(seed + 1), len(test)), np.float64)
                finite = samples[np.isfinite(samples).all(1)]
                accuracies.append(
                    mcs.metrics.classifier_accuracy(jax.random.key(seed), finite, test)
                )
                shares.append(mcs.metrics.memorization(finite / scale, *scaled).share)
                largest = max(largest, float(np.abs(finite / scale).max()))
                nonfinite += len(samples) - len(finite)
            results.add(
                data=name,
                rows=len(train),
                d=train.shape[1],
                law=rival,
                log_likelihood=float(values.mean()),
                median=float(np.median(values)),
                classifier=float(np.mean(accuracies)),
                classifier_spread=float(np.std(accuracies)),
                nearer_to_training=float(np.mean(shares)),
                largest=largest,
                nonfinite=nonfinite,
                seconds=seconds,
                note=note,
            )


if __name__ == "__main__":
    main()
