"""A trained model as others read it: one file with BFL's keys, or a folder for diffusers."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith import checkpoint as checkpoints
from fluxsmith.errors import UserError
from fluxsmith.files import make_folder
from fluxsmith.interop import embedded
from fluxsmith.interop.card import check_scores, write_card
from fluxsmith.interop.diffusers_folder import check_diffusers, write_parts
from fluxsmith.interop.dtypes import DTYPES, check_dtype, converted
from fluxsmith.interop.placing import place_model
from fluxsmith.pipeline import Pipeline
from fluxsmith.tensorfile import write_tensors

FORMATS = ("bfl", "diffusers")
CPU = torch.device("cpu")


def export(
    checkpoint: Path,
    out: Path,
    form: str,
    *,
    weights: str = "ema",
    dtype: str | None = None,
    scores: Path | None = None,
    samples: bool = True,
) -> list[Path]:
    """Writes the model of a checkpoint in one of the FORMATS; what was written."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    check_dtype(dtype)
    if form == "bfl" and scores is not None:
        raise UserError(f"--scores {scores}: goes into the model card of --format diffusers")
    path = checkpoints.newest(checkpoint)
    pipeline = Pipeline.from_checkpoint(path, "cpu", weights, bring=as_stored)
    if form == "bfl":
        return export_bfl(pipeline, out, dtype)
    return export_diffusers(pipeline, out, dtype, scores, samples and bool(pipeline.captions))


def as_stored(pipeline: Pipeline, device: torch.device) -> None:
    """Leaves weights in the dtype in which they are, for so they go out."""


def export_bfl(pipeline: Pipeline, out: Path, dtype: str | None) -> list[Path]:
    """The network in one file under BFL's keys; a learned text encoder in a second beside it."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: a BFL export is one file; let its name end with .safetensors")
    make_folder(out.parent, "OUT")
    network = converted(pipeline.network.state_dict(), dtype)
    write_tensors(out, network, embedded.file_metadata(about(pipeline)))
    written = [out]
    if text := learned_text(pipeline):
        write_tensors(embedded.text_file(out), converted(text, dtype), {"format": "pt"})
        written.append(embedded.text_file(out))
    return written


def export_diffusers(
    pipeline: Pipeline, out: Path, dtype: str | None, scores: Path | None, samples: bool
) -> list[Path]:
    """A folder for diffusers with a model card, whole or not at all."""
    check_diffusers(pipeline.network.params)
    if scores is not None:
        check_scores(pipeline, scores)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder, or delete it first")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial, "OUT")
    try:
        whole = write_parts(pipeline, partial, dtype)
        text = converted(learned_text(pipeline), dtype)
        embedded.write_folder(partial, about(pipeline), text)
        if samples:
            place_model(pipeline, CPU, None, "none")  # fp8 is drawn with in bfloat16
        stored = None if dtype is None else DTYPES[dtype]
        write_card(pipeline, partial, scores=scores, samples=samples, whole=whole, dtype=stored)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(out.iterdir())


def about(pipeline: Pipeline) -> dict[str, Any]:
    """What importing the export needs to know beside its weights."""
    return {
        "config": pipeline.config.model_dump(),
        "step": pipeline.step,
        "metadata": {
            "captions": pipeline.captions,
            "autoencoder": pipeline.autoencoder.digest,
            **pipeline.text_metadata(),
        },
    }


def learned_text(pipeline: Pipeline) -> dict[str, Tensor]:
    """The learned text encoder's weights under its own names; none where it is frozen."""
    own = pipeline.state_dict().items()
    return {name.removeprefix("text."): t for name, t in own if name.startswith("text.")}
