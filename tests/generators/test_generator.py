import dataclasses
import gc
import json
import os
import pickle
import stat
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore import storage

SMALL = mcs.MLP(width=16, depth=2)


def pairs(n=400, d=2, frame=mcs.Identity()):
    z = jax.random.normal(jax.random.key(0), (n, d))
    return mcs.Pairs(z, jnp.sin(z) + z, frame)


def small(**options):
    options = dict(network=SMALL, epochs=3, batch_size=100) | options
    return mcs.train(jax.random.key(1), pairs(), **options)


def test_residual_network_starts_as_the_identity():
    z = jnp.ones((3, 2))
    np.testing.assert_array_equal(SMALL.apply(SMALL.init(jax.random.key(0), 2, z.dtype), z), z)


def test_samples_are_streamed_and_do_not_depend_on_their_number(key):
    gen, _ = small()
    many = gen.sample(key, 20_000)
    assert many.shape == (20_000, 2)
    np.testing.assert_array_equal(gen.sample(key, 10), many[:10])
    assert gen.sample(key, 0).shape == (0, 2)
    with pytest.raises(ValueError, match="n: expected"):
        gen.sample(key, -1)
    with pytest.raises(ValueError, match=r"z: expected shape \(b, 2\)"):
        gen(jnp.ones((3, 5)))


def test_generator_is_a_pytree():
    gen, _ = small()
    z = jnp.ones((3, 2))
    np.testing.assert_allclose(jax.jit(lambda g, z: g(z))(gen, z), gen(z), rtol=1e-5)
    assert jax.grad(lambda z: gen(z).sum())(z).shape == z.shape
    assert isinstance(gen.params, dict)


@pytest.mark.once
def test_generators_of_equal_shapes_share_programs_and_memory(compiled):
    """What is written about a generator tells no two apart; a hundred leave nothing behind."""
    frame = mcs.Affine().fit(np.random.default_rng(0).standard_normal((50, 2)))
    params = SMALL.init(jax.random.key(0), 2)
    keys = jax.random.split(jax.random.key(1), 102)

    def use(index):
        other = jax.tree.map(lambda a: a + index, params)
        gen = mcs.Generator(other, frame, SMALL, about={"log_likelihood": index})
        np.asarray(gen.log_prob(gen.sample(keys[index], 10)))
        return gen

    first, second = use(0), use(1)
    compiled.clear()
    before = process_memory()
    for index in range(2, 102):
        use(index)
    assert not compiled
    assert process_memory() - before < 20e6
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    assert mean.about == {} and first.about == {"log_likelihood": 0}


def process_memory():
    """Return the bytes that are resident in this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def saved(tmp_path):
    frame = mcs.Affine(whiten=True).fit(np.random.default_rng(0).standard_normal((50, 2)) * 7 + 3)
    gen, _ = mcs.train(jax.random.key(1), pairs(frame=frame), network=SMALL, epochs=2)
    gen = dataclasses.replace(gen, about={"kernel": "Dirac()"})
    path = tmp_path / "model.safetensors"
    gen.save(path)
    return gen, path


def test_saved_and_loaded_are_equal(saved, key):
    gen, path = saved
    back = mcs.load(path)
    np.testing.assert_array_equal(back.sample(key, 100), gen.sample(key, 100))
    assert back.network == gen.network and back.about == {"kernel": "Dirac()"}
    assert list(path.parent.iterdir()) == [path]  # nothing left aside
    header = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    assert {"versions", "network", "about", "frame"} <= set(header["__metadata__"])


def test_others_may_read_a_file_as_far_as_the_umask_lets_them(saved):
    gen, path = saved
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        path.unlink()  # one that is replaced keeps what it has
        before = os.umask(umask)
        try:
            gen.save(path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_missing_folder_is_named(saved, tmp_path):
    gen, _ = saved
    for write in (gen.save, gen.export):
        with pytest.raises(FileNotFoundError, match=r"no folder \S*/nowhere for model.safetensors"):
            write(tmp_path / "nowhere" / "model.safetensors")


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    gen, path = saved
    before = path.read_bytes()

    def full_disk(tensors, aside, metadata):
        aside.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("mcscore.storage.tensors.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        gen.save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("executed",))


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "headless": lambda data: data[:5],
    "empty": lambda data: b"",
    "pickle": lambda data: pickle.dumps(Bomb()),
    "random": lambda data: np.random.default_rng(0).bytes(5000),
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "other format": lambda data: data.replace(b'"mcscore.generator"', b'"somebody.elses__"'),
    "newer": lambda data: data.replace(b'"format_version":"3"', b'"format_version":"9"'),
    "other network": lambda data: data.replace(b'\\"width\\": 16', b'\\"width\\": 17'),
    "evil activation": lambda data: data.replace(b'\\"silu\\"', b'\\"eval\\"'),
    "unknown frame": lambda data: data.replace(b"AffineFrame", b"Afgine_rame"),
    "renamed tensor": lambda data: data.replace(b"params/Dense_0/bias", b"params/Dense_9/bias"),
}


def changed(change):
    """Return a damage of a file that stays a file of its kind."""

    def damage(path):
        tensors, header = storage.read_tensors(path)
        change(tensors, header)
        storage.write_tensors(path, tensors, header)

    return damage


BENT = {
    "matrix cut": changed(lambda t, _: t.update({"frame/matrix": t["frame/matrix"][:1]})),
    "shift cut": changed(lambda t, _: t.update({"frame/shift": t["frame/shift"][:1]})),
    "integers": changed(lambda t, _: t.update({k: v.astype(int) for k, v in t.items()})),
    "two precisions": changed(
        lambda t, _: t.update({"params/Dense_0/bias": t["params/Dense_0/bias"].astype(np.float16)})
    ),
    "about a list": changed(lambda _, h: h.update(about="[]")),
    "about nothing": changed(lambda _, h: h.update(about="null")),
}


@pytest.mark.parametrize("case", BENT)
def test_bent_files_are_refused(saved, case):
    _, path = saved
    BENT[case](path)
    with pytest.raises(ValueError, match=r"path: .*model.* is damaged"):
        mcs.load(path)


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_and_foreign_files_are_refused(saved, case):
    _, path = saved
    data = DAMAGE[case](path.read_bytes())
    assert data != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"path: .*model"):
        mcs.load(path)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match="no file"):
        mcs.load("nowhere.safetensors")


def test_bfloat16_products_round_the_hidden_layers_only(key, tmp_path):
    network = mcs.MLP(width=16, depth=2, products="bfloat16")
    z = jax.random.normal(key, (50, 3))
    params = jax.tree.map(lambda a: a + 0.3, network.init(key, 3, z.dtype))
    rough = network.apply(params, z)
    exact = mcs.MLP(width=16, depth=2).apply(params, z)
    error = np.abs(np.asarray(rough - exact)).max() / np.abs(np.asarray(exact)).max()
    assert 1e-5 < error < 2e-2
    gradient = jax.grad(lambda p: jnp.mean(network.apply(p, z) ** 2))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="products: expected one of"):
        mcs.MLP(products="float16")
    generator = mcs.Generator(params, mcs.Identity(), network)
    generator.save(tmp_path / "rough.safetensors")
    assert mcs.load(tmp_path / "rough.safetensors").network == network
