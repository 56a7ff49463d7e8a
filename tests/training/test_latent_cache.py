"""Training from cached latents is training from the pictures, to the bit; whatever is stale is
refused or made again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import same
from made_pictures import as_folder, as_shards, of_sizes
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_autoencoder import TINY, save_autoencoder, tiny_network

from fluxsmith.config import RunConfig
from fluxsmith.data import build_loader
from fluxsmith.data.latents import latent_key
from fluxsmith.data.records import Record
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline, build_autoencoder
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.embeddings import EmbeddingCache
from fluxsmith.storage.latent_store import LatentStore
from fluxsmith.storage.tensor_files import write_tensors
from fluxsmith.training.latent_encoding import encode_latents, open_latents
from fluxsmith.training.run import build_trainer, train

SIZES = [(16, 16)] * 7 + [(24, 10)] * 4 + [(17, 30)] * 3
CPU = torch.device("cpu")


@pytest.fixture
def cached(toy, tmp_path) -> Callable[..., RunConfig]:
    """cached(*overrides): a latent model on a folder of pictures, with a cache."""
    as_folder(tmp_path / "pictures", of_sizes(SIZES), "txt")
    weights = save_autoencoder(tmp_path / "ae.safetensors")
    keys = (
        f"data={{source: folder, path: '{tmp_path / 'pictures'}', image_size: 16, channels: 3, "
        f"resize: center-crop, test_share: 0.0}}",
        f"autoencoder={{kind: flux, weights: '{weights}', cache: '{tmp_path / 'latents'}'}}",
        "model.patch_size=2", "evaluate.every=0", "train.batch_size=4", "train.steps=4",
    )  # fmt: skip
    return lambda *overrides: toy(*keys, *overrides)


def encoded(config: RunConfig) -> int:
    """How many pictures were encoded."""
    return int(encode_latents(config)[0].split()[1].replace(",", ""))


def batches(config: RunConfig, cache: bool) -> list[tuple[torch.Tensor, list[str]]]:
    """What a model learns in an epoch and more, from the cache or from the pictures."""
    autoencoder = build_autoencoder(config, "cpu")
    latents = open_latents(config, autoencoder) if cache else None
    settings = config.data if cache else config.data.model_copy(update={"in_memory": False})
    loader = build_loader(settings, 4, seed=0, latents=latents)
    found = []
    for step in range(6):
        batch = loader.batch(step)
        assert batch.encoded == cache
        x0 = batch.images if cache else autoencoder.encode(batch.images).to(autoencoder.dtype)
        found.append((x0.float(), batch.captions))
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("buckets", ["off", "auto"])
def test_cached_and_uncached_batches_are_equal_to_the_bit(cached, dtype, buckets):
    config = cached(f"autoencoder.latents={dtype}")
    if buckets == "auto":
        config = cached(
            f"autoencoder.latents={dtype}", "data.buckets=auto", "data.bucket_step=8",
            "data.bucket_aspect=4",
        )  # fmt: skip
    assert encoded(config) == len(SIZES)
    assert encoded(config) == 0
    assert same(batches(config, cache=True), batches(config, cache=False))


@pytest.mark.slow
def test_cached_and_uncached_runs_are_equal_and_resume(cached, tmp_path):
    config = cached("train.checkpoint_every=2")
    encode_latents(config)
    assert train(config) == 0
    last = tmp_path / "run" / "diffusion-4.pt"
    whole = checkpoints.load(last)
    last.unlink()
    assert train(config, resume="auto") == 0
    plain = cached("autoencoder.cache=none", f"output_dir={tmp_path / 'plain'}")
    assert train(plain) == 0
    for other in (last, tmp_path / "plain" / "diffusion-4.pt"):
        again = checkpoints.load(other)
        for key in ("model", "ema", "optimizer"):
            assert same(again[key], whole[key]), (key, other)


@pytest.mark.parametrize(("held_out", "cache"), [(0.7, True), (0.7, False), (0, True)])
def test_a_run_is_looked_at_with_or_without_a_cache_and_test_images(cached, held_out, cache):
    config = cached("train.steps=100", f"data.test_share={held_out}")
    encode_latents(config)
    if not cache:
        config = cached("train.steps=100", f"data.test_share={held_out}", "autoencoder.cache=none")
    trainer = build_trainer(config, CPU)
    for step in range(10):
        batch = trainer.next_batch()
        trainer.signals.before_step(step, batch)
        trainer.train_step(batch)
    seen = trainer.signals.look(10)
    assert {"picture_spread", "norm_error", "update/blocks"} <= seen.keys()
    assert "learned" in trainer.signals.against_linear({"loss": 1.0})
    assert ("picture_spread_held_out" in seen) == (held_out > 0)


def test_a_stream_is_served_by_the_pictures_bytes(cached, tmp_path):
    pytest.importorskip("webdataset")
    shards = as_shards(tmp_path / "shards", of_sizes(SIZES), 3)
    stream = (
        f"data={{source: webdataset, path: '{shards}', image_size: 16, channels: 3, "
        f"resize: center-crop, test_share: 0.0}}"
    )
    config = cached(stream)
    assert encoded(config) == len(SIZES)
    plain = build_loader(config.data, 4, seed=0)
    loader = build_loader(config.data, 4, seed=0, latents=open_latents(config))
    pipeline = Pipeline.build(config)
    for step in range(5):
        one, other = loader.batch(step), plain.batch(step)
        assert one.captions == other.captions
        assert torch.equal(pipeline.encode(one), pipeline.encode(other))


def test_several_processes_share_the_work_and_fill_one_cache(cached, monkeypatch):
    config = cached()
    monkeypatch.setenv("WORLD_SIZE", "3")
    counts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        counts.append(encoded(config))
    assert counts == [5, 5, 4]
    assert len(list(open_latents(config).folder.glob("*.safetensors"))) == 3
    assert same(batches(config, cache=True), batches(config, cache=False))


def test_a_fill_that_is_cut_leaves_what_it_has_written(cached, monkeypatch):
    config = cached("data.workers=1")
    keys = []
    put = LatentStore.put

    def cut_off(store: LatentStore, key: str, latent: torch.Tensor) -> None:
        if len(keys) == 10:
            raise KeyboardInterrupt
        keys.append(key)
        put(store, key, latent)

    monkeypatch.setattr(LatentStore, "put", cut_off)
    with pytest.raises(KeyboardInterrupt):
        encode_latents(config)
    monkeypatch.undo()
    assert len(open_latents(config)) == 10
    with pytest.raises(UserError, match=r"for 4 of 14 pictures.*run fluxsmith encode"):
        batches(config, cache=True)
    assert encoded(config) == 4
    assert same(batches(config, cache=True), batches(config, cache=False))


def test_a_picture_that_can_not_be_read_is_noted_and_counted_in_training(cached, tmp_path, caplog):
    (tmp_path / "pictures" / "00003.png").write_bytes(b"nothing")
    config = cached("data.max_bad=0.2")
    first, second = encode_latents(config)
    assert "13 pictures encoded" in first
    assert "1 can't be read, such as 00003.png: no image that Pillow knows" in second
    assert encoded(config) == 0
    captions = [text for _, texts in batches(config, cache=True) for text in texts]
    assert "picture number 3" not in captions
    assert "skipped 00003.png: it could not be read when" in caplog.text


def test_a_folder_that_can_not_be_written_is_one_line(cached, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"can't write to .*set autoencoder\.cache"):
        encode_latents(cached(f"autoencoder.cache={tmp_path / 'file'}"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.flip=true", r"data\.flip=True: can't be served by autoencoder\.cache"),
        ("data.resize=random-crop", r"data\.resize=random-crop: can't be served"),
        ("data.in_memory=true", r"data\.in_memory=True: can't be served"),
        ("data={source: digits, channels: 3, image_size: 16}", r"data\.source=digits: .*no files"),
    ],
)
def test_what_latents_can_not_follow_is_refused(cached, override, said):
    with pytest.raises(UserError, match=said):
        encode_latents(cached(override))
    with pytest.raises(UserError, match=said):
        batches(cached(override), cache=True)


def test_an_image_of_512_with_its_caption_takes_less_than_700_kb(tmp_path):
    """A caption of 64 tokens by T5-XXL in bfloat16, with CLIP's pooled vector."""
    images = 16
    store = LatentStore(str(tmp_path / "latents"), {})
    texts = EmbeddingCache(tmp_path / "text", {})
    for i in range(images):
        store.put(f"{i:032x}-512x512", torch.randn(16, 64, 64).bfloat16())
        tokens = torch.randn(64, 4096).bfloat16()
        texts.put(f"a caption {i}", (tokens, torch.randn(768), 64, 64))
    store.flush()
    texts.flush()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) / images < 0.7e6


# Fifty ways of being stale. Each is done to a cache that was whole: `at` has the config's maker,
# the folder of the pictures, that of the cache, its one shard and the autoencoder's file.


def rewritten(change: Callable[[dict, dict], None]) -> Callable[..., None]:
    """The shard written again with its tensors and its metadata changed."""

    def way(at: SimpleNamespace) -> None:
        with safe_open(at.shard, framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            told = dict(file.metadata())
        change(tensors, told)
        save_file(tensors, at.shard, told)

    return way


def about(**changes: object) -> Callable[..., None]:
    def change(tensors: dict, told: dict) -> None:
        told["about"] = json.dumps(json.loads(told["about"]) | changes, sort_keys=True)

    return rewritten(change)


def first_tensor(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def change(tensors: dict, told: dict) -> None:
        key = min(tensors)
        tensors[key] = make(tensors[key]).contiguous()

    return rewritten(change)


def swap(tensors: dict, told: dict) -> None:
    one, other, *_ = sorted(tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def shard_bytes(make: Callable[[bytes], bytes]) -> Callable[..., None]:
    return lambda at: at.shard.write_bytes(make(at.shard.read_bytes()))


def flipped(position: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = int(position * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return flip


def autoencoder(name: str = "", change: float = 0.0, **told: str) -> Callable[..., None]:
    """The first value of a weight changed, or what the file says beside its weights."""

    def way(at: SimpleNamespace) -> None:
        weights = tiny_network(TINY).state_dict()
        if name:
            weights[name].view(-1)[0] += change
        write_tensors(at.weights, weights, told)

    return way


def picture(i: int, make: Callable[[Path], None]) -> Callable[..., None]:
    return lambda at: make(at.pictures / f"{i:05d}.png")


def other_picture(path: Path) -> None:
    path.write_bytes(of_sizes([(16, 16)] * 20)[-1][0])


def wide_picture(path: Path) -> None:
    path.write_bytes(of_sizes([(40, 16)])[0][0])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:90])


def others_of_these_names(at: SimpleNamespace) -> None:
    as_folder(at.pictures, of_sizes(SIZES[::-1]), "txt")


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 10**18))


def added(at: SimpleNamespace) -> None:
    other_picture(at.pictures / "00099.png")
    (at.pictures / "00099.txt").write_text("one more")


def exchanged(at: SimpleNamespace) -> None:
    one, other = at.pictures / "00001.png", at.pictures / "00002.png"
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


def renamed_cache(at: SimpleNamespace) -> None:
    at.cache.rename(at.cache.with_name("0" * 16))


def foreign_shard(at: SimpleNamespace) -> None:
    """Another autoencoder's latents of the same pictures, under the folder of this one."""
    at.shard.unlink()
    save_autoencoder(at.weights, seed=1)
    encode_latents(at.config())
    (other,) = at.cache.parent.glob("*/*.safetensors")
    shutil.copy(other, at.cache / "other.safetensors")
    save_autoencoder(at.weights)


def both(at: SimpleNamespace) -> None:
    foreign_shard(at)
    at.shard.write_bytes(b"")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def drop(*keys: str) -> Callable[..., None]:
    return rewritten(lambda tensors, told: [told.pop(key) for key in keys])


BAD = ("data.max_bad=0.2",)
BUCKETS = ("data.buckets=auto", "data.bucket_step=8", "data.bucket_aspect=4")
WAYS: dict[str, tuple[Callable[..., None] | None, tuple[str, ...]]] = {
    # the encoder
    "other weights": (lambda at: save_autoencoder(at.weights, seed=1), ()),
    "one weight": (autoencoder("encoder.conv_in.weight", 0.1), ()),
    "one bias": (autoencoder("encoder.conv_out.bias", 0.5), ()),
    "the decoder alone": (autoencoder("decoder.conv_in.bias", 0.5), ()),
    "its attention": (autoencoder("encoder.mid.attn_1.q.weight", 1.0), ()),
    "another shift": (autoencoder(shift_factor="0.5"), ()),
    "another scale": (autoencoder(scaling_factor="0.5"), ()),
    "tiles": (None, ("autoencoder.tile_size=8",)),
    # how pictures are seen
    "float32": (None, ("autoencoder.latents=float32",)),
    "a larger size": (None, ("data.image_size=24",)),
    "a smaller size": (None, ("data.image_size=8",)),
    "stretched": (None, ("data.resize=stretch",)),
    "padded": (None, ("data.resize=pad",)),
    "buckets": (None, BUCKETS),
    "buckets of a size": (None, (*BUCKETS, "data.image_size=24")),
    # the pictures
    "a changed picture": (picture(0, other_picture), ()),
    "the last one changed": (picture(13, other_picture), ()),
    "a touched picture": (picture(4, touched), ()),
    "a picture cut short": (picture(2, cut_short), BAD),
    "an empty picture": (picture(2, nothing), BAD),
    "a picture of another shape": (picture(8, wide_picture), ()),
    "a new picture": (added, ()),
    "a picture less": (picture(5, Path.unlink), ()),
    "two exchanged": (exchanged, ()),
    "one renamed": (picture(6, lambda path: path.rename(path.with_name("zz.png"))), BAD),
    "another set of these names": (others_of_these_names, ()),
    # captions, which are not in it
    "a changed caption": (lambda at: (at.pictures / "00001.txt").write_text("other words"), ()),
    "more captions": (lambda at: (at.pictures / "00001.txt").write_text("one\ntwo"), ()),
    "no caption": (lambda at: (at.pictures / "00001.txt").unlink(), BAD),
    "captions from a table": (
        lambda at: as_folder(at.pictures, of_sizes(SIZES), "jsonl"),
        ("data.captions=metadata",),
    ),
    # shards
    "half a shard": (shard_bytes(lambda data: data[: len(data) // 2]), ()),
    "a shard without its last byte": (shard_bytes(lambda data: data[:-1]), ()),
    "a longer shard": (shard_bytes(lambda data: data + b"more"), ()),
    "an empty shard": (shard_bytes(lambda data: b""), ()),
    "a shard of text": (shard_bytes(lambda data: b"no tensors"), ()),
    "a bit in the header": (shard_bytes(flipped(0.05)), ()),
    "a bit in the middle": (shard_bytes(flipped(0.7)), ()),
    "the last bit": (shard_bytes(flipped(1.0)), ()),
    "no shard": (lambda at: at.shard.unlink(), ()),
    "no folder": (lambda at: shutil.rmtree(at.cache), ()),
    "a folder of another name": (renamed_cache, ()),
    "another autoencoder's shard": (foreign_shard, ()),
    "that and an empty one": (both, ()),
    "another format": (about(format="fluxsmith-latents/0"), ()),
    "another way to read": (about(reading=0), ()),
    "no metadata": (drop("about", "checksums"), ()),
    "no checksums": (drop("checksums"), ()),
    "latents of another value": (first_tensor(lambda latent: latent + 1), ()),
    "latents of another shape": (first_tensor(lambda latent: latent.flatten(1)), ()),
    "latents of another dtype": (first_tensor(lambda latent: latent.float()), ()),
    "latents that are not finite": (first_tensor(lambda latent: latent * torch.nan), ()),
    "a latent less": (rewritten(lambda tensors, told: tensors.pop(min(tensors))), ()),
    "two latents exchanged": (rewritten(swap), ()),
}
QUICK = ("other weights", "buckets", "a changed picture", "half a shard", "two latents exchanged")


@pytest.mark.parametrize(
    "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_nothing_stale_is_trained_on(cached, tmp_path, way):
    """Training gives what it gives without a cache, or stops and says what to do; then encoding
    mends it."""
    change, overrides = WAYS[way]
    encode_latents(cached())
    store = open_latents(cached())
    at = SimpleNamespace(
        config=cached, pictures=tmp_path / "pictures", cache=store.folder,
        shard=next(store.folder.glob("*.safetensors")), weights=tmp_path / "ae.safetensors",
    )  # fmt: skip
    if change is not None:
        change(at)
    config = cached("data.max_bad=0", *overrides)
    expected = batches(config, cache=False)
    try:
        assert same(batches(config, cache=True), expected)
    except UserError as error:
        assert "fluxsmith encode" in str(error)
    encode_latents(config)
    assert same(batches(config, cache=True), expected)


def test_a_picture_is_known_by_its_file_or_its_bytes(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    record = Record("a.png", path, ())
    first = latent_key(record, (8, 8))
    assert latent_key(record, (8, 16)) != first
    assert latent_key(Record("b.png", path, ()), (8, 8)) != first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert latent_key(record, (8, 8)) != first
    assert latent_key(Record("a", b"one", ()), (8, 8)) == latent_key(
        Record("b", b"one", ()), (8, 8)
    )
    assert latent_key(Record("a", b"one", ()), (8, 8)) != latent_key(
        Record("a", b"two", ()), (8, 8)
    )
