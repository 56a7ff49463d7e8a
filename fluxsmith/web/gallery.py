"""The models that the page may draw with: those that it was started with, and what its runs left.
A client names one as NAME, or as NAME@STEP for a checkpoint of a run, and never by a path."""

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxsmith.config import read_config
from fluxsmith.config.objective_section import FROM_DATA
from fluxsmith.config.reading import build_config
from fluxsmith.config.run_config import RunConfig
from fluxsmith.data.imageset import evenly
from fluxsmith.errors import UserError
from fluxsmith.flow.solvers import SOLVERS
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.shipped import is_shipped, shipped_folder, shipped_models
from fluxsmith.training.snapshots import FOLDER as SNAPSHOTS

LOADED = 6  # models are kept in memory, those that were drawn with last
PROMPTS = 60  # of a model's captions are offered

Version = tuple[Path, int]  # a checkpoint, and when it was written


class Gallery:
    """Models by name, each a checkpoint's file or a run's folder, which may not have one yet."""

    def __init__(self, models: Sequence[str], device: str = "auto") -> None:
        self.device = device
        self.places: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._loaded: OrderedDict[Version, TextToImage] = OrderedDict()
        self._facts: dict[Version, dict[str, Any]] = {}
        for model in models or map(str, shipped_models().values()):
            self.add(model)
        if not self.places:
            raise UserError("there is no model to show; name a checkpoint or a run's folder")

    def add(self, model: str) -> str:
        """Takes in a checkpoint, the folder of a run, or a model that ships, and returns its name
        here; a UserError where it is none, or no model of text alone."""
        place = shipped_folder(model) or Path(model)
        config = run_config(place) or _config(_version(checkpoints.newest(place)), model)
        if (kind := config.model.conditioning) != "text":
            raise UserError(f"{model}: is a {kind} model; the page draws with models of text alone")
        name, n = str(config.name).replace("@", "-"), 2
        while self.places.get(name, place) != place:
            name, n = f"{config.name}-{n}", n + 1
        self.places[name] = place
        return name

    def steps(self, name: str) -> dict[int, Path]:
        """The checkpoints of a run by their steps, snapshots among them, in order."""
        place = self.place(name)
        found = [*checkpoints.find(place / SNAPSHOTS), *checkpoints.find(place)]
        return dict(sorted(found))

    def place(self, name: str) -> Path:
        try:
            return self.places[name]
        except KeyError:
            there = ", ".join(self.places)
            raise UserError(f"there is no model {name[:80]!r} here; choose of {there}") from None

    def checkpoint(self, model: str) -> Path:
        """The file of NAME or NAME@STEP."""
        name, at, step = model.partition("@")
        place = self.place(name)
        if not at:
            steps = self.steps(name) if place.is_dir() else {}
            return steps[max(steps)] if steps else checkpoints.newest(place)
        found = self.steps(name).get(int(step) if step.isdecimal() else -1)
        if found is None:
            raise UserError(f"{name} has no checkpoint of step {step[:20]} (any more)")
        return found

    def typed(self, model: str) -> str:
        """What the command line takes for it: a shipped model's name, or a path."""
        path = self.checkpoint(model)
        name = path.parent.name
        return name if is_shipped(path) and shipped_folder(name) else str(path)

    def open(self, model: str) -> TextToImage:
        path = self.checkpoint(model)
        version = _version(path)
        with self._lock:
            if version not in self._loaded:
                self._loaded[version] = TextToImage.from_checkpoint(path, self.device)
                while len(self._loaded) > LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(version)
            return self._loaded[version]

    def configs(self) -> dict[str, RunConfig]:
        """Those that a new model can be trained by: of the models that are here, and of those that
        ship, the shortest training first. A student's is none, for it names a teacher that may not
        be here."""
        found = {
            name: _config(_version(checkpoints.newest(place)), name)
            for name, place in shipped_models().items()
        }
        for name, place in [*self.places.items()]:
            with contextlib.suppress(UserError):  # no checkpoint so far
                found[name] = run_config(place) or self.open(name).config
        plain = {n: c for n, c in found.items() if c.objective.kind in FROM_DATA}
        return dict(
            sorted(plain.items(), key=lambda one: one[1].train.steps * one[1].train.batch_size)
        )

    def facts(self) -> list[dict[str, Any]]:
        """What the page shows of every model that has a checkpoint."""
        found = []
        for name in [*self.places]:  # a run may be started meanwhile
            try:
                version = _version(self.checkpoint(name))
                if version not in self._facts:
                    self._facts[version] = _facts(self.open(name))
            except UserError:  # a run without a checkpoint so far, or one that is gone
                continue
            checkpoints = [*self.steps(name)] if self.places[name].is_dir() else []
            found.append({"name": name, "checkpoints": checkpoints, **self._facts[version]})
        return found


def run_config(folder: Path) -> RunConfig | None:
    """The config of a run, as it wrote it into its folder; None where there is none."""
    file = folder / "config.yaml"
    return _read(file, file.stat().st_mtime_ns) if file.is_file() else None


@functools.lru_cache(64)  # a run that is watched is looked at again and again
def _read(file: Path, changed: int) -> RunConfig:
    return read_config(file)


def _version(path: Path) -> Version:
    """A checkpoint as it is now: a run that is trained anew writes others under the same names."""
    try:
        return path, path.stat().st_mtime_ns
    except OSError:  # whoever reads it says what is wrong
        return path, 0


@functools.cache
def _config(version: Version, name: str) -> RunConfig:
    """As a checkpoint has it."""
    return build_config(checkpoints.load(version[0])["config"], name, True)


def _facts(pipeline: Pipeline) -> dict[str, Any]:
    config, params = pipeline.config, pipeline.network.params
    captions = list(dict.fromkeys(pipeline.captions))
    channels, height, width = pipeline.latent_shape
    own = sum(p.numel() for p in pipeline.network.parameters())
    return {
        "step": pipeline.step,
        "size": config.data.image_size,
        "channels": config.data.channels,
        "prompts": evenly(captions, min(PROMPTS, len(captions))),
        "defaults": config.sample.model_dump(include={"steps", "guidance", "solver"}),
        "guided": config.sample.guidance_method != "none",
        "doubled": config.sample.guidance_method == "cfg",  # guidance takes two evaluations
        "solvers": {name: [s.evaluations(n) for n in (1, 2)] for name, s in SOLVERS.items()},
        "student": config.objective.kind not in FROM_DATA,
        "images": pipeline.step * config.train.batch_size,
        "data": config.data.source,
        "latent": [channels, height, width],
        "pixels": config.autoencoder.kind == "pixel",
        "parameters": {
            "network": own,
            "text": sum(p.numel() for p in pipeline.parameters()) - own,
        },
        "patch": config.model.patch_size,
        "prediction": config.flow.prediction,
        "network": asdict(params),
    }
