from pathlib import Path

import pytest

from fluxsmith.config import RunConfig, read_config
from fluxsmith.errors import UserError

SMALLEST = "data: {source: digits}\n"


@pytest.fixture
def read(tmp_path):
    """read(*overrides, text=...): the config in a file of that text, with the overrides."""

    def read(*overrides: str, text: str = SMALLEST) -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return read_config(file, overrides)

    return read


@pytest.fixture
def mistake(read):
    """mistake(*overrides, text=...): the one line that the user is told."""

    def mistake(*overrides: str, text: str = SMALLEST) -> str:
        with pytest.raises(UserError) as caught:
            read(*overrides, text=text)
        message = str(caught.value)
        assert len(message.splitlines()) == 1, message
        return message

    return mistake


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parents[2]
