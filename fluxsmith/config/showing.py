"""A RunConfig as YAML with its explanations, and as a JSON schema for editors."""

import json
import re
from typing import Any

import yaml
from pydantic import BaseModel

from fluxsmith.config.run_config import RunConfig

_PLAIN = re.compile(r"[A-Za-z_/.][\w/.-]*[A-Za-z_]", re.ASCII)


def show(config: RunConfig, comments: bool = True) -> str:
    """The resolved config as YAML, with an explanation of each key beside it or without.

    Reading it gives the same config.
    """
    return "\n".join(_lines(config, "", comments)) + "\n"


def _lines(section: BaseModel, indent: str, comments: bool) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            gap = [""] if comments else []
            lines += [*gap, f"{indent}{name}:", *_lines(value, indent + "  ", comments)]
        else:
            setting = f"{indent}{name}: {_scalar(value)}"
            lines.append(f"{setting:<40}  # {field.description}" if comments else setting)
    return lines


def _scalar(value: Any) -> str:
    quoted = isinstance(value, str) and not _PLAIN.fullmatch(value)
    style = '"' if quoted else None  # quotes where our reader and PyYAML's writer could differ
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def json_schema() -> str:
    """The JSON schema of a config file, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2) + "\n"
