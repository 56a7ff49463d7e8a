"""A model of released weights, ready to draw: a config says what it is, files bring the weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from fluxsmith.config import RunConfig
from fluxsmith.device import pick_device
from fluxsmith.interop.fitting import check_fits
from fluxsmith.interop.placing import check_placing, encode_prompts, place_model
from fluxsmith.interop.reading import Weights, read_weights, require_text
from fluxsmith.pipeline import Pipeline, check_autoencoder


def load_released(
    config: RunConfig,
    weights: Path,
    plan: Callable[[Pipeline], Sequence[str]],
    *,
    device: str = "auto",
    dtype: str | None = None,
    offload: str = "auto",
) -> Pipeline:
    """The pipeline, with the embeddings of the prompts that `plan` gives and of the empty one at
    hand. `plan` sees the model before anything large is loaded, and may refuse what can't be drawn.

    `dtype` is that of the network, by default the file's own, and bfloat16 for fp8 files. `offload`
    is `blocks`, `none`, or `auto`: blocks where the device's free memory is too small.
    """
    check_placing(dtype, offload)
    on = pick_device(device)
    pipeline = Pipeline.shaped(config, on)
    known = read_weights(weights, shapes=True)
    check_model(pipeline, known)
    pipeline.step = known.step
    pipeline.captions = list(known.metadata.get("captions", []))
    encode_prompts(pipeline, plan(pipeline))
    fill(pipeline, read_weights(weights))
    place_model(pipeline, on, dtype, offload)
    return pipeline.eval()


def check_model(pipeline: Pipeline, weights: Weights) -> None:
    """Raises a UserError where the weights are not those of the config's model, or are of one that
    was made with another autoencoder or other text encoders."""
    check_fits(weights.network, pipeline.network.params, weights.origin)
    check_autoencoder(pipeline.autoencoder, dict(weights.metadata), weights.origin)
    pipeline.expect_text(weights.metadata, weights.origin)
    require_text(weights, pipeline.config.text.encoder)


def fill(pipeline: Pipeline, weights: Weights) -> None:
    """Gives a model without weights these, without a copy."""
    pipeline.network.load_state_dict(weights.network, assign=True)
    pipeline.network.requires_grad_(False)
    if isinstance(pipeline.text, nn.Module):  # learned with the network
        pipeline.text.load_state_dict(weights.text)
