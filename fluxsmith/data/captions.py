"""From what stands for a caption in a file, a table or a shard to the captions of a picture: the
one place where texts, lists, labels and templates are read."""

import ast
import contextlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fluxsmith.data.account import Account
from fluxsmith.data.imageset import Classes
from fluxsmith.data.records import CaptionSettings
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# By label: as a numeral and as a word.
DIGIT_CAPTIONS = tuple((str(digit), word) for digit, word in enumerate(WORDS))
DIGIT_CLASSES = Classes(tuple(map(str, range(10))), torch.arange(10))

TEMPLATES = ("a photo of a {}",)  # for the names of classes, where none are given
LABEL_KEYS = ("label", "labels", "fine_label")  # of the numbers of classes, or their names
CAPTION_KEYS = ("text", "caption", "captions", "prompt", *LABEL_KEYS)
ORDERS = 8  # of an image's tags, where they are shuffled


class Described(NamedTuple):
    """The captions of a picture and its class, or why there are none."""

    captions: tuple[str, ...] = ()
    label: int | None = None
    fault: str = ""


class Captioner:
    """Makes captions as the settings say. `classes` are the names of the classes where the data
    itself names them, `caption` is one for all images."""

    def __init__(
        self, settings: CaptionSettings, classes: Sequence[str] = (), caption: str | None = None
    ) -> None:
        self.settings = settings
        self.caption = settings.caption if caption is None else caption
        self.classes = tuple(map(composed, classes or settings.class_names or ()))
        if classes and settings.class_names:
            raise UserError(
                f"data.class_names={settings.class_names}: the data names its classes itself: "
                f"{', '.join(classes)}; remove the key"
            )
        if self.caption is not None:
            self.classes = ()
        for template in settings.templates or ():
            if template.count("{}") != 1:
                raise UserError(
                    f"data.templates: {template!r} needs one placeholder {{}} for the name of a "
                    f"class or a text, as in 'a photo of a {{}}'; one caption for all images is "
                    f"data.caption"
                )
        templates = settings.templates or TEMPLATES
        names = (_clean(name.replace("_", " ")) for name in self.classes)
        self._ways = [self._captions([name], templates) for name in names]

    def describe(self, *values: Any) -> Described:
        """The captions that values stand for: texts, lists of them, or numbers of classes."""
        templates = self.settings.templates or ("{}",)
        if self.caption is not None:
            return Described(self._captions([self.caption], templates if self.caption else ["{}"]))
        texts, label = [], None
        for value in _flat(values):
            if self.classes and isinstance(value, str):
                value = self._class_number(value)
            if isinstance(value, float) and value.is_integer():  # as tables with gaps hold them
                value = int(value)
            number = isinstance(value, int) and not isinstance(value, bool)
            if isinstance(value, str) and self.classes:
                return Described(fault=f"its label is {value!r}, not one of data.class_names")
            if isinstance(value, str):
                texts.append(_clean(value))
            elif number and self.classes:
                if not 0 <= value < len(self.classes):
                    return Described(fault=f"its label is {value}, of {len(self.classes)} classes")
                if label not in (None, value):
                    return Described(
                        fault=f"it has the labels {label} and {value}; a picture has one"
                    )
                label = value
            elif number and self.settings.templates:
                texts.append(str(value))
            else:
                return Described(fault=_no_text(value))
        if label is not None:
            return Described(self._ways[label], label)
        texts = [text for text in texts if text]
        return Described(self._captions(texts, templates))

    def _class_number(self, text: str) -> int | str:
        """The class that a text names, or whose number it is; else the text itself."""
        for name in (composed(text), _clean(text)):
            if name in self.classes:
                return self.classes.index(name)
        return as_number(text)

    def of_text(self, text: str, account: Account) -> Described:
        """The captions in a text file: the whole text, or each of its lines, which is noted."""
        if getattr(self.settings, "whole_text", False):
            return self.describe(" ".join(text.split()))
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1:
            account.note(
                "texts have several lines, and each line is a caption of its own; "
                "data.whole_text=true makes a text one caption"
            )
        return self.describe(lines)

    def of_json(self, text: str, what: str, account: Account) -> Described:
        """The captions in a JSON text: an object that has them under keys, a list, or one alone.
        Which of several usual keys is read is noted."""
        found = json.loads(text)
        if isinstance(found, (str, list)):
            return self.describe(found)
        row: Mapping[str, Any] = found if isinstance(found, dict) else {}
        keys = caption_keys(self.settings)
        if not keys and (others := unused(row, keys := tuple(usual(CAPTION_KEYS, row)[:1]))):
            account.note(f"captions are read from {keys[0]} in json{others}")
        values = [value_at(row, key) for key in keys]
        if not values or any(value is MISSING for value in values):
            there = ", ".join(map(str, row)) or "nothing"
            return Described(fault=f"{what} has {there}; data.caption_key names another key")
        return self.describe(*values)

    def _captions(self, texts: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
        made = (composed(way.replace("{}", text)) for text in texts for way in templates)
        kept = self.settings.shuffle_tags
        if kept is not None:
            made = (order for caption in made for order in _tag_orders(caption, kept))
        return tuple(dict.fromkeys(made))


MISSING = object()


def caption_keys(settings: CaptionSettings) -> tuple[str, ...]:
    """The keys of captions that the settings name."""
    keys = settings.caption_key
    return (keys,) if isinstance(keys, str) else tuple(keys or ())


def value_at(row: Mapping[str, Any], key: str) -> Any:
    """What a row has under a key, which may lead on by dots into structs and lists of them, as in
    captions.raw; MISSING where there is no such thing."""
    if key in row:
        return row[key]
    head, _, rest = key.partition(".")
    inner = row.get(head)
    if rest and isinstance(inner, Mapping):
        return value_at(inner, rest)
    if rest and isinstance(inner, (list, tuple)):
        values = [value_at(one, rest) for one in inner if isinstance(one, Mapping)]
        return [value for value in values if value is not MISSING] or MISSING
    return MISSING


def labelled(key: str, value: Any) -> Any:
    """A value, which is the number of a class where digits stand in a column of labels."""
    return as_number(value) if key.lower() in LABEL_KEYS and isinstance(value, str) else value


def as_number(text: str) -> int | str:
    """The number of a class that a text is, as in 3, 3.0 and -1; else the text itself."""
    found = re.fullmatch(r"(-?\d+)(\.0+)?", text.strip())
    return int(found[1]) if found else text


def unused(columns: Iterable[str], keys: Sequence[str]) -> str:
    """Which columns, usual ones of captions, are not among the keys that are read."""
    others = [key for key in usual(CAPTION_KEYS, columns) if key not in keys]
    return f", and {', '.join(others)} not" if others else ""


def pick_column(
    key: str, asked: str | None, expected: Sequence[str], columns: Sequence[str], name: str
) -> str:
    """The column that the settings ask for, or the first usual one, whatever its case; `key` is
    the setting's name and `name` that of the data."""
    what = "images" if key == "image_key" else "captions"
    if not columns:
        raise UserError(f"data.{key}: {name} has no column of {what}; set data.caption for all")
    there = f"the columns {', '.join(columns)}"
    if asked is not None:
        if asked in columns or asked.partition(".")[0] in columns:
            return asked
        if found := usual([asked], columns):
            return found[0]
        raise UserError(f"data.{key}={asked}: {name} has {there}; name one of them")
    if found := usual(expected, columns):
        return found[0]
    raise UserError(
        f"data.{key}: {name} has {there}, and which holds the {what} is not plain; name it"
    )


def pick_captions(settings: CaptionSettings, columns: Sequence[str], name: str) -> tuple[str, ...]:
    """The columns of captions, likewise."""
    asked = caption_keys(settings) or (None,)
    return tuple(pick_column("caption_key", key, CAPTION_KEYS, columns, name) for key in asked)


def usual(names: Sequence[str], there: Iterable[str]) -> list[str]:
    """Those of the usual names that are there, whatever their case, or as in File Name."""
    plain = {_plain(one): one for one in reversed(list(there))}
    return [plain[name] for name in map(_plain, names) if name in plain]


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_")


def _flat(values: Any) -> Iterator[Any]:
    """The values in lists of lists; nothing for None and NaN, as tables mark what is missing."""
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _flat(value)
    elif isinstance(values, str):
        yield from _listed(values)
    elif values is not None and values is not MISSING and values == values:
        yield values


def _listed(text: str) -> list[str]:
    """The texts of a list that is written as one text, as csv files hold it; else the text."""
    if text[:1] + text[-1:] == "[]" and not re.search(r"""['"]\s+['"]""", text):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(text)
                if isinstance(found, list) and all(isinstance(one, str) for one in found):
                    return found
    return [text]


def _clean(text: str) -> str:
    """Without half characters, which JSON may hold and no encoder takes."""
    return composed(text.encode("utf-8", "replace").decode().strip())


def composed(text: str) -> str:
    """Accents as a keyboard types them: names of files that a Mac wrote have them apart."""
    return unicodedata.normalize("NFC", text)


def _no_text(value: Any) -> str:
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        return (
            f"its caption is an object with {keys}; data.caption_key=NAME.{next(iter(value), '')}"
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return (
            f"its caption is the number {value}; name the classes in data.class_names, or set "
            f"data.templates=['a {{}}']"
        )
    return f"its caption is {type(value).__name__}, not text; data.caption_key names another column"


def _tag_orders(caption: str, kept: int) -> Iterator[str]:
    """The tags of a caption in several orders, the first `kept` always in front."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    for i in range(ORDERS):
        order = torch.randperm(max(0, len(tags) - kept), generator=generator("tags", caption, i))
        yield ", ".join([*tags[:kept], *(tags[kept + j] for j in order.tolist())])


def exchanged(captions: Sequence[str]) -> list[str]:
    """The same captions in another order, in which no picture has its own, or one that is equal to
    it, as far as that is possible: in the order of the alphabet, moved on by as many as the most
    frequent one has."""
    order = sorted(range(len(captions)), key=captions.__getitem__)
    ((_, most),) = Counter(captions).most_common(1)
    found = list(captions)
    for place, row in enumerate(order):
        found[row] = captions[order[(place + most) % len(order)]]
    return found
