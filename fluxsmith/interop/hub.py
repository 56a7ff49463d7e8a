"""Uploading an export to the Hugging Face hub."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.optional import optional

OPTION = "--push-to-hub"


def check_upload(name: str) -> None:
    """Raises a UserError, before anything is written, where the hub can't be reached, nobody is
    logged in or no repository can have this name."""
    hub = _hub()
    with _explaining(name, "nothing was written"):
        hub.utils.validate_repo_id(name)
        hub.HfApi().whoami()


def upload(name: str, written: Sequence[Path]) -> str:
    """Uploads an export, the paths that `exporting.export` wrote, to a repository, which is made if
    need be; gives its address."""
    api = _hub().HfApi()
    folder = written[0].parent
    patterns = [p for path in map(_literally, written) for p in (path, f"{path}/*")]
    with _explaining(name, f"what was exported is in {folder}"):
        address = api.create_repo(name, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=patterns)
    return str(address)


def _hub() -> Any:
    return optional("huggingface_hub", "hf", OPTION)


def _literally(path: Path) -> str:
    """A pattern that matches this name alone."""
    return glob.escape(path.name)


@contextmanager
def _explaining(name: str, what_is_there: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client raises its own and those of several libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{OPTION} {name}: {reason}; {what_is_there}; log in with `hf auth login` and check "
            f"the name (USER/MODEL)"
        ) from None
