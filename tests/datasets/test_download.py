"""Downloads: resumed with the very file they began, and nothing else taken for it."""

import hashlib
import http.server
import threading

import pytest

from mcscore import datasets
from mcscore.datasets import Splits, fetch
from tests.datasets.test_literature import WRITERS


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
