"""Files of generators as attacked: refused in one sentence, or what was saved; never something else."""

import json
import struct

import jax
import numpy as np
import pytest

import mcscore as mcs
from mcscore.storage import fingerprint, read_tensors, write_tensors

KEY = jax.random.key(0)
X = np.random.default_rng(4).standard_normal((120, 2))


@pytest.fixture(scope="module")
def made():
    law = dict(kernel=mcs.Local(0.6, 2, 1), frame=mcs.Gaussianize(), bounds={0: (-9, None)})
    small = dict(pairs=300, network=mcs.MLP(width=8, depth=2), epochs=2, refine=0)
    return mcs.fit(KEY, X, **law, **small)


@pytest.fixture
def path(made, tmp_path):
    made.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_flipped_bytes_are_noticed(made, path):
    """Whatever byte is changed: refused, or the same numbers."""
    whole, r = path.read_bytes(), np.random.default_rng(8)
    expected, refused = np.asarray(made.sample(KEY, 20)), 0
    for at in np.concatenate([r.integers(0, len(whole), 150), np.arange(8, 200, 3)]):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(r.integers(8))
        path.write_bytes(changed)
        try:
            found = np.asarray(mcs.load(path).sample(KEY, 20))
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected)
    assert refused > 150
    for length in (0, 5, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            mcs.load(path)


def rewritten(path, old=True, **changes):
    """Write the file anew with another header or tensors, as version 1 (no digest) or with a right one."""
    tensors, header = read_tensors(path)
    del header["digest"]
    for name, change in changes.items():
        if name in header:
            header[name] = change if isinstance(change, str) else json.dumps(change)
        else:
            name = name.replace("__", "/")
            tensors[name] = change(tensors[name]) if callable(change) else change
    header["format_version"] = "1" if old else "3"
    digest = {} if old else dict(digest=fingerprint(header, tensors))
    write_tensors(path, tensors, header | digest)


NETWORK = dict(width=8, depth=2, activation="silu", residual=True, skip=True, products="float32")
ATTACKS = {
    "very deep": dict(network=NETWORK | dict(depth=10**8)),
    "very wide": dict(network=NETWORK | dict(width=10**9)),
    "no network": dict(network="[1]"),
    "unknown activation": dict(network=NETWORK | dict(activation="eval")),
    "nested": dict(about="[" * 100_000 + "]" * 100_000),
    "no object": dict(about=[1]),
    "no names": dict(about=dict(columns=[1, 2])),
    "names of other columns": dict(about=dict(columns=["a", "b", "c"])),
    "frame": dict(frame="os.system"),
    "infinite": dict(params__Dense_0__kernel=lambda a: a * np.inf),
    "not a number": dict(frame__knots=lambda a: np.where(a > 0, np.nan, a)),
    "falling": dict(frame__knots=lambda a: a[:, ::-1]),
    "flat": dict(frame__slopes=lambda a: 0 * a),
    "shape": dict(frame__shift=lambda a: a[:1]),
    "bounds": dict(bounded__ends=lambda a: a[:, :1]),
    "units": dict(bounded__units=lambda a: -a),
    "ends swapped": dict(bounded__ends=lambda a: a[::-1]),
    "nearest": dict(bounded__nearest=lambda a: -a),
    "integers": dict(params__Dense_0__bias=lambda a: a.astype(np.int32)),
    "a law of other columns": dict(law__centers=lambda a: a[:, :1]),
    "a law with negative variances": dict(law__variances=lambda a: -a),
    "a law given all": dict(
        law='{"given": 2, "frame": "AffineFrame", "columns": null, "report": null}'
    ),
    "a law with weights that are no numbers": dict(
        law__log_weights=lambda a: np.where(a > -9e9, np.nan, a)
    ),
    "a law of nothing": dict(law="{}"),
    "two precisions": dict(params__Dense_0__bias=lambda a: a.astype(np.float16)),
}


@pytest.mark.parametrize("old", [True, False], ids=["no digest", "digest"])
@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_made_to_deceive_is_refused(name, old, path):
    rewritten(path, old, **ATTACKS[name])
    with pytest.raises(ValueError, match="damaged") as caught:
        mcs.load(path)
    assert len(str(caught.value)) < 1000


def test_files_of_version_0_1_are_read(path):
    """Their networks had no skips, and said nothing of them."""
    pairs = mcs.Pairs(X, 2 * X)
    network = mcs.MLP(width=8, depth=2, skip=False)
    made, _ = mcs.train(KEY, pairs, network=network, epochs=2)
    made.save(path)
    rewritten(path, network={name: value for name, value in NETWORK.items() if name != "skip"})
    np.testing.assert_array_equal(mcs.load(path).sample(KEY, 20), made.sample(KEY, 20))


def test_a_header_longer_than_the_file_is_refused(path):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="damaged"):
        mcs.load(path)
