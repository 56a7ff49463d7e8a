"""Uploading, by the hub's own client, to a server on this machine that keeps what it gets."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_exporting import save_checkpoint

from fluxsmith.cli import main

hub = pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; knows one user's token."""

    def do_GET(self):
        known = self.headers.get("Authorization") == "Bearer hf_good"
        self.answer({"name": "me", "type": "user"} if known else {"error": "no"}, known)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    contents = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = contents
            self.answer({"commitUrl": self.url("me/model/commit/1"), "commitOid": "1"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            about = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": path, **about} for path in files]})
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body)["name"])
            self.answer({"url": self.url("me/model"), "name": "me/model"})
        else:
            self.answer({})  # validate-yaml

    def url(self, path):
        return f"http://{self.headers['Host']}/{path}"

    def answer(self, data, good=True):
        body = json.dumps(data).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.made = {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield server
    server.shutdown()
    server.server_close()


def export(checkpoint, out, form):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(checkpoint), str(out), "--format", form, "--push-to-hub", "me/model"])
    return stopped.value.code or 0


@pytest.mark.parametrize("form", ["diffusers", "bfl"])
def test_what_was_exported_arrives_and_nothing_else(server, pipeline, tmp_path, capsys, form):
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)
    out = tmp_path / ("model" if form == "diffusers" else "model.safetensors")
    assert export(checkpoint, out, form) == 0, capsys.readouterr().err
    if form == "diffusers":
        expected = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
        assert "README.md" in expected
    else:
        names = ("model.safetensors", "model.text.safetensors")
        expected = {name: tmp_path / name for name in names}
    assert server.files == {name: path.read_bytes() for name, path in expected.items()}
    assert server.made == ["model"]
    assert f"uploaded    http://127.0.0.1:{server.server_port}/me/model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("token", "name", "reached"),
    [("hf_bad", "me/model", True), ("hf_good", "me/mo del", True), ("hf_good", "me/model", False)],
)
def test_what_will_not_do_is_said_before_anything_is_written(
    server, pipeline, tmp_path, capsys, monkeypatch, token, name, reached
):
    monkeypatch.setenv("HF_TOKEN", token)
    if not reached:
        monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)
    arguments = ["--format", "diffusers", "--push-to-hub", name]
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(checkpoint), str(tmp_path / "model"), *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --push-to-hub {name}: ")
    assert "nothing was written; log in with `hf auth login`" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()
    assert not server.made
