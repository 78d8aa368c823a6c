"""The method as published."""

from dataclasses import replace

import chex
import jax
import numpy as np
import optax
import pytest

import mcscore as mcs
from mcscore import storage
from mcscore.experiments import published, reproduce
from mcscore.experiments.published import Settings
from tests.experiments.test_reproduce import SMALL


def test_published_settings_are_the_paper_s():
    schedule = published.SCHEDULE
    alpha, sigma = schedule(np.float32(0.25))
    np.testing.assert_allclose([alpha, sigma**2], [1 - 0.99 / 4, 0.01 + 0.99 / 4], rtol=1e-6)
    assert reproduce.default_settings("miniboone") == Settings(width=1400, chunk_size=2000)
    assert reproduce.default_settings("POWER") == Settings(width=256)
    steps = Settings().steps
    assert [round(share * steps) for share in published.HALVED] == [5000, 10_000, 12_000]


def test_published_labels_are_euler_s_with_one_minibatch_a_chunk(problem):
    # By hand, in the formulas of the paper: y - h (b y - g^2/2 score), score over the same rows.
    key = jax.random.key(0)
    law, pairs = published.label(key, problem.train, replace(SMALL, pairs=25, minibatch=300))
    assert pairs.x.shape == (25, 3)
    _, batch_key = jax.random.split(key)
    rows = law.subsample(jax.random.fold_in(batch_key, 0), 300)
    y, steps = np.asarray(pairs.z, np.float64), SMALL.euler
    for i in range(steps):
        t = 1 - i / steps
        score = np.asarray(mcs.score(np.asarray(y, law.dtype), t, rows, published.SCHEDULE))
        alpha, variance = 1 - 0.99 * t, 0.01 + 0.99 * t
        drift, noise = -0.99 / alpha, 0.99 + 2 * 0.99 / alpha * variance
        y = y - (drift * y - noise / 2 * score) / steps
    np.testing.assert_allclose(pairs.x, y, atol=1e-4)


@pytest.mark.once
def test_published_training_is_full_batch_adam(problem):
    key = jax.random.key(1)
    _, pairs = published.label(key, problem.train, SMALL)
    generator, losses = published.train(key, pairs, SMALL)
    network = mcs.MLP.paper(8)
    init_key, _ = jax.random.split(jax.random.split(key, 3)[1])
    params = network.init(init_key, 3, pairs.z.dtype)
    optimizer = optax.adam(optax.piecewise_constant_schedule(2e-3, {5: 0.5, 10: 0.5, 12: 0.5}))
    state = optimizer.init(params)

    def loss(p):
        return ((network.apply(p, pairs.z) - pairs.x) ** 2).sum(1).mean()

    with jax.numpy_dtype_promotion("standard"):
        for found in losses:
            value, gradient = jax.value_and_grad(loss)(params)
            np.testing.assert_allclose(found, value, rtol=1e-4)
            updates, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        generator.params["Dense_0"]["kernel"], params["Dense_0"]["kernel"], atol=1e-4
    )


def test_published_training_resumes_where_it_was_interrupted(problem, tmp_path, monkeypatch):
    key = jax.random.key(1)
    _, pairs = published.label(key, problem.train, SMALL)
    whole, losses = published.train(key, pairs, SMALL)
    write, written = storage.Checkpoint.write, []

    def stop(self, part, tensors):
        write(self, part, tensors)
        written.append(part)
        if len(written) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage.Checkpoint, "write", stop)
        published.train(key, pairs, SMALL, checkpoint=tmp_path)
    resumed, again = published.train(key, pairs, SMALL, checkpoint=tmp_path)
    np.testing.assert_array_equal(again, losses)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    with pytest.raises(ValueError, match="another key, data or settings"):
        published.train(key, pairs, replace(SMALL, width=9), checkpoint=tmp_path)
