r"""Marginal and conditional laws of a mixture of Gaussians: exact, and mixtures again.

A component of mean (m_a, m_b) and covariance C, split into coordinates a and given ones b, becomes

    weight  w N(b; m_b, C_bb)    mean  m_a + C_ab C_bb^-1 (b - m_b)    covariance  C_aa - C_ab C_bb^-1 C_ba

With ``C_ab = 0`` this is the kernel-weighted conditional of arXiv 2410.03108. Of a block with ``C = L L^T``,
the QR decomposition ``L_b^T = Q R`` gives all three without an inverse or a difference of covariances:

    C_bb = R^T R,      C_ab C_bb^-1 = L_a Q R^-T,      C_aa - C_ab C_bb^-1 C_ba = (L_a - L_a Q Q^T)(...)^T.

What depends on a block's covariance only is computed once under ``vmap`` over conditions.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from mcscore.jet.blocks import Blocks


def marginal(blocks: Blocks, onto: Float[Array, "d a"]) -> Blocks:
    """Return the law of ``y @ onto`` for ``y`` from the law of ``blocks``."""
    turned, roots = _turned(blocks, onto), jnp.sqrt(blocks.variances)
    rows = _product("krd,kda->kra", blocks.rows, turned)
    return _laid_out(rows, blocks.log_weights, blocks.centers, onto, roots[..., None] * turned)


def conditional(
    blocks: Blocks,
    onto: Float[Array, "d a"],
    given: Float[Array, "d b"],
    places: Float[Array, "p b"],
    gains: Float[Array, "p"],
) -> Blocks:
    """Return the law of ``y @ onto`` given that ``y @ given`` is one of the ``places``.

    Each counts by the density there, its logarithm raised by the place's gain. Weights sum to one again.
    """
    parts = [
        _joint(blocks, onto, given, values, gain)
        for values, gain in zip(places, gains, strict=True)
    ]
    log_weights = jnp.concatenate([part.log_weights for part in parts])
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return replace(whole, log_weights=log_weights - jax.nn.logsumexp(log_weights))


def divided(blocks: Blocks, onto: Float[Array, "d a"], given: Float[Array, "d b"]) -> Blocks:
    """Return the joint law of ``(y @ onto, y @ given)`` whose last columns are conditions.

    In a block with ``u = c - c_b``, the kernel's rows in the condition's own unit, ``R^-T u``, weigh by how
    near they are; and ``x`` moves by ``C_ab C_bb^-1 u``, of which the basis has the negative.
    """
    roots = jnp.sqrt(blocks.variances)[..., None]
    towards, along = _turned(blocks, onto), _turned(blocks, given)
    q, r = jnp.linalg.qr(roots * along)
    eye = jnp.broadcast_to(jnp.eye(r.shape[-1], dtype=r.dtype), r.shape)
    inverse = jax.lax.linalg.triangular_solve(r, eye, left_side=True)
    log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r, axis1=1, axis2=2))), 1)
    across = _product("kda,kdb->kab", roots * towards, q)
    left = roots * towards - _product("kdb,kab->kda", q, across)
    bases, scales, _ = jnp.linalg.svd(jnp.swapaxes(left, 1, 2), full_matrices=False)
    c = _product("krd,kdb,kbe->kre", blocks.rows, along, inverse)
    x = _product("krd,kda->kra", blocks.rows, towards) - _product("kab,krb->kra", across, c)
    told = -_product("kbe,kae,kaf->kbf", inverse, across, bases)
    nothing = jnp.zeros((*bases.shape[:2], r.shape[-1]), r.dtype)
    matrix = jnp.block([[bases, nothing], [told, inverse]])
    return Blocks(
        jnp.concatenate([_product("kra,kae->kre", x, bases), c], -1),
        blocks.log_weights - log_det[:, None],
        jnp.concatenate([_product("kd,da->ka", blocks.centers, m) for m in (onto, given)], -1),
        matrix,
        jnp.concatenate([scales**2, jnp.ones_like(r[..., 0])], -1),
        given.shape[1],
    )


def observed(
    blocks: Blocks,
    along: Float[Array, "d m"],
    values: Float[Array, "m"],
    noise: Float[Array, "m m"],
) -> Blocks:
    """Return the law of ``y`` given ``y @ along + e = values`` with ``e ~ N(0, noise)``.

    ``(y, e)`` has the blocks' rows, zero in the further columns, whose variances are the noise's; then it is
    ``conditional``. Every component has the Kalman update.
    """
    (k, _, d), m = blocks.rows.shape, len(values)
    variances, axes = jnp.linalg.eigh(noise)
    eye = jnp.broadcast_to(jnp.eye(d, dtype=noise.dtype), (k, d, d))
    across = jnp.zeros((k, d, m), noise.dtype)
    axes = jnp.broadcast_to(axes, (k, m, m))
    bases = eye if blocks.bases is None else blocks.bases
    whole = Blocks(
        jnp.pad(blocks.rows, ((0, 0), (0, 0), (0, m))),
        blocks.log_weights,
        jnp.pad(blocks.centers, ((0, 0), (0, m))),
        jnp.block([[bases, across], [jnp.swapaxes(across, 1, 2), axes]]),
        jnp.concatenate([blocks.variances, jnp.broadcast_to(variances, (k, m))], 1),
    )
    given = jnp.concatenate([along, jnp.eye(m, dtype=noise.dtype)])
    onto = jnp.eye(d + m, d, dtype=noise.dtype)
    return conditional(whole, onto, given, values[None], jnp.zeros(1, noise.dtype))


def _joint(blocks: Blocks, onto: Array, given: Array, values: Array, gain: Array) -> Blocks:
    """Return the law of ``y @ onto`` where ``y @ given = values``, times the density of that."""
    roots = jnp.sqrt(blocks.variances)[..., None]
    towards, along = _turned(blocks, onto), _turned(blocks, given)
    q, r = jnp.linalg.qr(roots * along)
    missed = values[None] - _product("kd,db->kb", blocks.centers, given)
    missed = missed[:, None] - _product("krd,kdb->krb", blocks.rows, along)
    white = jax.lax.linalg.triangular_solve(
        r, jnp.swapaxes(missed, 1, 2), left_side=True, transpose_a=True
    )
    log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r, axis1=1, axis2=2))), 1)
    log_weights = blocks.log_weights - jnp.sum(white**2, 1) / 2 - log_det[:, None]
    log_weights = log_weights + gain
    across = _product("kda,kdb->kab", roots * towards, q)
    rows = _product("krd,kda->kra", blocks.rows, towards) + _product("kab,kbr->kra", across, white)
    left = roots * towards - _product("kdb,kab->kda", q, across)
    return _laid_out(rows, log_weights, blocks.centers, onto, left)


@jax.jit
def tails(
    blocks: Blocks, onto: Float[Array, "d a"], points: Float[Array, "g a"]
) -> Float[Array, "g a"]:
    """Return the mass of ``(y @ onto)_j`` on the far side of ``points[:, j]`` from zero.

    The distribution function where a point is negative, else its complement: each in full relative
    precision. O(a g n) time, O(g r) memory for blocks of ``r`` rows.
    """
    side, tiny = jnp.where(points > 0, 1, -1), jnp.finfo(points.dtype).tiny

    def column(given: tuple[Array, Array, Array]) -> Array:
        onto, points, side = given
        turned = _turned(blocks, onto[:, None])[..., 0]
        means = _product("kd,d->k", blocks.centers, onto)[:, None]
        means = means + _product("krd,kd->kr", blocks.rows, turned)
        widths = jnp.sqrt(jnp.sum(blocks.variances * turned**2, 1))

        def add(total: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
            means, log_weights, width = block
            z = side[:, None] * (means[None] - points[:, None]) / jnp.maximum(width, tiny)
            return total + ndtr(z) @ jnp.exp(log_weights), None

        return jax.lax.scan(add, 0 * points, (means, blocks.log_weights, widths))[0]

    return jax.lax.map(column, (onto.T, points.T, side.T)).T


def _turned(blocks: Blocks, matrix: Array) -> Array:
    """Return each block's basis vectors times ``matrix``, (k, d, a)."""
    if blocks.bases is None:
        return jnp.broadcast_to(matrix, (len(blocks.centers), *matrix.shape))
    return _product("ked,ea->kda", blocks.bases, matrix)


def _laid_out(rows: Array, log_weights: Array, centers: Array, onto: Array, roots: Array) -> Blocks:
    """Return blocks of ``rows`` (k, r, a) about ``centers @ onto``, with covariances ``roots^T roots``."""
    bases, scales, _ = jnp.linalg.svd(jnp.swapaxes(roots, 1, 2), full_matrices=False)
    known = jnp.isfinite(log_weights)[..., None]
    share = jax.nn.softmax(jnp.where(known[..., 0].any(1, keepdims=True), log_weights, 0), 1)
    middle = _product("kr,kra->ka", share, rows)
    rows = jnp.where(known, _product("kra,kae->kre", rows - middle[:, None], bases), 0)
    centers = _product("kd,da->ka", centers, onto) + middle
    return Blocks(rows, log_weights, centers, bases, scales**2)


def _product(indices: str, *factors: Array) -> Array:
    return jnp.einsum(indices, *factors, precision="highest")
