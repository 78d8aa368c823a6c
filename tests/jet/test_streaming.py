"""Tiles, evaluations and merged jets: how blocks are streamed."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from tests.conftest import X64
from tests.flows.test_fields import SCHEDULE, at, queries, table


def test_merge_is_the_jet_of_the_union():
    x = table(90, 4)
    weights = np.random.default_rng(0).random(90)
    y = jnp.asarray(queries(x, 0.5, 11))
    whole = at(mcs.mixture(x, kernel=mcs.Isotropic(0.2), weights=weights), y, 0.3)
    parts = []
    for part in (slice(0, 20), slice(20, 90)):
        jet = at(mcs.mixture(x[part], kernel=mcs.Isotropic(0.2), weights=weights[part]), y, 0.3)
        share = np.log(weights[part].sum() / weights.sum())
        parts.append(mcs.jet.Jet(jnp.asarray(jet.log_p) + share, *map(jnp.asarray, jet[1:])))
    bound = dict(rtol=1e-9 if X64 else 1e-4, atol=1e-9 if X64 else 1e-4)
    chex.assert_trees_all_close(mcs.jet.merge(*parts), jax.tree.map(jnp.asarray, whole), **bound)
    chex.assert_trees_all_close(mcs.jet.merge(*parts), mcs.jet.merge(*parts[::-1]), **bound)
    nothing = mcs.jet.Jet(jnp.full(11, -jnp.inf), jnp.zeros((11, 4)), jnp.zeros(11))
    chex.assert_trees_all_close(mcs.jet.merge(nothing, parts[0]), parts[0], **bound)
    assert not jnp.isnan(mcs.jet.merge(nothing, nothing).field).any()


def test_equal_parts_merge_to_their_mean_however_far_away():
    part = mcs.jet.Jet(jnp.array([0.0, -1e6, -1e12, -1e30]), jnp.ones((4, 2)), -jnp.ones(4))
    merged = mcs.jet.merge(mcs.jet.merge(part, part), part)
    np.testing.assert_allclose(merged.field, part.field, rtol=1e-6)
    np.testing.assert_allclose(merged.laplacian, part.laplacian, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 64, 65, 3 * 64 + 7])
def test_tiles_do_not_show(count):
    tiled = dict(evaluation=mcs.jet.Evaluation(queries=64))
    law = mcs.mixture(table(30, 2), kernel=mcs.Isotropic(0.3), **tiled)
    x = jnp.asarray(queries(table(30, 2), 0.5, count))
    t = jnp.linspace(0.1, 0.9, count)
    whole = mcs.score(x, t, law, SCHEDULE)
    np.testing.assert_allclose(whole[-1:], mcs.score(x[-1:], t[-1:], law, SCHEDULE), rtol=1e-5)


def test_tiles_follow_the_device():
    evaluation = mcs.jet.Evaluation()
    tiles = [evaluation.tile(rows) for rows in (10, 256, 1024, 5000)]
    assert tiles == [8192, 4096, 1024, 1024]  # about as many pairs of any block
    for stats, expected in (
        (dict(bytes_limit=80 * 2**30), 16_384),
        (dict(bytes_limit=4 * 2**30), 4096),
        (dict(bytes_limit=4 * 2**30, bytes_in_use=3 * 2**30), 4096),  # not of the moment
        (dict(bytes_limit=2**28), 1024),
        (None, 16_384),  # a backend that does not tell
    ):
        known = {"platform": "gpu", "memory_stats": lambda self, stats=stats: stats}
        assert mcs.jet.Evaluation.on(type("Device", (), known)()).tile(1024) == expected


@pytest.mark.parametrize(
    "wrong", [dict(queries=0), dict(queries=-3), dict(queries=7.5), dict(weights=-1)], ids=str
)
def test_bad_evaluations_are_named(wrong):
    if X64 and not isinstance(next(iter(wrong.values())), int):
        pytest.skip("annotations are checked first")
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected an integer"):
        mcs.jet.Evaluation(**wrong)


def test_an_evaluation_is_part_of_the_program_and_travels_with_the_law():
    """Another evaluation is another program; a global switch would have been ignored after the first."""
    x = jnp.zeros((300, 2))
    law = mcs.mixture(
        table(20, 2), kernel=mcs.Isotropic(0.1), evaluation=mcs.jet.Evaluation(kernel="xla")
    )
    small = dataclasses.replace(law, evaluation=mcs.jet.Evaluation(queries=100, kernel="xla"))
    loops = [
        str(jax.make_jaxpr(lambda x, m=m: mcs.score(x, 0.5, m, SCHEDULE))(x)) for m in (law, small)
    ]
    assert loops[1].count("scan[") == loops[0].count("scan[") + 1  # over tiles
    assert jax.jit(lambda m: m)(small).evaluation == small.evaluation
    assert small.marginal([0]).evaluation == small.evaluation


def test_memory_does_not_grow_with_queries_times_rows():
    n, b, d = 100_000, 20_000, 3
    law = mcs.mixture(table(n, d), kernel=mcs.Dirac())
    x = jnp.zeros((b, d), law.dtype)
    for function in (
        lambda x: mcs.score(x, 0.5, law, SCHEDULE),
        jax.grad(lambda x: mcs.log_density(x, 0.5, law, SCHEDULE).sum()),
    ):
        memory = jax.jit(function).lower(x).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 256 * 2**20 < b * n
