"""The configuration of a run: typed sections, read from YAML plus `key=value` overrides."""

from fluxsmith.config.reading import read_config
from fluxsmith.config.run_config import RunConfig
from fluxsmith.config.sample_section import SampleConfig
from fluxsmith.config.showing import json_schema, show

__all__ = ["RunConfig", "SampleConfig", "json_schema", "read_config", "show"]
