"""Which pictures are for training and which for testing: as their folders, files and columns are
usually called, or a share held out by name."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from fluxsmith.data.account import Account, some
from fluxsmith.data.listing import Listing
from fluxsmith.data.records import FileSettings, Record, Split
from fluxsmith.errors import UserError
from fluxsmith.randomness import address_seed

TRAIN_NAMES = ("train", "training")
# The first of these that is there holds the test images.
TEST_NAMES = ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")


def named_split(name: str) -> str | None:
    """The split that a folder or a file is called after, such as val for Val, in lower case."""
    low = name.lower()
    return low if low in TRAIN_NAMES + TEST_NAMES else None


def split_in_name(stem: str) -> str | None:
    """The split that is a word of a file's name, such as test for metadata_test or testset."""
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+", stem)  # testA is two words
    return next(filter(None, (named_split(re.sub("(?i)set$", "", word)) for word in words)), None)


def split_word(value: object, where: str) -> str:
    """The split that the value of a column called split names, "" for none; a UserError for a word
    that is none. `where` is the row, in messages."""
    text = "" if value is None else str(value).strip()
    if not text:
        return ""
    if word := named_split(text):
        return word
    raise UserError(
        f"{where}: its split is {value}, which is none of {', '.join(TRAIN_NAMES)}, "
        f"{', '.join(TEST_NAMES)}; name it so, or call the column something else"
    )


def side_of(word: str, test: str | None) -> str:
    """train, test, or why it is neither, of what a split holds that is called `word`, where that of
    the test images is called `test`; "" is training."""
    if word == test:
        return "test"
    in_train = not word or own_train([word])
    return "train" if in_train else f"of {word}, while {test} has the test images"


def own_test(names: Iterable[str]) -> str | None:
    """Which of the names that are there is of the test images."""
    return _first(TEST_NAMES, names)


def own_train(names: Iterable[str]) -> str | None:
    """Which of the names that are there is of the training images."""
    return _first(TRAIN_NAMES, names)


def _first(usual: Sequence[str], names: Iterable[str]) -> str | None:
    there = {name.lower(): name for name in names}
    return next((there[name] for name in usual if name in there), None)


def split_by_name(name: str, test_share: float) -> Split:
    """The split of a picture where the source has none. Only its name counts, so that a picture
    stays in its split when others are added."""
    return "test" if address_seed("test", name) < test_share * 2**63 else "train"


def belongs(name: str, test_share: float | None, split: Split) -> bool:
    """Whether a picture is of a split, where a share of all is held out; None: all are of it."""
    return test_share is None or split_by_name(name, test_share) == split


def indices_of_split(names: Sequence[str], test_share: float, split: Split) -> list[int]:
    """The indices of the names that belong to a split, in order. A single picture is for training;
    of two or more, at least one is for testing and one for training, unless the share is 0 or 1.
    What has the same name is one picture."""
    different = dict.fromkeys(names)
    test = {name for name in different if split_by_name(name, test_share) == "test"}
    if 0 < test_share < 1 and different:
        by_address = sorted(different, key=lambda name: address_seed("test", name))
        if not test and len(different) > 1:
            test = {by_address[0]}
        if len(test) == len(different):
            test.discard(by_address[-1])
    return [i for i, name in enumerate(names) if (name in test) == (split == "test")]


def note_share(account: Account, test_share: float, test: str) -> None:
    """Says that no share is held out, where one is asked for and `test` has the test images."""
    if test_share not in (0, FileSettings.test_share):
        account.note(f"data.test_share={test_share:g} does nothing: {test} has the test images")


class FolderSplits:
    """Which images are for training and which for testing, by the folders that they lie in, or by
    the tables that name them."""

    def __init__(self, there: Listing, test_share: float, train_may_be_class: bool) -> None:
        self.there, self.test_share = there, test_share
        self._images = set(there.images)
        self._named: Callable[[str], str | None] = named_split
        named = set(filter(None, map(self.word, there.images)))
        if not named:  # names such as train_images and val_images, where both are there
            self._named = split_in_name
            named = set(filter(None, map(self.word, there.images)))
            if not (own_train(named) and own_test(named) and all(map(self.word, there.images))):
                if own_test(named) and not train_may_be_class:
                    folders = sorted(set(filter(None, map(self._folder, there.images))))
                    there.account.note(
                        f"{some(folders)} split nothing; where they are splits, name them train "
                        f"and test"
                    )
                named, self._named = set(), named_split
        self.train, self.test = own_train(named), own_test(named)
        self.tables: dict[str, str] = {}  # by image, the split that its table is called after
        self.rows: dict[str, str] = {}  # by the name of a bad row, the image that it names
        others = sorted({i.split("/")[0] for i in there.images if "/" in i and not self._folder(i)})
        if self.train is not None and self.test is None and others:
            if not train_may_be_class:
                raise UserError(
                    f"{there.root}: the folder {self.train} lies beside {some(others)}, so it "
                    f"holds the training images or is a class; set data.path to it, or "
                    f"data.captions=class if all are classes"
                )
            self.train = None

    def below(self, name: str) -> str:
        """The name without the folder of its split."""
        folder = self._folder(name)
        if self.train is self.test is None or not folder:
            return name
        parts = name.split("/")
        parts.remove(folder)
        return "/".join(parts)

    def of(self, split: Split, records: Sequence[Record]) -> list[Record]:
        """The records of a split; those of a share held out have a picture."""
        by_side = defaultdict[str, list[Record]](list)
        for record in records:
            by_side[self._side_of(record)].append(record)
        for reason in by_side.keys() - {"train", "test"}:
            for record in by_side[reason]:
                self.there.account.pass_over(reason, record.name)
        if test := self.test or own_test(self.tables.values()):
            if by_side["test"] and not any(r.picture for r in by_side["train"]):  # rows have none
                raise UserError(
                    f"{self.there.root}: its images are all for testing, by the name {test}; "
                    f"rename that, or set data.path to the folder of images to train on"
                )
            note_share(self.there.account, self.test_share, test)
            return by_side[split]
        drawn = [record.name for record in by_side["train"] if record.picture]
        held_out = {drawn[i] for i in indices_of_split(drawn, self.test_share, "test")}
        return [r for r in by_side["train"] if (r.name in held_out) == (split == "test")]

    def _side_of(self, record: Record) -> str:
        """That of its image, or of its row; train for one that has neither in a split's folder."""
        image = self.rows.get(record.name, record.name)
        nowhere = image not in self._images and not self.word(image)
        return "train" if nowhere and self.train is not None else self.side(image)

    def side(self, name: str) -> str:
        """train, test, or why it is neither; train where images are split by their own names."""
        word, test = self.word(name), self.test
        told = self.tables.get(name, "")
        if self.test is None and (told or self.train is None):
            word, test = told, own_test(self.tables.values())
        if not word and self.train is not None:
            return f"not in {self.train}/"
        return side_of(word, test)

    def _folder(self, name: str) -> str:
        """The first folder on the way to an image that is called after a split."""
        return next((part for part in name.split("/")[:-1] if self._named(part)), "")

    def word(self, name: str) -> str:
        """The split that the folder of an image is called after, "" for none."""
        return self._named(self._folder(name)) or ""
