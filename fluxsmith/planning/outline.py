"""What a config's training needs from outside of it, also where that is not at hand: a plan is made
before data, encoders and autoencoder are fetched.

The text encoder is the config's own where it is learned. Frozen ones, and the pictures, are left
out of a step: what they give has a known shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluxsmith.autoencoder import Autoencoder
from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.autoencoder.network import AutoencoderNetwork, AutoencoderParams
from fluxsmith.config import RunConfig
from fluxsmith.config.objective_section import ObjectiveConfig
from fluxsmith.data import build_loader
from fluxsmith.data.loader import Batch, Loader, MemoryLoader
from fluxsmith.device import DTYPES, dtype_of_most, shapes_only
from fluxsmith.errors import UserError
from fluxsmith.interop.open_pipeline import is_there
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.model.flops import forward_flops, training_flops
from fluxsmith.model.flux import Flux, FluxParams
from fluxsmith.pipeline import (
    Pipeline,
    build_autoencoder,
    build_text_encoder,
    caption_fault,
    fit_autoencoder,
    flux_params,
)
from fluxsmith.text.encoder import TextEmbedding, TextEncoder
from fluxsmith.text.frozen import FrozenText
from fluxsmith.text.padding import batch_length
from fluxsmith.training.caption_encoding import likely_batches
from fluxsmith.training.holding import prepare
from fluxsmith.training.latent_encoding import keeps_latents, open_latents
from fluxsmith.training.objective import Cost, objective_of
from fluxsmith.training.trainer import Trainer

# Widths of the encoders that our configs name, as their published configurations have them.
WIDTHS = {
    "openai/clip-vit-large-patch14": 768,
    "google/t5-v1_1-base": 768,
    "google/t5-v1_1-xxl": 4096,
}
CPU = torch.device("cpu")
WORD = "word"  # a token of a learned encoder

Flops = Callable[[FluxParams, int, int], int]  # by a network's sizes, its text and image tokens


class KnownText:
    """Takes the place of frozen encoders: embeddings of the shapes that they give."""

    def __init__(self, encoder: FrozenText) -> None:
        self.encoder = encoder
        names = [part.name for part in (encoder.reader, *encoder.parts.values())]
        if all(name in WIDTHS for name in names):
            pooled = next((p for p in encoder.parts.values() if p is not encoder.reader), None)
            self.token_width = WIDTHS[encoder.reader.name]
            self.pooled_width = WIDTHS[(pooled or encoder.reader).name]
        else:
            self.token_width, self.pooled_width = encoder.token_width, encoder.pooled_width
        self.max_tokens = encoder.max_tokens
        self.is_here = encoder.reader.fingerprint() is not None

    def check(self, prompts: Sequence[str]) -> None: ...

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        if self.encoder.full or not self.is_here:
            return [self.max_tokens] * len(prompts)
        return self.encoder.token_counts(prompts)

    def __call__(self, prompts: Sequence[str]) -> TextEmbedding:
        return self.read(prompts)

    def embed(self, read: TextEmbedding) -> TextEmbedding:
        return read

    def read(self, prompts: Sequence[str], room: int = 0) -> TextEmbedding:
        own = [min(count, self.max_tokens) for count in self.token_counts(prompts)]
        length = batch_length(own, self.encoder.padding, self.max_tokens)
        masked = not self.encoder.full and min(own) < length
        return TextEmbedding(
            torch.zeros(len(own), length, self.token_width),
            torch.zeros(len(own), self.pooled_width),
            torch.arange(length) < torch.tensor(own)[:, None] if masked else None,
        )


class KnownLoader:
    """Takes the place of a loader whose batches are given."""

    digest = ""

    def __init__(self, captions: list[str]) -> None:
        self._captions = captions

    def captions(self) -> list[str]:
        return self._captions

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        raise NotImplementedError

    def position(self, step: int) -> dict[str, Any]:
        return {}

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None: ...

    def describe(self) -> str:
        return ""


@dataclass(frozen=True)
class Outline:
    """A config, with what is known here of all that it trains on."""

    config: RunConfig
    autoencoder: AutoencoderParams | None  # None: pixels
    captions: list[str]
    data: int  # bytes that its pictures take in memory
    stored: torch.dtype = torch.float32  # of the weights that training begins with
    cost: Cost = field(default_factory=Cost)  # of the objective
    notes: list[str] = field(default_factory=list)  # what was not here

    @classmethod
    def of(cls, config: RunConfig, loader: Loader | None = None) -> "Outline":
        """Opens the data, unless there is a loader of it already."""
        objective = objective_of(config)
        cost, needs_data = objective.cost(config), objective.needs_data(config)
        if cost is None:
            raise UserError(
                f"objective.kind={config.objective.kind}: says nothing of its cost, so it can't be "
                f"planned for"
            )
        if cost.teachers:  # a student's step is one of flow matching, beside its teacher's part
            plain = {"objective": ObjectiveConfig.model_validate({"kind": "flow_matching"})}
            config = config.model_copy(update=plain)
        notes: list[str] = []
        autoencoder = autoencoder_of(config, notes)
        try:
            loader = loader or build_loader(
                config.data, config.train.batch_size, config.seed, "cpu",
                caption_fault(config), open_latents(config),
            )  # fmt: skip
            captions = loader.captions()
        except UserError as error:
            most = _text(config).max_tokens
            captions = [" ".join([WORD] * most)]
            notes.append(f"captions are taken to have {most} tokens, the most they can: {error}")
        images = loader.images if needs_data and isinstance(loader, MemoryLoader) else []
        stored = torch.float32 if config.train.adapter.choice is None else _stored(config, notes)
        data = sum(x.nbytes for x in images)
        return cls(config, autoencoder, captions, data, stored, cost, notes)

    def trainer(self, config: RunConfig, device: torch.device = CPU) -> Trainer:
        """A trainer, at step 0, of a config that may have other sizes than the outline's."""
        text, autoencoder = _text(config), self._autoencoder(config, device)
        adapter, usual = config.train.adapter.choice, torch.get_default_dtype()
        try:
            torch.set_default_dtype(
                self.stored if adapter is None else adapter.dtype_of(self.stored)
            )
            with torch.random.fork_rng(devices=[]):
                network = Flux(flux_params(config, autoencoder, text))
        finally:
            torch.set_default_dtype(usual)
        pipeline = Pipeline(config, network, text, autoencoder)
        if adapter is not None:  # as `with_adapter` does, but for the weights
            pipeline.requires_grad_(False)
            adapter.attach(network, config.seed)
        if device != pipeline.device:  # tensors without numbers can't go anywhere
            pipeline.to(device)
        prepare(pipeline)
        objective, loader = objective_of(config).build(config, pipeline), KnownLoader(self.captions)
        pieces = config.parallel.pieces or 1
        return Trainer(config, pipeline, loader, objective, pieces=pieces)

    def learned(self, config: RunConfig, network: Flux) -> nn.Module:
        """All that is trained with a network."""
        return Pipeline(config, network, _text(config), self._autoencoder(config))

    def _autoencoder(self, config: RunConfig, device: torch.device = CPU) -> Autoencoder:
        if self.autoencoder is None:
            return build_autoencoder(config, str(device))
        section, network = config.autoencoder, AutoencoderNetwork(self.autoencoder)
        return FluxAutoencoder(
            network if device == CPU else network.to(device),
            tile_size=section.tile_size,
            max_batch=section.max_batch,
            dtype=DTYPES[section.latents],
        )

    def batch(self, captions: list[str], device: torch.device = CPU) -> Batch:
        """Some pictures with these captions."""
        data, encoded = self.config.data, keeps_latents(self.config)
        shape: tuple[int, ...] = data.channels, data.image_size, data.image_size
        if encoded and self.autoencoder is not None:
            side = data.image_size // self.autoencoder.factor
            shape = self.autoencoder.z_channels, side, side
        images = torch.zeros(len(captions), *shape, device=device)
        references = images if self.config.model.conditioning == "kontext" else None
        return Batch(images, captions, encoded, references)

    def likely(self, size: int) -> list[list[str]]:
        """The captions of some batches, as training meets them."""
        return likely_batches(self.config, self.captions, size)

    def fullest(self, size: int) -> list[str]:
        """Those of a batch with the longest caption in it."""
        counts = _text(self.config).token_counts(self.captions)
        longest = self.captions[max(range(len(counts)), key=counts.__getitem__)]
        return [longest, *self.likely(size)[0][1:]]

    def params(self, config: RunConfig) -> FluxParams:
        """Of the network."""
        with shapes_only():
            return flux_params(config, self._autoencoder(config), _text(config))

    def tokens(self, config: RunConfig) -> tuple[float, int]:
        """The text tokens that the network is fed with a picture, on average over likely batches,
        and the image's."""
        text, train = _text(config), config.train
        full = getattr(config.text, "padding", "trim") != "trim"
        lengths = [
            text.max_tokens
            if full
            else max(min(n, text.max_tokens) for n in text.token_counts(one))
            for one in self.likely(train.batch_size // train.accumulate)
        ]
        factor = 1 if self.autoencoder is None else self.autoencoder.factor
        side = config.data.image_size // factor // config.model.patch_size
        pictures = 2 if config.model.conditioning == "kontext" else 1
        return sum(lengths) / len(lengths), pictures * side * side

    def flops(self, config: RunConfig, of: Flops | None = None) -> float:
        """Of a picture, forward and backward, or in what else is counted."""
        txt, img = self.tokens(config)
        frozen = config.train.adapter.choice is not None
        of = of or (through_frozen if frozen else training_flops)
        low, high = (of(self.params(config), math.floor(txt) + more, img) for more in (0, 1))
        return low + (high - low) * (txt % 1)

    @property
    def passes(self) -> int:
        """Of a picture forward and backward in a step."""
        return 1 + self.cost.trained

    def of_a_step(self, config: RunConfig) -> float:
        """Of a picture in a step, with the passes that teach a student."""
        trained = self.passes * self.flops(config)
        return trained + self.cost.passes * self.flops(config, forward_flops)

    def computed(self, config: RunConfig) -> float:
        """The same with the forward pass of all blocks that is made again, to save memory."""
        again = self.passes * (config.parallel.checkpoint_activations == "blocks")
        return self.of_a_step(config) + again * self.flops(config, forward_flops)


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """The config with other values in some sections."""
    now = {name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    return config.model_copy(update=now)


def through_frozen(params: FluxParams, txt_tokens: int, img_tokens: int) -> int:
    """Of a picture forward and backward through frozen layers, where backward makes the product for
    the input alone."""
    return 2 * forward_flops(params, txt_tokens, img_tokens)


def _text(config: RunConfig) -> TextEncoder:
    with torch.random.fork_rng(devices=[]):  # a learned one draws its weights
        found = build_text_encoder(config, "cpu")
    return KnownText(found) if isinstance(found, FrozenText) else found


def _stored(config: RunConfig, notes: list[str]) -> torch.dtype:
    """The dtype of most of the weights beneath an adapter."""
    base = str(config.train.init_from)
    if is_there(base):
        return dtype_of_most(read_weights(base, shapes=True).network.values())
    notes.append(f"the frozen weights are taken to be bfloat16: there is no {base} here")
    return torch.bfloat16


def autoencoder_of(config: RunConfig, notes: list[str]) -> AutoencoderParams | None:
    """Its sizes, FLUX.1's where its file is not here, which is noted; None for pixels."""
    weights = getattr(config.autoencoder, "weights", None)
    if weights is None:
        return None
    if Path(weights).exists():
        built = build_autoencoder(config, "cpu")
        assert isinstance(built, FluxAutoencoder)
        return built.network.params
    notes.append(f"the autoencoder is taken to have FLUX.1's sizes: there is no {weights} here")
    params = AutoencoderParams()
    fit_autoencoder(config, FluxAutoencoder(AutoencoderNetwork(params)))
    return params
