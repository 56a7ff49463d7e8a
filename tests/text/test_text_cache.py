"""Each prompt is encoded once; the cache on disk serves later runs, and none but those it fits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_encoders import save_t5

from fluxsmith.errors import UserError
from fluxsmith.text import cache as caches
from fluxsmith.text.cache import EmbeddingCache
from fluxsmith.text.padding import Encoded
from fluxsmith.text.shards import DamagedShardError, Shard, write_shard

PROMPTS = ["3", "a photo of the red seven", "", "three", "été 🙂\n\x00"]


def equal(a, b) -> bool:
    masks = (a.mask is None) == (b.mask is None) and (a.mask is None or torch.equal(a.mask, b.mask))
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.pooled, b.pooled) and masks


def close(a, b) -> bool:
    """The same but for the last bits, which depend on what is encoded beside a prompt."""
    return torch.allclose(a.tokens, b.tokens, atol=1e-5) and torch.allclose(
        a.pooled, b.pooled, atol=1e-5
    )


def encoded(seed: int, length: int, dtype=torch.float32) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(length, 6, generator=draw).to(dtype)
    return Encoded(tokens, torch.randn(4, generator=draw), length, length + seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_shard_gives_back_what_was_written_to_the_bit(tmp_path, dtype):
    items = {text: encoded(i, i % 4, dtype) for i, text in enumerate([*PROMPTS, '"', "\\u0041"])}
    shard = Shard(write_shard(tmp_path, items))
    assert shard.prompts == list(items)
    for row, (_, item) in enumerate(items.items()):
        found = shard.read(row)
        assert found.tokens.dtype == dtype
        assert torch.equal(found.tokens, item.tokens)
        assert torch.equal(found.pooled, item.pooled)
        assert shard.counts(row) == (item.real, item.needed)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_each_prompt_is_encoded_once(clip_t5):
    text = clip_t5()
    text(PROMPTS)
    text([*PROMPTS, "seven", "3"])
    text(["seven", *PROMPTS])
    assert text.encoded == len(PROMPTS) + 1


def test_a_later_run_reads_what_an_earlier_one_wrote_and_loads_nothing(clip_t5, tmp_path):
    first, later = clip_t5(cache=str(tmp_path)), clip_t5(cache=str(tmp_path))
    wrote = first(PROMPTS)
    first.flush()
    read = later(PROMPTS)
    assert equal(wrote, read)
    assert first.encoded == len(PROMPTS)
    assert later.encoded == 0
    assert not later.is_loaded
    assert later.identity() == first.identity()
    assert later.counts(PROMPTS) == first.counts(PROMPTS)
    assert close(later(["seven", "3"]), clip_t5()(["seven", "3"]))  # and what it lacks is encoded
    assert later.encoded == 1


@pytest.mark.parametrize("padding", ["trim", "mask", "full"])
def test_preparing_writes_it_all_and_frees_the_encoders(clip_t5, tmp_path, padding):
    text, steps = clip_t5(cache=str(tmp_path), padding=padding), []
    prompts = [f"{a} {b}" for a in ("red", "blue") for b in range(20)]
    text.prepare([*prompts, *prompts], steps.append)
    assert steps == [32, 40]
    assert text.missing(prompts) == []
    assert not text.is_loaded
    later = clip_t5(cache=str(tmp_path), padding=padding)
    assert equal(later(prompts), text(prompts))
    assert later.encoded == 0


def test_training_needs_no_encoder_where_the_cache_holds_it_all(clip_t5, folders, tmp_path):
    """The encoders' folders are gone, as on a machine that has but the cache."""
    here = {name: str(shutil.copytree(folders[name], tmp_path / name)) for name in folders}
    cache = str(tmp_path / "cache")
    wrote = clip_t5(cache=cache, **here)
    wrote.prepare(PROMPTS)
    for name in folders:
        shutil.rmtree(tmp_path / name)
    later = clip_t5(cache=cache, **here)
    assert (later.token_width, later.pooled_width) == (wrote.token_width, wrote.pooled_width)
    assert equal(later(PROMPTS), wrote(PROMPTS))
    assert later.identity() == wrote.identity()
    with pytest.raises(UserError, match="there is no such folder"):
        later(["another"])


@pytest.mark.parametrize(
    "change",
    [
        {"t5_tokens": 11},
        {"clip_tokens": 76},
        {"t5_dtype": "bfloat16"},
        {"clip_dtype": "bfloat16"},
        {"padding": "full"},
    ],
    ids=str,
)
def test_a_cache_of_other_settings_is_not_used(clip_t5, tmp_path, change):
    clip_t5(cache=str(tmp_path)).prepare(PROMPTS)
    other = clip_t5(cache=str(tmp_path), **change)
    assert other.missing(PROMPTS) == PROMPTS
    assert equal(other(PROMPTS), clip_t5(**change)(PROMPTS))


def test_trim_and_mask_share_their_embeddings(clip_t5, tmp_path):
    clip_t5(cache=str(tmp_path), padding="trim").prepare(PROMPTS)
    assert clip_t5(cache=str(tmp_path), padding="mask").missing(PROMPTS) == []


def test_another_encoder_in_the_same_folder_is_noticed(clip_t5, tmp_path):
    folder, cache = tmp_path / "t5", str(tmp_path / "cache")
    save_t5(folder, seed=1)
    one = clip_t5(cache=cache, t5=str(folder))
    one.prepare(PROMPTS)
    save_t5(folder, seed=2)
    two = clip_t5(cache=cache, t5=str(folder))
    assert two.missing(PROMPTS) == PROMPTS
    assert not torch.equal(two(PROMPTS).tokens, one(PROMPTS).tokens)
    assert two.digests()["t5"] != one.digests()["t5"]
    assert two.digests()["clip"] == one.digests()["clip"]


def test_the_same_encoder_elsewhere_shares_the_cache(clip_t5, folders, tmp_path):
    clip_t5(cache=str(tmp_path / "cache")).prepare(PROMPTS)
    moved = shutil.copytree(folders["t5"], tmp_path / "moved")
    assert clip_t5(cache=str(tmp_path / "cache"), t5=str(moved)).missing(PROMPTS) == []


def test_another_tokenizer_is_another_encoder(clip_t5, folders, tmp_path):
    folder = Path(shutil.copytree(folders["clip"], tmp_path / "clip"))
    merges = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[:5]) + "\n")
    assert clip_t5(clip=str(folder)).digests()["clip"] != clip_t5().digests()["clip"]


def test_weights_saved_otherwise_are_the_same_encoder(clip_t5, folders, tmp_path):
    """A digest is of what an encoder computes with, not of its files."""
    from transformers import T5EncoderModel

    folder = Path(shutil.copytree(folders["t5"], tmp_path / "t5"))
    (folder / "model.safetensors").unlink()
    T5EncoderModel.from_pretrained(folders["t5"]).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert clip_t5(t5=str(folder)).digests() == clip_t5().digests()


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "empty":
        data.clear()
    elif how == "truncated":
        del data[len(data) // 2 :]
    elif how == "header":
        data[:8] = b"\xff" * 8
    else:
        start = 8 + int.from_bytes(data[:8], "little")
        begin, end = json.loads(data[8:start])["tokens"]["data_offsets"]
        data[start + (begin + end) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "truncated", "header", "one bit"])
def test_a_damaged_shard_is_said_and_encoded_again(clip_t5, tmp_path, shards, caplog, how):
    first = clip_t5(cache=str(tmp_path))
    first.prepare(PROMPTS)
    (shard,) = shards(tmp_path)
    damage(shard, how)
    again = clip_t5(cache=str(tmp_path))
    assert close(again(PROMPTS), first(PROMPTS))
    assert 0 < again.encoded <= len(PROMPTS)
    (line,) = [r.getMessage() for r in caplog.records if "text cache" in r.getMessage()]
    assert str(shard) in line
    assert "can be deleted" in line
    again.flush()
    healed = clip_t5(cache=str(tmp_path))
    assert equal(healed(PROMPTS), again(PROMPTS))
    assert healed.encoded == 0


def test_a_half_written_shard_is_never_met(clip_t5, tmp_path, shards, monkeypatch):
    """What an interrupted run leaves behind under a temporary name."""
    clip_t5(cache=str(tmp_path)).prepare(PROMPTS)
    (shard,) = shards(tmp_path)
    shard.with_name(f".{shard.name}.123.tmp").write_bytes(b"half")
    assert clip_t5(cache=str(tmp_path)).missing(PROMPTS) == []


def test_an_interrupted_preparation_keeps_what_it_has(clip_t5, tmp_path):
    prompts = [f"{a} {b}" for a in ("red", "blue") for b in range(40)]

    def stop(done: int) -> None:
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clip_t5(cache=str(tmp_path)).prepare(prompts, stop)
    assert len(clip_t5(cache=str(tmp_path)).missing(prompts)) == 80 - 64


def test_two_runs_may_fill_the_same_cache(clip_t5, tmp_path):
    one, two = clip_t5(cache=str(tmp_path)), clip_t5(cache=str(tmp_path))
    assert one.missing(["3"]) == two.missing(["3"]) == ["3"]
    one.prepare(["3", "four"])
    two.prepare(["3", "five"])
    assert clip_t5(cache=str(tmp_path)).missing(["3", "four", "five"]) == []


def test_memory_is_bounded_and_the_disk_stands_behind_it(tmp_path, monkeypatch):
    item = encoded(0, 5)
    monkeypatch.setattr(caches, "MEMORY_BYTES", 3 * item.nbytes)
    monkeypatch.setattr(caches, "SHARD_PROMPTS", 4)
    cache = EmbeddingCache(tmp_path / "on-disk", {})
    for i in range(10):
        cache.put(str(i), encoded(i, 5))
        if cache.is_due:
            cache.flush()
    assert all(str(i) in cache for i in range(10))
    assert len(list((tmp_path / "on-disk").glob("*.safetensors"))) == 2  # two still to be written
    for i in range(10):
        assert torch.equal(cache.get(str(i)).tokens, encoded(i, 5).tokens)
        assert cache.counts(str(i)) == (5, 5 + i)
    memory = EmbeddingCache(None, {})
    for i in range(10):
        memory.put(str(i), encoded(i, 5))
    assert [i for i in range(10) if str(i) in memory] == [7, 8, 9]


def test_a_cache_that_cannot_be_written_is_named(clip_t5):
    with pytest.raises(UserError, match=r"can't write to /proc/no.*text\.cache"):
        clip_t5(cache="/proc/no").prepare(PROMPTS)


def test_a_disk_that_fails_midway_costs_the_cache_and_not_the_run(clip_t5, tmp_path, caplog):
    text = clip_t5(cache=str(tmp_path / "cache"))
    text.prepare(["3"])
    folder = text.cache.folder
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    found = text(["three"])
    text.flush()
    assert str(folder) in caplog.text
    assert "stay in memory" in caplog.text
    assert equal(text(["three"]), found)
    text(["four"])
    text.flush()
    assert len([r for r in caplog.records if "stay in memory" in r.getMessage()]) == 1


def test_a_shard_whose_index_lies_is_damaged(tmp_path):
    from safetensors.torch import load_file, save_file

    path = write_shard(tmp_path, {"3": encoded(0, 3)})
    tensors = load_file(path) | {"length": torch.tensor([2])}
    save_file(tensors, path, {"prompts": '["3"]'})
    with pytest.raises(DamagedShardError, match="doesn't fit"):
        Shard(path)
