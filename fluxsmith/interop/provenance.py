"""Where weights come from, as their files say: the base model, the licence, and what other tools
noted in the metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fluxsmith.config.places import portable_name

# What a model card's first lines say that goes on with the weights.
CARD = ("license", "license_name", "license_link", "base_model")
LICENCES = (  # identifiers that the hub knows; it takes others as "other" with a name
    "apache-2.0", "mit", "openrail", "creativeml-openrail-m", "cc0-1.0", "cc-by-4.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0",
)  # fmt: skip
MODELSPEC = "modelspec."  # begins the keys of a standard that other tools read and write


def read_provenance(source: str, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """`name`: the hub id or the last name of what was asked for; what a folder's README.md says
    under the keys CARD; and `modelspec`: the file's keys of that standard, whose licence counts
    where no README.md names one."""
    found: dict[str, Any] = {}
    if (path / "README.md").is_file():
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
        found = {key: _plain(value) for key, value in _front(text).items() if key in CARD}
    if spec := {k: v for k, v in metadata.items() if k.startswith(MODELSPEC)}:
        found["modelspec"] = spec
        licence = found["modelspec"].get(f"{MODELSPEC}license")
        if licence and "license" not in found:
            known = licence.lower() in LICENCES
            named = {"license": "other", "license_name": licence}
            found |= {"license": licence.lower()} if known else named
    if (name := portable_name(source)) == source and "/" in name:
        found.setdefault("base_model", name)
    return {"name": name, **found}


def spec_of(source: Mapping[str, Any], same_bytes: bool = False) -> dict[str, str]:
    """The keys of modelspec that a file of these weights has: those of their source, with its
    licence, and a hash of the tensors' bytes only where these are the same."""
    spec = dict(source.get("modelspec", {}))
    if not same_bytes:
        spec = {key: value for key, value in spec.items() if "hash" not in key}
    if licence := source.get("license_name") or source.get("license"):
        named = [licence] if isinstance(licence, str) else licence
        spec.setdefault(f"{MODELSPEC}license", ", ".join(map(str, named)))
    return spec


def travelling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's metadata say of a whole model, as it may leave this machine."""
    found = {k: v for k, v in metadata.items() if k in ("captions", "autoencoder", "source")}
    encoders = metadata.get("text", {}).items()
    text = {part: told | {"name": portable_name(told["name"])} for part, told in encoders}
    return found | ({"text": text} if text else {})


def after_training(source: Mapping[str, Any]) -> dict[str, Any]:
    """What stays true of weights that training goes on from."""
    return {key: value for key, value in source.items() if key in ("name", *CARD)}


def _front(text: str) -> dict[str, Any]:
    """The YAML between the two lines of dashes that a model card begins with."""
    lines = text.lstrip().splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    try:
        found = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> str | list[str]:
    return [str(one) for one in value] if isinstance(value, list) else str(value)
