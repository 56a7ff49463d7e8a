"""A RunConfig as YAML with its explanations, and as a JSON schema for editors."""

import json
from typing import Any

import yaml
from pydantic import BaseModel

from fluxsmith.config.sections import RunConfig


def show(config: RunConfig) -> str:
    """The resolved config as YAML with a comment for each key; reading it gives the same config."""
    return "\n".join(_lines(config, indent="")) + "\n"


def _lines(section: BaseModel, indent: str) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += ["", f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            setting = f"{indent}{name}: {_scalar(value)}"
            lines.append(f"{setting:<40}  # {field.description}")
    return lines


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def json_schema() -> str:
    """The JSON schema of a config file, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2) + "\n"
