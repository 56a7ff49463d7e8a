"""What `fluxsmith lora` does beside reading and writing: models with LoRAs merged into them, the
LoRA that two models differ by, and what there is to know of one."""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from fluxsmith.adapters.layers import merged
from fluxsmith.adapters.low_rank import LowRank, nearest
from fluxsmith.config.places import portable
from fluxsmith.errors import UserError
from fluxsmith.interop.infer_params import refuse_others
from fluxsmith.interop.lora_files import (
    Lora,
    check_lora_file,
    check_lora_fits,
    lora_run,
    read_specs,
    write_lora,
)
from fluxsmith.interop.open_pipeline import is_there
from fluxsmith.interop.provenance import spec_of, travelling
from fluxsmith.interop.read_weights import NOTES, Notes, Weights, read_weights, text_file
from fluxsmith.pipeline import weights_digest
from fluxsmith.storage.files import make_folder, refuse_existing
from fluxsmith.storage.hub_folder import HUB_ID
from fluxsmith.storage.tensor_files import write_tensors
from fluxsmith.storage.weight_files import SAFETENSORS

log = logging.getLogger(__name__)


def merge(source: Path, loras: Sequence[str], out: Path, dtype: torch.dtype | None) -> list[Path]:
    """Writes a model with LoRAs merged into it as one file with BFL's keys, in `dtype` or its own.
    A LoRA run as the source brings its base and itself. Returns what was written."""
    if out.suffix not in SAFETENSORS:
        raise UserError(f"{out}: a merged model is one file; let its name end with .safetensors")
    for file in (out, text_file(out)):
        refuse_existing(file)
    run = lora_run(source)
    base = run["metadata"]["base"] if run else {}
    if base:
        source, loras = Path(base["path"]), [str(source), *loras]
        if not is_there(base["path"]) and not HUB_ID.fullmatch(base["path"]):
            raise UserError(
                f"{loras[0]}: changes the weights of {source}, which is not there; name them where "
                f"they are now: fluxsmith lora merge MODEL {out} --lora {loras[0]}"
            )
    if not loras:
        raise UserError(f"{source}: there is no LoRA to merge; give --lora FILE")
    weights = read_weights(source)
    if run and weights_digest(weights.tensors()) != base["digest"]:
        raise UserError(f"{source}: is no longer what {loras[0]} was trained beside; put it back")
    if run and not _same_form(run["config"]["model"], weights):
        raise UserError(
            f"{loras[0]}: changes {source} as another kind of model, with other inputs; merge it "
            f"with fluxsmith export {loras[0]} {out} --format bfl"
        )
    network = dict(weights.network)
    refuse_others(network, weights.origin)
    changes: dict[str, list[LowRank]] = {}
    for lora in read_specs(loras):
        check_lora_fits(lora, network)
        for change in lora.changes:
            changes.setdefault(f"{change.layer}.weight", []).append(change)
    for name, own in changes.items():
        network[name] = merged(network[name], own, dtype)
    make_folder(out.parent, "OUT")
    write_tensors(out, network, _metadata(weights), dtype)
    if not weights.text:
        return [out]
    write_tensors(text_file(out), weights.text, {"format": "pt"}, dtype)
    return [out, text_file(out)]


def _same_form(model: Mapping[str, Any], weights: Weights) -> bool:
    """Whether weights are those of a config's model section, guidance input and pictures alike."""
    guided = any(name.startswith("guidance_in.") for name in weights.network)
    given = model.get("conditioning", "text")
    return (guided, weights.conditioning) == (model["guidance_embed"], given)


def _metadata(weights: Weights) -> dict[str, str]:
    """What is known of the weights, and from what `fluxsmith import` gives the whole model, where
    it was one of ours."""
    found = {"format": "pt", **spec_of(weights.metadata.get("source", {}))}
    if weights.config is None:
        return found
    about = travelling(weights.metadata)
    notes = Notes(config=portable(weights.config), step=weights.step, metadata=about)
    return found | {NOTES: notes.model_dump_json()}


def extract(
    before: Path, after: Path, out: Path, rank: int, form: str, dtype: torch.dtype | None
) -> float:
    """Writes the LoRA that turns one model into another as well as this rank can; returns how much
    of all that differs it holds, as a share of the squared norm. A warning says where learned text
    encoders differ, which no LoRA changes; a UserError where networks take or give other things."""
    check_lora_file(out, form)
    refuse_existing(out)
    first, second = read_weights(before), read_weights(after)
    old, new = first.network, second.network
    for network, path in ((old, before), (new, after)):
        try:
            refuse_others(network, str(path))
        except UserError:
            if lora_run(path):
                told = f"{path}: is a LoRA already; fluxsmith lora convert {path} {out}"
                raise UserError(told) from None
            raise
    for key in ("prediction", "conditioning"):
        was, is_now = getattr(first, key), getattr(second, key)
        if was != is_now:
            raise UserError(
                f"{after} is not {before} trained further: its {key} is {is_now}, and was {was}"
            )
    odd = [name for name in {**old, **new} if _shape(old, name) != _shape(new, name)]
    if odd:
        raise UserError(
            f"{after} is not {before} trained further: {odd[0]} is {_shape(new, odd[0])}, and was "
            f"{_shape(old, odd[0])}"
        )
    changes, total, held = [], 0.0, 0.0
    for name, weight in new.items():
        difference = weight.float() - old[name].float()
        if not difference.isfinite().all():
            raise UserError(f"{name} of {before} or {after} holds numbers that are not finite")
        total += float(difference.square().sum())
        if weight.ndim == 2 and difference.any():
            changes.append(nearest(name.removesuffix(".weight"), difference, rank))
            held += changes[-1].norm() ** 2
    apart = sum(
        float((text.float() - first.text[name].float()).square().sum())
        for name, text in second.text.items()
        if _shape(first.text, name) == _shape(second.text, name)
    )
    total += apart
    if apart or first.text.keys() != second.text.keys():
        log.warning(
            "%s has another text encoder than %s, learned with it: the LoRA does not change that, "
            "so %s with it draws something else", after, before, before,
        )  # fmt: skip
    if not changes:
        raise UserError(f"{before} and {after} have the same weights; there is nothing to extract")
    write_lora(out, changes, form, dtype=dtype)
    return held / total


def describe(lora: Lora) -> Iterator[tuple[str, str]]:
    """What there is to know of a LoRA, as rows of a table."""
    changes = lora.changes
    yield "format", lora.form
    yield "layers", f"{len({c.layer for c in changes})}, {len(changes)} pairs of matrices"
    yield "rank", _counted(change.rank for change in changes)
    yield "alpha / rank", _counted(f"{change.scale:g}" for change in changes)
    yield "dtype", _counted(str(change.up.dtype).removeprefix("torch.") for change in changes)
    if lora.left_out:
        yield (
            "left out",
            (
                f"{len(lora.left_out)} tensors of text encoders, for which sample refuses it; "
                f"fluxsmith lora convert --without-text writes it without them"
            ),
        )
    yield "parameters", f"{sum(c.down.numel() + c.up.numel() for c in changes):,}"
    if words := ", ".join(_trigger_words(lora.metadata)):
        yield "trigger words", words
    for key, value in lora.metadata.items():
        if key != "format":  # "pt", of every file
            yield key, shorten(value, 100)
    squares: dict[str, float] = {}
    for change in changes:
        block = ".".join(change.layer.split(".")[:2])
        squares[block] = squares.get(block, 0.0) + change.norm() ** 2
    for block, square in squares.items():
        yield f"norm of {block}", f"{square**0.5:.4g}"


def _counted(values: Iterable[object]) -> str:
    """The only value, or each with how often it occurs."""
    counted = Counter(values)
    if len(counted) == 1:
        return str(next(iter(counted)))
    return ", ".join(f"{value} ({n} times)" for value, n in counted.most_common())


def _trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """By modelspec's word for them, or else the tags that kohya counted most often."""
    if words := metadata.get("modelspec.trigger_phrase"):
        return [words]
    counted: Counter[str] = Counter()
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # whoever wrote it
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            counted.update(tags)
    return [tag.strip() for tag, _ in counted.most_common(5)]


def _shape(network: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(network[name].shape)) if name in network else "not there"
