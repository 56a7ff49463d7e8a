"""What an export of ours carries beside the network, so that importing it gives the model back: its
config, what its checkpoint said of it, and the text encoder that was learned with it.

In a single file the first two lie in the metadata, the encoder in a file beside it; in a folder all
lie in fluxsmith/.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.files import make_folder, write_text
from fluxsmith.nesting import parse_json
from fluxsmith.tensorfile import read_json, read_metadata, read_tensors, write_tensors

KEY = "fluxsmith"  # of the metadata, and the folder's name


def read_about(path: Path) -> dict[str, Any] | None:
    """`config`, `step` and `metadata` in an export of ours; None in other files."""
    if path.is_dir():
        file = path / KEY / "about.json"
        about = read_json(file) if file.is_file() else None
    else:
        text = read_metadata(path).get(KEY)
        try:
            about = None if text is None else parse_json(text)
        except ValueError:
            about = {}
    if about is not None and not _is_about(about):
        raise UserError(f"{path}: what fluxsmith wrote about it is damaged; export it again")
    return about


def _is_about(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        return False
    step, metadata = found.get("step", 0), found.get("metadata", {})
    return type(step) is int and step >= 0 and isinstance(metadata, dict)


def read_text(path: Path) -> dict[str, Tensor]:
    """The learned text encoder of an export of ours, under its own names; none in other files."""
    file = text_file(path)
    return read_tensors(file) if file.is_file() else {}


def text_file(path: Path) -> Path:
    """Where the learned text encoder lies that belongs to an exported file or folder."""
    if path.is_dir():
        return path / KEY / "text.safetensors"
    return path.with_suffix(".text.safetensors")


def file_metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a single file."""
    return {"format": "pt", KEY: json.dumps(about)}


def write_folder(folder: Path, about: Mapping[str, Any], text: Mapping[str, Tensor]) -> None:
    """Fills fluxsmith/ in an exported folder."""
    make_folder(folder / KEY, "OUT")
    write_text(folder / KEY / "about.json", json.dumps(about, indent=2) + "\n")
    if text:
        write_tensors(text_file(folder), text, {"format": "pt"})
