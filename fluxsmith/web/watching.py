"""Runs that are watched while they train: those that the page was started with, and those that were
started on it, each in a process of its own."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fluxsmith.config import show
from fluxsmith.errors import UserError
from fluxsmith.storage.files import make_folder
from fluxsmith.training.lock import is_taken
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.snapshots import FOLDER, REQUEST
from fluxsmith.web.gallery import Gallery, run_config

SNAPSHOTS = 24
EVALUATIONS = 20  # about, of a run whose config has none on its way
SECONDS = 30  # a run has to write its checkpoint once it is asked to stop
CURVES = ("loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4", "validation_loss/ema")


class Runs:
    """Training runs by name, which are models of the gallery too."""

    def __init__(self, gallery: Gallery, folder: Path) -> None:
        self.gallery = gallery
        self.folder = folder  # of new ones
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._earlier = self._of_before()

    def _of_before(self) -> set[str]:
        """The names of the runs that a page before this one left in the folder, added here."""
        there = {place.resolve() for place in self.gallery.places.values()}
        found = set()
        for file in sorted(self.folder.glob("*/config.yaml"), key=lambda f: f.stat().st_mtime):
            if file.parent.resolve() not in there:
                with contextlib.suppress(UserError):  # a config that can't be read
                    found.add(self.gallery.add(str(file.parent)))
        return found

    def all(self) -> list[dict[str, Any]]:
        """Those that there are, with what each is doing; those of an earlier page come first."""
        places = sorted(self.gallery.places.items(), key=lambda one: one[0] not in self._earlier)
        runs = [(name, place) for name, place in places if (place / "config.yaml").is_file()]
        return [self._state(n, read_metrics(place / "metrics.jsonl")) for n, place in runs]

    def any_trains(self) -> bool:
        return any(map(self._training, [*self.gallery.places]))

    def look(self, name: str, seen: int) -> dict[str, Any]:
        """What a run is doing, its checkpoints, and its records after the first `seen`. A UserError
        where it is gone."""
        place = self.gallery.place(name)
        if not place.is_dir():
            raise UserError(f"the folder of {name} is gone; choose another run")
        records = read_metrics(place / "metrics.jsonl")
        return {
            **self._state(name, records),
            "checkpoints": [*self.gallery.steps(name)],
            "seen": len(records),
            "records": [
                {"step": r["step"], **{key: r[key] for key in CURVES if key in r}}
                for r in records[seen:]
            ],
        }

    def start(self, model: str) -> str:
        """Trains a new model by one of the gallery's configs; returns the new run's name."""
        config = self.gallery.configs().get(model)
        if config is None:
            raise UserError(f"{model[:80]} has no config to train by; choose another")
        base = self.folder / str(config.name)
        with self._lock:
            folder = next(p for n in range(1, 10_000) if not (p := Path(f"{base}-{n}")).exists())
            make_folder(folder, "the folder that `fluxsmith serve` is started in")
        train = config.train.model_copy(update={"snapshots": SNAPSHOTS})
        new = {"name": folder.name, "output_dir": str(folder.absolute()), "train": train}
        if not 0 < config.evaluate.every <= config.train.steps:  # else there is no such curve
            every = max(1, config.train.steps // EVALUATIONS)
            new["evaluate"] = config.evaluate.model_copy(update={"every": every})
        text = show(config.model_copy(update=new))
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        name = self.gallery.add(str(folder))
        self._spawn(name)
        return name

    def go_on(self, name: str) -> None:
        """Continues a run where it stopped."""
        if self._training(name):
            raise UserError(f"{name} is being trained already")
        self._spawn(name)

    def stop(self, name: str) -> None:
        """Ends a run that was started here after its step, with its checkpoint written."""
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            raise UserError(f"{name} was started elsewhere, or is not running; stop it there")
        self._interrupt(process)

    def ask_for_snapshot(self, name: str) -> None:
        """A run that keeps snapshots keeps one of its next step."""
        with contextlib.suppress(OSError):
            (self.gallery.place(name) / FOLDER / REQUEST).touch()

    def close(self) -> None:
        """Stops all that were started here, so that nothing is lost and nothing goes on unseen."""
        going = [p for p in self._processes.values() if p.poll() is None]
        for process in going:
            self._interrupt(process)
        for process in going:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)

    def _interrupt(self, process: subprocess.Popen[bytes]) -> None:
        """Once alone: a second signal would end it before its checkpoint is written."""
        with self._lock:
            if process not in self._stopping:
                self._stopping.add(process)
                process.send_signal(signal.SIGINT)

    def _spawn(self, name: str) -> None:
        folder = self.gallery.place(name)
        command = [sys.executable, "-m", "fluxsmith", "train", str(folder / "config.yaml")]
        # Here, also where the folder was moved since its config was written.
        here = json.dumps(str(folder.absolute()), ensure_ascii=False)
        with open(folder / "train.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [*command, f"output_dir={here}", "--resume", "auto"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the server, which stops it in turn
            )

    def _training(self, name: str) -> bool:
        process = self._processes.get(name)
        if process is not None and process.poll() is None:
            return True
        return is_taken(self.gallery.place(name))

    def _state(self, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        place, process = self.gallery.place(name), self._processes.get(name)
        config = run_config(place)
        problem = ""
        going = process is not None and process.poll() is None
        if process is not None and process.poll() not in (None, 0, 130, -signal.SIGINT):
            lines = (place / "train.log").read_text(encoding="utf-8", errors="replace").split("\n")
            problem = next((line for line in reversed(lines) if line.strip()), "it ended")[:300]
        return {
            "name": name,
            "training": self._training(name),
            "own": going,  # and so can be stopped here
            "stopping": going and process in self._stopping,
            "problem": problem,
            "step": int(records[-1]["step"]) if records else 0,
            "steps": config.train.steps if config else 0,
            "snapshots": bool(config and config.train.snapshots),
        }
