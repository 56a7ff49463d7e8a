"""What every section has in common: strict reading, and numbers with bounds."""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema


class Section(BaseModel):
    """Unknown keys, wrong types, infinity and NaN are errors everywhere. The text beneath a key is
    what `fluxsmith config show` and the JSON schema print of it."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


# Upper bounds are far above any use: they keep a slip of the finger from filling the memory.
MOST = 10**9
Count = Annotated[int, Field(ge=1, le=MOST)]
Interval = Annotated[int, Field(ge=0, le=MOST)]
Layers = Annotated[int, Field(ge=0, le=256)]
Width = Annotated[int, Field(ge=1, le=2**17)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
SolverSteps = Annotated[int, Field(ge=1, le=10**5)]
Rate = Annotated[float, Field(gt=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


def check_divisible(key: str, value: int, by: str, number: int) -> None:
    """Raises a ValueError that names the nearest values that are divisible."""
    if value % number:
        below = value - value % number
        options = " or ".join(str(n) for n in (below, below + number) if n)
        raise ValueError(f"{key}={value}: not divisible by {by}={number}; use {options}")


@dataclass(frozen=True)
class NameIn:
    """Marks a key whose value is a name in a registry, such as "fluxsmith.flow.solvers:SOLVERS".

    The registry is imported when a value is checked, so that a config costs no import of torch
    before there is one, and a name that is added later counts.
    """

    registry: str

    def __get_pydantic_core_schema__(self, of: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(of))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "enum": list(resolve_name(self.registry))}

    def _check(self, name: str) -> str:
        known = resolve_name(self.registry)
        if name not in known:
            raise PydanticKnownError("literal_error", {"expected": f"one of {', '.join(known)}"})
        return name
