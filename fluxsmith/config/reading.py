"""From a YAML file and overrides to a RunConfig, with every mistake named in one line."""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fluxsmith.config.kinds import KindSection, section_of
from fluxsmith.config.other_names import OURS
from fluxsmith.config.places import with_places
from fluxsmith.config.run_config import RunConfig
from fluxsmith.config.types import Section
from fluxsmith.errors import UserError

LONGEST = 200_000  # characters of a config; PyYAML reads about as many in a second

# What PyYAML raises for deep nesting, and for scalars that only look like dates or numbers.
UNEXPECTED = RecursionError, ValueError, LookupError, AttributeError, TypeError

# What is said of keys, values and kinds that are not known, and what is added to it.
UNKNOWN = re.compile(": unknown key|: must be (one of |')")
NEWER = "; was it written by a newer version of fluxsmith? then upgrade"

Built = TypeVar("Built", bound=Section)


class _Loader(yaml.SafeLoader):
    """Plain data only, with YAML 1.2's floats (2e-4 is one), 1e4 for 10000, no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config at `path` with `key=value` overrides, its name and output folder resolved."""
    path = Path(path)
    data = with_overrides(read_yaml(path), overrides)
    below = _below_configs(path)
    for key, default in (("name", below.name), ("output_dir", str(PurePath("output") / below))):
        if data.get(key) is None:
            data[key] = default
    return build_config(data, origin=str(path))


def with_overrides(
    data: dict[str, Any], overrides: Sequence[str], allowed: Collection[str] | None = None
) -> dict[str, Any]:
    """Plain data of a config with `key=value` overrides put into it; a UserError for a key that is
    not among the allowed ones, where there is a choice of them."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if allowed is not None and key not in allowed:
            raise UserError(
                f"{key}: a checkpoint's own setting, which can't be changed; these can: "
                f"{', '.join(allowed)}"
            )
        _apply(data, override)
    return data


def build_config(data: Mapping[str, Any], origin: str, saved: bool = False) -> RunConfig:
    """The config of plain data. `saved`: a program wrote it into a checkpoint or an export, so what
    is unknown in it is of a newer version."""
    return build_section(RunConfig, with_places(data, _expanded), origin, saved)


def build_section(
    section: type[Built], data: Mapping[str, Any], origin: str, saved: bool = False
) -> Built:
    """A section from plain data; a UserError with one line for each mistake."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        entries = _by_key(error.errors(), set(all_keys(section)))
        lines = [f"{origin}: {_line(entry, section)}" for entry in entries]
        if saved:
            lines = [line + NEWER if UNKNOWN.search(line) else line for line in lines]
        raise UserError(*lines) from None
    except UnicodeEncodeError:
        raise UserError(f"{origin}: a text holds half a character; give it in UTF-8") from None


def _expanded(key: str, value: str) -> str:
    """A path with `~` and variables of the environment expanded."""
    path = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 (it may be a URL)
    if unset := re.search(r"\$\{?(\w+)", path):
        raise UserError(
            f"{key}={value}: the variable {unset[1]} is not set; set it, or write it out"
        )
    return path


def read_yaml(path: Path, what: str = "config", folder: str = "configs") -> dict[str, Any]:
    """The mapping in a YAML file; `what` it is, and where such files are looked for, when there is
    none."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(LONGEST + 1)
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}{_suggest_file(path, folder)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read the {what} {path}: {error}") from None
    data = _parse(text, f"{path} is not valid YAML")
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no settings: a {what} is a mapping, such as `seed: 0`")
    return data


def _parse(text: str, complaint: str) -> Any:
    if len(text) > LONGEST:
        raise UserError(f"{complaint}: it is longer than {LONGEST:,} characters")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, *UNEXPECTED) as error:
        raise UserError(f"{complaint}: {_yaml_problem(error)}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    """Puts one `section.key=value` into the data."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {override!r} is not KEY=VALUE, such as train.steps=2000")
    value = _parse(text, f"override {_short(override)}")
    *sections, last = key.strip().split(".")
    target = data
    for depth, section in enumerate(sections, start=1):
        if target.get(section) is None:  # not there, or a heading with nothing beneath it
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            above = ".".join(sections[:depth])
            raise UserError(f"{above}={_short(target)}: must be a section of keys")
    target[last] = value


def _by_key(
    errors: Iterable[Mapping[str, Any]], known: Collection[str]
) -> Iterator[Mapping[str, Any]]:
    """The mistakes, of a value that fits no kind that its key may have only one: what it may be."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for error in errors:
        loc = error["loc"]
        # Pydantic names the kind behind the key, as a text; the place in a list is a number.
        behind = (
            len(loc) > 2 and isinstance(loc[2], str) and ".".join(map(str, loc[:3])) not in known
        )
        key = loc[:2] if behind else loc
        first = found.setdefault(key, {**error, "loc": key})
        if first["msg"] != error["msg"]:
            first["msg"] += " or" + error["msg"].removeprefix("Input should be")
    yield from found.values()


def _line(error: Mapping[str, Any], section: type[Section]) -> str:
    """One mistake in one line: the key, the value and the fix."""
    key = ".".join(str(part) for part in error["loc"])
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_suggest_key(key, section)}"
    if kind == "missing":
        return f"{key}: missing; add it"
    if kind == "value_error":  # from our own checks, which name key, value and fix
        return str(context["error"])
    if kind == "string_type" and isinstance(value, bool | int | float):  # off, no, 1e-3
        return f"{key}={_short(value)}: must be a text; put it in quotes, as YAML has them"
    if kind == "model_type":
        return f"{key}={_short(value)}: must be a section of keys"
    return f"{key}={_short(value)}: {error['msg'].replace('Input should be', 'must be')}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest_key(key: str, section: type[Section]) -> str:
    keys = [*all_keys(section), *section.model_fields]
    leaf = key.rpartition(".")[2]
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]  # right key, wrong section
    near = difflib.get_close_matches(key, same_leaf, n=1, cutoff=0.0)
    if not near and section is RunConfig and leaf.lower() in OURS:
        return f"; that is {OURS[leaf.lower()]} here"
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    if section is RunConfig:
        return "; `fluxsmith config show` lists them all"
    return f"; there are {', '.join(section.model_fields)}"


def all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a section, those of all its kinds included."""
    if issubclass(section, KindSection):
        found = [key for kind in section.kinds() for key in section_of(section, kind).model_fields]
        yield from (prefix + key for key in dict.fromkeys(found))
        return
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _below_configs(path: Path) -> PurePath:
    """The config's path below its configs/ folder, without extension; its stem elsewhere."""
    parts = Path(os.path.abspath(path)).with_suffix("").parts  # noqa: PTH100 (links stay links)
    if "configs" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("configs", 1)
        return PurePath(*parts[last + 1 :])
    return PurePath(path.stem)


def _suggest_file(path: Path, folder: str) -> str:
    known = sorted(str(p) for p in Path(folder).glob("**/*.yaml"))
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.0)
    return f"; did you mean {near[0]}?" if near else "; check the path"


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())[:80]
