"""A hub id wherever a folder is taken: the folder that the hub's client keeps its files in."""

import re
from collections.abc import Sequence
from pathlib import Path

from fluxsmith.errors import UserError
from fluxsmith.optional import optional
from fluxsmith.storage.files import first_line
from fluxsmith.storage.weight_files import PICKLED, SAFETENSORS

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILES = (*SAFETENSORS, *PICKLED, ".json", ".yaml", ".yml", ".gguf")  # endings of no hub id


def local_path(name: str | Path, wanted: Sequence[Sequence[str]]) -> Path:
    """The path itself, or the folder of a hub id OWNER/NAME, fetched where it isn't in the hub's
    cache. `wanted` are patterns of files: the first of them are taken for whose first pattern the
    repository has a file, such as [["vae/*"], ["*.safetensors"]]. A UserError where there is
    neither."""
    path = Path(name).expanduser()
    if path.exists() or path.suffix in FILES or not HUB_ID.fullmatch(str(name)):
        return path
    hub = optional("huggingface_hub", "hf", f"{name}: a hub id")
    problem: Exception = FileNotFoundError(f"it holds no {wanted[0][0]}")
    for local in (True, False):
        for patterns in wanted:
            options = {"allow_patterns": [*patterns], "local_files_only": local}
            try:
                folder = Path(hub.snapshot_download(str(name), **options))
            except Exception as error:  # the client's own, and those of several libraries
                problem = error
                break
            if any(folder.glob(patterns[0])):
                return folder
    raise UserError(
        f"{name}: there is no such file or folder, and it can't be fetched as a hub id "
        f"({first_line(problem)}); check the name"
    ) from None
