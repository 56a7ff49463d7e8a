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
from made_pictures import as_folder, as_shards, of_sizes, replace
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_autoencoder import TINY, save_autoencoder, tiny_network

from fluxsmith.config import RunConfig
from fluxsmith.data import build_loader
from fluxsmith.data.latents import LATENT, latent_key
from fluxsmith.data.records import Record
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline, build_autoencoder
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_cache import TensorCache
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
    put = TensorCache.put

    def cut_off(cache: TensorCache, key: str, *entry: object, **strict: bool) -> None:
        if len(keys) == 10:
            raise KeyboardInterrupt
        keys.append(key)
        put(cache, key, *entry, **strict)

    monkeypatch.setattr(TensorCache, "put", cut_off)
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


def test_a_picture_that_could_not_be_read_is_tried_again(cached, tmp_path, monkeypatch):
    """As of a format that an older Pillow did not know, or of a disk that failed for a moment."""
    with Image.open(tmp_path / "pictures" / "00003.png") as picture:
        picture.save(tmp_path / "pictures" / "00003.webp", lossless=True)
    (tmp_path / "pictures" / "00003.png").unlink()
    config = cached("data.max_bad=0.2")
    with monkeypatch.context() as older:
        older.setattr(Image, "ID", [kind for kind in Image.ID if kind != "WEBP"])
        for made in (13, 0):
            assert encoded(config) == made
            assert "1 can't be read" in encode_latents(config)[1]
    assert encoded(config) == 1
    assert encode_latents(config) == encode_latents(config)  # no more can't be read
    captions = [text for _, texts in batches(config, cache=True) for text in texts]
    assert "picture number 3" in captions
    assert same(batches(config, cache=True), batches(config, cache=False))


def test_a_bucket_of_unreadable_pictures_alone_stops_no_run(cached, tmp_path):
    ((tall, _),) = of_sizes([(8, 32)])  # no other is
    (tmp_path / "pictures" / "tall.png").write_bytes(tall[: len(tall) // 2])
    (tmp_path / "pictures" / "tall.txt").write_text("tall")
    shapes = "data.buckets=auto", "data.bucket_step=8", "data.bucket_aspect=4"
    config = cached("data.max_bad=0.2", *shapes)
    encode_latents(config)
    for cache in (True, False):
        captions = {text for _, texts in batches(config, cache) for text in texts}
        assert len(captions) > 8 and "tall" not in captions


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
    latents = TensorCache(tmp_path / "latents", {}, "autoencoder.cache")
    texts = TensorCache(tmp_path / "text", {}, "text.cache")
    for i in range(images):
        latents.put(f"{i:032x}-{10**18 + i}-512x512", {LATENT: torch.randn(16, 64, 64).bfloat16()})
        tokens = torch.randn(64, 4096).bfloat16()
        texts.put(f"a caption {i}", {"tokens": tokens, "pooled": torch.randn(768)}, [64, 64])
    latents.flush()
    texts.flush()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) / images < 0.7e6


# Ways of being stale. Each is done to a cache that was whole: `at` has the config's maker,
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


def told(**changes: str) -> Callable[..., None]:
    return rewritten(lambda tensors, metadata: metadata.update(changes))


def values(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def change(tensors: dict, metadata: dict) -> None:
        tensors[LATENT] = make(tensors[LATENT]).contiguous()

    return rewritten(change)


def index(make: Callable[[dict], object]) -> Callable[..., None]:
    """The index of the shard changed: [checksum, shapes, note] by key."""

    def change(tensors: dict, metadata: dict) -> None:
        entries = json.loads(metadata["index"])
        make(entries)
        metadata["index"] = json.dumps(entries)

    return rewritten(change)


def exchange(entries: dict) -> None:
    one, other, *_ = entries
    entries[one], entries[other] = entries[other], entries[one]


def other_shape(entries: dict) -> None:
    shapes = next(iter(entries.values()))[1]
    channels, height, width = shapes[LATENT]
    shapes[LATENT] = [channels, height * width]


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


def all_of_the_same_sizes_and_times(at: SimpleNamespace) -> None:
    for path in at.pictures.glob("*.png"):
        replace(path)


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
    return rewritten(lambda tensors, metadata: [metadata.pop(key) for key in keys])


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
    "one of the same size and time": (picture(0, replace), ()),
    "all of the same sizes and times": (all_of_the_same_sizes_and_times, ()),
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
    "another format": (told(format="fluxsmith-tensors/0"), ()),
    "of other settings": (told(about="0" * 16), ()),
    "no metadata": (drop("format", "about", "index"), ()),
    "no index": (drop("index"), ()),
    "an index that is none": (told(index="[]"), ()),
    "latents of another value": (values(lambda latents: latents + 1), ()),
    "latents in another order": (values(lambda latents: latents.flip(0)), ()),
    "latents of another shape": (index(other_shape), ()),
    "latents of another dtype": (values(lambda latents: latents.float()), ()),
    "latents that are not finite": (values(lambda latents: latents * torch.nan), ()),
    "fewer latents": (values(lambda latents: latents[:-1]), ()),
    "a latent less": (index(lambda entries: entries.pop(min(entries))), ()),
    "two latents exchanged": (index(exchange), ()),
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


def test_a_picture_is_known_by_its_bytes_and_a_file_by_its_time_too(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    record = Record("a.png", path, ())
    first = latent_key(record, (8, 8))
    assert latent_key(record, (8, 16)) != first
    moved = path.rename(tmp_path / "b.png")
    assert latent_key(Record("b.png", moved, ()), (8, 8)) == first
    time = moved.stat().st_mtime_ns
    moved.write_bytes(b"two")
    os.utime(moved, ns=(time, time))
    assert latent_key(Record("b.png", moved, ()), (8, 8)) != first
    in_table = [latent_key(Record(n, b, ()), (8, 8)) for n, b in (("a", b"1"), ("b", b"1"))]
    assert in_table[0] == in_table[1] != latent_key(Record("a", b"2", ()), (8, 8))


def test_folders_that_look_alike_share_no_latents(cached, tmp_path):
    """As a copy of the one that keeps times, in which the pictures are others."""
    assert encoded(cached()) == len(SIZES)
    shutil.copytree(tmp_path / "pictures", tmp_path / "other")
    other = cached(f"data.path={tmp_path / 'other'}")
    assert encoded(other) == 0  # the same pictures
    all_of_the_same_sizes_and_times(SimpleNamespace(pictures=tmp_path / "other"))
    with pytest.raises(UserError, match="no latents for 14 of 14 pictures"):
        batches(other, cache=True)
    assert encoded(other) == len(SIZES)
    assert same(batches(other, cache=True), batches(other, cache=False))
    assert encoded(cached()) == 0
