"""Every setting of a run, typed, with its explanation beneath it, checked when it is built.

The explanations are what `fluxsmith config show` and the JSON schema print.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from fluxsmith.data.settings import DataSettings


def _whole(value: Any) -> Any:
    """Lets 1e4 stand for 10000 where a whole number is wanted."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_switch(value: Any) -> Any:
    """Keeps true from counting as 1."""
    if isinstance(value, (bool, float)):
        raise PydanticCustomError("no_switch", "must be 1 or 3")
    return value


# Upper bounds are far above any use: they keep a slip of the finger from filling the memory.
MOST = 10**9
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=MOST), BeforeValidator(_whole)]
Interval = Annotated[int, Field(ge=0, le=MOST), BeforeValidator(_whole)]
Layers = Annotated[int, Field(ge=0, le=1000), BeforeValidator(_whole)]
Width = Annotated[int, Field(ge=1, le=2**17), BeforeValidator(_whole)]
Pixels = Annotated[int, Field(ge=1, le=2**14), BeforeValidator(_whole)]
SolverSteps = Annotated[int, Field(ge=1, le=10**5), BeforeValidator(_whole)]
Rate = Annotated[float, Field(gt=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Unknown keys, wrong types and values that are no numbers are errors everywhere."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


# What only some sources understand: how the images are read, and what goes to the source itself.
READING_KEYS = ("in_memory", "workers", "shuffle_buffer", "max_bad")
FILES = ("caption_key", "test_share", "workers", "max_bad")
KEYS_OF: dict[str, tuple[str, ...]] = {
    "digits": (),
    "mnist": (),
    "colored-digits": ("base", "hold_out"),
    "folder": (*FILES, "templates", "in_memory"),
    "hf": (
        *FILES, "templates", "in_memory", "shuffle_buffer", "streaming", "image_key", "subset",
        "train_split", "test_split",
    ),
    "webdataset": (*FILES, "shuffle_buffer", "test_path"),
}  # fmt: skip
SOURCE_KEYS = tuple(dict.fromkeys(key for keys in KEYS_OF.values() for key in keys))


class DataConfig(Section):
    source: Literal["digits", "mnist", "colored-digits", "folder", "hf", "webdataset"]
    """The data set: digits (embedded), mnist, colored-digits, folder, hf or webdataset."""
    path: str | None = None
    """Where it lies: a folder, a file, tar shards or a hub id; of mnist searched for by default."""
    image_size: Pixels = 32
    """Height and width of the images that the model sees, in pixels."""
    channels: Annotated[Literal[1, 3], BeforeValidator(_no_switch)] = 1
    """1 for grey, 3 for RGB; any source is converted."""
    resize: Literal["pad", "center-crop", "random-crop", "stretch"] = "pad"
    """How images reach image_size: pad with black, cut the longer side, or stretch."""
    flip: bool = False
    """Mirror half of the images, left to right. Wrong for digits and letters."""
    caption_dropout: Share = 0.1
    """Share of captions replaced by the empty prompt, which guidance needs."""
    image_key: str | None = None
    """hf: the column of the images; the only one of images by default."""
    caption_key: str | list[str] | None = None
    """hf, folder, webdataset: the column or key of the captions, or several of hf's."""
    templates: list[str] | None = None
    """hf, folder: captions of a class, {} for its name; by default "a photo of a {}"."""
    subset: str | None = None
    """hf: the configuration of the data set, where it has several."""
    train_split: str | None = None
    """hf: the split to train on; train by default."""
    test_split: str | None = None
    """hf: the split to test on; test or validation by default, else a share held out."""
    test_path: str | None = None
    """webdataset: shards to test on; by default a share held out."""
    test_share: Share | None = None
    """hf, folder, webdataset: share held out where there are no test images; 0.05 by default."""
    streaming: bool | None = None
    """hf: read from front to back as it comes, without keeping a copy; false by default."""
    base: Literal["digits", "mnist"] | None = None
    """colored-digits: the digits that are painted; digits by default."""
    hold_out: list[list[str | int]] | None = None
    """colored-digits: pairs of colour and digit that training never sees, such as [red, 7]."""
    in_memory: Literal["auto"] | bool | None = None
    """hf, folder: decode all images at the start; auto, the default, up to 2 GiB."""
    workers: Count | None = None
    """hf, folder, webdataset: threads that decode images; 2 by default."""
    shuffle_buffer: Count | None = None
    """hf streaming, webdataset: images shuffled together; 1000 by default."""
    max_bad: Share | None = None
    """hf, folder, webdataset: share of images that may be unreadable; 0.01 by default."""

    @model_validator(mode="after")
    def _keys_belong(self) -> "DataConfig":
        streamed = self.source == "webdataset" or bool(self.streaming)
        for key in SOURCE_KEYS:
            value = getattr(self, key)
            if value is None or key in KEYS_OF[self.source]:
                continue
            raise ValueError(
                f"data.{key}={value}: the source data.source={self.source} has no {key}; remove "
                f"the key"
            )
        if self.shuffle_buffer is not None and not streamed:
            raise ValueError(
                f"data.shuffle_buffer={self.shuffle_buffer}: is for streams, and all images are "
                f"shuffled here; remove the key or set data.streaming=true"
            )
        if self.in_memory is not None and streamed:
            raise ValueError(
                f"data.in_memory={self.in_memory}: a stream is never in memory; remove the key or "
                f"set data.streaming=false"
            )
        if self.in_memory is True and self.resize == "random-crop":
            raise ValueError(
                "data.in_memory=True: data.resize=random-crop cuts anew each epoch, from images on "
                "disk; remove the key or use center-crop"
            )
        if isinstance(self.caption_key, list) and self.source != "hf":
            raise ValueError(
                f"data.caption_key={self.caption_key}: data.source={self.source} takes one key, "
                f"whose value may be a list of captions"
            )
        return self

    def settings(self) -> "DataSettings":
        """The same as the data package takes them."""
        from fluxsmith.data.settings import (
            DataSettings,  # with torch, which a config can do without
        )

        given = {key: getattr(self, key) for key in SOURCE_KEYS if getattr(self, key) is not None}
        reading = {key: given.pop(key) for key in READING_KEYS if key in given}
        return DataSettings(
            source=self.source,
            path=self.path,
            image_size=self.image_size,
            channels=self.channels,
            resize=self.resize,
            flip=self.flip,
            caption_dropout=self.caption_dropout,
            options=given,
            **reading,
        )


# What each text encoder has in the text section, with its defaults; None must be given.
TEXT_KEYS: dict[str, dict[str, Any]] = {
    "bytes": {"width": 768, "hidden_size": 128, "depth": 1, "max_tokens": 64},
    "clip_t5": {
        "padding": "trim",
        "cache": "auto",
        "clip": "openai/clip-vit-large-patch14",
        "clip_tokens": 77,
        "clip_dtype": "float32",
        "clip_device": "network",
        "t5": "google/t5-v1_1-base",
        "t5_tokens": 128,
        "t5_dtype": "float32",
        "t5_device": "network",
    },
    "transformers": {
        "max_tokens": 128,
        "padding": "trim",
        "cache": "auto",
        "pretrained": None,
        "pretrained_dtype": "float32",
        "pretrained_device": "network",
    },
}
TextDtype = Literal["float32", "bfloat16", "float16"] | None
TextDevice = Literal["network", "auto", "cpu", "cuda", "mps"] | None


class TextConfig(Section):
    encoder: Literal["bytes", "clip_t5", "transformers"] = "bytes"
    """bytes, learned with the model; clip_t5, FLUX.1's two; transformers, any one pretrained."""
    width: Width | None = None
    """bytes: width of the tokens and of the pooled vector that it gives; 768 by default."""
    hidden_size: Annotated[
        int | None, Field(ge=64, le=2**17, multiple_of=64), BeforeValidator(_whole)
    ] = None
    """bytes: width inside the encoder, a multiple of 64; 128 by default."""
    depth: Layers | None = None
    """bytes: transformer layers inside the encoder; 1 by default."""
    max_tokens: Width | None = None
    """bytes: the longest prompt, a word of up to 16 bytes is a token, 64; transformers: 128."""
    padding: Literal["trim", "mask", "full"] | None = None
    """trim to a batch's longest prompt and mask; mask to the end; full: attend to it as FLUX.1."""
    cache: str | None = None
    """Folder for embeddings on disk; auto: the usual cache folder; memory: none on disk."""
    clip: str | None = None
    """clip_t5: hub id or folder of CLIP; openai/clip-vit-large-patch14 by default."""
    clip_tokens: Width | None = None
    """clip_t5: tokens that CLIP reads of a prompt; 77 by default."""
    clip_dtype: TextDtype = None
    """clip_t5: arithmetic of CLIP; float32 by default."""
    clip_device: TextDevice = None
    """clip_t5: where CLIP runs; network, by default, is where the network runs."""
    t5: str | None = None
    """clip_t5: hub id or folder of T5; google/t5-v1_1-base by default."""
    t5_tokens: Width | None = None
    """clip_t5: tokens of a prompt that the network gets; 128 by default, FLUX.1 dev 512."""
    t5_dtype: TextDtype = None
    """clip_t5: arithmetic of T5; float32 by default."""
    t5_device: TextDevice = None
    """clip_t5: where T5 runs; network, by default, is where the network runs."""
    pretrained: str | None = None
    """transformers: hub id or folder of the encoder."""
    pretrained_dtype: TextDtype = None
    """transformers: arithmetic of the encoder; float32 by default."""
    pretrained_device: TextDevice = None
    """transformers: where it runs; network, by default, is where the network runs."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Fills in what the encoder has by default."""
        if not isinstance(data, dict):
            return data
        encoder = data.get("encoder", "bytes")
        defaults = TEXT_KEYS.get(encoder, {}) if isinstance(encoder, str) else {}
        return defaults | {key: value for key, value in data.items() if value is not None}

    @model_validator(mode="after")
    def _keys_belong(self) -> "TextConfig":
        own = TEXT_KEYS[self.encoder]
        for key, value in self.model_dump(exclude={"encoder"}, exclude_none=True).items():
            if key not in own:
                raise ValueError(
                    f"text.{key}={value}: text.encoder={self.encoder} has no {key}; remove the "
                    f"key (it has {', '.join(own)})"
                )
        for key in own:
            if getattr(self, key) is None:
                raise ValueError(f"text.{key}: missing; text.encoder={self.encoder} needs it")
        return self

    def settings(self) -> dict[str, Any]:
        """The encoder's own settings."""
        return {key: getattr(self, key) for key in TEXT_KEYS[self.encoder]}


class AutoencoderConfig(Section):
    kind: Literal["pixel", "flux"] = "pixel"
    """What the flow runs on: pixel, images themselves; flux, latents of FLUX.1's autoencoder."""
    weights: str | None = None
    """flux: the file of its weights, ae.safetensors, or a diffusers vae/ folder."""
    tile_size: Interval = 0
    """flux: larger pictures are coded in overlapping tiles of so many pixels; 0: never."""
    max_batch: Interval = 0
    """flux: pictures coded at once, to save memory; 0: the whole batch."""

    @model_validator(mode="after")
    def _keys_belong(self) -> "AutoencoderConfig":
        if self.kind == "flux" and self.weights is None:
            raise ValueError(
                "autoencoder.weights: missing; name the file of FLUX.1's autoencoder, such as "
                "ae.safetensors"
            )
        for key in ("weights", "tile_size", "max_batch"):
            value = getattr(self, key)
            if self.kind == "pixel" and value:
                raise ValueError(
                    f"autoencoder.{key}={value}: pixels need no autoencoder; remove the key or set "
                    f"autoencoder.kind=flux"
                )
        return self


class ModelConfig(Section):
    patch_size: Pixels = 8
    """An image token covers patch_size x patch_size pixels."""
    hidden_size: Width = 384
    """Width of the network; num_heads heads of hidden_size / num_heads."""
    num_heads: Width = 6
    """Attention heads."""
    depth: Layers = 6
    """Dual-stream blocks: text and image with weights of their own."""
    depth_single_blocks: Layers = 12
    """Single-stream blocks over text and image together."""
    axes_dim: list[Count] = Field(default=[16, 24, 24], min_length=3, max_length=3)
    """Channels of a head that the rotary embedding gives to (index, row, column)."""
    mlp_ratio: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """Inner width of the MLPs, in multiples of hidden_size."""
    theta: Positive = 10000.0
    """Base of the rotary frequencies."""
    qkv_bias: bool = True
    """Whether the query, key and value projections of dual-stream blocks have a bias."""
    guidance_embed: bool = False
    """Whether the network takes the guidance scale as an input; plain training feeds it 1."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        hidden, heads = self.hidden_size, self.num_heads
        if hidden % heads:
            below = hidden - hidden % heads
            options = " or ".join(str(n) for n in (below, below + heads) if n)
            raise ValueError(
                f"model.hidden_size={hidden}: not divisible by model.num_heads={heads}; "
                f"use {options}"
            )
        if sum(self.axes_dim) != hidden // heads:
            raise ValueError(
                f"model.axes_dim={self.axes_dim}: sums to {sum(self.axes_dim)}; must sum to the "
                f"head size, model.hidden_size / model.num_heads = {hidden // heads}"
            )
        if any(width % 2 for width in self.axes_dim):
            raise ValueError(f"model.axes_dim={self.axes_dim}: each must be even")
        return self


class FlowConfig(Section):
    timesteps: Literal["uniform", "logit_normal", "mode", "shifted"] = "logit_normal"
    """Density of the training timesteps: uniform, logit_normal, mode or shifted."""
    mean: float | None = None
    """logit_normal: the mean of logit(t); 0 by default, above 0 leans towards noise."""
    scale: float | None = None
    """logit_normal: standard deviation of logit(t), 1 by default; mode: its scale, 1.29."""
    shift: Positive | None = None
    """shifted: how far the density leans towards noise; 3 by default, 1 is uniform."""
    stratified: bool = True
    """Spread each batch's timesteps evenly over the density: the same density, less variance."""

    @model_validator(mode="after")
    def _parameters_belong(self) -> "FlowConfig":
        takes = {"logit_normal": {"mean", "scale"}, "mode": {"scale"}, "shifted": {"shift"}}
        allowed = takes.get(self.timesteps, set())
        for key, value in self.parameters().items():
            if key not in allowed:
                raise ValueError(
                    f"flow.{key}={value}: the density flow.timesteps={self.timesteps} has no "
                    f"{key}; remove the key or choose another density"
                )
        if self.timesteps == "logit_normal" and self.scale is not None and self.scale <= 0:
            raise ValueError(f"flow.scale={self.scale}: must be above 0")
        if self.timesteps == "mode" and self.scale is not None and not -1 <= self.scale <= 1.75:
            raise ValueError(f"flow.scale={self.scale}: the mode density takes -1 to 1.75")
        return self

    def parameters(self) -> dict[str, float]:
        """The density's parameters that were given."""
        given = {"mean": self.mean, "scale": self.scale, "shift": self.shift}
        return {key: value for key, value in given.items() if value is not None}


class TrainConfig(Section):
    steps: Count = 1000
    """Optimiser steps in all."""
    batch_size: Count = 64
    """Images an optimiser step sees."""
    init_from: str | None = None
    """Weights to start from in place of new ones: a checkpoint, a BFL file, a diffusers folder."""
    accumulate: Count = 1
    """Pieces that a batch is cut into to save memory; the gradients stay the same."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: Interval = 100
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "cosine", "linear_tail"] = "linear_tail"
    """What follows: constant, cosine to 0, or constant with a last part linear to 0."""
    tail: Share | None = None
    """linear_tail: the share of the steps over which the rate falls to 0; 0.3 by default."""
    weight_decay: NotNegative = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    betas: list[Decay] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """AdamW's decay rates of the first and second moment."""
    grad_clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: Decay = 0.999
    """Decay of the moving average of the weights that samples are drawn with; warmed up."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network: bfloat16 is autocast over float32 weights; auto means on CUDA."""
    log_every: Count = 10
    """Steps between lines of metrics.jsonl, TensorBoard points and console updates."""
    sample_every: Interval = 0
    """Steps between sample grids; 0: never."""
    checkpoint_every: Interval = 1000
    """Steps between checkpoints; 0: only the last one."""
    keep_checkpoints: Interval = 2
    """Newest checkpoints kept; 0: all."""
    keep_every: Interval = 0
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    background_save: bool = True
    """Write checkpoints while training goes on; takes memory for one more copy of its state."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """When a checkpoint can't be written: continue and try again at the next interval, or stop."""
    max_bad_steps: Count = 10
    """Steps in a row with a loss or gradient that is not finite, all skipped, before a run ends."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the network's blocks (torch.compile); auto: where the run is long enough to gain."""
    cuda_graphs: bool = False
    """Capture steps as CUDA graphs: for networks whose kernels are quicker than their launch."""
    deterministic: bool = False
    """Equal to the bit on a GPU too, where equal runs otherwise differ a little; slower there."""

    @model_validator(mode="after")
    def _weights_decay(self) -> "TrainConfig":
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"train.weight_decay={self.weight_decay}: times train.learning_rate="
                f"{self.learning_rate} must be below 1, or the weights grow; use a lower one"
            )
        return self

    @model_validator(mode="after")
    def _tail_belongs(self) -> "TrainConfig":
        if self.tail is not None and self.schedule != "linear_tail":
            raise ValueError(
                f"train.tail={self.tail}: the schedule train.schedule={self.schedule} has no tail; "
                f"remove the key or use linear_tail"
            )
        return self


class SampleConfig(Section):
    solver: Literal["euler", "heun", "midpoint"] = "euler"
    """ODE solver: euler (one evaluation a step), heun or midpoint (two, second order)."""
    steps: SolverSteps = 20
    """Solver steps from noise to data."""
    schedule: Literal["uniform", "flux"] = "uniform"
    """Grid of times: uniform, or bent for large images as FLUX.1 does."""
    guidance: float = 2.0
    """Guidance scale; 1 is off, one evaluation in place of two."""
    guidance_method: Literal["cfg", "embedded"] = "cfg"
    """cfg: classifier-free, two evaluations; embedded: the scale is an input of the network."""
    guidance_interval: list[Share] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    """The lowest and highest t at which classifier-free guidance is on."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network in sampling; bfloat16 is quicker on GPUs and less repeatable."""
    num_samples: Count = 16
    """Pictures drawn when no prompts are given, and in the grids during training."""


class EvaluateConfig(Section):
    every: Interval = 1000
    """Steps between evaluations of the averaged weights during training; 0: never."""
    metrics: list[Literal["validation_loss", "prompt_accuracy", "diversity", "straightness"]] = [
        "validation_loss"
    ]
    """What is measured during training; `fluxsmith evaluate` measures more."""
    num_samples: Count = 200
    """Pictures drawn for the metrics that need pictures."""
    validation_images: Count = 100
    """Test images that the validation loss is taken of."""


class RunConfig(Section):
    """A whole run. Build it with `read_config`, which resolves `name` and `output_dir`."""

    name: str | None = None
    """Name of the run; the config file's by default."""
    seed: Whole = 0
    """Everything random in the run follows from this."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; auto takes CUDA, then MPS, then the CPU."""
    output_dir: str | None = None
    """Folder of the run; output/ + the config's path below configs/ by default."""
    data: DataConfig
    text: TextConfig = TextConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    model: ModelConfig = ModelConfig()
    flow: FlowConfig = FlowConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _names_are_names(self) -> "RunConfig":
        if self.name is not None and (set(self.name) & set("/\\") or not self.name.isprintable()):
            raise ValueError(
                f"name={self.name!r}: must be a name, without slashes or control characters; the "
                f"folder of the run is output_dir"
            )
        if self.output_dir is not None and not self.output_dir.isprintable():
            raise ValueError(f"output_dir={self.output_dir!r}: must not hold control characters")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> "RunConfig":
        size, patch = self.data.image_size, self.model.patch_size
        if size % patch:
            below = size - size % patch
            options = " or ".join(str(n) for n in (below, below + patch) if n)
            raise ValueError(
                f"data.image_size={size}: not divisible by model.patch_size={patch}; use {options}"
            )
        train, sample = self.train, self.sample
        if train.batch_size % train.accumulate:
            raise ValueError(
                f"train.accumulate={train.accumulate}: must divide "
                f"train.batch_size={train.batch_size}"
            )
        if sample.guidance_method == "embedded" and not self.model.guidance_embed:
            raise ValueError(
                "sample.guidance_method=embedded: the network has no guidance input; set "
                "model.guidance_embed=true or use cfg"
            )
        if sample.guidance_method == "embedded" and sample.guidance_interval != [0.0, 1.0]:
            raise ValueError(
                f"sample.guidance_interval={sample.guidance_interval}: is for "
                f"sample.guidance_method=cfg; remove the key or use cfg"
            )
        low, high = sample.guidance_interval
        if low > high:
            raise ValueError(
                f"sample.guidance_interval=[{low}, {high}]: the lowest t comes first; swap them"
            )
        return self

    @property
    def resolved_output_dir(self) -> str:
        if self.output_dir is None:
            raise ValueError("output_dir is not resolved: build the config with read_config")
        return self.output_dir
