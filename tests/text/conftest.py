from pathlib import Path

import pytest
import torch
from tiny_encoders import save_clip, save_t5

from fluxsmith.storage.stores import open_store
from fluxsmith.text.clip_t5 import Settings, build
from fluxsmith.text.frozen import FrozenText


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """The folders of a tiny CLIP and a tiny T5, which no test may change."""
    root = tmp_path_factory.mktemp("encoders")
    return {"clip": str(save_clip(root / "clip")), "t5": str(save_t5(root / "t5"))}


@pytest.fixture
def clip_t5(folders):
    """clip_t5(padding="full", cache=FOLDER, ...): the pair, with 12 tokens of T5 by default."""

    def make(**settings: object) -> FrozenText:
        given = Settings(**({"cache": "memory", "t5_tokens": 12} | folders | settings))
        return build(given, torch.device("cpu"), open_store("text", given.cache))

    return make


@pytest.fixture
def shards():
    """shards(folder): the files of embeddings below it."""
    return lambda folder: sorted(Path(folder).rglob("*.safetensors"))
