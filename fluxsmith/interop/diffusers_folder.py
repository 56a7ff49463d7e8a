"""A model as diffusers reads it: the parts that its own pipelines are made of, each in a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fluxsmith.autoencoder import flux_files
from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_names import to_diffusers
from fluxsmith.interop.diffusers_scheduler import SCHEDULER, schedule_to_diffusers
from fluxsmith.interop.read_weights import PIPELINES
from fluxsmith.interop.text_folders import write_text_encoders
from fluxsmith.model.flux import FluxParams
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage.files import make_folder, write_text
from fluxsmith.storage.tensor_files import Dtype, beside, write_sharded, write_tensors
from fluxsmith.text.encoder import NULL_PROMPT

WEIGHTS = "diffusion_pytorch_model.safetensors"  # what diffusers looks for in a folder
PROMPTS_KEPT = 256  # the embeddings of so many captions travel with a model

# What diffusers' pipelines need beside transformer and scheduler.
REST = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def write_parts(
    pipeline: Pipeline,
    out: Path,
    dtype: Dtype,
    metadata: Mapping[str, str],
    largest: int | None = None,
) -> bool:
    """Fills the folder: transformer/ and scheduler/, and vae/, text encoders and tokenizers if the
    model has them. True if they make a whole pipeline; otherwise the embeddings of prompts are
    written too, for those who draw with the parts. `metadata` is that of the transformer's file, or
    shards of at most `largest` bytes."""
    network, autoencoder = pipeline.network, pipeline.autoencoder
    parts = {
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "scheduler": ("diffusers", SCHEDULER),
    }
    _write_json(out / "transformer/config.json", transformer_config(network.params))
    weights = to_diffusers(network.state_dict())
    write_sharded(out / "transformer" / WEIGHTS, weights, metadata, dtype, largest)
    scheduler = schedule_to_diffusers(pipeline.config.sample)
    _write_json(out / "scheduler/scheduler_config.json", scheduler)
    if isinstance(autoencoder, FluxAutoencoder):
        parts["vae"] = ("diffusers", "AutoencoderKL")
        _write_json(out / "vae/config.json", flux_files.diffusers_config(autoencoder))
        weights = flux_files.to_diffusers(autoencoder.network)
        write_tensors(out / "vae" / WEIGHTS, weights, {"format": "pt"}, beside(dtype))
    parts |= write_text_encoders(pipeline, out)
    # FluxPipeline takes 2x2 patches of latents, a network's output for the velocity, and tokens of
    # padding for text.
    config = pipeline.config
    fits = config.model.patch_size == 2 and config.flow.prediction == "velocity"
    fits &= getattr(config.text, "padding", None) == "full"
    whole = set(REST) <= parts.keys() and fits
    if whole:
        named = pipeline_class(pipeline.config.model.conditioning)
        index = {"_class_name": named, **{k: list(v) for k, v in parts.items()}}
        _write_json(out / "model_index.json", index)
    else:
        write_prompts(pipeline, out / "prompts.safetensors")
    return whole


def pipeline_class(conditioning: str) -> str:
    """diffusers' pipeline for models that are given this."""
    return next(name for name, given in PIPELINES.items() if given == conditioning)


def check_diffusers(params: FluxParams, fix: str) -> None:
    """Raises a UserError for networks that diffusers' class has no settings for."""
    for key, only in {"mlp_ratio": 4.0, "theta": 10_000, "qkv_bias": True}.items():
        if (value := getattr(params, key)) != only:
            raise UserError(f"model.{key}={value}: diffusers' Flux knows {key}={only} only; {fix}")


def transformer_config(params: FluxParams) -> dict[str, Any]:
    """The config.json of diffusers' FluxTransformer2DModel."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": params.hidden_size // params.num_heads,
        "axes_dims_rope": list(params.axes_dim),
        "guidance_embeds": params.guidance_embed,
        "in_channels": params.in_channels,
        "joint_attention_dim": params.context_in_dim,
        "num_attention_heads": params.num_heads,
        "num_layers": params.depth,
        "num_single_layers": params.depth_single_blocks,
        "out_channels": params.out_channels,
        "pooled_projection_dim": params.vec_in_dim,
    }


@torch.no_grad()
def write_prompts(pipeline: Pipeline, path: Path) -> None:
    """The embeddings of the data set's captions and of the empty prompt, for programs without our
    text encoder: for prompt i `tokens.i` (t, d) and `pooled.i` (p,); the prompts themselves are in
    the metadata."""
    prompts = [NULL_PROMPT, *pipeline.captions[: PROMPTS_KEPT - 1]]
    tensors = {}
    for i, prompt in enumerate(prompts):
        found = pipeline.encode_text([prompt])
        tensors[f"tokens.{i}"] = found.tokens[0].float().cpu()
        tensors[f"pooled.{i}"] = found.pooled[0].float().cpu()
    write_tensors(path, tensors, {"prompts": json.dumps(prompts)})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    make_folder(path.parent, "OUT")
    write_text(path, json.dumps(data, indent=2) + "\n")
