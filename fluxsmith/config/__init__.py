"""The configuration of a run: typed sections, read from YAML plus `key=value` overrides."""

from fluxsmith.config.reading import read_config
from fluxsmith.config.sections import RunConfig
from fluxsmith.config.showing import json_schema, show

__all__ = ["RunConfig", "json_schema", "read_config", "show"]
