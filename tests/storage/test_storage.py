"""Files appear whole or not at all, fingerprints tell values apart, checkpoints notice damage."""

import dataclasses
import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore import storage
from mcscore.storage.files import write_text


def scaled(factor):
    return lambda x: factor * x


def schedule(power):
    @mcs.pytree()
    @dataclasses.dataclass(frozen=True)
    class Mine(mcs.Schedule):
        def alpha(self, t):
            return 1 - t

        def variance(self, t):
            return t**power

    return Mine()


@dataclasses.dataclass
class Factor:
    value: float

    def times(self, x):
        return self.value * x


def with_default(value):
    def function(*, a=value):
        return a

    return function


SHIFT = 1e-12
DIFFERENT = {  # pairs of values that a repr may not tell apart
    "array": (np.linspace(0, 1, 5000), np.linspace(0, 1, 5000) + SHIFT),
    "0-d array": (np.array(0.1), np.array(0.1 + SHIFT)),
    "precision": (np.float32(1), np.float64(1)),
    "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "key": (jax.random.key(0), jax.random.key(1)),
    "kernel": (mcs.Isotropic(0.1), mcs.Isotropic(0.1 + SHIFT)),
    "same fields, another class": (mcs.Whitened(0.1), mcs.Isotropic(0.1)),
    "solver": (diffrax.Bosh3(), diffrax.Dopri5()),
    "controller": (
        diffrax.PIDController(np.array(0.1), 1e-3),
        diffrax.PIDController(np.array(0.1 + SHIFT), 1e-3),
    ),
    "closure": (scaled(2.0), scaled(3.0)),
    "code": (lambda x: x + 1, lambda x: x - 1),
    "a class with another method": (schedule(1), schedule(2)),
    "a method of another value": (Factor(1).times, Factor(2).times),
    "default": (with_default(1), with_default(2)),
    "keys of a dict": ({1: 2, "a": 3}, {"1": 2, "a": 3}),
    "partial": (partial(scaled, 1), partial(scaled, 2)),
    "nested": ({"a": [1, (2, None)]}, {"a": [1, 2, None]}),
    "split": (["ab", "c"], ["a", "bc"]),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_fingerprints_go_by_value(case):
    first, second = DIFFERENT[case]
    assert storage.fingerprint(first) == storage.fingerprint(first)
    assert storage.fingerprint(first) != storage.fingerprint(second)


def test_arrays_of_either_library_have_one_fingerprint():
    x = np.arange(3, dtype=np.float32)
    assert storage.fingerprint(x) == storage.fingerprint(jnp.asarray(x))
    assert storage.fingerprint(scaled(2.0)) == storage.fingerprint(scaled(2.0))
    for opaque in (object(), np.array([object()])):
        with pytest.raises(TypeError, match="fingerprint: expected arrays"):
            storage.fingerprint(opaque)


def test_one_path_may_be_written_by_many(tmp_path):
    path = tmp_path / "x.safetensors"

    def write(k):
        storage.write_tensors(path, {"x": np.full(1000, k)}, {"k": str(k)})
        tensors, header = storage.read_tensors(path)
        assert len(np.unique(tensors["x"])) == 1 and header["k"] == str(tensors["x"][0])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(80)))
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "x.txt"
    storage.write_text(path, "old")
    with pytest.raises(RuntimeError), storage.replacing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()


def umask():
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "value", [np.array(3), np.zeros((0, 2)), np.ones((2, 3), order="F")[:, ::-1]]
)
def test_tensors_keep_shape_and_type(value, tmp_path):
    storage.write_tensors(tmp_path / "x", {"x": value}, {})
    found = storage.read_tensors(tmp_path / "x")[0]["x"]
    assert found.shape == value.shape and found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


def test_every_flipped_byte_of_a_part_is_noticed(tmp_path):
    store = storage.Checkpoint(tmp_path, dict(seed=0))
    store.write("part", {"x": np.arange(4.0), "n": np.array(7)})
    path = store.path("part")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for index in rng.choice(len(whole), 150, replace=False):
        data = bytearray(whole)
        data[index] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            try:
                assert store.read("part") is None
                assert "is made again" in str(found[0].message)
            except ValueError as error:  # the flip was in the run's own name
                assert "another key, data or settings" in str(error)
    path.write_bytes(whole)
    assert store.read("part")["n"] == 7
    assert storage.Checkpoint(tmp_path, dict(seed=0)).read("other") is None
    with pytest.raises(ValueError, match="another key, data or settings"):
        storage.Checkpoint(tmp_path, dict(seed=1))


def test_a_part_of_another_run_is_not_overwritten_though_damaged(tmp_path):
    owner = storage.Checkpoint(tmp_path, dict(name="owner"))
    owner.write("part", {"x": np.arange(4.0)})
    tensors, header = storage.read_tensors(owner.path("part"))
    storage.write_tensors(owner.path("part"), {"x": tensors["x"][:2]}, header)
    with pytest.raises(ValueError, match="another key, data or settings"):
        storage.Checkpoint(tmp_path, dict(name="guest"))
    (tmp_path / "run.json").unlink()  # the part itself says whose it is
    with pytest.raises(ValueError, match="another key, data or settings"):
        storage.Checkpoint(tmp_path, dict(name="guest")).read("part")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint: expected a folder, got the file"):
        storage.Checkpoint(tmp_path / "file", {})


def test_a_folder_names_what_differs(tmp_path):
    """Values that can be read, names of those that cannot; a damaged list of settings is written again."""
    x = np.arange(1000.0)
    own = dict(x=x, steps=9, kernel=mcs.Isotropic(0.1), key=jax.random.key(0))
    storage.Checkpoint(tmp_path, own).write("part", {"x": x})
    other = own | dict(x=x + 1e-12, steps=5, more=None)
    with pytest.raises(ValueError, match=r"settings \(x, steps: 9 there, 5 here, more\); name"):
        storage.Checkpoint(tmp_path, other)
    path = tmp_path / "run.json"
    path.write_text(path.read_text()[:20])
    with pytest.warns(RuntimeWarning, match=r"run\.json is damaged .* made again"):
        found = storage.Checkpoint(tmp_path, own).read("part")
    np.testing.assert_array_equal(found["x"], x)
    path.write_text(path.read_text().replace('"jax": ', '"jaxx": '))
    with pytest.raises(ValueError, match=r"settings \(jax, jaxx\)"):
        storage.Checkpoint(tmp_path, own)


def test_of_two_runs_that_start_at_once_one_is_refused(tmp_path):
    """Whoever is first has the folder, and no settings are half one's and half the other's."""

    def start(k):
        try:
            return storage.Checkpoint(tmp_path / f"{k // 8}", dict(seed=k % 8)).run
        except ValueError as error:
            assert f"{k % 8} here" in str(error)

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(start, range(80)))
    for j in range(10):
        assert sum(run is not None for run in runs[8 * j : 8 * j + 8]) == 1
        assert [path.name for path in (tmp_path / f"{j}").iterdir()] == ["run.json"]


def test_a_reports_words_are_no_part_of_a_run(tmp_path, key):
    """A law without a report, as transformations return it, resumes the run of the one that has it."""
    law = mcs.mixture(np.random.default_rng(0).normal(size=(50, 2)), kernel=mcs.Isotropic(0.3))
    mcs.generate_pairs(key, law, mcs.Cosine(), 20, checkpoint=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    mcs.generate_pairs(
        key, dataclasses.replace(law, report=None), mcs.Cosine(), 20, checkpoint=tmp_path
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_links_pipes_and_permissions_are_kept(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling.txt"
    dangling.symlink_to(tmp_path / "later.txt")
    write_text(dangling, "first")
    assert dangling.is_symlink() and (tmp_path / "later.txt").read_text() == "first"
    os.mkfifo(pipe := tmp_path / "pipe.txt")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_text(pipe, "through")
        assert read.result(10) == "through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_text(Path(os.devnull), "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_text(tmp_path, "no")
    assert {p.name for p in tmp_path.iterdir()} == {
        "real.txt", "link.txt", "dangling.txt", "later.txt", "pipe.txt",
    }  # fmt: skip


def test_threads_may_write_one_path(tmp_path):
    path, texts = tmp_path / "model.txt", [str(k) * 5000 for k in range(8)]
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda text: write_text(path, text), texts * 20))
    finally:
        os.umask(before)
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
