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
def use_mirrors(tmp_path, cache, monkeypatch, mnist_arrays, idx):
    """use_mirrors("good", ...): folders good/, wrong/ (other labels), page/ (not gzip), cut/."""
    root = tmp_path / "served"
    files = {name: idx(array) for name, array in mnist_arrays.items()}
    for folder in ("good", "wrong", "page"):
        (root / folder).mkdir(parents=True)
    for name, array in mnist_arrays.items():
        (root / "good" / f"{name}.gz").write_bytes(gzip.compress(files[name]))
        (root / "wrong" / f"{name}.gz").write_bytes(gzip.compress(idx(array.flip(0))))
        (root / "page" / f"{name}.gz").write_text("<p>please log in to this network</p>")
    md5s = {
        split: {name: hashlib.md5(files[name]).hexdigest() for name in names}
        for split, names in mnist.FILES.items()
    }
    monkeypatch.setattr(mnist, "FILES", md5s)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(root))
    )
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    yield lambda *folders: monkeypatch.setattr(
        mnist, "MIRRORS", tuple(f"{base}{folder}/" for folder in folders)
    )
    server.shutdown()
    server.server_close()


def files_below(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def mistake() -> str:
    with pytest.raises(UserError) as caught:
        mnist.load(mnist.Settings(), "train")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def assert_is_the_tiny_set(arrays) -> None:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        read = mnist.load(mnist.Settings(), split)
        assert torch.equal(read.images[:, 0], arrays[f"{prefix}-images-idx3-ubyte"])
        assert read.labels.tolist() == arrays[f"{prefix}-labels-idx1-ubyte"].tolist()


def test_a_download_is_kept_and_not_fetched_again(use_mirrors, cache, mnist_arrays):
    use_mirrors("good")
    assert_is_the_tiny_set(mnist_arrays)
    assert files_below(cache) == sorted(f"{name}.gz" for name in NAMES)
    use_mirrors("missing")
    assert_is_the_tiny_set(mnist_arrays)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("missing", "not found"), ("wrong", "MD5"), ("page", "gzip"), ("cut", "127.0.0.1")],
)
def test_a_mirror_that_fails_leaves_nothing_behind_and_the_next_one_serves(
    use_mirrors, cache, mnist_arrays, bad, reason
):
    use_mirrors(bad)
    assert reason in mistake()
    assert files_below(cache) == []
    use_mirrors(bad, "good")
    assert_is_the_tiny_set(mnist_arrays)


def test_offline_a_line_says_which_files_to_put_where_and_that_helps(cache, mnist_arrays, idx):
    message = mistake()
    assert [name for name in NAMES if f"{name}.gz" not in message] == []
    assert all(word in message for word in (str(cache / "mnist"), "FLUXSMITH_DATA", "data.path"))
    assert files_below(cache) == []
    (cache / "mnist").mkdir(parents=True)
    for name, array in mnist_arrays.items():
        (cache / "mnist" / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    assert_is_the_tiny_set(mnist_arrays)


def test_a_cache_that_can_not_be_written_is_named(use_mirrors, cache):
    use_mirrors("good")
    cache.write_text("a file where the folder should be")
    assert str(cache) in mistake()
