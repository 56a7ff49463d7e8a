"""Training that starts from weights there are, in any form that import reads."""

from fluxsmith.interop.fitting import check_fits
from fluxsmith.interop.reading import read_weights, require_text
from fluxsmith.pipeline import Pipeline, check_autoencoder


def load_initial(pipeline: Pipeline, path: str) -> None:
    """Copies network and learned text encoder into a new model; of a checkpoint its average."""
    weights = read_weights(path)
    check_fits(weights.network, pipeline.network.params, weights.origin)
    check_autoencoder(pipeline.autoencoder, dict(weights.metadata), weights.origin)
    encoder = pipeline.config.text.encoder
    require_text(weights, encoder)
    tensors = {f"network.{name}": tensor for name, tensor in weights.network.items()}
    if encoder == "bytes":
        tensors |= {f"text.{name}": tensor for name, tensor in weights.text.items()}
    pipeline.load_weights(tensors, weights.origin)
