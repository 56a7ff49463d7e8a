"""The text of a run: encoded before the first step where the encoders are frozen, and what its
padding costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fluxsmith.config import RunConfig
from fluxsmith.data.imageset import ImageSet, distinct
from fluxsmith.data.records import Shards
from fluxsmith.data.settings import Split
from fluxsmith.data.sources import open_source
from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.model.cost import forward_flops
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import generator
from fluxsmith.text import build
from fluxsmith.text.encoder import NULL_PROMPT
from fluxsmith.text.frozen import FrozenText
from fluxsmith.text.padding import batch_length
from fluxsmith.training.console import SECONDS_BETWEEN_LINES

BATCHES = 8  # drawn to estimate the share of padding


def prepare_text(pipeline: Pipeline, captions: Sequence[str]) -> list[str]:
    """Encodes the captions of a run before it starts; returns what there is to say of it.

    A learned encoder has nothing to prepare. A frozen one isn't needed afterwards, and is freed.
    """
    text = pipeline.text
    if not isinstance(text, FrozenText):
        return []
    lines = encode_prompts(text, [*captions, *_test_captions(pipeline.config), NULL_PROMPT])
    return [*lines, str(padding(pipeline, text, _likely_batches(pipeline.config, captions)))]


def keep_text(pipeline: Pipeline) -> None:
    """Leaves to later runs what was encoded on the way."""
    if isinstance(pipeline.text, FrozenText):
        pipeline.text.flush()


def encode_captions(config: RunConfig) -> list[str]:
    """Puts the embedding of every caption of a config's data into the cache, those it is tested
    with too; returns what was done."""
    if config.text.encoder == "bytes":
        raise UserError(
            "text.encoder=bytes: is learned with the model, so there is nothing to encode before "
            "training; use clip_t5 or transformers"
        )
    if config.text.cache == "memory":
        raise UserError("text.cache=memory: keeps nothing for later runs; set it to a folder")
    settings = config.text.settings()
    text = build(config.text.encoder, pick_device(config.device), **settings)
    assert isinstance(text, FrozenText)
    return encode_prompts(
        text, [*_captions(config, "train"), *_captions(config, "test"), NULL_PROMPT]
    )


def encode_prompts(text: FrozenText, prompts: Sequence[str]) -> list[str]:
    """Fills the cache, with a progress bar; returns what was done."""
    missing = len(text.missing(prompts))
    with _Bar(missing) as bar:
        text.prepare(prompts, bar.show, quiet=True)
    names = " and ".join(part.source.name for part in text.encoders.parts.values())
    distinct = len(set(prompts))
    lines = [
        f"text        {distinct:,} prompts by {names}, {missing:,} of them encoded now; "
        f"embeddings in {text.cache.folder or 'memory'}"
    ]
    cut = [(needed, real) for real, needed in text.counts(prompts) if needed > real]
    if cut:
        longest, limit = max(cut)
        lines.append(
            f"text        {len(cut):,} prompts are cut at {limit} tokens; the longest makes "
            f"{longest}"
        )
    return lines


class _Bar:
    """How many prompts are encoded: a bar in a terminal, a line now and then in a file."""

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("encoding text"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            disable=not (total and self._console.is_terminal),
        )
        self._task = self._progress.add_task("", total=total)
        self._total, self._last_line = total, time.monotonic()

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int) -> None:
        self._progress.update(self._task, completed=done)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._console.print(f"encoded {done:,} of {self._total:,} prompts")


@dataclass(frozen=True)
class Padding:
    """How much of the text that a network is fed is padding, and what that costs."""

    padding: str  # trim, mask or full
    length: float  # tokens that a prompt takes up, on average
    tokens: float  # share of these that are padding
    compute: float  # share of the network's forward pass that they cost

    def __str__(self) -> str:
        return (
            f"padding     {self.padding}: {self.tokens:.1%} of the {self.length:.1f} text tokens a "
            f"prompt are padding, which costs {self.compute:.1%} of the network's compute"
        )


def padding(pipeline: Pipeline, text: FrozenText, batches: Sequence[Sequence[str]]) -> Padding:
    """The padding of some batches of captions."""
    params = pipeline.network.params
    image_tokens = pipeline.image_tokens(pipeline.latent_shape)
    fed = real = spent = needed = 0
    for captions in batches:
        own = [count for count, _ in text.counts(captions)]
        length = batch_length(own, text.padding, text.max_tokens)
        fed += length * len(own)
        real += sum(own)
        spent += forward_flops(params, length, image_tokens) * len(own)
        needed += sum(forward_flops(params, count, image_tokens) for count in own)
    prompts = sum(map(len, batches))
    return Padding(text.padding, fed / prompts, 1 - real / fed, 1 - needed / spent)


def _likely_batches(config: RunConfig, captions: Sequence[str]) -> list[list[str]]:
    """Batches of captions, each as likely as the others, dropped as in training."""
    size, dropout = config.train.batch_size // config.train.accumulate, config.data.caption_dropout
    batches = []
    for i in range(BATCHES):
        draw = generator(config.seed, "padding", i)
        which = torch.randint(len(captions), (size,), generator=draw).tolist()
        dropped = (torch.rand(size, generator=draw) < dropout).tolist()
        chosen = zip(which, dropped, strict=True)
        batches.append([NULL_PROMPT if gone else captions[j] for j, gone in chosen])
    return batches


def _captions(config: RunConfig, split: Split) -> list[str]:
    """Every caption of a split, from the source itself: no image is decoded for it."""
    source = open_source(config.data.settings(), split)
    if isinstance(source, ImageSet):
        return source.distinct_captions()
    if not isinstance(source, Shards):
        return distinct(source.captions())
    shards = range(len(source))
    return distinct(record.captions for shard in shards for _, record in source.read(shard, 0))


def _test_captions(config: RunConfig) -> list[str]:
    """Those that evaluating on the way will need; a stream isn't read through for them."""
    if not config.evaluate.every or not config.evaluate.metrics:
        return []
    if isinstance(open_source(config.data.settings(), "test"), Shards):
        return []
    return _captions(config, "test")
