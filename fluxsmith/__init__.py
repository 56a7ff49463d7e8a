"""Train, sample, measure, distil and ship your own Flux.

The names below load on first use, so that `import fluxsmith` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxsmith.config import RunConfig
    from fluxsmith.model.flux import Flux, FluxParams
    from fluxsmith.pipeline import Pipeline
    from fluxsmith.text.encoder import TextEmbedding

__all__ = ["Flux", "FluxParams", "Pipeline", "RunConfig", "TextEmbedding"]

_HOMES = {
    "Flux": "fluxsmith.model.flux",
    "FluxParams": "fluxsmith.model.flux",
    "Pipeline": "fluxsmith.pipeline",
    "RunConfig": "fluxsmith.config",
    "TextEmbedding": "fluxsmith.text.encoder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fluxsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
