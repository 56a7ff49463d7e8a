"""Each prompt is encoded once; the cache on disk serves later runs, and none but those it fits."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_encoders import save_t5

from fluxsmith.errors import UserError
from fluxsmith.storage import tensor_cache
from fluxsmith.storage.tensor_cache import TensorCache
from fluxsmith.text.padding import Encoded

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


def put(cache: TensorCache, prompt: str, one: Encoded) -> None:
    cache.put(prompt, {"tokens": one.tokens, "pooled": one.pooled}, [one.real, one.needed])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_was_written_is_read_to_the_bit(tmp_path, shards, dtype):
    items = {text: encoded(i, i % 4, dtype) for i, text in enumerate([*PROMPTS, '"', "\\u0041"])}
    wrote = TensorCache(tmp_path, {}, "text.cache")
    for prompt, item in items.items():
        put(wrote, prompt, item)
    wrote.flush()
    for cache in (wrote, TensorCache(tmp_path, {}, "text.cache")):
        for prompt, item in items.items():
            found = cache.get(prompt)
            assert found["tokens"].dtype == dtype
            assert torch.equal(found["tokens"], item.tokens)
            assert torch.equal(found["pooled"], item.pooled)
            assert cache.note(prompt) == [item.real, item.needed]
    assert len(shards(tmp_path)) == 1


def test_a_later_run_reads_what_an_earlier_one_wrote_and_loads_nothing(clip_t5, tmp_path):
    first, later = clip_t5(cache=str(tmp_path)), clip_t5(cache=str(tmp_path))
    wrote = first(PROMPTS)
    first.cache.flush()
    read = later(PROMPTS)
    assert equal(wrote, read)
    assert not later.is_loaded
    assert later.identity.metadata() == first.identity.metadata()
    assert close(later(["seven", "3"]), clip_t5()(["seven", "3"]))  # and what it lacks is encoded


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
    assert not later.is_loaded


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
    assert later.identity.metadata() == wrote.identity.metadata()
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
    assert clip_t5(cache=str(tmp_path), padding="mask").missing(PROMPTS) == []  # as trim's


def test_another_encoder_in_the_same_folder_is_noticed(clip_t5, tmp_path):
    folder, cache = tmp_path / "t5", str(tmp_path / "cache")
    save_t5(folder, seed=1)
    one = clip_t5(cache=cache, t5=str(folder))
    one.prepare(PROMPTS)
    save_t5(folder, seed=2)
    two = clip_t5(cache=cache, t5=str(folder))
    assert two.missing(PROMPTS) == PROMPTS
    assert not torch.equal(two(PROMPTS).tokens, one(PROMPTS).tokens)
    assert two.identity.digests()["t5"] != one.identity.digests()["t5"]
    assert two.identity.digests()["clip"] == one.identity.digests()["clip"]


def test_the_same_encoder_elsewhere_shares_the_cache(clip_t5, folders, tmp_path):
    clip_t5(cache=str(tmp_path / "cache")).prepare(PROMPTS)
    moved = shutil.copytree(folders["t5"], tmp_path / "moved")
    assert clip_t5(cache=str(tmp_path / "cache"), t5=str(moved)).missing(PROMPTS) == []


def test_another_tokenizer_is_another_encoder(clip_t5, folders, tmp_path):
    folder = Path(shutil.copytree(folders["clip"], tmp_path / "clip"))
    merges = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[:5]) + "\n")
    other, own = clip_t5(clip=str(folder)), clip_t5()
    assert other.identity.digests()["clip"] != own.identity.digests()["clip"]


def test_weights_saved_otherwise_are_the_same_encoder(clip_t5, folders, tmp_path):
    """A digest is of what an encoder computes with, not of its files."""
    from transformers import T5EncoderModel

    folder = Path(shutil.copytree(folders["t5"], tmp_path / "t5"))
    (folder / "model.safetensors").unlink()
    T5EncoderModel.from_pretrained(folders["t5"]).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert clip_t5(t5=str(folder)).identity.digests() == clip_t5().identity.digests()


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "empty":
        data.clear()
    elif how == "truncated":
        del data[len(data) // 2 :]
    else:
        data[:8] = b"\xff" * 8
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "truncated", "header"])
def test_a_damaged_shard_is_said_and_encoded_again(clip_t5, tmp_path, shards, caplog, how):
    clip_t5(cache=str(tmp_path)).prepare(PROMPTS)
    (shard,) = shards(tmp_path)
    damage(shard, how)
    again = clip_t5(cache=str(tmp_path))
    assert close(again(PROMPTS), clip_t5()(PROMPTS))
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert str(shard) in line
    assert "can be deleted" in line
    again.cache.flush()
    healed = clip_t5(cache=str(tmp_path))
    assert equal(healed(PROMPTS), again(PROMPTS))
    assert not healed.is_loaded


def test_an_embedding_with_another_bit_is_encoded_again(clip_t5, tmp_path, shards):
    wrote = clip_t5(cache=str(tmp_path))
    wrote.prepare(PROMPTS)
    (shard,) = shards(tmp_path)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 64
    shard.write_bytes(data)
    again = clip_t5(cache=str(tmp_path))
    assert close(again(PROMPTS), clip_t5()(PROMPTS))
    assert again.is_loaded
    again.cache.flush()
    healed = clip_t5(cache=str(tmp_path))
    assert equal(healed(PROMPTS), again(PROMPTS))
    assert not healed.is_loaded


def test_an_interrupted_preparation_keeps_what_it_has(clip_t5, tmp_path, shards):
    prompts = [f"{a} {b}" for a in ("red", "blue") for b in range(40)]

    def stop(done: int) -> None:
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clip_t5(cache=str(tmp_path)).prepare(prompts, stop)
    (shard,) = shards(tmp_path)
    shard.with_name(f".{shard.name}.123.tmp").write_bytes(b"half")  # of a process that was killed
    assert len(clip_t5(cache=str(tmp_path)).missing(prompts)) == 80 - 64


def test_two_runs_may_fill_the_same_cache(clip_t5, tmp_path):
    one, two = clip_t5(cache=str(tmp_path)), clip_t5(cache=str(tmp_path))
    assert one.missing(["3"]) == two.missing(["3"]) == ["3"]
    one.prepare(["3", "four"])
    two.prepare(["3", "five"])
    assert clip_t5(cache=str(tmp_path)).missing(["3", "four", "five"]) == []


def test_memory_is_bounded_and_the_disk_stands_behind_it(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(tensor_cache, "MEMORY_BYTES", 3 * 4 * (5 * 6 + 4))  # three entries
    monkeypatch.setattr(tensor_cache, "FILE_ENTRIES", 4)
    caches = [TensorCache(folder, {}, "text.cache") for folder in (tmp_path, None)]
    for i in range(10):
        for cache in caches:
            put(cache, str(i), encoded(i, 5))
    assert len(shards(tmp_path)) == 2  # two prompts are still to be written
    for i in range(10):
        assert torch.equal(caches[0].get(str(i))["tokens"], encoded(i, 5).tokens)
        assert caches[0].note(str(i)) == caches[1].note(str(i)) == [5, 5 + i]
    assert [i for i in range(10) if str(i) in caches[1]] == [7, 8, 9]


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
    text.cache.flush()
    assert str(folder) in caplog.text
    assert "stay in memory" in caplog.text
    assert equal(text(["three"]), found)
    text(["four"])
    text.cache.flush()
    assert len([r for r in caplog.records if "stay in memory" in r.getMessage()]) == 1
