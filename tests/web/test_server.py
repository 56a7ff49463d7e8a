"""The page's server: what it draws, whom it answers, what it refuses, and that it lives on."""

import asyncio
import base64
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from helpers import TOY, held_by_a_process
from PIL import Image
from starlette.testclient import TestClient
from toy_page import drawn, endless_run, events, save_toy, wait_until

from fluxsmith.cli import main
from fluxsmith.data.images import to_uint8
from fluxsmith.errors import UserError
from fluxsmith.evaluation import classifier
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import Sampler
from fluxsmith.training.lock import is_taken
from fluxsmith.training.recorder import read_metrics
from fluxsmith.web import drawing
from fluxsmith.web.branching import Judges, plane
from fluxsmith.web.gallery import Gallery
from fluxsmith.web.line import LONGEST, Line
from fluxsmith.web.server import LARGEST, Page
from fluxsmith.web.watching import Runs

ASK = {"model": "toy", "prompts": ["seven", "3"], "steps": 4, "guidance": 2.0, "seed": 5}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module", autouse=True)
def hasty_classifier(tmp_path_factory):
    """A real one, which sees little: five updates, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "UPDATES", (5, 5))
        patch.setenv("FLUXSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def page(path, tmp_path):
    page = Page(Gallery([str(path)]), tmp_path / "runs")
    yield page
    page.close()


@pytest.fixture
def client(page):
    with TestClient(page.app(), base_url="http://127.0.0.1:7860") as client:
        yield client


def pixels(text: str, n: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(n, 16, 16, 1)


def test_states_are_the_solver_s_and_the_last_is_what_generate_draws(client, path):
    place, *states, last = events(client.post("/api/draw", json=ASK).text)
    assert place == {"place": 0} and last["seconds"] > 0
    assert [s["t"] for s in states] == [1, 0.75, 0.5, 0.25, 0]
    images = TextToImage.from_checkpoint(path).generate(["seven", "3"], steps=4, guidance=2, seed=5)
    expected = to_uint8(images).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels(states[-1]["x"], 2), expected)
    assert states[-1]["x0"] == states[-1]["x"]
    assert states[0]["x0"] != states[0]["x"]


@pytest.mark.parametrize("solver", ["heun", "midpoint", "adams2"])
def test_every_solver_shows_one_state_a_step(client, solver):
    states = drawn(client.post("/api/draw", json=ASK | {"solver": solver}).text)
    assert [s["state"] for s in states] == [0, 1, 2, 3, 4]


def test_one_noise_for_all_is_the_first_picture_s(client):
    together = ASK | {"prompts": ["seven", "seven"], "one_noise": True}
    last = drawn(client.post("/api/draw", json=together).text)[-1]
    both = pixels(last["x"], 2)
    assert np.array_equal(both[0], both[1])
    alone = drawn(client.post("/api/draw", json=ASK | {"prompts": ["seven"]}).text)[-1]
    assert np.abs(both[0].astype(int) - pixels(alone["x"], 1)[0]).max() <= 1


def test_a_picture_goes_on_from_pixels_and_a_mask_keeps_the_rest(client):
    given = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    asked = ASK | {
        "prompts": ["3"],
        "picture": base64.b64encode(given.tobytes()).decode(),
        "mask": base64.b64encode(mask.tobytes()).decode(),
        "strength": 0.5,
    }
    last = drawn(client.post("/api/draw", json=asked).text)[-1]
    picture = pixels(last["x"], 1)[0, ..., 0]
    assert np.array_equal(picture[:, :8], given[:, :8])
    assert not np.array_equal(picture[:, 8:], given[:, 8:])


def test_a_saved_png_says_the_command_that_draws_it_again(client, tmp_path, capsys):
    saved = client.post("/api/save/png", json=ASK)
    assert saved.headers["content-type"] == "image/png"
    command = shlex.split(Image.open(io.BytesIO(saved.content)).text["command"])
    assert command[:2] == ["fluxsmith", "sample"]
    with pytest.raises(SystemExit):
        main([*command[1:], "--out", str(tmp_path)])
    grid = next(tmp_path.glob("sample-*.png"))
    assert np.array_equal(Image.open(grid), Image.open(io.BytesIO(saved.content)))
    assert client.post("/api/save/gif", json=ASK).content.startswith(b"GIF8")


def test_a_model_of_any_name_is_drawn_with_and_saved(tmp_path):
    page = Page(Gallery([str(save_toy(tmp_path, "name=三"))]), tmp_path / "runs")
    with TestClient(page.app(), base_url="http://127.0.0.1:7860") as client:
        saved = client.post("/api/save/png", json=ASK | {"model": "三"})
    assert saved.content.startswith(b"\x89PNG")
    assert "filename*=UTF-8''%E4%B8%89-" in saved.headers["content-disposition"]
    page.close()


def test_a_model_that_is_written_anew_is_drawn_with_as_it_is_now(tmp_path):
    path = save_toy(tmp_path / "toy")
    page = Page(Gallery([str(path)]), tmp_path / "runs")
    with TestClient(page.app(), base_url="http://127.0.0.1:7860") as client:
        before = drawn(client.post("/api/draw", json=ASK).text)[-1]
        assert client.get("/api/models").json()[0]["network"]["depth"] == 1
        shutil.copy(save_toy(tmp_path / "other", "model.depth=2"), path)
        assert drawn(client.post("/api/draw", json=ASK).text)[-1]["x"] != before["x"]
        assert client.get("/api/models").json()[0]["network"]["depth"] == 2
    page.close()


def test_paths_from_one_noise_begin_at_one_point_and_part(client):
    lines = events(client.post("/api/branch", json=ASK).text)
    (found,) = [line for line in lines if "map" in line]
    first, second = found["map"]
    assert len(first) == 5 and first[0] == second[0] and first[-1] != second[-1]
    assert 0 < found["explained"] <= 1
    scales = {"prompts": ["3"], "scales": [0, 1, 3]}
    lines = events(client.post("/api/branch", json=ASK | scales).text)
    (found,) = [line for line in lines if "map" in line]
    assert len(found["map"]) == 3


def test_a_classifier_says_how_sure_it_is_at_every_state_once_it_is_there(client):
    def told():
        return events(client.post("/api/branch", json=ASK).text)[-1]

    wait_until(lambda: told().get("judge") != "training")
    found = told()
    for kind in ("x", "x0"):
        shares = np.array(found["confidence"][kind])
        assert shares.shape == (2, 5) and (shares >= 0).all() and (shares <= 1).all()
    assert len(found["seen"]) == 2 and set(found["seen"]) <= set("0123456789")
    asked = ASK | {"judge": True, "prompts": ["3", "something else"]}
    judged = events(client.post("/api/draw", json=asked).text)[-1]
    assert judged["right"] == [judged["seen"][0] == "3", None]


def test_more_states_than_fit_in_memory_are_refused(toy):
    pipeline = Pipeline.build(toy("data.image_size=512"))
    asked = drawing.Request(model="m", prompts=["3"] * 64, steps=4)
    with pytest.raises(UserError, match="64 pictures in 4 steps are more than this page keeps"):
        drawing.plan(Sampler(pipeline), asked)


def test_paths_in_a_plane_keep_their_distances():
    draw = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(30, 2, generator=draw))[0].T
    flat = torch.randn(3, 5, 2, generator=draw)
    points, share = plane(list(flat @ axes))
    found = torch.tensor(points).flatten(0, 1)
    expected = torch.cdist(flat.flatten(0, 1), flat.flatten(0, 1))
    torch.testing.assert_close(torch.cdist(found, found), expected, atol=1e-4, rtol=1e-4)
    assert share == pytest.approx(1)


def test_attention_is_told_of_every_block_word_and_state(client):
    asked = ASK | {"prompts": ["a red seven"]}
    *_, last = events(client.post("/api/inside", json=asked).text)
    assert last["words"] == ["a", "red", "seven"]
    assert last["blocks"] == ["dual 1", "single 1"]
    told = np.frombuffer(base64.b64decode(last["attention"]), np.uint8)
    assert told.size == 4 * 2 * 3 * 16 and told.max() == 255 and 0 < last["most"] < 1


def test_the_code_that_is_shown_is_the_package_s(client):
    found = client.get("/api/code").json()
    assert "return (1 - t) * x0 + t * eps" in found["path"]
    assert found["double"].startswith("def forward(")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "../../etc/passwd"}, "there is no model"),
        ({"model": "toy@3"}, "no checkpoint of step 3"),
        ({"prompts": ["word " * 2000]}, "shorten the prompt"),
        ({"prompts": ["x" * 10_000]}, "shorten the prompt"),
        ({"prompts": ["\ud800"]}, "Invalid JSON"),
        ({"prompts": []}, "prompts"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"solver": "magic"}, "solver=magic"),
        ({"guidance": "much"}, "guidance"),
        ({"picture": "####"}, "the picture is no picture"),
        ({"picture": "AAAA"}, "3 bytes in place of 256"),
        ({"path": "/etc/passwd"}, "path"),
    ],
)
def test_what_can_t_be_drawn_is_a_line_and_the_server_lives_on(client, change, words):
    body = json.dumps(ASK | change)
    headers = {"content-type": "application/json"}
    answer = client.post("/api/draw", content=body, headers=headers)
    told = answer.json() if answer.status_code != 200 else events(answer.text)[-1]
    assert words in told["error"] and "\n" not in told["error"]
    assert len(drawn(client.post("/api/draw", json=ASK).text)) == 5


def test_only_its_own_host_and_pages_are_answered(client):
    assert client.get("/api/models", headers={"host": "evil.example"}).status_code == 400
    other = {"origin": "http://evil.example"}
    assert client.post("/api/draw", json=ASK, headers=other).status_code == 403
    assert client.post("/api/draw", content=json.dumps(ASK)).status_code == 415
    own = {"origin": "http://127.0.0.1:7860"}
    assert client.post("/api/draw", json=ASK, headers=own).status_code == 200
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy


def test_a_large_request_and_files_outside_are_refused(client):
    body = b'{"model": "' + b"x" * LARGEST + b'"}'
    large = client.post("/api/draw", content=body, headers={"content-type": "application/json"})
    assert large.status_code == 413 and "KiB" in large.json()["error"]
    for outside in ("/static/../server.py", "/static/%2e%2e/server.py", "/static//etc/passwd"):
        assert client.get(outside).status_code == 404


def test_many_at_once_wait_in_line_and_none_is_lost(client):
    found = []

    def ask(i: int) -> None:
        found.append(events(client.post("/api/draw", json=ASK | {"seed": i}).text))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and all(lines[-2]["t"] == 0 for lines in found)
    assert max(line.get("place", 0) for lines in found for line in lines) > 0


@pytest.mark.parametrize("asked_for", ["/api/draw", "/api/save/gif"])
def test_who_vanishes_stops_the_work(page, asked_for):
    """Of 200 steps, few are done when the next one is answered."""
    told, gone = [], threading.Event()

    def observed(work):
        def run(emit):
            def on_event(event):
                told.append(event)
                if len(told) == 3:
                    gone.wait(60)
                emit(event)

            work(on_event)

        return before(run)

    before, page.line.events = page.line.events, observed
    config = uvicorn.Config(page.app(), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        body = json.dumps(ASK | {"prompts": ["3"] * 64, "steps": 200}).encode()
        head = f"POST {asked_for} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head.encode() + body)
            wait_until(lambda: len(told) > 2)
        gone.set()
        wait_until(lambda: not page.line.tickets)
        steps = len(told)
        kind = {"content-type": "application/json"}
        ask = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/draw", json.dumps(ASK).encode(), kind
        )
        assert drawn(urllib.request.urlopen(ask).read().decode())[-1]["t"] == 0
    finally:
        server.should_exit = True
        thread.join()
    assert 2 < steps < 200


def test_who_leaves_the_line_is_not_drawn_for_and_a_full_line_says_so():
    async def scenario() -> list[dict]:
        line, waiting, go_on = Line(), [], threading.Event()
        first = line.events(lambda emit: (go_on.wait(), emit({"drawn": 1})))
        assert await anext(first) == {"place": 0}
        for place in range(1, LONGEST):
            one = line.events(lambda emit: emit({"drawn": 2}))
            assert await anext(one) == {"place": place}
            waiting.append(one)
        with pytest.raises(UserError, match="too many are waiting"):
            line.events(lambda emit: None)
        for one in waiting[:-1]:
            await one.aclose()
        go_on.set()
        assert {"drawn": 1} in [event async for event in first]
        last = [event async for event in waiting[-1]]
        line.close()
        return last

    *places, drawn_last = asyncio.run(scenario())
    assert drawn_last == {"drawn": 2} and places[-1] == {"place": 0}
    assert {"place": 1} in places


def test_a_line_that_is_closed_tells_who_waits_and_its_work_may_end_later(caplog):
    go_on = threading.Event()

    async def scenario() -> list[dict]:
        line = Line()
        events = line.events(lambda emit: go_on.wait())
        assert await anext(events) == {"place": 0}
        line.close()
        return [event async for event in events]

    before = set(threading.enumerate())
    (last,) = asyncio.run(scenario())
    assert "the server was stopped" in last["error"]
    go_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert not caplog.records


def test_a_file_that_is_no_model_is_refused_at_once(tmp_path):
    (tmp_path / "notes.pt").write_text("no model")
    with pytest.raises(UserError, match="no checkpoint"):
        Gallery([str(tmp_path / "none.pt")])
    with pytest.raises(UserError, match=r"notes\.pt"):
        Gallery([str(tmp_path / "notes.pt")])


def test_two_models_of_one_name_have_different_ones(path, tmp_path):
    other = tmp_path / "diffusion-9.pt"
    shutil.copy(path, other)
    assert [*Gallery([str(path), str(other), str(path)]).places] == ["toy", "toy-2"]


def test_models_that_ship_are_shown_beside_a_folder_of_such_a_name(tmp_path, monkeypatch):
    (tmp_path / "digits-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    gallery = Gallery([])
    assert gallery.checkpoint("digits-tiny").is_file()
    assert Path(gallery.typed("digits-tiny")).is_file()  # the name alone means the folder here


def test_runs_of_an_earlier_page_are_there_but_for_damaged_ones(path, tmp_path):
    runs = tmp_path / "runs"
    for name, text in (("toy-1", f"{TOY}name: toy-1\n"), ("toy-2", "nonsense: 1\n")):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").write_text(text)
    page = Page(Gallery([str(path)]), runs)
    (run,) = page.runs.all()
    assert run["name"] == "toy-1" and run["steps"] == 6 and not run["training"]


def test_a_new_model_is_trained_by_any_config_but_a_student_s(path, tmp_path):
    few = ("name=few", "objective.kind=trajectory_distillation", "objective.teacher=toy")
    gallery = Gallery([str(path), str(save_toy(tmp_path, *few, name="few"))])
    assert [*gallery.places] == ["toy", "few"]
    configs = gallery.configs()
    assert {"toy", "digits-tiny", "mnist-small"} <= {*configs}
    assert not {"few", "mnist-small-dev"} & {*configs}
    assert configs["digits-tiny"].data.source == "digits"
    with pytest.raises(UserError, match="few has no config to train by"):
        Runs(gallery, tmp_path / "runs").start("few")


def test_a_port_in_use_is_one_line(path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as exit_:
            main(["serve", str(path), "--port", port, "--no-browser"])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"--port {port}: Address already in use" in told


def test_a_run_that_is_deleted_while_it_is_read_is_a_message(path, tmp_path):
    """Its records become a folder, which can't be read as a file."""
    run = tmp_path / "run"
    (run / "metrics.jsonl").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {source: digits}\n")
    page = Page(Gallery([str(path), str(run)]), tmp_path / "runs")
    with TestClient(page.app(), base_url="http://127.0.0.1:7860") as client:
        answer = client.get(f"/api/runs/{[*page.gallery.places][-1]}")
        assert answer.status_code == 400 and "was its run or model deleted?" in answer.text
        assert client.get("/api/models").status_code == 200


def test_one_thread_draws_while_a_run_trains(path, tmp_path):
    """With more, drawing and training wait for each other's at every turn."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("data: {source: digits}\n")
    page = Page(Gallery([str(path), str(run)]), tmp_path / "runs")

    def threads():
        found = []

        async def ask():
            async for _ in page.in_line(lambda emit: found.append(torch.get_num_threads())):
                pass

        asyncio.run(ask())
        return found

    all_of_them = [torch.get_num_threads()]
    assert threads() == all_of_them
    with held_by_a_process(run):
        assert threads() == [1]
    assert threads() == all_of_them
    page.close()


def test_without_its_extra_the_page_is_one_line(path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)  # cannot be imported
    with pytest.raises(SystemExit) as exit_:
        main(["serve", str(path), "--no-browser"])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "fluxsmith[web]" in told


@pytest.mark.slow
def test_a_run_stops_goes_on_and_keeps_a_snapshot_and_has_one_server(path, tmp_path):
    """The server that started it; another one watches."""
    run = endless_run(tmp_path / "run")
    own, other = (Page(Gallery([str(path), str(run)]), tmp_path / "runs") for _ in range(2))

    def state(page):
        return page.runs.look("run", 0)

    own.runs.go_on("run")
    try:
        wait_until(lambda: state(own)["step"] > 3)
        kept = state(own)["checkpoints"]
        own.runs.ask_for_snapshot("run")
        wait_until(lambda: len(state(own)["checkpoints"]) > len(kept))
        assert state(own)["own"] and state(other)["training"] and not state(other)["own"]
        with pytest.raises(UserError, match="was started elsewhere"):
            other.runs.stop("run")
        with pytest.raises(UserError, match="is being trained already"):
            other.runs.go_on("run")
        own.runs.stop("run")
        with contextlib.suppress(UserError):  # it may have ended already
            own.runs.stop("run")
        assert state(own)["stopping"] or not state(own)["training"]
        wait_until(lambda: not state(own)["training"])
        stopped = state(own)["step"]
        assert stopped > 3 and not state(own)["problem"]
        assert (run / f"diffusion-{stopped}.pt").is_file()
        own.runs.go_on("run")
        wait_until(lambda: state(own)["step"] > stopped + 2)
        own.runs.stop("run")
    finally:
        own.runs.close()
    seen = [record["step"] for record in state(other)["records"]]
    assert seen == [*range(1, len(seen) + 1)] and state(other)["checkpoints"][-1] == seen[-1]
    assert not state(other)["training"] and not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGHUP], [signal.SIGINT, signal.SIGINT]])
def test_what_trains_is_kept_however_the_page_ends(path, tmp_path, signals):
    """Its browser is one that ends once it has the page, as in a terminal, and is waited for."""
    if signal.getsignal(signals[0]) is signal.SIG_IGN:
        pytest.skip("started with nohup, which the page heeds")
    run, seen = endless_run(tmp_path / "run"), tmp_path / "seen.html"
    script = tmp_path / "browser.py"
    script.write_text(
        "import pathlib, sys, urllib.request\n"
        "html = urllib.request.urlopen(sys.argv[1]).read()\n"
        "pathlib.Path('seen.html').write_bytes(html)\n"
    )
    page = subprocess.Popen(
        [sys.executable, "-m", "fluxsmith", "serve", str(path), str(run), "--port", "0"],
        cwd=tmp_path,
        env=os.environ | {"BROWSER": f"{sys.executable} {script} %s"},
        stdout=subprocess.PIPE,
    )
    try:
        address = page.stdout.readline().decode().split()[1]
        wait_until(seen.exists)
        kind = {"content-type": "application/json"}
        urllib.request.urlopen(
            urllib.request.Request(f"{address}api/runs/run/go-on", b"{}", kind)
        ).close()
        wait_until(lambda: len(read_metrics(run / "metrics.jsonl")) > 3)
        for number in signals:
            page.send_signal(number)
            time.sleep(0.05)  # two at once may come as one
        assert page.wait(60) == 128 + signals[0]
    finally:
        page.kill()
        page.stdout.close()
    assert not is_taken(run)
    assert (run / f"diffusion-{read_metrics(run / 'metrics.jsonl')[-1]['step']}.pt").is_file()


def test_a_judge_s_training_ends_with_the_page(path, tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXSMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "UPDATES", (10**6, 10**6))
    before, judges = set(threading.enumerate()), Judges()
    assert judges.judge(Gallery([str(path)]).open("toy")) == (None, "training")
    judges.close()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert not list(tmp_path.rglob("*.pt"))
