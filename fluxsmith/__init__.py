"""Train, sample, measure and ship your own Flux.

The names below load on first use, so that `import fluxsmith` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxsmith.config import RunConfig
    from fluxsmith.interop.open_pipeline import TextToImage as Pipeline
    from fluxsmith.model.flux import Flux, FluxParams
    from fluxsmith.text.encoder import TextEmbedding

__all__ = ["Flux", "FluxParams", "Pipeline", "RunConfig", "TextEmbedding"]

_HOMES = {
    "Flux": ("fluxsmith.model.flux", "Flux"),
    "FluxParams": ("fluxsmith.model.flux", "FluxParams"),
    "Pipeline": ("fluxsmith.interop.open_pipeline", "TextToImage"),
    "RunConfig": ("fluxsmith.config", "RunConfig"),
    "TextEmbedding": ("fluxsmith.text.encoder", "TextEmbedding"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'fluxsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
