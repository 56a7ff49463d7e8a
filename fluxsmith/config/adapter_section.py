"""What is trained of a model: all of it, or an adapter beside its frozen weights."""

from types import NoneType
from typing import Any

from fluxsmith.config.kinds import KindSection

# Import paths of the adapters' settings: a dataclass with `attach` and `changes_in`, as LoRA's.
ADAPTERS: dict[str, Any] = {"none": NoneType, "lora": "fluxsmith.adapters.lora:Settings"}


class AdapterConfig(KindSection):
    NAME = "train.adapter"
    CHOOSER = "kind"
    REGISTRY = "fluxsmith.config.adapter_section:ADAPTERS"
    DEFAULT = "none"

    kind: str
    """lora: changes of low rank to the frozen weights of train.init_from; none: all are trained."""
