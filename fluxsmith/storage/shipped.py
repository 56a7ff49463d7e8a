"""Models that come with fluxsmith and are known by their names, each a folder with a checkpoint and
a card: inside the package where it was installed from a wheel, beside it in a clone."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "shipped", PACKAGE.parent / "models")


def shipped_models() -> dict[str, Path]:
    """Their folders by name, in alphabetical order."""
    found = {file.parent.name: file.parent for f in FOLDERS for file in f.glob("*/diffusion-*.pt")}
    return dict(sorted(found.items()))


def shipped_folder(name: str | Path) -> Path | None:
    """The folder of the model that ships under this name; None where none does, or where a file or
    folder of that name is here, which comes first."""
    if os.path.exists(name):  # noqa: PTH110  (a Path raises for a name that is too long)
        return None
    return shipped_models().get(str(name))


def is_shipped(path: Path) -> bool:
    """Whether this is a file of a model that ships."""
    return path.absolute().parent.parent in FOLDERS
