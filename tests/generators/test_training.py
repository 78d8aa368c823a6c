"""Training: what is learned, kept, resumed and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mcscore as mcs
from mcscore import storage
from tests.generators.test_generator import pairs, small


@pytest.mark.once
def test_training_learns_a_map():
    gen, history = mcs.train(
        jax.random.key(1), pairs(4000), network=mcs.MLP(64, 2), epochs=80, batch_size=256
    )
    assert history.validation_loss[-1] < 3e-3 < history.validation_loss[0]
    assert history.best_epoch == np.argmin(history.validation_loss)
    z = jax.random.normal(jax.random.key(9), (500, 2))
    assert float(jnp.mean((gen(z) - jnp.sin(z) - z) ** 2)) < 3e-3


def test_generated_points_have_the_moments_of_the_labels(key):
    # Labels half noise: least squares alone would lose half their variance.
    z = jax.random.normal(key, (2000, 2))
    x = z + jax.random.normal(jax.random.fold_in(key, 1), z.shape)
    frame = mcs.Affine().fit(10 * np.asarray(x, float) + 3)
    pairs = mcs.Pairs(z, frame.forward(10 * np.asarray(x, float) + 3).astype(z.dtype), frame)
    gen, _ = mcs.train(key, pairs, network=mcs.MLP(width=8, depth=1), epochs=20)
    found, wanted = np.asarray(gen(z)), np.asarray(pairs.labels())
    np.testing.assert_allclose(found.mean(0), wanted.mean(0), atol=1e-3 * wanted.std())
    np.testing.assert_allclose(np.cov(found.T), np.cov(wanted.T), atol=1e-3 * wanted.var())
    network = mcs.MLP(width=8, depth=1)
    plain, _ = mcs.train(key, mcs.Pairs(z, pairs.x), network=network, epochs=20, recalibrate=False)
    assert np.asarray(plain(z)).var() < 0.7 * np.asarray(pairs.x).var()


def test_paper_preset_and_full_batch():
    network = mcs.MLP.paper(width=32)
    gen, _ = small(network=network, batch_size=None, validation=0.0, optimizer=optax.adam(2e-3))
    assert gen.params["Dense_0"]["kernel"].shape == (2, 32)
    assert gen.params["Dense_1"]["kernel"].shape == (32, 32)
    assert "Dense_3" not in gen.params


def test_best_weights_are_kept_and_training_stops_early():
    gen, history = small(optimizer=optax.sgd(3.0), epochs=30, patience=2, ema=0.0)
    assert history.stopped_early and len(history.train_loss) < 30
    kept = history.validation_loss[history.best_epoch]
    assert kept == np.nanmin(history.validation_loss)
    assert np.isfinite(np.asarray(gen(jnp.ones((1, 2))))).all()


def test_training_never_recompiles(compiled):
    small(encoder=True)
    compiled.clear()
    small(encoder=True)
    assert not compiled
    small(encoder=True, epochs=4)  # another schedule
    assert compiled


def test_both_networks_train_on_the_callers_device():
    device = jax.devices()[1]
    with jax.default_device(device):
        gen, _ = small(encoder=True)
    for leaf in jax.tree.leaves((gen.params, gen.encoder)):
        assert leaf.devices() == {device}


def test_bad_training_input_is_named():
    z = jnp.zeros((5, 2))
    cases = {
        "pairs: expected z and x of one shape": mcs.Pairs(z, jnp.zeros((5, 3))),
        "pairs: expected finite": mcs.Pairs(z, z.at[0, 0].set(jnp.nan)),
    }
    for message, bad in cases.items():
        with pytest.raises(ValueError, match=message):
            mcs.train(jax.random.key(0), bad)
    for name, value in (
        ("epochs", 0),
        ("batch_size", 0),
        ("validation", 1.0),
        ("patience", 0),
        ("ema", 1.0),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            small(**{name: value})
    with pytest.raises(FloatingPointError, match="never finite"):
        small(optimizer=optax.sgd(1e30))
    for options in ({"width": 0}, {"depth": 0}, {"activation": "eval"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            mcs.MLP(**options)


@pytest.mark.parametrize("encoder", [False, True])
def test_training_resumes_to_the_bit(encoder, tmp_path, monkeypatch):
    options = dict(epochs=7, encoder=encoder)
    whole, history = small(**options)
    write, written = storage.Checkpoint.write, []

    def interrupted(self, part, tensors):
        write(self, part, tensors)
        written.append(part)
        if written.count("training") == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage.Checkpoint, "write", interrupted)
        small(checkpoint=tmp_path, **options)
    epochs = []
    monkeypatch.setattr(
        storage.Checkpoint, "write", lambda self, part, tensors: epochs.append(part)
    )
    gen, again = small(checkpoint=tmp_path, **options)
    assert epochs.count("training") == 4  # the first three were kept
    for old, new in zip(jax.tree.leaves(whole), jax.tree.leaves(gen), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(history.validation_loss, again.validation_loss)
    monkeypatch.undo()
    injected = optax.inject_hyperparams(
        optax.adam
    )  # its numbers are in the state, not in the program
    numbers = tmp_path / "numbers"
    small(checkpoint=numbers, **options | dict(optimizer=injected(learning_rate=1e-2)))
    with pytest.raises(ValueError, match="another key, data or settings"):
        small(checkpoint=numbers, **options | dict(optimizer=injected(learning_rate=1e-3)))
    same_patience = dict(optimizer=optax.adam(1e-2), patience=3)
    for other in (
        dict(ema=0.5),
        dict(optimizer=optax.adam(1e-3)),
        dict(epochs=8),
        dict(epochs=6) | same_patience,
    ):
        with pytest.raises(ValueError, match=r"checkpoint: .*another key, data or settings"):
            small(checkpoint=tmp_path, **options | other)
