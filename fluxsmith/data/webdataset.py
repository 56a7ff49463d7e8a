"""WebDataset shards: tar files in which an image and its caption share a name, read locally or over
the network, from front to back."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fluxsmith.data.folder import as_captions, captions_by_line
from fluxsmith.data.records import (
    FileSettings,
    Record,
    ShuffleBuffer,
    Split,
    belongs,
    path_of,
    reason,
)
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

# Without what a shell would act upon: the library fetches by other programs.
PLAIN_URL = re.compile(r"(https?|s3|gs|hf|file)://[^\s'\"`$\\]+")
IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTION_KEYS = ("caption", "text", "prompt")  # of a json file, where none is named


@dataclass(frozen=True)
class WebShards:
    """Tar files, by path or URL."""

    urls: Sequence[str]
    caption_key: str | None
    split: Split
    held_out: float  # share of the images that are for testing; 0: the shards are all of one split
    classes: Sequence[str] = ()

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
                    f"data.path: can't read the shard {url} ({reason(error)}); mend it or leave it "
                    f"out"
                ) from None
            if sample is None:
                return
            key = sample["__key__"]
            if place >= skip and belongs(key, self.held_out, self.split):
                yield place, self._record(f"{url}/{key}", sample)

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
        if "json" in sample and (self.caption_key is not None or "txt" not in sample):
            return self._from_json(name, sample["json"])
        if self.caption_key is not None:
            raise UserError(
                f"data.caption_key={self.caption_key}: is for json files, and {name} has none; "
                f"remove the key"
            )
        return captions_by_line(sample.get("txt", b"").decode("utf-8", errors="replace"))

    def _from_json(self, name: str, encoded: bytes) -> tuple[str, ...]:
        try:
            found = json.loads(encoded)
        except ValueError:
            return ()
        keys = (self.caption_key,) if self.caption_key else CAPTION_KEYS
        if not isinstance(found, dict) or not any(key in found for key in keys):
            there = ", ".join(found) if isinstance(found, dict) else "no keys"
            raise UserError(
                f"data.caption_key: the json of {name} has {there}; name the one that holds the "
                f"caption"
            )
        return as_captions(next(found[key] for key in keys if key in found))


@dataclass(frozen=True)
class Settings(FileSettings):
    test_path: Annotated[str | None, "Shards to test on; by default a share held out."] = None
    caption_key: Annotated[str | None, "Key of the captions in json files; told by its name."] = (
        None
    )
    shuffle_buffer: ShuffleBuffer = 1000


def load(settings: Settings, split: Split) -> WebShards:
    """The shards that a path names: a tar file, a folder of them, or a pattern with braces, such as
    shards/{000..099}.tar, locally or as URLs. The test images are those of `test_path`, or a share
    of all, chosen by name."""
    urls, held_out = _urls("data.path", path_of(settings)), settings.test_share
    if settings.test_path is not None:
        own = _urls("data.test_path", settings.test_path)
        urls, held_out = urls if split == "train" else own, 0.0
    return WebShards(urls, settings.caption_key, split, held_out)


def _samples(url: str) -> Iterator[dict[str, Any]]:
    """The files of a shard, those that share a name together."""
    opened = _library("gopen").gopen if "://" in url else open
    tar = _library("tariterators")
    with closing(opened(url, "rb")) as stream:
        files = ({**file, "__url__": url} for file in tar.tar_file_iterator(stream))
        yield from tar.group_by_keys(files)


def _urls(key: str, path: str) -> list[str]:
    """The shards that a path names: those of a folder, or of a pattern with braces."""
    folder, remote = Path(path).expanduser(), "://" in path
    if not remote and folder.is_dir():
        found = sorted(str(file) for file in folder.glob("*.tar*"))
        if not found:
            raise UserError(f"{key}={path}: no tar files in this folder; correct the path")
        return found
    try:
        urls: list[str] = list(_library("shardlists").expand_urls(path if remote else str(folder)))
    except Exception as error:  # of its parser, or for a variable that isn't set
        raise UserError(f"{key}={path}: {reason(error)}; correct the braces") from None
    for url in urls:
        if remote and not PLAIN_URL.fullmatch(url):
            raise UserError(
                f"{key}={url}: must be the path of a file, or a plain URL of http, https, s3, gs, "
                f"hf or file; commands are not run for data"
            )
        if not remote and not Path(url).is_file():
            raise UserError(f"{key}={path}: there is no {url}; correct the path or the braces")
    return urls


def _library(module: str) -> Any:
    return optional(f"webdataset.{module}", "hf", "data.source=webdataset")
