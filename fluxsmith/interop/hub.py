"""Uploading an export to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.optional import optional


def push(out: Path, repository: str) -> str:
    """Uploads an exported folder or file to a repository, made if need be; gives its address."""
    hub: Any = optional("huggingface_hub", "hf", "--push-to-hub")
    try:
        api = hub.HfApi()
        address = api.create_repo(repository, repo_type="model", exist_ok=True)
        if out.is_dir():
            api.upload_folder(repo_id=repository, folder_path=out)
        else:
            api.upload_file(repo_id=repository, path_or_fileobj=out, path_in_repo=out.name)
    except Exception as error:  # the hub's client raises its own and those of several libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--push-to-hub {repository}: {reason}; the export is in {out}, log in with `hf auth "
            f"login` and check the name (USER/MODEL)"
        ) from None
    return str(address)
