"""The model as a whole, built from a config: encode, velocity, generate."""

from fluxsmith.pipeline.edit import Edit
from fluxsmith.pipeline.parts import check_autoencoder
from fluxsmith.pipeline.pipeline import OnStep, Pipeline

__all__ = ["Edit", "OnStep", "Pipeline", "check_autoencoder"]
