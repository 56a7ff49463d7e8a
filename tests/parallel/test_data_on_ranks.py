"""Buckets, streams and the cache of latents on several ranks: each image when and where one process
has it, whatever the number of ranks and however often that changes."""

import os
import re

import pytest
from made_pictures import as_folder, as_shards, of_sizes
from parallel.launching import Ranks, write_config
from reliability.comparing import left_behind
from tiny_autoencoder import save_autoencoder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
MADE = of_sizes([(16, 16)] * 9 + [(24, 10)] * 7 + [(10, 24)] * 5)  # ends where no batch does
BUCKETS = {
    "image_size": 16, "channels": 3, "resize": "center-crop", "buckets": "auto", "bucket_step": 4,
    "test_share": 0.0, "max_bad": 0.2,
}  # fmt: skip
OFF = {"evaluate": {"every": 0}}


def data(folder, kind):
    """The data section of a kind of source, its files below the folder."""
    if kind == "stream":
        pytest.importorskip("webdataset")
        as_shards(folder / "shards", MADE, 4)
        return BUCKETS | {"source": "webdataset", "path": "../shards", "shuffle_buffer": 16}
    as_folder(folder / "pictures", MADE, "txt")
    (folder / "pictures" / "00003.png").write_bytes(b"no picture")  # another stands in for it
    return BUCKETS | {"source": "folder", "path": "../pictures", "in_memory": kind == "memory"}


def run(folder, size, *command):
    ranks = Ranks(folder, size, "train", "toy.yaml", *command)
    assert ranks.wait(280) == [0] * size, ranks.told()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["memory", pytest.param("records", marks=pytest.mark.slow), "stream"]
)
def test_buckets_are_the_same_on_one_and_two_ranks(tmp_path, kind):
    section, left = data(tmp_path, kind), []
    for size in (1, 2):
        write_config(tmp_path / str(size), data=section, **OFF)
        run(tmp_path / str(size), size)
        left.append(left_behind(tmp_path / str(size) / "run"))
    assert left[0] == left[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["records", "stream"])
def test_a_run_goes_on_with_other_numbers_of_ranks_and_misses_no_image(tmp_path, kind):
    section = data(tmp_path, kind)
    for name, sizes in {"alone": [1], "others": [1, 2, 4, 1]}.items():
        folder = tmp_path / name
        for part, size in enumerate(sizes, start=1):
            steps = 8 * part // len(sizes)
            write_config(folder, data=section, **OFF)
            run(folder, size, f"train.steps={steps}", "train.schedule=constant", "--resume", "auto")
    alone, others = (left_behind(tmp_path / name / "run") for name in ("alone", "others"))
    for what in ("diffusion-8.pt", "metrics"):  # those before know of fewer steps
        assert alone[what] == others[what]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_fill_one_cache_of_latents_at_once(tmp_path, size):
    save_autoencoder(tmp_path / "ae.safetensors")
    section = data(tmp_path, "records") | {"buckets": "off"}
    del section["bucket_step"], section["in_memory"]
    autoencoder = {"kind": "flux", "weights": "../ae.safetensors", "cache": "../latents"}
    folder = tmp_path / "run"
    model = {"patch_size": 2}
    write_config(folder, data=section, autoencoder=autoencoder, model=model, **OFF)
    ranks = Ranks(folder, size, "encode", "toy.yaml")
    assert ranks.wait(280) == [0] * size, ranks.told()
    made = [int(re.search(r"(\d+) pictures encoded now", log)[1]) for log in ranks.logs]
    assert sum(made) == len(MADE) - 1
    assert max(made) - min(made) <= 1 + 1  # one of them could not be read
    assert len(list((tmp_path / "latents").glob("*/*.safetensors"))) == size
    again = Ranks(folder, 1, "encode", "toy.yaml")
    assert again.wait(280) == [0]
    assert "0 pictures encoded now, 20 were there" in again.logs[0]
    run(folder, size, "train.steps=2")
