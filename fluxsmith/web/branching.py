"""Where paths from one noise part: their map in two dimensions, and what a classifier sees in the
data that the model predicts on the way."""

import threading
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.evaluation.samples import Reference
from fluxsmith.pipeline import Pipeline
from fluxsmith.web.drawing import Request, Scale, States, draw
from fluxsmith.web.line import Emit, Event, Stopped


class BranchRequest(Request):
    """Many prompts from one noise, or one prompt at many scales."""

    scales: list[Scale] = Field([], max_length=16)


def branch(pipeline: Pipeline, asked: BranchRequest, judges: "Judges", emit: Emit) -> None:
    """Emits the states of each path, then {"map": points (path, state, 2), "explained": share},
    then {"confidence": (path, state), "seen": names}, or {"judge": why there is none}."""
    if asked.scales and len(asked.prompts) > 1:
        raise UserError("give one prompt with many scales, or many prompts with one")
    plain = {key: getattr(asked, key) for key in Request.model_fields} | {"one_noise": True}
    scales = asked.scales or [asked.guidance]
    drawn = [
        draw(pipeline, Request(**plain | {"guidance": scale}), emit, i)
        for i, scale in enumerate(scales)
    ]
    points, explained = plane([path for states in drawn for path in _paths(states.pictures)])
    emit({"map": points, "times": drawn[0].times, "explained": explained})
    emit(judges.say(pipeline, drawn, asked.prompts * len(scales)))


def plane(paths: Sequence[Tensor]) -> tuple[list[list[list[float]]], float]:
    """Paths (states, d) in the plane of their first two principal components, and the share of
    their variance that lies in it."""
    points = torch.stack(list(paths)).double()  # (paths, states, d)
    flat = points.flatten(0, 1)
    flat = flat - flat.mean(0)
    _, sizes, axes = torch.linalg.svd(flat, full_matrices=False)
    share = float(sizes[:2].square().sum() / sizes.square().sum().clamp(min=1e-12))
    return (flat @ axes[:2].T).unflatten(0, points.shape[:2]).float().tolist(), share


def _paths(pictures: Sequence[Tensor]) -> list[Tensor]:
    """States (n, c, h, w) each -> paths (states, c h w)."""
    return list(torch.stack(list(pictures), dim=1).flatten(2).cpu())


@torch.no_grad()
def judged(reference: Reference, drawn: Sequence[States], prompts: Sequence[str]) -> Event:
    """How sure the classifier is at each state, of the picture so far and of the predicted one, of
    what the prompt asks for, or of what it sees at the end where the data know no such prompt; what
    it sees there, and whether that is right, None where the data know no such prompt."""

    def shares_of(kind: str) -> Tensor:  # (paths, states, classes)
        shown = torch.cat([torch.stack(getattr(each, kind), dim=1) for each in drawn])
        logits = reference.classifier(shown.flatten(0, 1).clamp(-1, 1).cpu())
        return logits.softmax(1).unflatten(0, shown.shape[:2])

    shares = {"x": shares_of("pictures"), "x0": shares_of("predicted")}
    asked, seen = dict(reference.prompts), shares["x"][:, -1].argmax(1).tolist()
    wanted = [asked.get(prompt, last) for prompt, last in zip(prompts, seen, strict=True)]
    return {
        "confidence": {
            kind: [share[:, of].tolist() for share, of in zip(all_, wanted, strict=True)]
            for kind, all_ in shares.items()
        },
        "seen": [reference.class_names[label] for label in seen],
        "right": [
            asked[prompt] == got if prompt in asked else None
            for prompt, got in zip(prompts, seen, strict=True)
        ],
    }


class Judges:
    """The classifiers of the models' data, each loaded, or trained once, in a thread of its own."""

    def __init__(self) -> None:
        self._found: dict[str, Reference | str] = {}  # by data section; or why there is none
        self._lock = threading.Lock()
        self._over = threading.Event()

    def close(self) -> None:
        """What is being trained ends at its next step."""
        self._over.set()

    def say(self, pipeline: Pipeline, drawn: Sequence[States], prompts: Sequence[str]) -> Event:
        """What is `judged` of these drawings; {"judge": why} where nothing can be."""
        reference, why = self.judge(pipeline)
        return {"judge": why} if reference is None else judged(reference, drawn, prompts)

    def judge(self, pipeline: Pipeline) -> tuple[Reference | None, str]:
        """The data with its classifier; None, and why, where it has none, or not yet."""
        key = pipeline.config.data.model_dump_json()
        with self._lock:
            if key not in self._found:
                self._found[key] = "training"
                threading.Thread(target=self._load, args=(key, pipeline)).start()
            found = self._found[key]
        return (None, found) if isinstance(found, str) else (found, "")

    def _load(self, key: str, pipeline: Pipeline) -> None:
        found: Reference | str
        try:
            found = Reference(pipeline.config, each_step=self._go_on)
            found.classifier.eval()
            _ = found.prompts
        except Exception as error:  # of data that can't be had, for whatever reason
            found = str(error) or type(error).__name__
        self._found[key] = found

    def _go_on(self) -> None:
        if self._over.is_set():
            raise Stopped
