"""A trained model for other programs: one file with BFL's keys, or a folder for diffusers."""

import shutil
from pathlib import Path

import torch

from fluxsmith.device import named_dtype
from fluxsmith.errors import UserError
from fluxsmith.interop.card import check_scores, write_card
from fluxsmith.interop.diffusers_folder import check_diffusers, write_parts
from fluxsmith.interop.read_weights import NOTES, Notes, text_file
from fluxsmith.kernels.offload import place
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import make_folder, write_text
from fluxsmith.storage.tensor_files import write_tensors

FORMATS = ("bfl", "diffusers")


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
    """Writes the model of a checkpoint in one of the FORMATS, its weights in their own dtype or in
    `dtype`; returns what was written."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    stored = named_dtype(dtype)
    if form == "bfl" and scores is not None:
        raise UserError(f"--scores {scores}: goes into the model card of --format diffusers")
    path = checkpoints.newest(checkpoint)
    pipeline = Pipeline.from_checkpoint(path, "cpu", weights, mapped=True)
    if form == "bfl":
        return export_bfl(pipeline, out, stored)
    return export_diffusers(pipeline, out, stored, scores, samples and bool(pipeline.captions))


def export_bfl(pipeline: Pipeline, out: Path, dtype: torch.dtype | None) -> list[Path]:
    """The network in one file under BFL's keys; a learned text encoder in a second beside it."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: a BFL export is one file; let its name end with .safetensors")
    make_folder(out.parent, "OUT")
    metadata = {"format": "pt", NOTES: notes(pipeline).model_dump_json()}
    write_tensors(out, pipeline.network.state_dict(), metadata, dtype)
    return [out, *write_learned_text(pipeline, text_file(out), dtype)]


def export_diffusers(
    pipeline: Pipeline, out: Path, dtype: torch.dtype | None, scores: Path | None, samples: bool
) -> list[Path]:
    """A folder for diffusers with a model card, whole or not at all."""
    check_diffusers(pipeline.network.params, "use --format bfl")
    if scores is not None:
        check_scores(pipeline, scores)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder, or delete it first")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial / NOTES, "OUT")
    try:
        whole = write_parts(pipeline, partial, dtype)
        write_text(partial / NOTES / "about.json", notes(pipeline).model_dump_json(indent=2) + "\n")
        write_learned_text(pipeline, text_file(partial), dtype)
        if samples:
            place(pipeline.network, pipeline.device)  # nothing computes in fp8
        write_card(pipeline, partial, scores=scores, samples=samples, whole=whole, dtype=dtype)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(out.iterdir())


def notes(pipeline: Pipeline) -> Notes:
    """What importing the export needs to know beside its weights."""
    own = {"captions": pipeline.captions, "autoencoder": pipeline.autoencoder.digest}
    return Notes(
        config=pipeline.config.model_dump(),
        step=pipeline.step,
        metadata=own | pipeline.text_metadata(),
    )


def write_learned_text(pipeline: Pipeline, path: Path, dtype: torch.dtype | None) -> list[Path]:
    """The learned text encoder's weights under its own names; nothing if it is frozen."""
    own = pipeline.state_dict().items()
    text = {name.removeprefix("text."): t for name, t in own if name.startswith("text.")}
    if text:
        write_tensors(path, text, {"format": "pt"}, dtype)
    return [path] if text else []
