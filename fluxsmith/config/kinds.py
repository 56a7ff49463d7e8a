"""Sections in which one key chooses a kind, such as data.source, which brings keys of its own.

A kind is a line in a registry and a dataclass beside its code, whose fields are its keys:

    @dataclass(frozen=True)
    class Settings:
        workers: Annotated[int, Ge(1), "threads that decode images"] = 2

The registry's entry is that dataclass, or a class or module that has one as `Settings`, or the
import path of any of these as text: so nothing is imported for a kind that is not chosen. Where
`__post_init__` raises a ValueError, "KEY=VALUE: why", it is the user's mistake. `LOCAL` names the
keys that say where files lie or how they are read, which may differ from machine to machine.
"""

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from fluxsmith.config.types import Section


class KindSection(Section):
    """A subclass has the keys that all kinds share; reading data gives a section of its kind."""

    NAME: ClassVar[str]  # of the section
    CHOOSER: ClassVar[str]  # the key that names the kind
    REGISTRY: ClassVar[str]  # where the kinds are
    DEFAULT: ClassVar[str | None] = None  # the kind where none is named
    UNSET: ClassVar[tuple[Any, ...]] = (None,)  # what older checkpoints hold for other kinds' keys
    KEYS: ClassVar[type | None] = None  # a kind's dataclass; None where no kind is chosen yet

    if TYPE_CHECKING:  # the keys of a kind are known only when it is chosen

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def kinds(cls) -> Mapping[str, Any]:
        """The registry: each kind's entry by its name."""
        return resolve_name(cls.REGISTRY)

    @property
    def choice(self) -> Any:
        """The kind's own class, filled from this section; its entry where that is no class."""
        entry = type(self).KEYS  # by way of `self`, a function would be bound
        if not isinstance(entry, type):
            return entry
        return entry(**{key.name: getattr(self, key.name) for key in _declared(entry)})

    @classmethod
    def own_keys(cls) -> set[str]:
        """The keys that the kind adds to those that all share."""
        return {key.name for key in _declared(cls.KEYS)}

    @model_validator(mode="wrap")
    @classmethod
    def _read_as_its_kind(cls, data: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        if cls.KEYS is not None or not isinstance(data, dict):
            return handler(data)
        kind = cls.kind_in(data)
        if kind is None:
            chosen = data.get(cls.CHOOSER)
            given = "" if chosen is None else f"={str(chosen)[:60]!r}"
            known = ", ".join(cls.kinds())
            raise ValueError(f"{cls.NAME}.{cls.CHOOSER}{given}: must be one of {known}")
        return section_of(cls, kind).model_validate(cls._keys_of(kind, data))

    @classmethod
    def kind_in(cls, data: Any) -> str | None:
        """The kind of a section by its plain data; None where there is no such kind."""
        chosen = data.get(cls.CHOOSER, cls.DEFAULT) if isinstance(data, Mapping) else None
        return chosen if isinstance(chosen, str) and chosen in cls.kinds() else None

    @classmethod
    def _keys_of(cls, kind: str, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The data without keys that are not given; a ValueError for one that only other kinds
        have."""
        own, found = section_of(cls, kind).model_fields, {}
        for key, value in data.items():
            if key in cls.model_fields or (key in own and value is not None):
                found[key] = value
            elif key not in own:
                having = [name for name in cls.kinds() if key in section_of(cls, name).model_fields]
                if not having:
                    found[key] = value
                elif value not in cls.UNSET:
                    raise ValueError(
                        f"{cls.NAME}.{key}={str(value)[:60]}: {cls.NAME}.{cls.CHOOSER}={kind} has "
                        f"no {key}; remove the key, which is for {' and '.join(having)}"
                    )
        return found

    @model_validator(mode="after")
    def _kind_agrees(self) -> "KindSection":
        if dataclasses.is_dataclass(self.KEYS):
            try:
                _ = self.choice
            except ValueError as error:
                raise ValueError(f"{self.NAME}.{error}") from None
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        if cls.KEYS is not None:
            return handler(schema)
        kinds = [section_of(cls, kind).__pydantic_core_schema__ for kind in cls.kinds()]
        return {"oneOf": [handler(kind) for kind in kinds]}


BY_DEFAULT: Any = Field(default={}, validate_default=True)  # the default kind with its defaults


def section_of(base: type[KindSection], kind: str) -> type[KindSection]:
    """The section of a kind: the keys that all share, and the kind's own."""
    return _section_of(base, kind, base.kinds()[kind])


@lru_cache
def _section_of(base: type[KindSection], kind: str, entry: Any) -> type[KindSection]:
    found = resolve_name(entry) if isinstance(entry, str) else entry
    keys = getattr(found, "Settings", found)
    explanation = base.model_fields[base.CHOOSER].description
    default = kind if kind == base.DEFAULT else ...
    own: dict[str, Any] = {
        base.CHOOSER: (Literal[kind], Field(default=default, description=explanation))
    }
    for field in _declared(keys):
        hint = get_type_hints(keys, include_extras=True)[field.name]
        notes = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, str)]
        defaults = {"default": field.default, "default_factory": field.default_factory}
        given: dict[str, Any] = {k: v for k, v in defaults.items() if v is not dataclasses.MISSING}
        own[field.name] = (hint, Field(description=notes[0] if notes else None, **given))
    section = create_model(f"{base.__name__}[{kind}]", __base__=base, **own)
    section.KEYS = keys
    return section


def _declared(keys: Any) -> "tuple[dataclasses.Field[Any], ...]":
    """The fields that are a kind's keys; none where it declares none."""
    return dataclasses.fields(keys) if dataclasses.is_dataclass(keys) else ()
