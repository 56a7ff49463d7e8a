"""The server of the page: its files, and what it asks for. It answers to its own host name alone,
takes JSON up to a limit, and reads no path that a client names."""

import json
import shlex
import socket
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import torch
import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxsmith.errors import UserError
from fluxsmith.sampling.request import write_drawing
from fluxsmith.training.interrupt import Interrupt, watch
from fluxsmith.web import drawing
from fluxsmith.web.branching import BranchRequest, Judges, branch
from fluxsmith.web.gallery import Gallery
from fluxsmith.web.inside import code, look_inside
from fluxsmith.web.line import Emit, Event, Line, Work
from fluxsmith.web.watching import Runs

HOST = "127.0.0.1"
HOSTS = ["127.0.0.1", "localhost"]
LARGEST = 2**23  # bytes of a request: a picture of 1,024 pixels and its mask in base64 fit
STATIC = Path(__file__).with_name("static")
SAVED = {"png": "grid", "filmstrip": "filmstrip", "gif": "animation"}  # as write_drawing names them
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

Asked = TypeVar("Asked", bound=BaseModel)


class Events(Response):
    """Events as lines of JSON, each sent when it comes; closed once the client is gone."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        super().__init__(media_type="application/x-ndjson")
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with _until_left(receive, self.events):
            async for event in self.events:
                line = json.dumps(event).encode() + b"\n"
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def _until_left(receive: Receive, events: AsyncGenerator[Event, None]) -> AsyncIterator[None]:
    """What is done within ends when the client is gone, and the events' work in any case."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            yield
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await events.aclose()


class Page:
    """The routes of the page, over its models, its runs and its one line."""

    def __init__(self, gallery: Gallery, runs_folder: Path = Path("output/page")) -> None:
        self.gallery = gallery
        self.runs = Runs(gallery, runs_folder)
        self.line = Line()
        self._threads = torch.get_num_threads()
        self.judges = Judges()

    def app(self) -> Starlette:
        routes = [
            Route("/", lambda request: FileResponse(STATIC / "index.html")),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/models", self.models),
            Route("/api/configs", self.configs),
            Route("/api/code", lambda request: JSONResponse(code())),
            Route("/api/draw", self.draw, methods=["POST"]),
            Route("/api/branch", self.branch, methods=["POST"]),
            Route("/api/inside", self.inside, methods=["POST"]),
            Route("/api/save/{kind}", self.save, methods=["POST"]),
            Route("/api/runs", self.all_runs),
            Route("/api/runs", self.start_run, methods=["POST"]),
            Route("/api/runs/{name}", self.look_at_run),
            Route("/api/runs/{name}/{what}", self.change_run, methods=["POST"]),
        ]
        return Starlette(
            routes=routes,
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
                Middleware(_Guard),
            ],
            exception_handlers=dict.fromkeys((UserError, HTTPException, OSError), _refused),
        )

    def close(self) -> None:
        """Ends all that goes on for it."""
        self.line.close()
        self.judges.close()
        self.runs.close()

    async def models(self, request: Request) -> Response:
        return JSONResponse(await self._opening(self.gallery.facts))

    async def configs(self, request: Request) -> Response:
        return JSONResponse([*await self._opening(self.gallery.configs)])

    async def _opening(self, work: Callable[[], Any]) -> Any:
        """The result of work that may open models."""

        def shared() -> Any:
            self._share_cores()
            return work()

        return await run_in_threadpool(shared)

    async def draw(self, request: Request) -> Response:
        asked = await _read(request, drawing.Request)
        return self._events(lambda emit: self._drawn(asked, emit))

    def _drawn(self, asked: drawing.Request, emit: Emit) -> None:
        pipeline = self.gallery.open(asked.model)
        began = time.perf_counter()
        states = drawing.draw(pipeline, asked, emit)
        emit({"seconds": time.perf_counter() - began, "step": pipeline.step})
        if asked.judge:
            emit(self.judges.say(pipeline, [states], asked.prompts))

    async def branch(self, request: Request) -> Response:
        asked = await _read(request, BranchRequest)
        open_ = self.gallery.open
        return self._events(lambda emit: branch(open_(asked.model), asked, self.judges, emit))

    async def inside(self, request: Request) -> Response:
        asked = await _read(request, drawing.Request)
        return self._events(lambda emit: look_inside(self.gallery.open(asked.model), asked, emit))

    def _events(self, work: Work) -> Response:
        return Events(self.in_line(work))

    def in_line(self, work: Work) -> AsyncGenerator[Event, None]:
        def shared(emit: Emit) -> None:
            self._share_cores()
            work(emit)

        return self.line.events(shared)

    def _share_cores(self) -> None:
        """Two programs that compute with all cores wait for each other's threads at every turn; a
        single thread takes no more from a run in training than its own time."""
        torch.set_num_threads(1 if self.runs.any_trains() else self._threads)

    async def save(self, request: Request) -> Response:
        """A file of what was drawn: a PNG that says how to draw it again, its filmstrip, a GIF."""
        kind = request.path_params["kind"]
        if kind not in SAVED:
            raise HTTPException(404)
        asked = await _read(request, drawing.Request)
        files: list[tuple[str, bytes]] = []

        def work(emit: Emit) -> None:
            pipeline = self.gallery.open(asked.model)
            # Nothing is shown on the way, but each step hears whether anybody still waits.
            sampler = drawing.WatchedSampler(pipeline, lambda *_: emit({}))
            plan = drawing.plan(sampler, asked)
            with tempfile.TemporaryDirectory() as folder:
                wanted = {"filmstrip": kind == "filmstrip", "gif": kind == "gif"}
                command = self._command(asked)
                file = write_drawing(sampler, plan, Path(folder), command, **wanted)[SAVED[kind]]
                files.append((file.name, file.read_bytes()))

        events, problem = self.in_line(work), "stopped"
        async with _until_left(request.receive, events):
            async for event in events:
                problem = event.get("error", problem)
        if not files:
            raise UserError(problem)
        ((name, contents),) = files
        named = quote(f"{asked.model}-{name}", safe="")
        disposition = {"content-disposition": f"attachment; filename*=UTF-8''{named}"}
        kinds = {".png": "image/png", ".gif": "image/gif"}
        return Response(contents, media_type=kinds[Path(name).suffix], headers=disposition)

    def _command(self, asked: drawing.Request) -> str:
        """The command that draws the same."""
        words = ["fluxsmith", "sample", self.gallery.typed(asked.model)]
        for prompt in asked.prompts:
            words += ["--prompt", prompt]
        for option in ("steps", "guidance", "solver", "seed"):
            words += [f"--{option}", str(getattr(asked, option))]
        return shlex.join(words)

    async def all_runs(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.runs.all))

    async def start_run(self, request: Request) -> Response:
        asked = await _read(request, _Start)
        return JSONResponse({"name": await run_in_threadpool(self.runs.start, asked.model)})

    async def look_at_run(self, request: Request) -> Response:
        seen = request.query_params.get("seen", "0")
        number = int(seen) if seen.isdecimal() and len(seen) < 10 else 0
        return JSONResponse(
            await run_in_threadpool(self.runs.look, request.path_params["name"], number)
        )

    async def change_run(self, request: Request) -> Response:
        changes = {
            "stop": self.runs.stop,
            "go-on": self.runs.go_on,
            "snapshot": self.runs.ask_for_snapshot,
        }
        if (what := request.path_params["what"]) not in changes:
            raise HTTPException(404)
        await _read(request, _Nothing)
        await run_in_threadpool(changes[what], request.path_params["name"])
        return JSONResponse({})


class _Start(BaseModel):
    model: str


class _Nothing(BaseModel):
    """All is in the address."""


class _Guard:
    """Refuses what another site's page sends here, and sends the headers of every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        if scope["type"] == "http":
            headers = dict(scope["headers"])
            origin, host = headers.get(b"origin"), headers.get(b"host", b"")
            if origin is not None and origin.partition(b"://")[2] != host:
                refusal = JSONResponse({"error": "asked for by another site's page"}, 403)
                await refusal(scope, receive, answer)
                return
        await self.app(scope, receive, answer)


async def _read(request: Request, kind: type[Asked]) -> Asked:
    """The JSON of a request; a UserError where it is too large, or says what can't be drawn."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "send application/json")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                raise HTTPException(413, f"too large: at most {LARGEST // 1024} KiB are taken")
    except ClientDisconnect:
        raise HTTPException(400, "cut off") from None
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{where or 'the request'}: {first['msg']}") from None


def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    message = error.detail if isinstance(error, HTTPException) else str(error)
    if isinstance(error, OSError):  # a run may be deleted while it is looked at
        message = f"a file can't be read ({error.strerror}); was its run or model deleted?"
    return JSONResponse({"error": message}, status)


def serve(models: list[str], port: int, device: str, started: Callable[[str], None]) -> int:
    """Serves until a signal ends it, and returns its exit code; `started` is told the address once
    it answers there."""
    gallery = Gallery(models, device)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            reason = error.strerror
            raise UserError(f"--port {port}: {reason}; give another, or 0 for any") from None
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        page = Page(gallery)
        with watch(speaks=False) as interrupt:
            try:
                _Server(page, interrupt, lambda: started(address)).run(sockets=[listening])
            finally:  # uvicorn leaves at once for a second Ctrl-C
                page.close()
    return interrupt.exit_code


class _Server(uvicorn.Server):
    def __init__(self, page: Page, interrupt: Interrupt, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(page.app(), log_level="warning", timeout_graceful_shutdown=2)
        super().__init__(config)
        self._line, self._interrupt, self._ready = page.line, interrupt, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        # A closed terminal's SIGHUP is none of the signals that uvicorn heeds.
        return bool(self._interrupt) or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._line.close()  # first: whatever is drawn for them, no answers have to be waited for
        await super().shutdown(sockets)
