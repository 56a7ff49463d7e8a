"""A trained model for other programs: one file with BFL's keys, or a folder for diffusers."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.config.places import portable, with_places
from fluxsmith.device import DTYPES
from fluxsmith.errors import UserError
from fluxsmith.interop.card import check_scores, write_card
from fluxsmith.interop.diffusers_folder import check_diffusers, write_parts
from fluxsmith.interop.open_pipeline import TextToImage, merge_adapter
from fluxsmith.interop.provenance import spec_of, travelling
from fluxsmith.interop.read_weights import NOTES, Notes, text_file
from fluxsmith.interop.shipping import HALVES, export_small
from fluxsmith.kernels.offload import place
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import explaining, make_folder, refuse_existing, write_text
from fluxsmith.storage.tensor_files import Dtype, beside, write_tensors
from fluxsmith.text.frozen import FrozenText

FORMATS = ("bfl", "diffusers", "fluxsmith")
# Where a folder for diffusers holds what the config names, as seen from the folder.
INSIDE = {"autoencoder.weights": "vae", "text.clip": ".", "text.t5": "."}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def export(
    checkpoint: Path,
    out: Path,
    form: str,
    *,
    weights: str = "ema",
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    scores: Path | None = None,
    samples: bool = True,
    max_shard_size: str | None = None,
) -> list[Path]:
    """Writes the model of a checkpoint in one of the FORMATS, its weights in their own dtype or in
    `dtype`, the matrices of the network also in fp8; returns what was written."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    if form == "fluxsmith" and dtype not in (None, *HALVES):
        raise UserError(f"--dtype {dtype}: --format fluxsmith stores in {' or '.join(HALVES)}")
    stored = _stored(dtype)
    largest = None if max_shard_size is None else _bytes(max_shard_size)
    if form == "bfl" and scores is not None:
        raise UserError(f"--scores {scores}: goes into the model card of --format diffusers")
    if form != "diffusers" and largest is not None:
        raise UserError(
            f"--max-shard-size {max_shard_size}: this export is one file; use --format diffusers"
        )
    path = checkpoints.newest(checkpoint)
    pipeline = TextToImage.from_checkpoint(path, "cpu", weights, overrides, mapped=True)
    if form == "fluxsmith":
        merge_adapter(pipeline, torch.float32)  # rounded once, when it is stored
        with whole_folder(out) as partial:
            export_small(pipeline, path.parent, partial, dtype, scores, samples)
        return sorted(out.iterdir())
    if scores is not None:
        check_scores(pipeline, scores)
    merge_adapter(pipeline, beside(stored))
    if form == "bfl":
        return export_bfl(pipeline, out, stored)
    # A model that is given pictures draws nothing from captions alone.
    samples = samples and bool(pipeline.captions) and pipeline.config.model.conditioning == "text"
    return export_diffusers(pipeline, out, stored, scores, samples, largest)


def export_bfl(pipeline: Pipeline, out: Path, dtype: Dtype) -> list[Path]:
    """The network in one file under BFL's keys; a learned text encoder in a second beside it."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: a BFL export is one file; let its name end with .safetensors")
    for file in (out, text_file(out)):
        refuse_existing(file)
    make_folder(out.parent, "OUT")
    metadata = tensor_metadata(pipeline, dtype, "bfl") | {NOTES: notes(pipeline).model_dump_json()}
    write_tensors(out, pipeline.network.state_dict(), metadata, dtype)
    return [out, *write_learned_text(pipeline, text_file(out), dtype)]


def export_diffusers(
    pipeline: Pipeline,
    out: Path,
    dtype: Dtype,
    scores: Path | None,
    samples: bool,
    largest: int | None = None,
) -> list[Path]:
    """A folder for diffusers with a model card, whole or not at all."""
    check_diffusers(pipeline.network.params, "use --format bfl")
    if isinstance(pipeline.autoencoder, FluxAutoencoder) and (rounded := beside(dtype)):
        pipeline.autoencoder.round_to(rounded)  # so that what is noted is what is written
    with whole_folder(out) as partial:
        make_folder(partial / NOTES, "OUT")
        about = notes(pipeline, INSIDE)
        if isinstance(pipeline.text, FrozenText):
            pipeline.text.release()  # loaded for their digest
        write_text(partial / NOTES / "about.json", about.model_dump_json(indent=2) + "\n")
        metadata = tensor_metadata(pipeline, dtype, "diffusers")
        whole = write_parts(pipeline, partial, dtype, metadata, largest)
        write_learned_text(pipeline, text_file(partial), dtype)
        if samples:
            place(pipeline.network, pipeline.device)  # nothing computes in fp8
        write_card(pipeline, partial, scores=scores, samples=samples, whole=whole, dtype=dtype)
    return sorted(out.iterdir())


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end, and is gone where anything went wrong."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder, or delete it first")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial, "OUT")
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    with explaining(f"can't make {out}", f"; what was exported is in {partial}"):
        partial.replace(out)


def notes(pipeline: Pipeline, inside: Mapping[str, str] | None = None) -> Notes:
    """What importing the export needs to know beside its weights, without a path of this machine;
    `inside` says where what the config names lies in the export."""
    own = {"captions": pipeline.captions, "autoencoder": pipeline.autoencoder.digest}
    known = own | pipeline.frozen_metadata() | {"source": pipeline.source}
    config = portable(pipeline.config.model_dump())
    if inside:
        config = with_places(config, lambda key, _: inside[key], [*inside])
    return Notes(config=config, step=pipeline.step, metadata=travelling(known))


def tensor_metadata(pipeline: Pipeline, dtype: Dtype, form: str) -> dict[str, str]:
    """What a file of tensors in one of the FORMATS says beside them: also what others noted of the
    weights."""
    same = dtype is None and pipeline.source.get("form") == form
    return {"format": "pt", **spec_of(pipeline.source, same)}


def write_learned_text(pipeline: Pipeline, path: Path, dtype: Dtype) -> list[Path]:
    """The learned text encoder's weights under its own names; nothing if it is frozen."""
    own = pipeline.state_dict().items()
    text = {name.removeprefix("text."): t for name, t in own if name.startswith("text.")}
    if text:
        write_tensors(path, text, {"format": "pt"}, beside(dtype))
    return [path] if text else []


def _stored(name: str | None) -> Dtype:
    """What the --dtype of an export stands for. In fp8 only matrices are; diffusers, ComfyUI and
    ours compute with them in bfloat16."""
    fp8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
    if name in fp8:
        small = fp8[name]
        return lambda tensor: small if tensor.ndim == 2 else torch.bfloat16
    if name is not None and name not in DTYPES:
        raise UserError(f"--dtype {name}: must be one of {', '.join([*DTYPES, *fp8])}")
    return None if name is None else DTYPES[name]


def _bytes(size: str) -> int:
    """The bytes of a size such as 5GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", size.strip())
    found = 0 if not match else int(float(match[1]) * UNITS.get(match[2].upper(), 0))
    if not found:
        raise UserError(f"--max-shard-size {size}: must be a size such as 5GB or 500MB")
    return found
