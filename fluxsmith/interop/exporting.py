"""A trained model as others read it: one file with BFL's keys, or a folder for diffusers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith import checkpoint as checkpoints
from fluxsmith.autoencoder import flux_files
from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.errors import UserError
from fluxsmith.files import make_folder, write_text
from fluxsmith.interop import embedded
from fluxsmith.interop.card import write_card
from fluxsmith.interop.diffusers_names import to_diffusers
from fluxsmith.model.flux import FluxParams
from fluxsmith.pipeline import Pipeline
from fluxsmith.tensorfile import write_tensors
from fluxsmith.text.encoder import NULL_PROMPT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = "diffusion_pytorch_model.safetensors"  # what diffusers looks for in a folder
FORMATS = ("bfl", "diffusers")
PROMPTS_KEPT = 256  # embeddings of so many captions travel with a learned text encoder


def export(
    checkpoint: Path,
    out: Path,
    form: str,
    weights: str,
    dtype: str | None,
    scores: Path | None,
    samples: bool,
) -> list[Path]:
    """Writes the model of a checkpoint in one of the FORMATS; what was written."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: must be one of {', '.join(DTYPES)}")
    if form == "bfl" and scores is not None:
        raise UserError(f"--scores {scores}: goes into the model card of --format diffusers")
    path = checkpoints.newest(checkpoint)
    pipeline = Pipeline.from_checkpoint(path, "cpu", weights)
    if form == "bfl":
        return export_bfl(pipeline, out, dtype)
    written = export_diffusers(pipeline, out, dtype)
    whole = (out / "model_index.json").is_file()
    drawable = samples and bool(pipeline.captions)
    return written + write_card(pipeline, out, scores=scores, samples=drawable, whole=whole)


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


def export_diffusers(pipeline: Pipeline, out: Path, dtype: str | None) -> list[Path]:
    """transformer/ and scheduler/, and vae/, text encoders and tokenizers where the model has
    them; a whole FluxPipeline where diffusers' own code can run all of it."""
    check_diffusers(pipeline.network.params)
    make_folder(out, "OUT")
    parts = {
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    }
    _write_part(
        out / "transformer",
        transformer_config(pipeline.network.params),
        converted(to_diffusers(pipeline.network.state_dict()), dtype),
    )
    _write_json(
        out / "scheduler" / "scheduler_config.json",
        scheduler_config(pipeline.config.sample.schedule),
    )
    if isinstance(pipeline.autoencoder, FluxAutoencoder):
        parts["vae"] = ("diffusers", "AutoencoderKL")
        weights = flux_files.to_diffusers(pipeline.autoencoder.network)
        _write_part(
            out / "vae",
            flux_files.diffusers_config(pipeline.autoencoder),
            converted(weights, dtype),
        )
    parts |= _write_text_encoders(pipeline, out)
    text = learned_text(pipeline)
    embedded.write_folder(out, about(pipeline), converted(text, dtype))
    if text:
        write_prompts(pipeline, out / "prompts.safetensors")
    if is_whole(pipeline, parts):
        index = {"_class_name": "FluxPipeline", **{k: list(v) for k, v in parts.items()}}
        _write_json(out / "model_index.json", index)
    return sorted(path for path in out.iterdir() if not path.name.startswith("."))


def about(pipeline: Pipeline) -> dict[str, Any]:
    """What importing the export needs to know beside its weights."""
    return {
        "config": pipeline.config.model_dump(),
        "step": pipeline.step,
        "metadata": {"captions": pipeline.captions, "autoencoder": pipeline.autoencoder.digest},
    }


def is_whole(pipeline: Pipeline, parts: Mapping[str, Any]) -> bool:
    """Whether FluxPipeline can draw with these parts: it takes 2x2 patches of latents."""
    needed = {"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    return needed <= parts.keys() and pipeline.config.model.patch_size == 2


def check_diffusers(params: FluxParams) -> None:
    """Raises a UserError for networks that diffusers' class has no setting for."""
    fixed = {"mlp_ratio": 4.0, "theta": 10_000, "qkv_bias": True}
    for key, only in fixed.items():
        value = getattr(params, key)
        if value != only:
            raise UserError(
                f"model.{key}={value}: diffusers' Flux knows {key}={only} only; use --format bfl"
            )


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
        "patch_size": 1,
        "pooled_projection_dim": params.vec_in_dim,
    }


def scheduler_config(schedule: str) -> dict[str, Any]:
    """The scheduler_config.json of diffusers' FlowMatchEulerDiscreteScheduler; its shift is that of
    `flow.schedule.flux_mu`."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": schedule == "flux",
    }


def learned_text(pipeline: Pipeline) -> dict[str, Tensor]:
    """The learned text encoder's weights under its own names; none where it is frozen."""
    own = pipeline.state_dict().items()
    return {name.removeprefix("text."): t for name, t in own if name.startswith("text.")}


@torch.no_grad()
def write_prompts(pipeline: Pipeline, path: Path) -> None:
    """The embeddings of the data set's captions and of the empty prompt, which is what a program
    without our text encoder needs to draw: for prompt i `tokens.i` (t, d) and `pooled.i` (p,), the
    prompts themselves in the metadata."""
    prompts = [NULL_PROMPT, *pipeline.captions[: PROMPTS_KEPT - 1]]
    tensors = {}
    for i, prompt in enumerate(prompts):
        found = pipeline.encode_text([prompt])
        tensors[f"tokens.{i}"] = found.tokens[0].float().cpu()
        tensors[f"pooled.{i}"] = found.pooled[0].float().cpu()
    write_tensors(path, tensors, {"prompts": json.dumps(prompts)})


def converted(tensors: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """In the dtype asked for, or as they are."""
    if dtype is None:
        return dict(tensors)
    return {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}


def _write_text_encoders(pipeline: Pipeline, out: Path) -> dict[str, tuple[str, str]]:
    """text_encoder/ and tokenizer/ for CLIP, text_encoder_2/ and tokenizer_2/ for T5."""
    encoders = getattr(pipeline.text, "encoders", None)
    if encoders is None or encoders.kind != "clip_t5":
        return {}
    parts = {}
    for name, number in (("clip", ""), ("t5", "_2")):
        encoder = encoders.parts[name]
        for part, saved in (("text_encoder", encoder.model), ("tokenizer", encoder.tokenizer)):
            saved.save_pretrained(out / f"{part}{number}")
            parts[f"{part}{number}"] = ("transformers", type(saved).__name__)
    return parts


def _write_part(folder: Path, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    make_folder(folder, "OUT")
    _write_json(folder / "config.json", config)
    write_tensors(folder / WEIGHTS, weights, {"format": "pt"})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    make_folder(path.parent, "OUT")
    write_text(path, json.dumps(data, indent=2) + "\n")
