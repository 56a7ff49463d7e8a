"""The judge: a small classifier of a reference set's own labels, which says what a picture shows.

It is trained on the reference set's training images, never on samples, once, and kept in the cache
under a digest of those images.
"""

import contextlib
import hashlib
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.errors import UserError
from fluxsmith.files import cache_folder, make_folder, write_whole
from fluxsmith.randomness import address_seed, generator

RECIPE = "cnn-2"  # changes whenever the network or its training does, so that caches are not mixed
FEATURES = 256
BATCH = 128
EPOCHS = 3
UPDATES = (1000, 1400)  # at least and at most, whatever the epochs
LEARNING_RATE = 3e-3
SHIFT = 2  # pixels: images are moved at random by up to this much in training


class Judge(nn.Module):
    """Three convolutions and two linear layers, on images (n, c, h, w) in [-1, 1]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(4),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("test_accuracy", torch.zeros(()))
        self.test_accuracy: Tensor  # share of the reference's test images that it names rightly

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees: (n, FEATURES)."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (n, FEATURES) of images (n, c, h, w) and the most likely labels (n,)."""
        self.eval()
        features = torch.cat([self.features(part) for part in images.split(500)])
        return features, self.head(features).argmax(1)


def trained_judge(train: ImageSet, test: ImageSet) -> Judge:
    """The judge of this reference set, from the cache or trained now, with a progress bar."""
    judge = Judge(train.images.shape[1], class_count(train))
    path = cache_folder() / "judges" / f"{RECIPE}-{data_digest(train, test)}.pt"
    if path.is_file():
        with contextlib.suppress(Exception):  # a damaged cache is made anew
            judge.load_state_dict(torch.load(path, weights_only=True))
            return judge.eval()
    judge = train_judge(train, _updates(len(train)))
    _, seen = judge.look(to_unit(test.images))
    judge.test_accuracy.fill_((seen == test.class_labels).float().mean())
    _save(path, judge)
    return judge


def class_count(data: ImageSet) -> int:
    if data.classes is None:
        raise UserError(
            "the captions of this data set are free text, and a judge needs classes to tell apart; "
            "choose --metrics (evaluate.metrics) that need none, such as validation_loss"
        )
    return len(data.classes.names)


def _updates(images: int) -> int:
    least, most = UPDATES
    return max(least, min(most, EPOCHS * images // BATCH))


def train_judge(data: ImageSet, updates: int) -> Judge:
    """Trains on shifted images with AdamW and a one-cycle learning rate; addressed randomness."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address_seed("judge", "weights"))
        judge = Judge(data.images.shape[1], class_count(data))
    judge.train()
    classes = data.class_labels
    optimiser = torch.optim.AdamW(judge.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, updates)
    for step in track(range(updates), description="training the judge", transient=True):
        draw = generator("judge", "batch", step)
        rows = torch.randint(len(data), (BATCH,), generator=draw)
        images = _shifted(to_unit(data.images[rows]), draw)
        loss = F.cross_entropy(judge(images), classes[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return judge.eval()


def _shifted(images: Tensor, draw: torch.Generator) -> Tensor:
    """The whole batch moved by one offset of up to SHIFT pixels each way; black comes in."""
    height, width = images.shape[-2:]
    down, right = torch.randint(2 * SHIFT + 1, (2,), generator=draw).tolist()
    padded = F.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT), value=-1.0)
    return padded[..., down : down + height, right : right + width]


def data_digest(train: ImageSet, test: ImageSet) -> str:
    """A short digest of every image and label."""
    found = hashlib.sha256()
    for data in (train, test):
        found.update(str(tuple(data.images.shape)).encode())
        found.update(data.images.numpy().tobytes())
        labels = data.labels if data.classes is None else data.class_labels
        found.update(labels.numpy().tobytes())
    return found.hexdigest()[:24]


def _save(path: Path, judge: Judge) -> None:
    try:
        make_folder(path.parent, "FLUXSMITH_CACHE")
        write_whole(path, lambda to: torch.save(judge.state_dict(), to))
    except UserError as error:  # without a cache the judge is as good, and trained again next time
        warnings.warn(f"the judge is not kept: {error}", stacklevel=2)
