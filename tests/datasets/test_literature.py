"""Official files in small, read as shipped."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from mcscore import datasets
from mcscore.datasets import fetch, literature

RNG = np.random.default_rng(0)


def text(table, separator=" ", header=None):
    lines = [] if header is None else [header]
    return "\n".join(lines + [separator.join(f"{v:.6g}" for v in row) for row in table]) + "\n"


def power(n=200, gaps=3):
    names = "Date;Time;" + ";".join(f"column_{i}" for i in range(7))
    table = RNG.random((n, 7)) * [8, 1, 4, 30, 2, 2, 18] + [0, 0, 238, 0, 0, 0, 0]
    lines = [
        f"16/12/2006;{i // 60 % 24:02}:{i % 60:02}:00;" + ";".join(f"{v:.3f}" for v in row)
        for i, row in enumerate(table)
    ]
    for i in range(gaps):
        lines[5 * i + 1] = "16/12/2006;17:24:00;" + "?;" * 6
    return "\n".join([names, *lines]) + "\n"


def gas(n=400):
    table = RNG.random((n, 19))
    table[:, 10] = table[:, 4] + 1e-4 * table[:, 10]  # two pairs of nearly equal sensors
    table[:, 12] = table[:, 6] + 1e-4 * table[:, 12]
    return text(table, header="Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings")


def hepmass(n=300, extra=0):
    table = np.hstack([np.arange(n)[:, None] % 2, RNG.standard_normal((n, 27 + extra))])
    table[:, 6] = table[:, 6] > 0  # a flag
    return text(table, ",", "# label," + ",".join(f"f{i}" for i in range(27)))


def miniboone(signal=200, background=50):
    table = RNG.random((signal + background, 50))
    table[3] = -999
    table[:, 7] = np.maximum(table[:, 7], 0.3)  # an atom at the smallest value
    table[3, 7] = -999
    return f" {signal}   {background}\n" + text(table, "  ")


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def bsds():
    from PIL import Image

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for folder, count in (("train", 4), ("test", 2)):
            for i in range(count):
                picture = io.BytesIO()
                Image.fromarray(RNG.integers(0, 255, (20, 30, 3), np.uint8)).save(picture, "JPEG")
                item = tarfile.TarInfo(f"BSDS300/images/{folder}/{i}.jpg")
                item.size = picture.tell()
                archive.addfile(item, io.BytesIO(picture.getvalue()))
    return file.getvalue()


WRITERS = {
    "power": lambda root: zipped(root / "power.zip", {"household_power_consumption.txt": power()}),
    "gas": lambda root: zipped(root / "gas.zip", {"a/ethylene_CO.txt": gas(), "b.txt": "no"}),
    "hepmass": lambda root: zipped(
        root / "hepmass.zip",
        {
            "1000_train.csv.gz": gzip.compress(hepmass().encode()),
            "1000_test.csv.gz": gzip.compress(hepmass(100, extra=1).encode()),
        },
    ),
    "miniboone": lambda root: zipped(root / "miniboone.zip", {"MiniBooNE_PID.txt": miniboone()}),
}
SHAPES = {
    "power": [(160, 6), (18, 6), (19, 6)],  # 197 = 200 less 3 gaps; 19 test; 17 of 178
    "gas": [(81, 14), (9, 14), (10, 14)],
    "hepmass": [(135, 26), (15, 26), (50, 26)],
    "miniboone": [(162, 49), (18, 49), (19, 49)],
}
SHAPES["power"] = [(161, 6), (17, 6), (19, 6)]


@pytest.mark.parametrize("name", WRITERS)
def test_official_files_are_prepared_as_the_maf_paper_does(name, tmp_path):
    WRITERS[name](tmp_path)
    splits = datasets.uci(name, tmp_path, complete=False)
    assert [part.shape for part in splits] == SHAPES[name]
    assert all(part.dtype == np.float32 and np.isfinite(part).all() for part in splits)
    by = np.concatenate(splits) if name == "gas" else np.concatenate(splits[:2])
    np.testing.assert_allclose(by.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(by.std(0), 1, rtol=0.01)
    again = datasets.uci(name, tmp_path, complete=False)
    np.testing.assert_array_equal(again.train, splits.train)
    with pytest.raises(ValueError, match="published"):
        datasets.uci(name, tmp_path)


def test_power_keeps_the_columns_of_the_benchmark(tmp_path):
    # Without shuffle's order: sorted columns are those of the file plus noise below one step.
    (tmp_path / "household_power_consumption.txt").write_text(power(100, gaps=0))
    raw = np.loadtxt(
        tmp_path / "household_power_consumption.txt", delimiter=";", skiprows=1, usecols=range(2, 9)
    )
    splits = datasets.uci("power", tmp_path, complete=False)
    rows = np.concatenate(splits)
    for column, source in enumerate((0, 2, 4, 5, 6)):
        expected = np.sort(raw[:, source])
        slope, shift = np.polyfit(np.sort(rows[:, column]), expected, 1)
        noise = expected - slope * np.sort(rows[:, column]) - shift
        assert abs(noise).max() < (0.01, 0.01, 1, 1, 1)[column]


def test_bsds300_patches(tmp_path, monkeypatch):
    (tmp_path / "BSDS300-images.tgz").write_bytes(bsds())
    small = literature.SOURCES["bsds300"].__class__(
        **{**vars(literature.SOURCES["bsds300"]), "rows": (100, 10, 20)}
    )
    monkeypatch.setitem(literature.SOURCES, "bsds300", small)
    splits = datasets.uci("bsds300", tmp_path)
    assert [part.shape for part in splits] == [(100, 63), (10, 63), (20, 63)]
    assert abs(splits.train).max() <= 1 and 0.05 < splits.train.std() < 0.5


BROKEN = {
    "not a zip": lambda root: (root / "miniboone.zip").write_bytes(b"PK nonsense"),
    "truncated": lambda root: (
        WRITERS["miniboone"](root),
        (root / "miniboone.zip").write_bytes((root / "miniboone.zip").read_bytes()[:-200]),
    ),
    "flipped bits": lambda root: (
        WRITERS["miniboone"](root),
        (root / "miniboone.zip").write_bytes(
            (lambda b: b[:3000] + bytes(200) + b[3200:])((root / "miniboone.zip").read_bytes())
        ),
    ),
    "another member": lambda root: zipped(root / "miniboone.zip", {"readme.txt": "hello"}),
    "wrong columns": lambda root: zipped(
        root / "miniboone.zip", {"MiniBooNE_PID.txt": "2 1\n1 2 3\n4 5 6\n"}
    ),
    "words": lambda root: zipped(
        root / "miniboone.zip", {"MiniBooNE_PID.txt": "signal background\n"}
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_archives_are_named(case, tmp_path):
    BROKEN[case](tmp_path)
    with pytest.raises(ValueError, match=r"miniboone|MiniBooNE"):
        datasets.uci("miniboone", tmp_path, complete=False)


def test_nothing_is_unpacked_under_a_name_of_the_archive(tmp_path):
    root = tmp_path / "inner" / "root"
    root.mkdir(parents=True)
    zipped(
        root / "miniboone.zip",
        {"../../evil.txt": "x", "/etc/evil": "y", "../MiniBooNE_PID.txt": miniboone()},
    )
    datasets.uci("miniboone", root, complete=False)
    everything = {path.name for path in tmp_path.rglob("*")}
    assert everything == {"inner", "root", "miniboone.zip"}


def test_absent_files_and_unknown_names_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"power\.zip"):
        datasets.uci("power", tmp_path)
    with pytest.raises(ValueError, match="name: expected one of"):
        datasets.uci("iris", tmp_path)
    with pytest.raises(ValueError, match="name: expected one of"):
        fetch("iris", tmp_path)


def test_archives_in_archives_are_measured_first(tmp_path, monkeypatch):
    """Neither encrypted ones nor such as would fill the memory are unpacked."""
    inner, outer = io.BytesIO(), tmp_path / "gas.zip"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**6))
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    monkeypatch.setattr("mcscore.datasets.literature.MOST_NESTED", 100)
    with pytest.raises(ValueError, match=r"inner\.zip would unpack to"):
        datasets.uci("gas", tmp_path)
    data = bytearray(outer.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[(data.find if at == 6 else data.rfind)(signature) + at] |= 1
    outer.write_bytes(data)
    with pytest.raises(ValueError, match=r"inner\.zip is encrypted"):
        datasets.uci("gas", tmp_path)
