"""The text of a run: encoded before the first step where the encoders are frozen, and what its
padding costs."""

import time
from collections.abc import Sequence

import torch

from fluxsmith.config import RunConfig
from fluxsmith.data.imageset import ImageSet, distinct
from fluxsmith.data.records import Shards, Split, front_to_back
from fluxsmith.data.sources import open_source
from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.model.flops import forward_flops
from fluxsmith.pipeline import Pipeline, build_text_encoder, caption_fault
from fluxsmith.randomness import generator
from fluxsmith.text.encoder import NULL_PROMPT
from fluxsmith.text.frozen import FrozenText
from fluxsmith.text.padding import batch_length
from fluxsmith.training.console import ProgressConsole

BATCHES = 8  # drawn to estimate the share of padding


def prepare_text(
    pipeline: Pipeline, captions: Sequence[str], others: Sequence[str] = ()
) -> list[str]:
    """Encodes the captions of a run before it starts, and others that it will need; returns what
    there is to say of it.

    A learned encoder has nothing to prepare. A frozen one isn't needed afterwards, and is freed.
    """
    text = pipeline.text
    if not isinstance(text, FrozenText):
        cut = [count for count in text.token_counts(captions) if count > text.max_tokens]
        return [_cut_line(len(cut), text.max_tokens, max(cut))] if cut else []
    more = [*others, *_test_captions(pipeline.config), NULL_PROMPT]
    lines = encode_prompts(text, [*captions, *more])
    train = pipeline.config.train
    batches = likely_batches(pipeline.config, captions, train.batch_size // train.accumulate)
    return [*lines, padding(pipeline, text, batches)]


def keep_text(pipeline: Pipeline) -> None:
    """Leaves to later runs what was encoded on the way."""
    if isinstance(pipeline.text, FrozenText):
        pipeline.text.cache.flush()


def encode_captions(config: RunConfig) -> list[str]:
    """Puts the embedding of every caption of a config's data into the cache, those it is tested
    with too; returns what was done."""
    if config.text.encoder == "bytes":
        raise UserError(
            "text.encoder=bytes: is learned with the model, so there is nothing to encode before "
            "training; use clip_t5 or transformers, or set autoencoder.cache for latents"
        )
    if config.text.cache == "memory":
        raise UserError("text.cache=memory: keeps nothing for later runs; set it to a folder")
    text = build_text_encoder(config, pick_device(config.device))
    assert isinstance(text, FrozenText)
    of_data = [*_captions(config, "train"), *_captions(config, "test")]
    return encode_prompts(text, [*of_data, *(config.sample.prompts or ()), NULL_PROMPT])


def encode_prompts(text: FrozenText, prompts: Sequence[str]) -> list[str]:
    """Fills the cache, with a progress bar; returns what was done."""
    missing = len(text.missing(prompts))
    with ProgressConsole() as console:
        began = time.monotonic()

        def show(done: int) -> None:
            left = (time.monotonic() - began) / done * (missing - done)
            console.report(f"encoded {done:,} of {missing:,} prompts", left, done == missing)

        text.prepare(prompts, show)
    names = " and ".join(part.name for part in text.parts.values())
    distinct = len(set(prompts))
    lines = [
        f"text        {distinct:,} prompts by {names}, {missing:,} of them encoded now; "
        f"embeddings in {text.cache.folder or 'memory'}"
    ]
    counts = map(text.counts, prompts)
    cut = [(needed, real) for real, needed in counts if needed > real]
    if cut:
        longest, limit = max(cut)
        lines.append(_cut_line(len(cut), limit, longest))
    return lines


def _cut_line(many: int, limit: int, longest: int) -> str:
    return f"text        {many:,} prompts are cut at {limit} tokens; the longest makes {longest}"


def padding(pipeline: Pipeline, text: FrozenText, batches: Sequence[Sequence[str]]) -> str:
    """How much of the text that the network is fed in these batches of captions is padding, and the
    share of its forward pass that this costs."""
    params = pipeline.network.params
    image_tokens = pipeline.image_tokens(pipeline.latent_shape)
    fed = real = spent = needed = 0
    for captions in batches:
        own = [text.counts(caption)[0] for caption in captions]
        length = batch_length(own, text.padding, text.max_tokens)
        fed += length * len(own)
        real += sum(own)
        spent += forward_flops(params, length, image_tokens) * len(own)
        needed += sum(forward_flops(params, count, image_tokens) for count in own)
    each = fed / sum(map(len, batches))
    return (
        f"padding     {text.padding}: {1 - real / fed:.1%} of the {each:.1f} text tokens a prompt "
        f"are padding, which costs {1 - needed / spent:.1%} of the network's compute"
    )


def likely_batches(config: RunConfig, captions: Sequence[str], size: int) -> list[list[str]]:
    """Batches of so many captions, each as likely as the others, dropped as in training."""
    dropout, batches = config.data.caption_dropout, []
    for i in range(BATCHES):
        draw = generator(config.seed, "padding", i)
        which = torch.randint(len(captions), (size,), generator=draw).tolist()
        dropped = (torch.rand(size, generator=draw) < dropout).tolist()
        chosen = zip(which, dropped, strict=True)
        batches.append([NULL_PROMPT if gone else captions[j] for j, gone in chosen])
    return batches


def _captions(config: RunConfig, split: Split) -> list[str]:
    """Every caption of a split, from the source itself: no image is decoded for it."""
    source = open_source(config.data, split, caption_fault(config))
    if isinstance(source, ImageSet):
        return source.distinct_captions()
    if isinstance(source, Shards):
        return distinct(record.captions for record in front_to_back(source))
    return distinct(source.captions())


def _test_captions(config: RunConfig) -> list[str]:
    """Those that evaluating on the way will need; a stream isn't read through for them."""
    if not config.evaluate.every or not config.evaluate.metrics:
        return []
    if isinstance(open_source(config.data, "test"), Shards):
        return []
    return _captions(config, "test")
