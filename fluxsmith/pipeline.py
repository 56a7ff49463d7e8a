"""The one way to call the model: built from a config or a checkpoint, it encodes text and gives the
velocity of images. Training, validation, the solvers and teachers all go through `velocity`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fluxsmith import autoencoder as autoencoders
from fluxsmith import text as encoders
from fluxsmith.autoencoder import Autoencoder
from fluxsmith.autoencoder.conditioning import ImageCondition, image_condition
from fluxsmith.autoencoder.pixel import PixelAutoencoder
from fluxsmith.config import RunConfig, SampleConfig
from fluxsmith.config.comparing import free_keys
from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.data.loader import Batch
from fluxsmith.device import autocast, computing_dtype, for_each, pick_device, shapes_only
from fluxsmith.errors import UserError
from fluxsmith.flow.path import velocity_from_x0
from fluxsmith.model.flux import Flux, FluxParams
from fluxsmith.model.tokens import image_ids, patchify, text_ids, token_grid, unpatchify
from fluxsmith.randomness import address_seed
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.model_parts import read_part
from fluxsmith.storage.stores import open_store
from fluxsmith.text.encoder import TextEmbedding, TextEncoder, TextInput
from fluxsmith.text.frozen import FrozenText

Load = Callable[[dict[str, Tensor]], object]  # of tensors by name, into a model
Built = TypeVar("Built", bound="Pipeline")


class Pipeline(nn.Module):
    """A text encoder, a Flux and an autoencoder, together a text-to-image model."""

    def __init__(
        self, config: RunConfig, network: Flux, text: TextEncoder, autoencoder: Autoencoder
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.text = text  # a submodule where it is learned, and only there
        self.autoencoder = autoencoder
        # Of the checkpoint that this came from; a new model has none.
        self.step = 0
        self.captions: list[str] = []
        self.source: dict[str, Any] = {}  # what is known of weights that were made elsewhere
        self.base: dict[str, str] = {}  # path and digest of the weights beneath an adapter

    @classmethod
    def build(
        cls: type[Built],
        config: RunConfig,
        device: torch.device | str = "cpu",
        empty: bool = False,
        inside: AbstractContextManager[Any] | None = None,
    ) -> Built:
        """A new model, its weights drawn from config.seed, the same on every device. `empty`: the
        network has shapes but no weights, until `load_weights(assign=True)` brings them, in their
        own dtype and from wherever they are, without a copy. The network is built `inside` this
        context, where there is one."""
        autoencoder = build_autoencoder(config, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(address_seed(config.seed, "weights"))
            text = build_text_encoder(config, device)
            with shapes_only() if empty else nullcontext(), inside or nullcontext():
                network = Flux(flux_params(config, autoencoder, text))
        pipeline = cls(config, network, text, autoencoder)
        return pipeline if empty else pipeline.to(device)

    @classmethod
    def from_checkpoint(
        cls: type[Built],
        path: str | Path,
        device: str = "auto",
        weights: str = "ema",
        overrides: Sequence[str] = (),
        mapped: bool = False,
    ) -> Built:
        """The model in a checkpoint; `weights` is `ema` (the average) or `model` (the raw ones).

        `overrides` say where files lie on this machine, such as `text.t5=FOLDER`. `mapped`: the
        weights stay mapped from the file, and the caller puts them on the device, at once or block
        by block.
        """
        if weights not in ("ema", "model"):
            raise UserError(f"weights={weights}: must be ema or model")
        on, contents, origin = pick_device(device), checkpoints.load(path), str(path)
        told = deepcopy(contents["config"])
        settings = with_overrides(told, overrides, [*free_keys(told), "train.init_from"])
        pipeline = cls.build(build_config(settings, origin, saved=True), on, empty=True)
        check_autoencoder(pipeline.autoencoder, contents["metadata"], origin)
        pipeline.restore(contents, weights, origin)
        pipeline.expect_frozen(contents["metadata"], origin)
        pipeline.step = contents["step"]
        pipeline.captions = list(contents["metadata"].get("captions", []))
        pipeline.source = dict(contents["metadata"].get("source", {}))
        if not mapped:
            pipeline.to(on)
            pipeline.network.to(computing_dtype(pipeline.network))
        return pipeline.eval()

    def restore(self, contents: Mapping[str, Any], weights: str, origin: str) -> None:
        """Takes over the weights of a checkpoint, ema or model, without a copy."""
        self.load_weights(contents[weights], origin, assign=True)

    def frozen_metadata(self) -> dict[str, Any]:
        """What a checkpoint's metadata says of the parts that it doesn't hold: frozen encoders, and
        the weights beneath an adapter."""
        found: dict[str, Any] = {"base": self.base} if self.base else {}
        if isinstance(self.text, FrozenText):
            found["text"] = self.text.identity.metadata()
        return found

    def expect_frozen(self, metadata: Mapping[str, Any], origin: str) -> None:
        """Holds these parts to those that a checkpoint was trained with."""
        if isinstance(self.text, FrozenText):
            self.text.identity.expect(metadata.get("text", {}), origin)
        told = metadata.get("base", self.base)  # weights that were imported don't say
        if told.get("digest") != self.base.get("digest"):
            raise UserError(
                f"train.init_from: {origin} was trained beside the weights {told.get('digest')} of "
                f"{told.get('path')}, and {self.base.get('path')} holds {self.base.get('digest')}; "
                f"name the file that it was trained with"
            )

    def trained_state(self) -> dict[str, Tensor]:
        """The state without what is frozen."""
        frozen = self._frozen()
        return {name: x for name, x in self.state_dict().items() if name not in frozen}

    def _frozen(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if not p.requires_grad}

    def load_weights(
        self,
        weights: dict[str, Tensor],
        origin: str,
        assign: bool = False,
        load: Load | None = None,
    ) -> None:
        """Loads tensors by name, copied into the model's own (by `load`, where that is for another
        to do) or, with `assign`, in their place; those that are frozen may be missing. A UserError
        names the first that don't fit."""
        weights = {**self._frozen(), **weights}
        try:
            if load is None:
                self.load_state_dict(weights, assign=assign)
            else:
                load(weights)
        except RuntimeError as error:
            found = shorten(str(error), 300)
            raise UserError(
                f"{origin} doesn't fit this model: {found}; was it another config's?"
            ) from None

    @property
    def device(self) -> torch.device:
        return self.network.img_in.weight.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of what the flow runs on, at the config's image size."""
        size = self.config.data.image_size
        return self.latent_shape_of(size, size)

    def latent_shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w) of what the flow runs on, for pictures of height x width pixels."""
        factor = self.autoencoder.factor
        return self.autoencoder.channels, height // factor, width // factor

    def shape_of(self, batch: Batch) -> tuple[int, int, int]:
        """(c, h, w) of what the flow runs on for a batch of training pictures."""
        channels, height, width = batch.images.shape[1:]
        return (channels, height, width) if batch.encoded else self.latent_shape_of(height, width)

    def encode(self, batch: Batch) -> Tensor:
        """What the flow learns of a batch, (b, c, h, w): rounded, so that a cache changes nothing.
        Batches that bring latents bring these."""
        if batch.encoded:
            return batch.images
        return self.autoencoder.encode(batch.images).to(self.autoencoder.dtype).float()

    @property
    def size_unit(self) -> int:
        """Heights and widths in pixels are multiples of this."""
        return self.autoencoder.factor * self.config.model.patch_size

    def image_tokens(self, shape: tuple[int, int, int]) -> int:
        """The network's image tokens for latents of this shape."""
        _, height, width = shape
        rows, columns = token_grid(height, width, self.config.model.patch_size)
        return rows * columns

    def image_condition(self, images: Tensor, mask: Tensor | None = None) -> ImageCondition | None:
        """What the network sees of pictures (b, c, H, W) in [-1, 1], and of a mask (b, 1, H, W), 1
        where they are drawn anew; None for a model of text alone."""
        return image_condition(self.config.model.conditioning, self.autoencoder, images, mask)

    def encode_text(self, prompts: Sequence[str], precision: str = "float32") -> TextEmbedding:
        """The prompts as the network takes them, one row each."""
        with autocast(self.device, precision):
            return self.text(prompts).to(self.device)

    def embed_text(self, read: TextInput, precision: str = "float32") -> TextEmbedding:
        """The same from what the text encoder's `read` gives: the part that the device does."""
        with autocast(self.device, precision):
            return self.text.embed(read).to(self.device)

    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        cond: TextEmbedding,
        guidance: float | Tensor = 1.0,
        precision: str = "float32",
        image_cond: ImageCondition | None = None,
    ) -> Tensor:
        """The velocity of x (b, c, h, w) at times t, (b,) or a scalar, in float32.

        `guidance`, one scale or (b,), reaches networks with a guidance input; the others have no
        use for it but 1. `precision` is the network's: float32, bfloat16, or auto. `image_cond` is
        what `image_condition` gives.
        """
        b, _, height, width = x.shape
        model, patch = self.config.model, self.config.model.patch_size
        embeds = model.guidance_embed
        if not embeds and (isinstance(guidance, Tensor) or guidance != 1):
            raise ValueError(f"guidance {guidance} given to a network without a guidance input")
        if (image_cond is None) != (model.conditioning == "text"):
            wants = "takes no" if image_cond is not None else "needs an"
            raise ValueError(f"a model of conditioning {model.conditioning} {wants} image_cond")
        tokens, ids = self._image_tokens(x, image_cond or ImageCondition())
        with autocast(self.device, precision):
            predicted = self.network(
                img=tokens,
                img_ids=ids,
                txt=cond.tokens,
                txt_ids=text_ids(cond.tokens.shape[1], x.device),
                timesteps=for_each(t, b, x.device),
                y=cond.pooled,
                guidance=for_each(guidance, b, x.device) if embeds else None,
                txt_mask=cond.mask,
            )
        rows, columns = token_grid(height, width, patch)
        predicted = predicted[:, : rows * columns]  # without those of a reference
        predicted = unpatchify(predicted.float(), patch, height, width)
        if self.config.flow.prediction == "data":
            return velocity_from_x0(x, predicted, torch.as_tensor(t, device=x.device))
        return predicted

    def _image_tokens(self, x: Tensor, given: ImageCondition) -> tuple[Tensor, Tensor]:
        """x and what is given with it as tokens (b, l, features), and their ids."""
        b, _, height, width = x.shape
        patch = self.config.model.patch_size
        grids = [token_grid(height, width, patch)]
        if given.channels is not None:
            x = torch.cat((x, given.channels.expand(b, -1, -1, -1)), dim=1)
        tokens = patchify(x, patch)  # (b, l, c p p)
        if given.reference is not None:
            reference = patchify(given.reference, patch).expand(b, -1, -1)
            tokens = torch.cat((tokens, reference), dim=1)
            _, _, rows, columns = given.reference.shape
            grids.append(token_grid(rows, columns, patch))
        return tokens, image_ids(*grids[0], x.device, *grids[1:])

    def digest(self, sample: SampleConfig | None = None) -> str:
        """A short digest of every weight and of the settings that shape a picture beside those a
        call names: the model's sections, image size and channels, and some of `sample`, which is
        the config's unless another is given."""
        free = free_keys(self.config.model_dump(include={"text"}))
        own = {key.removeprefix("text.") for key in free if "text." in key}
        settings = self.config.model_dump(
            include={"data": {"image_size", "channels"}, "text": True, "model": True},
            # too_long is about captions of data
            exclude={"text": own | {"too_long"}, "model": {"conditioning"}},
            exclude_none=True,
        )
        drawn = sample or self.config.sample
        settings["sample"] = drawn.model_dump(
            include={"schedule", "guidance_method", "guidance_interval", "precision"}
        )
        if self.config.model.conditioning != "text":
            settings["conditioning"] = self.config.model.conditioning
        if bent := drawn.model_dump(include=drawn.own_keys(), exclude_defaults=True):
            settings["schedule"] = bent
        if self.config.flow.prediction != "velocity":
            settings["prediction"] = self.config.flow.prediction
        settings["autoencoder"] = self.autoencoder.digest
        if isinstance(self.text, FrozenText):
            settings["encoders"] = dict(self.text.identity.digests())
        return weights_digest(self.state_dict(), repr(settings))


def weights_digest(weights: Mapping[str, Tensor], settings: str = "") -> str:
    """A short digest of tensors by name, and of what else is to be told apart by it."""
    found = hashlib.sha256(settings.encode())
    for name, tensor in sorted(weights.items()):
        found.update(name.encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(data.numpy().data)
    return found.hexdigest()[:16]


def build_text_encoder(config: RunConfig, device: torch.device | str) -> TextEncoder:
    """The text encoder that a config names, new where it is learned."""
    store = open_store("text", getattr(config.text, "cache", "memory"))
    encoder = encoders.build(config.text, torch.device(device), store)
    if isinstance(encoder, FrozenText):
        encoder.open_files_with(read_part)
    return encoder


def caption_fault(config: RunConfig) -> Callable[[str], str] | None:
    """Says of a caption why the text encoder can't take it, "" where it can; None where every
    caption is taken, since long ones are cut (text.too_long)."""
    if getattr(config.text, "too_long", "cut") == "cut":
        return None
    with torch.random.fork_rng(devices=[]):  # a learned encoder would draw its weights
        encoder = build_text_encoder(config, "cpu")
    most = encoder.max_tokens

    def fault(caption: str) -> str:
        (count,) = encoder.token_counts([caption])
        if count <= most:
            return ""
        return (
            f"its caption makes {count} tokens and the text encoder takes {most}; set "
            f"text.max_tokens={count} or text.too_long=cut"
        )

    return fault


def parameters_at_least(config: RunConfig) -> int:
    """The parameters of a config's model, before anything of it is built: counted on torch's meta
    device, with the fewest channels that an autoencoder can have."""
    with shapes_only(), torch.random.fork_rng(devices=[]):
        text = build_text_encoder(config, "meta")
        network = Flux(flux_params(config, PixelAutoencoder(1), text))
    learned = [module for module in (network, text) if isinstance(module, nn.Module)]
    return sum(p.numel() for module in learned for p in module.parameters())


def build_autoencoder(config: RunConfig, device: torch.device | str) -> Autoencoder:
    """The autoencoder that a config names, checked to fit its images."""
    channels = config.data.channels
    autoencoder = autoencoders.build(config.autoencoder, device, read_part, channels)
    fit_autoencoder(config, autoencoder)
    return autoencoder


def fit_autoencoder(config: RunConfig, autoencoder: Autoencoder) -> None:
    """Raises a UserError where a config's images are not for this autoencoder."""
    channels, size = config.data.channels, config.data.image_size
    if autoencoder.image_channels != channels:
        raise UserError(
            f"data.channels={channels}: the autoencoder {config.autoencoder.weights} takes images "
            f"of {autoencoder.image_channels}; set data.channels={autoencoder.image_channels}"
        )
    unit = autoencoder.factor * config.model.patch_size
    if size % unit:
        options = " or ".join(str(n) for n in (size - size % unit, size - size % unit + unit) if n)
        raise UserError(
            f"data.image_size={size}: not divisible by {unit}, the autoencoder's factor "
            f"{autoencoder.factor} times model.patch_size={config.model.patch_size}; use {options}"
        )
    if config.data.buckets != "off" and config.data.bucket_step % unit:
        raise UserError(
            f"data.bucket_step={config.data.bucket_step}: must be a multiple of {unit}, the "
            f"autoencoder's factor times model.patch_size; use {unit}"
        )


def check_autoencoder(autoencoder: Autoencoder, metadata: Mapping[str, Any], origin: str) -> None:
    """Raises a UserError where a checkpoint was trained in the latents of another autoencoder."""
    trained = metadata.get("autoencoder", autoencoder.digest)  # imported weights don't say
    if trained != autoencoder.digest:
        raise UserError(
            f"autoencoder.weights: {origin} was trained with the autoencoder {trained}, and this "
            f"one is {autoencoder.digest}; name the file that it was trained with"
        )


def flux_params(config: RunConfig, autoencoder: Autoencoder, text: TextEncoder) -> FluxParams:
    """The network's sizes: those of the config, and the widths that follow from its neighbours."""
    sizes = config.model.model_dump(exclude={"patch_size", "conditioning"})
    in_channels, out_channels = image_widths(config, autoencoder.channels, autoencoder.factor)
    return FluxParams(
        in_channels=in_channels,
        out_channels=out_channels,
        vec_in_dim=text.pooled_width,
        context_in_dim=text.token_width,
        **sizes,
    )


def image_widths(config: RunConfig, channels: int, factor: int) -> tuple[int, int | None]:
    """FluxParams' in_channels and out_channels, for an autoencoder of so many latent channels. A
    fill model sees as many of the kept picture, and the mask's pixels, in each latent's place."""
    area = config.model.patch_size**2
    if config.model.conditioning != "fill":
        return channels * area, None
    return (2 * channels + factor**2) * area, channels * area
