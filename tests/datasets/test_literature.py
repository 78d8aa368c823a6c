"""Official files in small, read as shipped; downloads from a local server that stops and lies."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from mcscore import datasets
from mcscore.datasets import Splits, fetch, literature

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


# --- downloads -----------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content``, knows ranges, and stops after ``most`` bytes."""

    content, most, ranges, seen, tagged, shifted = b"", None, True, [], True, 0

    def do_GET(self):
        asked = self.headers.get("Range")
        type(self).seen.append(asked)
        tag = f'"{hashlib.md5(self.content).hexdigest()}"'
        if asked and self.headers.get("If-Range") != tag:
            asked = None
        start = int(asked[6:-1]) if asked and self.ranges else 0
        if asked and self.ranges and start >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            self.end_headers()
            return
        self.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            whole = len(self.content)
            self.send_header("Content-Range", f"bytes {start + self.shifted}-{whole - 1}/{whole}")
        if self.tagged:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        end = len(self.content) if self.most is None else start + self.most
        self.wfile.write(self.content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "theirs"
    root.mkdir()
    WRITERS["miniboone"](root)
    handler = type("Handler", (Server,), {})
    handler.content, handler.seen = (root / "miniboone.zip").read_bytes(), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        handler.url = f"http://127.0.0.1:{serving.server_address[1]}/miniboone.zip"
        yield handler
        serving.shutdown()
        thread.join()


def download(server, root, **how):
    return fetch("miniboone", root, url=server.url, progress=False, **how)


def test_fetch_and_load(server, tmp_path):
    digest = hashlib.sha256(server.content).hexdigest()
    path = download(server, tmp_path / "mine", sha256=digest)
    assert path.read_bytes() == server.content
    assert isinstance(datasets.uci("miniboone", tmp_path / "mine", complete=False), Splits)
    assert download(server, tmp_path / "mine") == path and len(server.seen) == 1  # not again


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, tmp_path, ranges):
    server.most, server.ranges = 1000, ranges
    with pytest.raises(OSError, match="stopped at 1000"):
        download(server, tmp_path)
    assert {path.name for path in tmp_path.glob("mini*")} == {
        "miniboone.zip.part", "miniboone.zip.part.mark",
    }  # fmt: skip
    server.most = None
    assert download(server, tmp_path).read_bytes() == server.content
    assert server.seen == [None, "bytes=1000-"]


def test_a_download_that_was_whole_but_not_moved_is_finished(server, tmp_path):
    (tmp_path / "miniboone.zip.part").write_bytes(server.content)
    tag = f'"{hashlib.md5(server.content).hexdigest()}"'
    (tmp_path / "miniboone.zip.part.mark").write_text(tag)
    assert download(server, tmp_path).read_bytes() == server.content
    assert server.seen == [f"bytes={len(server.content)}-"]
    assert [path.name for path in tmp_path.glob("mini*")] == ["miniboone.zip"]


def test_a_file_that_changed_midway_is_downloaded_anew(server, tmp_path):
    server.most = 1000
    with pytest.raises(OSError, match="stopped at 1000"):
        download(server, tmp_path)
    server.most, server.content = None, server.content[:-1] + b"!"
    assert download(server, tmp_path).read_bytes() == server.content


def test_what_is_left_of_an_unknown_file_is_not_continued(server, tmp_path):
    (tmp_path / "miniboone.zip.part").write_bytes(b"PK of something else")
    server.tagged = False
    assert download(server, tmp_path).read_bytes() == server.content
    assert server.seen == [None]


def test_servers_that_send_something_else_are_named(server, tmp_path, monkeypatch):
    whole = server.content
    for content, message in (
        (b"<html>please log in</html>", "expected miniboone.zip, got something else"),
        (b"", "stopped at 0"),
    ):
        server.content = content
        with pytest.raises(OSError, match=message):
            download(server, tmp_path)
    server.content, server.most = whole, 1000
    with pytest.raises(OSError, match="stopped at 1000"):
        download(server, tmp_path)
    server.shifted = 7
    with pytest.raises(OSError, match="expected bytes from 1000"):
        download(server, tmp_path)
    server.shifted, server.most = 0, None
    monkeypatch.setattr("mcscore.datasets.download.PATIENCE", -1)
    monkeypatch.setattr("mcscore.datasets.download.SLOWEST", 1e12)
    with pytest.raises(OSError, match="bytes in 0 s"):
        download(server, tmp_path)
    monkeypatch.undo()
    assert download(server, tmp_path).read_bytes() == whole


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


def test_wrong_digests_and_servers_are_named(server, tmp_path):
    with pytest.raises(ValueError, match="sha256: expected 00"):
        download(server, tmp_path, sha256="00")
    assert not list(tmp_path.glob("mini*"))
    path = download(server, tmp_path)
    with pytest.raises(ValueError, match="sha256"):
        download(server, tmp_path, sha256="00")
    assert path.exists()  # what the user had is not removed
    with pytest.raises(OSError, match="http://127"):
        fetch("gas", tmp_path, url=server.url.rsplit(":", 1)[0] + ":9/x", progress=False)
