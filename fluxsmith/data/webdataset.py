"""WebDataset shards: tar files in which an image and its caption share a name, read locally or over
the network, from front to back."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fluxsmith.data.folder import as_captions
from fluxsmith.data.records import TEST_SHARE, Record, split_by_name
from fluxsmith.data.settings import Split
from fluxsmith.data.tarfiles import members
from fluxsmith.errors import UserError
from fluxsmith.nesting import parse_json
from fluxsmith.optional import optional

MOST_SHARDS = 1_000_000
FETCHED = ("http", "https", "s3", "gs", "hf", "file")
SKIPPED = re.compile(r"__[^/]*__($|/)")  # members that describe the shard itself
IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTION_KEYS = ("caption", "text", "prompt")  # of a json file, where none is named


class WebShards:
    """Tar files, by path or URL."""

    classes: Sequence[str] = ()

    def __init__(
        self, urls: Sequence[str], caption_key: str | None, split: Split, held_out: float
    ) -> None:
        self.urls = urls
        self._caption_key, self._split, self._held_out = caption_key, split, held_out

    def __len__(self) -> int:
        return len(self.urls)

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        url = self.urls[shard]
        samples = _samples(url)
        for place in itertools.count():
            try:
                sample = next(samples, None)
            except Exception as error:  # of tarfile, of a program that fetches, or of the network
                raise UserError(
                    f"data.path: can't read the shard {url} ({_short(error)}); mend it or leave it "
                    f"out"
                ) from None
            if sample is None:
                return
            if place >= skip and self._belongs(sample["__key__"]):
                yield place, self._record(f"{url}/{sample['__key__']}", sample)

    def _belongs(self, key: str) -> bool:
        return not self._held_out or split_by_name(key, self._held_out) == self._split

    def _record(self, name: str, sample: dict[str, Any]) -> Record:
        picture = next((sample[ending] for ending in IMAGES if ending in sample), None)
        if picture is None:
            others = ", ".join(key for key in sample if not key.startswith("__"))
            raise UserError(
                f"data.path: {name} has no {', '.join(IMAGES)} but {others}; leave out what is no "
                f"image"
            )
        return Record(name, picture, self._captions(name, sample))

    def _captions(self, name: str, sample: dict[str, Any]) -> tuple[str, ...]:
        if "json" in sample and (self._caption_key is not None or "txt" not in sample):
            return self._from_json(name, sample["json"])
        if self._caption_key is not None:
            raise UserError(
                f"data.caption_key={self._caption_key}: is for json files, and {name} has none; "
                f"remove the key"
            )
        text = sample.get("txt", b"").decode("utf-8", errors="replace")
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    def _from_json(self, name: str, encoded: bytes) -> tuple[str, ...]:
        try:
            found = parse_json(encoded)
        except ValueError:
            return ()
        keys = (self._caption_key,) if self._caption_key else CAPTION_KEYS
        if not isinstance(found, dict) or not any(key in found for key in keys):
            there = ", ".join(found) if isinstance(found, dict) else "no keys"
            raise UserError(
                f"data.caption_key: the json of {name} has {there}; name the one that holds the "
                f"caption"
            )
        return as_captions(next(found[key] for key in keys if key in found))


def load(
    path: str | None,
    split: Split,
    *,
    caption_key: str | None = None,
    test_path: str | None = None,
    test_share: float = TEST_SHARE,
) -> WebShards:
    """The shards that a path names: a tar file, a folder of them, or a pattern with braces, such as
    shards/{000..099}.tar, locally or as URLs. The test images are those of `test_path`, or a share
    of all, told by name."""
    if path is None:
        raise UserError("data.path: missing; name the shards, such as shards/{000..099}.tar")
    urls = _urls("data.path", path)
    if test_path is None:
        return WebShards(urls, caption_key, split, test_share)
    own = _urls("data.test_path", test_path)
    return WebShards(urls if split == "train" else own, caption_key, split, 0.0)


def _samples(url: str) -> Iterator[dict[str, Any]]:
    """The files of a shard, those that share a name together."""
    local = _scheme(url) is None
    source = open(url, "rb", buffering=0) if local else _library("gopen").gopen(url)  # noqa: SIM115
    named = ((name, data) for name, data in members(source) if not SKIPPED.match(name))
    files = ({"fname": name, "data": data, "__url__": url} for name, data in named)
    yield from _library("tariterators").group_by_keys(files)


def _scheme(path: str) -> str | None:
    """That of a URL; None for a file of this machine."""
    return path.partition("://")[0] if "://" in path else None


def _urls(key: str, path: str) -> list[str]:
    if "://" in path:
        urls = _expanded(key, path)
        for url in urls:
            if _scheme(url) not in FETCHED or not url.isprintable() or set(url) & set(" '\"`$\\"):
                raise UserError(
                    f"{key}={url[:200]}: must be the path of a file, or a plain URL that begins "
                    f"with {', '.join(FETCHED)}; commands are not run for data"
                )
        return urls
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = sorted(str(file) for file in folder.glob("*.tar*"))
        if not found:
            raise UserError(f"{key}={path}: no tar files in this folder; correct the path")
        return found
    urls = _expanded(key, str(folder))
    for url in urls:
        if not Path(url).is_file():
            raise UserError(f"{key}={path}: there is no {url}; correct the path or the braces")
    return urls


def _expanded(key: str, pattern: str) -> list[str]:
    """What a pattern with braces stands for."""
    expand_urls = _library("shardlists").expand_urls
    most = 1  # of what its braces make; nested ones make fewer
    for inside in re.findall(r"[^{}]*", pattern)[1:]:
        ends = re.match(r"(-?\d{1,18})\.\.(-?\d{1,18})", inside)
        most *= abs(int(ends[2]) - int(ends[1])) + 1 if ends else inside.count(",") + 1
    if most > MOST_SHARDS:
        raise UserError(
            f"{key}={pattern[:200]}: may name more than {MOST_SHARDS:,} shards; name fewer"
        )
    try:
        return list(expand_urls(pattern))
    except Exception as error:  # of its parser, or for a variable that isn't set
        raise UserError(f"{key}={pattern[:200]}: {_short(error)}; correct the braces") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _library(module: str) -> Any:
    return optional(f"webdataset.{module}", "hf", "data.source=webdataset")
