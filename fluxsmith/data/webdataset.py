"""WebDataset shards: tar files in which an image and its caption share a name, read locally or over
the network, from front to back."""

import itertools
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from fluxsmith.data.account import Account
from fluxsmith.data.captions import Captioner, Described, as_number, caption_keys
from fluxsmith.data.fingerprints import digest_of, fingerprints
from fluxsmith.data.listing import files_below, pass_over_ending
from fluxsmith.data.pictures import endings
from fluxsmith.data.records import (
    CaptionSettings,
    FilePart,
    Record,
    ShuffleBuffer,
    Split,
    WholeText,
    path_of,
    reason,
)
from fluxsmith.data.splits import belongs, note_share, own_test, own_train, split_in_name
from fluxsmith.data.tables import decode_text
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

# Without what a shell would act upon: the library fetches by other programs.
PLAIN_URL = re.compile(r"(https?|s3|gs|hf|file)://[^\s'\"`$\\]+")
SHARD = re.compile(r".+\.(tar|tgz|tar\.(gz|bz2|xz))", re.IGNORECASE)
TEXTS = ("txt", "caption", "text")
TOGETHER = (
    "files of a sample follow each other, and data.image_key and data.caption_key name endings, "
    "such as input.jpg"
)
BLOCK = 512  # bytes; an archive ends with blocks of zeros
MAGIC, MAGIC_AT = b"ustar", 257  # of an archive that is not compressed

Sample = dict[str, Any]  # by ending: the bytes of files, or pictures as a FilePart


@dataclass(frozen=True)
class Settings(CaptionSettings):
    test_path: Annotated[str | None, "Shards to test on; by default a share held out."] = None
    shuffle_buffer: ShuffleBuffer = 1000
    whole_text: WholeText = False


@dataclass(frozen=True)
class WebShards:
    """Tar files, by path or URL."""

    urls: Sequence[str]
    settings: Settings
    split: Split
    held_out: float | None  # share of the images that are for testing; None: all are of the split
    captioner: Captioner
    account: Account = field(default_factory=Account)

    @property
    def classes(self) -> Sequence[str]:
        return self.captioner.classes

    @property
    def remote(self) -> bool:
        return any("://" in url for url in self.urls)

    def __len__(self) -> int:
        return len(self.urls)

    def digest(self) -> str:
        """Of local shards by names and contents, of others by their URLs."""
        contents = fingerprints(self.urls, self.settings.workers)
        names = [url if "://" in url else Path(url).name for url in self.urls]
        # With a share held out it is other pictures of the same shards.
        whole = [] if self.settings.test_path is None else ["with data.test_path"]
        return digest_of([*zip(names, contents, strict=True), *whole])

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        url = self.urls[shard]
        named = self._named_endings()
        samples = _samples(url, named, self.account)
        if self.settings.image_key is None:  # else it says which pictures are meant
            apart = (_apart(key, sample, named) for key, sample in samples)
            samples = itertools.chain.from_iterable(apart)
        for place in itertools.count():
            try:
                key, sample = next(samples, (None, {}))
            except Exception as error:  # of tarfile, of a program that fetches, or of the network
                raise UserError(
                    f"data.path: can't read the shard {url} ({reason(error)}); mend it or leave it "
                    f"out"
                ) from None
            if key is None:
                return
            if place >= skip and belongs(key, self.held_out, self.split):
                yield place, self._record(f"{url}/{key}", sample)

    def _named_endings(self) -> tuple[str, ...]:
        """Endings of more than one part that the settings name, such as input.jpg."""
        pictures = self.settings.image_key, self.settings.reference_key
        named = (*pictures, *caption_keys(self.settings))
        return tuple(ending for ending in named if ending is not None and "." in ending)

    def _record(self, name: str, sample: Sample) -> Record:
        wanted, before = self.settings.image_key, self.settings.reference_key
        others = (e for e in sample if "." not in e and _is_picture(e) and e != before)
        pictures = [wanted] if wanted else [*others]
        there = [ending for ending in pictures if ending in sample]
        unread = (e for e in sample if _is_picture(e) and e not in (*there[:1], before))
        for ending in unread if there else ():
            self.account.pass_over("second image of its name", f"{name}.{ending}")
        if not there:
            what = f"no {wanted}" if wanted else "no image"
            fault = f"it has {what} but {', '.join(sample)}; {TOGETHER}"
            return Record(name, b"", (), fault=fault)
        if before is not None and before not in sample:
            return Record(name, b"", (), fault=f"it has no {before} but {', '.join(sample)}")
        try:
            captions, label, fault = self._describe(sample)
            reference = None if before is None else sample[before]
            return Record(name, sample[there[0]], captions, label, fault, reference)
        except ValueError as error:
            return Record(name, b"", (), fault=f"its caption can't be read: {reason(error)}")

    def _describe(self, sample: Sample) -> Described:
        """The captions under the endings that the settings name, in the json file, in a text, or
        of the number of a class."""
        if self.settings.caption is not None:
            return self.captioner.describe()
        keys = caption_keys(self.settings)
        there = [key for key in keys if key in sample]
        texts = [ending for ending in TEXTS if ending in sample]
        if read := there or texts[: not keys]:
            text = "\n".join(decode_text(sample[ending]) for ending in read)
            if keys == ("cls",) and isinstance(number := as_number(text), int):
                return self.captioner.describe(number)
            others = [e for e in (*TEXTS, "json", "cls") if e in sample and e not in read]
            if others and not keys:
                self.account.note(f"captions are read from {read[0]}, not from {', '.join(others)}")
            return self.captioner.of_text(text, self.account)
        if "json" in sample:
            text = decode_text(sample["json"])
            return self.captioner.of_json(text, "its json", self.account)
        if keys:
            return Described(
                fault=f"it has no {', '.join(keys)} but {', '.join(sample)}: set data.caption_key "
                f"to one of them"
            )
        if "cls" in sample:
            return self.captioner.describe(as_number(decode_text(sample["cls"]).strip()))
        return Described(fault=f"it has no caption but {', '.join(sample)}; {TOGETHER}")


def load(settings: Settings, split: Split) -> WebShards:
    """The shards that a path names: a tar file, those in and below a folder, or a pattern with
    braces, such as shards/{000..099}.tar, locally or as URLs. The test images are those of
    `test_path`, those in shards or folders called test or validation, or a share of all, chosen by
    name."""
    account = Account()
    urls = _urls("data.path", path_of(settings), account)
    named = _splits_of(urls, path_of(settings))
    train, test = own_train(named.values()), own_test(named.values())
    held_out: float | None = settings.test_share
    if told := settings.test_path or test:
        note_share(account, settings.test_share, told)
    if settings.test_path is not None:
        own = _urls("data.test_path", settings.test_path, account)
        urls, held_out = own if split == "test" else _beside(urls, own, named, account), None
        if not urls:
            raise UserError(
                f"data.path={settings.path}: its shards are all for testing, by their names or "
                f"data.test_path; set data.path to shards to train on"
            )
    elif test is not None:
        for url in urls:
            if named[url] not in (test, train or ""):
                account.pass_over(f"beside {train or 'others'} and {test}", url)
        wanted = test if split == "test" else train or ""
        urls, held_out = [url for url in urls if named[url] == wanted], None
        if not urls:
            raise UserError(
                f"data.path={settings.path}: its shards are all for testing, by the name {test}; "
                f"rename them, or set data.path to shards to train on"
            )
    elif split == "test" and held_out == 0:
        urls = []  # not read through for nothing
    return WebShards(urls, settings, split, held_out, Captioner(settings), account)


def _beside(
    urls: Sequence[str], tested: Sequence[str], named: Mapping[str, str], account: Account
) -> list[str]:
    """The shards to train on where others are named to test on: without those, wherever they lie,
    and without those that are called after the test images."""
    apart = {_place(url) for url in tested}
    kept = []
    for url in urls:
        if own_test([named[url]]):
            account.pass_over("beside data.test_path", url)
        elif _place(url) not in apart:
            kept.append(url)
    return kept


def _place(url: str) -> str:
    return url if "://" in url else str(Path(url).resolve())


def _splits_of(urls: Sequence[str], path: str) -> dict[str, str]:
    """What split each shard is called after, or a folder on the way to it, "" for none: below the
    folder `path`, or below what all shards of a pattern have in common, where they differ."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        below = [Path(url).relative_to(folder).parts for url in urls]
    else:
        ways = [tuple(url.partition("?")[0].split("/")) for url in urls]
        same = [*itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*ways, strict=False))]
        below = [way[len(same) :] for way in ways]
    words = [next(filter(None, map(split_in_name, way)), "") for way in below]
    if not folder.is_dir() and len(set(words)) < 2:
        words = [""] * len(words)  # those that are named are meant
    return dict(zip(urls, words, strict=True))


def _samples(
    url: str, named: Sequence[str], account: Account
) -> Iterator[tuple[str | None, Sample]]:
    """The files of a shard, those that share a name together, by their endings."""
    key: str | None = None
    sample: Sample = {}
    for name, data in _members(url, account):
        stem, ending = _cut(name, named)
        if not ending:
            account.pass_over("no ending", f"{url}/{name}")
            continue
        if inner := _inner_ending(stem, key):  # 7.jpg, then 7.seg.png
            stem, ending = str(key), f"{inner}.{ending}"
        elif inner := _inner_ending(key, stem):  # the other way round
            key, sample = stem, {f"{inner}.{e}": held for e, held in sample.items()}
        if stem != key or ending in sample:
            if sample:
                yield key, sample
            key, sample = stem, {}
        sample[ending] = data
    if sample:
        yield key, sample


def _apart(
    key: str | None, sample: Sample, named: Sequence[str]
) -> Iterator[tuple[str | None, Sample]]:
    """A sample, and those of longer names in it that have both a picture and a caption of their
    own, such as 7.edited.png and 7.edited.txt beside 7.png."""
    longer: dict[str, Sample] = {}
    for ending, held in sample.items():
        inner, _, last = ending.rpartition(".")
        if inner and ending not in named:
            longer.setdefault(inner, {})[last] = held
    found = {
        inner: own
        for inner, own in longer.items()
        if any(map(_is_picture, own)) and own.keys() & {*TEXTS, "json", "cls"}
    }
    apart = {f"{inner}.{last}" for inner, own in found.items() for last in own}
    yield key, {ending: held for ending, held in sample.items() if ending not in apart}
    for inner, own in found.items():
        yield f"{key}.{inner}", own


def _is_picture(ending: str) -> bool:
    return PurePosixPath(f"0.{ending}").suffix in endings()


def _inner_ending(longer: str | None, key: str | None) -> str:
    """What a longer key adds to another, such as seg for 7.seg; not numbers, which count images."""
    inner = (longer or "").removeprefix(f"{key}.")
    return inner if inner != longer and inner[:1].isalpha() else ""


def _cut(name: str, named: Sequence[str]) -> tuple[str, str]:
    """The key and the ending of a file: after the last dot, or one that the settings name."""
    for ending in named:
        if name.endswith(f".{ending}"):
            return name[: -len(ending) - 1], ending.lower()
    stem, _, ending = name.rpartition(".")
    return stem or name, ending.lower() if stem else ""


def _members(url: str, account: Account) -> Iterator[tuple[str, bytes | FilePart]]:
    """The name and the bytes of each file of a shard; an error where it ends too soon. Pictures of
    a local archive that is not compressed are left where they are."""
    local = "://" not in url
    with closing((open if local else _library("gopen").gopen)(url, "rb")) as stream:
        plain = local and stream.read(len(MAGIC) + MAGIC_AT)[MAGIC_AT:] == MAGIC
        if local:
            stream.seek(0)
        tar = tarfile.open(fileobj=stream, mode="r:" if plain else "r|*")  # noqa: SIM115
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # kept for a whole shard otherwise
            path = PurePosixPath(member.name)
            if any(part.startswith((".", "__MACOSX")) and part != "." for part in path.parts):
                account.pass_over("hidden or system file", f"{url}/{member.name}")
            elif member.isreg():
                name, file = member.name.removeprefix("./"), tar.extractfile(member)
                assert file is not None
                if plain and path.suffix.lower() in endings() and not member.issparse():
                    yield name, FilePart(Path(url), member.offset_data, member.size)
                else:
                    yield name, file.read()
            elif not member.isdir():
                account.pass_over("link, or no regular file", f"{url}/{member.name}")
        assert tar.fileobj is not None
        if tar.fileobj.tell() < tar.offset + BLOCK:
            raise tarfile.ReadError("it ends too soon, without the mark of an archive's end")


def _urls(key: str, path: str, account: Account) -> list[str]:
    """The shards that a path names: those in and below a folder, or of a pattern with braces."""
    folder, remote = Path(path).expanduser(), "://" in path
    if not remote and folder.is_dir():
        names = files_below(folder, account)
        found = [name for name in names if SHARD.fullmatch(name)]
        for name in (name for name in names if name not in found):
            pass_over_ending(name, "shard", account)
        if not found:
            passed = "".join(f"; {line}" for line in account.lines())
            pictures = any(PurePosixPath(name).suffix.lower() in endings() for name in names)
            hint = ", but images, which data.source=folder reads" if pictures else ""
            raise UserError(f"{key}={path}: no tar files in this folder or below{hint}{passed}")
        return [str(folder / name) for name in found]
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
            fix = (
                "name the folder, or use braces" if "*" in url else "correct the path or the braces"
            )
            raise UserError(f"{key}={path}: there is no {url}; {fix}")
    return urls


def _library(module: str) -> Any:
    return optional(f"webdataset.{module}", "hf", "data.source=webdataset")
