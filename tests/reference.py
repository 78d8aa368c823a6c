"""The obvious float64 NumPy version of everything the library makes fast."""

import numpy as np


def jet(x_t, alpha, sigma, means, weights, covariances):
    """Return log p, grad log p and lap log p of ``sum_i w_i N(alpha m_i, alpha^2 C_i + sigma^2 I)``."""
    total = alpha**2 * np.asarray(covariances) + sigma**2 * np.eye(x_t.shape[1])
    inverse = np.linalg.inv(total)
    r = np.asarray(x_t, np.float64)[:, None] - alpha * np.asarray(means)
    scores = -np.einsum("nij,mnj->mni", inverse, r)
    logs = np.log(weights) - np.linalg.slogdet(2 * np.pi * total)[1] / 2 + (scores * r).sum(2) / 2
    top = logs.max(1, keepdims=True)
    posterior = np.exp(logs - top)
    log_p = top[:, 0] + np.log(posterior.sum(1))
    posterior /= posterior.sum(1, keepdims=True)
    grad = np.einsum("mn,mni->mi", posterior, scores)
    spread = ((scores - grad[:, None]) ** 2).sum(2) - np.trace(inverse, axis1=1, axis2=2)
    return log_p, grad, (posterior * spread).sum(1)


def isotropic_jet(x_t, alpha, sigma, rows, weights, h):
    d = rows.shape[1]
    return jet(
        x_t, alpha, sigma, rows, weights, np.broadcast_to(h**2 * np.eye(d), (len(rows), d, d))
    )


def paper_transport(z, rows, eps=0.01, steps=500):
    """Return the end points of the paper's sampler: explicit Euler in t, score at the noisier end.

    alpha = 1-(1-eps)t, sigma^2 = eps+(1-eps)t, b = alpha'/alpha, g^2 = (sigma^2)' - 2 b sigma^2,
    dx = (b x - g^2 score / 2) dt from t = 1 to 0 with the mini-batch ``rows``.
    """
    x, dt = np.array(z, np.float64), 1 / steps
    for k in range(steps):
        t = 1 - k * dt
        alpha, variance = 1 - (1 - eps) * t, eps + (1 - eps) * t
        b = -(1 - eps) / alpha
        g2 = (1 - eps) - 2 * b * variance
        logits = -((x[:, None] - alpha * rows[None]) ** 2).sum(2) / (2 * variance)
        w = np.exp(logits - logits.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        score = -(x - alpha * (w @ rows)) / variance
        x = x - (b * x - g2 / 2 * score) * dt
    return x


def equal_weights(x):
    return np.full(len(x), 1 / len(x))


def two_clusters(n=400, d=3):
    """Return rows of two Gaussians of different shape, 4 apart in every column, (n, d)."""
    rng = np.random.default_rng(1)
    turns = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2)]
    spread = np.linspace(0.5, 1.0, d)
    left = rng.standard_normal((n // 2, d)) * spread @ turns[0] - 2
    right = rng.standard_normal((n - n // 2, d)) * spread @ turns[1] + 2
    return np.concatenate([left, right])
