"""The files in and below a folder: images, texts that may hold captions, and what is neither."""

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

from fluxsmith.data.account import Account
from fluxsmith.data.pictures import endings
from fluxsmith.data.tables import TABLES

TEXTS = frozenset({".txt", ".caption", ".text", ".json", *TABLES})
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
# Folders that the path of an image or of its caption may go through.
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
CAPTION_FOLDERS = ("captions", "caption", "texts", "text", "txt", "prompts", "tags")
UNREAD = frozenset({".md", ".yaml", ".yml", ".xml", ".tags", ".cap", ".prompt", ".rtf", ".html"})
# Texts that are tables, whatever their ending.
TABLE_NAMES = ("metadata", "captions")
ABOUT = ("readme", "license", "licence")  # texts that nobody takes for captions
LEVELS = 3  # from strict to loose, of how a text and its image are found to belong together


@dataclass
class Listing:
    """Names relative to `root`, with forward slashes, in order."""

    root: Path
    images: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # texts of other kinds
    account: Account = field(default_factory=Account)


def list_folder(root: Path) -> Listing:
    """All files, those behind symbolic links too."""
    found = Listing(root)
    names = files_below(root, found.account)
    images = [path for path in map(PurePosixPath, names) if path.suffix.lower() in endings()]
    depicted = {_near(part) for path in images for part in (path.stem, path.name)}
    for name in names:
        path = PurePosixPath(name)
        ending, stem = path.suffix.lower(), path.stem.lower()
        if ending in endings():
            found.images.append(name)
        elif stem.startswith(ABOUT) and _near(path.stem) not in depicted:  # license_plate_1.txt
            found.account.pass_over("about the data", name)
        elif ending in TEXTS or stem in TABLE_NAMES:
            found.texts.append(name)
        else:
            found.unread += [name] if ending in UNREAD else []
            pass_over_ending(name, "image", found.account)
    return found


def files_below(root: Path, account: Account) -> list[str]:
    """The names of the files in and below a folder, in order, those behind symbolic links too; what
    is no file of the user's goes into the account."""
    names = _walk(root, "", (os.path.realpath(root),), account)
    return sorted(names, key=lambda name: name.split("/"))


def pass_over_ending(name: str, wanted: str, account: Account) -> None:
    """Notes a file whose ending none that is `wanted` has."""
    suffix = PurePosixPath(name).suffix
    account.pass_over(
        f"{f'ending {suffix}' if suffix else 'no ending'}, which is no {wanted}'s", name
    )


def _walk(folder: Path, prefix: str, above: tuple[str, ...], account: Account) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        account.pass_over(f"folder that can't be read, {error.strerror}", prefix)
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
            account.pass_over("hidden or system file", name)
        elif _true(entry.is_dir):
            real = os.path.realpath(entry.path)
            if real in above:
                account.pass_over("link that leads in a circle", name)
            else:
                yield from _walk(Path(entry.path), name + "/", (*above, real), account)
        elif _true(entry.is_file):
            yield name
        else:
            account.pass_over("broken link" if entry.is_symlink() else "no regular file", name)


def _true(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:  # of a link to itself
        return False


class Texts:
    """The texts of a folder, by what they may be: those beside an image, tables, and others."""

    def __init__(self, there: Listing) -> None:
        by_key = defaultdict[tuple[int, str], list[str]](list)
        for text in there.texts:
            for key in enumerate(_keys(_stem(text), CAPTION_FOLDERS)):
                by_key[key].append(text)
        self.beside: dict[str, list[str]] = {}  # by image
        keys = {
            image: (_keys(_stem(image), IMAGE_FOLDERS), _keys(image, IMAGE_FOLDERS))
            for image in there.images
        }
        used = set[str]()
        for level in range(LEVELS):  # what fits one image more strictly is no other's
            found = dict[str, list[str]]()
            for image in (image for image in keys if image not in self.beside):
                texts = (by_key.get((level, key[level]), []) for key in keys[image])
                if new := [text for text in chain(*texts) if text not in used]:
                    found[image] = new
            self.beside |= found
            used.update(text for texts in found.values() for text in texts)
        self.has_json = any(text.lower().endswith(".json") for text in used)
        strays = [text for text in there.texts if text not in used]
        named = [t for t in strays if PurePosixPath(t).stem.lower() in TABLE_NAMES]
        self.tables = named or [t for t in strays if PurePosixPath(t).suffix.lower() in TABLES]
        self.others = [text for text in strays if text not in self.tables]
        stems = {_stem(image) for image in there.images}
        self.unread = [text for text in there.unread if _stem(text) in stems]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _keys(name: str, folders: Sequence[str]) -> tuple[str, str, str]:
    """How a text and its image are found to belong together, from strict to loose: by the same
    path; despite upper and lower case; and without a folder that is called for what it holds."""
    *above, last = _near(name).split("/")
    kept = (part for part in above if part not in folders)
    return unicodedata.normalize("NFC", name), _near(name), "/".join((*kept, last))


class ImageIndex:
    """Finds the image that a row of a table names, despite backslashes, the case of letters, a
    missing ending, and the two forms in which Unicode writes an accent."""

    def __init__(self, images: Sequence[str]) -> None:
        self._exact = {unicodedata.normalize("NFC", image): image for image in images}
        self._folders = {folder for image in images for folder in PurePosixPath(image).parents}
        self._near = defaultdict[str, set[str]](set)
        self._bare = defaultdict[str, set[str]](set)  # by the name alone
        for image in images:
            path = PurePosixPath(image)
            for name in (image, str(path.with_suffix(""))):
                self._near[_near(name)].add(image)
            for name in (path.name, path.stem):
                self._bare[_near(name)].add(image)

    def find(self, folder: PurePosixPath, given: str) -> list[str]:
        """The image of a name relative to the folder of its table or to the whole folder, or that
        of a name without a folder, wherever it is, at last one with another ending; several where
        it isn't plain which is meant. A table that lies with images names these, so that it gives
        none of another folder a name without a folder."""
        name = unicodedata.normalize("NFC", given.strip().replace("\\", "/"))
        inside = "/" not in name and folder in self._folders
        ways = [folder / name] if inside else [folder / name, PurePosixPath(name)]
        for path in (posixpath.normpath(way) for way in ways):
            if path in self._exact:
                return [self._exact[path]]
            if near := self._near.get(_near(path)):
                return sorted(near)
        bare = sorted(self._bare.get(_near(name), ()))
        below = [image for image in bare if PurePosixPath(image).is_relative_to(folder)]
        if found := below or bare * (not inside):
            return found
        given_path = PurePosixPath(name)
        if given_path.suffix.lower() not in endings():
            return []
        return self.find(folder, str(given_path.with_suffix("")))  # it may have another ending now

    def find_moved(
        self, folder: PurePosixPath, names: Iterable[str], root: str
    ) -> dict[str, list[str]]:
        """The images of whole paths of where they once lay, such as those of Windows, or of paths
        that begin with the name of the whole folder, by the longest ends of them that lead to one
        here, the longest first. Where folders are among these, a name alone finds an image in the
        whole folder only: that of another folder is another one."""
        found: dict[str, tuple[int, list[str]]] = {}
        for given in names:
            path = PurePosixPath(given.strip().replace("\\", "/"))
            whole = path.is_absolute() or re.match(r"[A-Za-z]:/", str(path))
            if (whole or path.parts[:1] == (root,)) and not self.find(folder, given):
                for n in range(len(path.parts) - 1, 0, -1):
                    if images := self.find(PurePosixPath(), "/".join(path.parts[-n:])):
                        found[given] = n, images
                        break
        deep = any(n > 1 for n, _ in found.values())
        return {
            given: images
            for given, (n, images) in sorted(found.items(), key=lambda one: -one[1][0])
            if n > 1 or not deep or "/" not in images[0]
        }


def _near(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
