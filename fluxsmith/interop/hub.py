"""Uploading an export to the Hugging Face hub."""

import glob
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fluxsmith.optional import optional
from fluxsmith.storage.files import explaining

OPTION = "--push-to-hub"


def check_upload(name: str) -> None:
    """Raises a UserError, before anything is written, if the hub can't be reached, nobody is logged
    in, or no repository can have this name."""
    utils = optional("huggingface_hub.utils", "hf", OPTION)  # not there with the package alone
    with _explaining(name, "nothing was written"):
        utils.validate_repo_id(name)
        _hub().HfApi().whoami()


def upload(name: str, written: Sequence[Path]) -> str:
    """Uploads an export, the paths that `exporting.export` wrote, to a repository, which is made if
    need be; returns its address."""
    api = _hub().HfApi()
    folder = written[0].parent
    names = [glob.escape(path.name) for path in written]
    with _explaining(name, f"what was exported is in {folder}"):
        address = api.create_repo(name, repo_type="model", exist_ok=True)
        patterns = names + [f"{escaped}/*" for escaped in names]
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=patterns)
    return str(address)


def _hub() -> Any:
    return optional("huggingface_hub", "hf", OPTION)


def _explaining(name: str, what_is_there: str) -> AbstractContextManager[None]:
    """The hub's client raises its own errors and those of several libraries."""
    fix = "log in with `hf auth login` and check the name (USER/MODEL)"
    return explaining(f"{OPTION} {name}", f"; {what_is_there}; {fix}", Exception)
