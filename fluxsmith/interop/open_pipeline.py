"""The model to draw with, from a checkpoint of ours or from a config and released weights; and
weights of any form for a new training run to start from."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.adapters.layers import add_changes, merge
from fluxsmith.adapters.low_rank import LowRank
from fluxsmith.config import RunConfig, read_config
from fluxsmith.config.adapter_section import AdapterConfig
from fluxsmith.device import named_dtype, pick_device
from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_scheduler import schedule_from_diffusers
from fluxsmith.interop.fit_weights import fitted
from fluxsmith.interop.infer_params import check_fits
from fluxsmith.interop.lora_files import check_lora_fits, read_specs
from fluxsmith.interop.provenance import after_training
from fluxsmith.interop.read_weights import Weights, read_weights, require_text
from fluxsmith.kernels.offload import check_mode, place
from fluxsmith.pipeline import Load, Pipeline, check_autoencoder, weights_digest
from fluxsmith.sampling.generate import OnStep, Sampler
from fluxsmith.sampling.request import CONFIGS
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.hub_folder import HUB_ID
from fluxsmith.storage.shipped import shipped_folder
from fluxsmith.storage.weight_files import SAFETENSORS
from fluxsmith.text.encoder import NULL_PROMPT
from fluxsmith.text.frozen import FrozenText

log = logging.getLogger(__name__)


class TextToImage(Pipeline):
    """A model that draws, from any checkpoint: what `from fluxsmith import Pipeline` gives."""

    def generate(
        self, prompts: Sequence[str], *, on_step: OnStep | None = None, **settings: Any
    ) -> Tensor:
        """One picture a prompt: (n, c, h, w) in [-1, 1], on the CPU.

        The settings are `steps`, `guidance`, `solver`, `seed`, `size` (height, width), `edit`,
        `first_index`, `batch_size`, `negative_prompt` and `true_guidance`; see `Sampler.generate`.
        """
        return Sampler(self).generate(prompts, on_step=on_step, **settings)

    def restore(self, contents: Mapping[str, Any], weights: str, origin: str) -> None:
        """As for any pipeline; an adapter's base is read from where it lay in training, or from
        train.init_from where that was changed."""
        adapter, moved = self.config.train.adapter.choice, self.config.train.init_from
        if adapter is None:
            super().restore(contents, weights, origin)
            return
        told, known = contents["config"]["train"]["init_from"], contents["metadata"]["base"]["path"]
        # As it was named in training may be where it is now: a model that ships, say.
        places = [known, told] if moved in (None, told) else [moved]
        there = [place for place in places if is_there(place)]
        if not there and not HUB_ID.fullmatch(places[0]):
            raise UserError(
                f"{origin}: changes the weights of {places[0]}, which is not there; say where they "
                f"are with --set train.init_from=PATH"
            )
        load_base(self, [*there, *places][0])
        add_changes(self.network, adapter.changes_in(contents[weights]))


def is_there(weights: str) -> bool:
    """Whether something of this name is on this machine: a file, a folder, a model that ships."""
    return Path(weights).exists() or shipped_folder(weights) is not None


def open_pipeline(
    source: Path,
    plan: Callable[[Pipeline, Path], Sequence[str]],
    *,
    weights: str = "ema",
    device: str = "auto",
    dtype: str | None = None,
    offload: str = "auto",
    overrides: Sequence[str] = (),
    loras: Sequence[str] = (),
) -> tuple[Pipeline, Path]:
    """The pipeline, and the file that it came from.

    `weights` is ema or model for a checkpoint (or a run's folder), and a path for a config. `plan`
    is called with both before anything large is loaded: it refuses what can't be drawn, and returns
    the prompts that will be. `dtype` is the network's, by default that of the file, and bfloat16
    for fp8. `offload` is one of `offload.MODES`. `loras` are files, or FILE:WEIGHT, to add.
    """
    named_dtype(dtype)
    check_mode(offload)
    released = source.suffix in CONFIGS
    if released == (weights in ("ema", "model")):
        raise UserError(
            f"--weights {weights}: give a file of weights with a config, such as "
            f"configs/flux1/schnell.yaml, and ema or model with a checkpoint"
        )
    if released:
        config = read_config(source, overrides)
        return open_released(
            config,
            Path(weights),
            lambda pipeline: plan(pipeline, source),
            device=config.device if device == "auto" else device,
            dtype=dtype,
            offload=offload,
            loras=loras,
        ), source
    _refuse_bare_weights(source)
    path = checkpoints.newest(source)
    pipeline = TextToImage.from_checkpoint(path, device, weights, overrides, mapped=True)
    changes = _changes(loras, pipeline)
    _encode_prompts(pipeline, plan(pipeline, path))
    add_changes(pipeline.network, changes, named_dtype(dtype))
    _place(pipeline, pick_device(device), dtype, offload)
    return pipeline, path


def open_released(
    config: RunConfig,
    weights: Path,
    plan: Callable[[Pipeline], Sequence[str]],
    *,
    device: str = "auto",
    dtype: str | None = None,
    offload: str = "auto",
    loras: Sequence[str] = (),
) -> Pipeline:
    """The model of a config, its network's weights from a file; otherwise as `open_pipeline`."""
    on = pick_device(device)
    pipeline = Pipeline.build(config, on, empty=True)
    known = read_weights(weights, shapes=True)
    _check_model(pipeline, known)
    _report_schedule(config, known)
    pipeline.expect_frozen(known.metadata, known.origin)
    pipeline.step = known.step
    pipeline.captions = list(known.metadata.get("captions", []))
    pipeline.source = dict(known.metadata.get("source", {}))
    changes = _changes(loras, pipeline)
    _encode_prompts(pipeline, plan(pipeline))
    pipeline.load_weights(_tensors(pipeline, read_weights(weights)), known.origin, assign=True)
    pipeline.requires_grad_(False)
    add_changes(pipeline.network, changes, named_dtype(dtype))
    _place(pipeline, on, dtype, offload)
    return pipeline.eval()


def load_initial(pipeline: Pipeline, path: str, load: Load | None = None) -> None:
    """Copies network and learned text encoder from `path` (of a checkpoint its average), as they
    are `fitted`, into a new model, for training to start from; by `load`, where the pipeline is not
    to do it itself."""
    weights = fitted(read_weights(path), pipeline.config, pipeline.network.params)
    _check_model(pipeline, weights)
    _report_schedule(pipeline.config, weights)
    pipeline.load_weights(_tensors(pipeline, weights), weights.origin, load=load)
    pipeline.source = after_training(weights.metadata.get("source", {}))


def load_base(pipeline: Pipeline, path: str) -> Weights:
    """Takes over the weights at `path`, whose like `load_initial` copies, for an adapter beside
    them: in their own dtype, from wherever they are. They are noted by the digest of what is there,
    from which the config makes them."""
    found = read_weights(path)
    weights = fitted(found, pipeline.config, pipeline.network.params)
    _check_model(pipeline, weights)
    pipeline.load_weights(_tensors(pipeline, weights), weights.origin, assign=True)
    here = Path(weights.origin)
    place_of_base = str(here.absolute()) if here.exists() else weights.origin  # a hub id
    pipeline.base = {"path": place_of_base, "digest": weights_digest(_tensors(pipeline, found))}
    pipeline.source = after_training(weights.metadata.get("source", {}))
    return weights


def with_adapter(config: RunConfig, device: torch.device) -> Pipeline:
    """A model to train: the frozen weights of train.init_from, and a new adapter beside them."""
    pipeline = Pipeline.build(config, device, empty=True)
    _report_schedule(config, load_base(pipeline, str(config.train.init_from)))
    pipeline.requires_grad_(False)
    config.train.adapter.choice.attach(pipeline.network, config.seed)
    return pipeline.to(device)


def merge_adapter(pipeline: Pipeline, dtype: torch.dtype | None) -> None:
    """Takes an adapter into the weights, in `dtype` or their own: then the model is a whole one."""
    merge(pipeline.network, dtype)
    whole = pipeline.config.train.model_copy(update={"adapter": AdapterConfig.model_validate({})})
    pipeline.config = pipeline.config.model_copy(update={"train": whole})
    pipeline.base = {}


def _changes(specs: Sequence[str], pipeline: Pipeline) -> list[LowRank]:
    """Those of LoRAs named on the command line, which must fit the network."""
    loras = read_specs(specs)
    for lora in loras:
        check_lora_fits(lora, pipeline.network.state_dict())
    return [change for lora in loras for change in lora.changes]


def _check_model(pipeline: Pipeline, weights: Weights) -> None:
    """Raises a UserError if the weights are not those of the config's model, were trained in the
    latents of another autoencoder or with pictures beside the text, or predict something else."""
    check_fits(weights.network, pipeline.network.params, weights.origin)
    check_autoencoder(pipeline.autoencoder, dict(weights.metadata), weights.origin)
    require_text(weights, pipeline.config.text.encoder)
    given = pipeline.config.model.conditioning
    if given == "text" != weights.conditioning:
        raise UserError(
            f"model.conditioning=text: the network in {weights.origin} is given a picture too; set "
            f"model.conditioning={weights.conditioning}"
        )
    wanted = pipeline.config.flow.prediction
    if weights.prediction != wanted:
        raise UserError(
            f"flow.prediction={wanted}: the network in {weights.origin} predicts the "
            f"{weights.prediction}; set flow.prediction={weights.prediction}"
        )


def _report_schedule(config: RunConfig, weights: Weights) -> None:
    """A warning where the folder of the weights says that they are drawn along other times than
    those of the config."""
    if (scheduler := weights.settings.get("scheduler")) is None:
        return
    said, own = schedule_from_diffusers(scheduler, weights.origin), config.sample.model_dump()
    if differing := {key: value for key, value in said.items() if own.get(key) != value}:
        log.warning(
            "%s: its scheduler says %s; sample.schedule=%s of the config holds",
            weights.origin, differing, config.sample.schedule,
        )  # fmt: skip


def _tensors(pipeline: Pipeline, weights: Weights) -> dict[str, torch.Tensor]:
    """The weights under the pipeline's names."""
    learned = isinstance(pipeline.text, nn.Module)
    return {n: t for n, t in weights.tensors().items() if learned or not n.startswith("text.")}


def _encode_prompts(pipeline: Pipeline, prompts: Sequence[str]) -> None:
    """Caches the embeddings of these prompts and of the empty one, and frees frozen encoders, so
    that they take no memory beside the network."""
    text = pipeline.text
    if isinstance(text, FrozenText):
        text([*prompts, NULL_PROMPT])
        text.cache.flush()
        text.release()


def _place(pipeline: Pipeline, device: torch.device, dtype: str | None, offload: str) -> None:
    place(pipeline.network, device, named_dtype(dtype), offload)
    if isinstance(pipeline.text, nn.Module):
        pipeline.text.to(device)


def _refuse_bare_weights(source: Path) -> None:
    """Raises a UserError for a file or folder that belongs to --weights or `fluxsmith import`."""
    folder = not checkpoints.find(source) and any(source.glob("**/*.safetensors"))
    if folder or source.suffix in SAFETENSORS:
        raise UserError(
            f"{source}: holds weights, which are no checkpoint yet; give a config and these with "
            f"--weights, or turn them into one: fluxsmith import {source} NAME.pt"
        )
