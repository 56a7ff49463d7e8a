"""A small classifier of a data set's own labels: it says what a picture shows, and its last layer
gives the features in which samples and data are compared.

It is trained on the data set's training images, never on samples, once, and kept in the cache
under a digest of those images.
"""

import contextlib
import hashlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.device import cache_folder
from fluxsmith.errors import UserError
from fluxsmith.randomness import address_seed, generator
from fluxsmith.storage.files import make_folder, write_whole

RECIPE = "cnn-2"  # changes whenever the network or its training does, so that caches are not mixed
FEATURES = 256
BATCH = 128
EPOCHS = 3
ADDRESS = "judge"  # of its randomness; another would change every figure that was ever measured
UPDATES = (1000, 1400)  # at least and at most, whatever the epochs
LEARNING_RATE = 3e-3
SHIFT = 2  # pixels: images are moved at random by up to this much in training


class Classifier(nn.Module):
    """Three convolutions and two linear layers, on images (n, c, h, w) in [-1, 1]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(channels, 32, 5, stride=2),
            *_convolution(32, 64, 3),
            nn.MaxPool2d(2),
            *_convolution(64, 128, 3),
            nn.AdaptiveMaxPool2d(4),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("test_accuracy", torch.zeros(()))
        self.test_accuracy: Tensor  # share of the reference's test images that it names rightly

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self.head(self.trunk(images))

    @torch.no_grad()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images (n, c, h, w) uint8: what the last layer sees, (n, FEATURES), and the most
        likely labels (n,)."""
        self.eval()
        features = torch.cat([self.trunk(to_unit(part)) for part in images.split(500)])
        return features, self.head(features).argmax(1)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def trained_classifier(
    train: ImageSet, test: ImageSet, each_step: Callable[[], None] = lambda: None
) -> Classifier:
    """The classifier of this data set, from the cache or trained now, with a progress bar; a
    UserError where the data have no classes. `each_step` may end the training by an error."""
    if train.classes is None:
        raise UserError(
            "the captions of this data set are free text, and a classifier needs classes to tell "
            "apart; choose --metrics (evaluate.metrics) that need none, such as validation_loss"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address_seed(ADDRESS, "weights"))
        classifier = Classifier(train.images.shape[1], len(train.classes.names))
    kind = f"{RECIPE}-{data_digest(train, test)}-{len(train.classes.names)}"
    path = cache_folder() / "classifiers" / f"{kind}.pt"
    with contextlib.suppress(Exception):  # where there is none, or a damaged one, it is trained
        classifier.load_state_dict(torch.load(path, weights_only=True))
        return classifier.eval()
    make_folder(path.parent, "FLUXSMITH_CACHE")
    _train(classifier, train, each_step)
    _, seen = classifier.classify(test.images)
    classifier.test_accuracy.fill_((seen == test.class_labels).float().mean())
    write_whole(path, lambda to: torch.save(classifier.state_dict(), to))
    return classifier


def _train(classifier: Classifier, data: ImageSet, each_step: Callable[[], None]) -> None:
    """On shifted images with AdamW and a one-cycle learning rate; addressed randomness."""
    classifier.train()
    classes = data.class_labels
    updates = max(UPDATES[0], min(UPDATES[1], EPOCHS * len(data) // BATCH))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, updates)
    for step in track(range(updates), description="training the classifier", transient=True):
        each_step()
        draw = generator(ADDRESS, "batch", step)
        rows = torch.randint(len(data), (BATCH,), generator=draw)
        images = _shifted(to_unit(data.images[rows]), draw)
        loss = F.cross_entropy(classifier(images), classes[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


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
