"""A download is whole, checked and kept, or leaves nothing behind; offline, a line says what to do.

The mirrors are folders of a real HTTP server on this machine.
"""

import gzip
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fluxsmith.data import mnist
from fluxsmith.errors import UserError

NAMES = [name for files in mnist.FILES.values() for name in files]


class Handler(SimpleHTTPRequestHandler):
    """Serves files; those below /cut/ end after half of the length that their header promises."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.startswith("/cut/"):
            return super().do_GET()
        data = Path(self.directory, "good", Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        return None


@pytest.fixture
def server(tmp_path, cache, monkeypatch, mnist_arrays, idx):
    """The address of a server with folders good/, wrong/ (other labels), page/ (not gzip), cut/."""
    root = tmp_path / "served"
    md5s = {}
    for folder in ("good", "wrong", "page"):
        (root / folder).mkdir(parents=True)
    for name, array in mnist_arrays.items():
        data = idx(array)
        md5s[name] = hashlib.md5(data).hexdigest()
        (root / "good" / f"{name}.gz").write_bytes(gzip.compress(data))
        (root / "wrong" / f"{name}.gz").write_bytes(gzip.compress(idx(array.flip(0))))
        (root / "page" / f"{name}.gz").write_text("<p>please log in to this network</p>")
    files = {split: {name: md5s[name] for name in names} for split, names in mnist.FILES.items()}
    monkeypatch.setattr(mnist, "FILES", files)

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(root))
    )
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def use_mirrors(monkeypatch, server: str, *folders: str) -> None:
    monkeypatch.setattr(mnist, "MIRRORS", tuple(f"{server}{folder}/" for folder in folders))


def files_below(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def mistake() -> str:
    with pytest.raises(UserError) as caught:
        mnist.load(None, "train")
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def assert_is_the_tiny_set(arrays) -> None:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        read = mnist.load(None, split)
        assert torch.equal(read.images[:, 0], arrays[f"{prefix}-images-idx3-ubyte"])
        assert read.labels.tolist() == arrays[f"{prefix}-labels-idx1-ubyte"].tolist()


def test_a_download_is_kept_and_not_fetched_again(server, cache, monkeypatch, mnist_arrays):
    use_mirrors(monkeypatch, server, "good")
    assert_is_the_tiny_set(mnist_arrays)
    assert files_below(cache) == sorted(f"{name}.gz" for name in NAMES)
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    assert_is_the_tiny_set(mnist_arrays)


@pytest.mark.parametrize("first", ["missing", "wrong", "page", "cut"])
def test_where_a_mirror_fails_the_next_one_serves(server, monkeypatch, mnist_arrays, first):
    use_mirrors(monkeypatch, server, first, "good")
    assert_is_the_tiny_set(mnist_arrays)


@pytest.mark.parametrize(
    ("only", "reason"),
    [("missing", "not found"), ("wrong", "MD5"), ("page", "gzip"), ("cut", "127.0.0.1")],
)
def test_a_download_that_fails_leaves_nothing_behind(server, cache, monkeypatch, only, reason):
    use_mirrors(monkeypatch, server, only)
    assert reason in mistake()
    assert files_below(cache) == []


def test_offline_a_line_says_which_files_to_put_where(cache):
    message = mistake()
    assert [name for name in NAMES if f"{name}.gz" not in message] == []
    assert str(cache / "mnist") in message
    assert "FLUXSMITH_DATA" in message
    assert "data.path" in message
    assert files_below(cache) == []


def test_what_the_offline_line_says_helps(cache, mnist_arrays, idx):
    mistake()
    (cache / "mnist").mkdir(parents=True)
    for name, array in mnist_arrays.items():
        (cache / "mnist" / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    assert_is_the_tiny_set(mnist_arrays)


def test_a_cache_that_can_not_be_written_is_named(server, cache, monkeypatch):
    use_mirrors(monkeypatch, server, "good")
    cache.write_text("a file where the folder should be")
    assert str(cache) in mistake()
