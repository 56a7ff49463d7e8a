"""Aspect buckets: pictures of like shape share batches, so that little or nothing of them is cut.

Every batch is full and of one shape, so any equal parts of it, such as those of ranks, are equal
work. Which images make the batch of a step follows from (seed, step) and the buckets' sizes alone.
"""

from collections.abc import Sequence
from statistics import fmean

from fluxsmith.data.images import Shape
from fluxsmith.data.records import DataSettings


def shapes_of(settings: DataSettings) -> list[Shape]:
    """The shapes of a config's batches; the first is the square.

    The others have about as many pixels and no more, sides that are multiples of `bucket_step`, and
    a longer side that is at most `bucket_aspect` times the shorter one.
    """
    size, step = settings.image_size, settings.bucket_step
    if settings.buckets == "off":
        return [(size, size)]
    found = []
    for short in range(size, 0, -step):
        long = size * size // short // step * step
        if long <= settings.bucket_aspect * short:
            found += [(short, long), (long, short)]
    return list(dict.fromkeys(found))


def nearest(size: tuple[int, int], shapes: Sequence[Shape]) -> int:
    """The index of the shape that cuts the least off a picture of this (width, height)."""
    return min(range(len(shapes)), key=lambda i: crop_share(size, shapes[i]))


def crop_share(size: tuple[int, int], shape: Shape) -> float:
    """The share of a picture of this (width, height) that is cut where it fills the shape."""
    ratio = size[0] * shape[0] / (size[1] * shape[1])  # of the two aspects
    return 1 - min(ratio, 1 / ratio)


def cut_in_words(shares: Sequence[float]) -> str:
    """What is cut off pictures, from the share of each."""
    return f"{fmean(shares):.1%} of a picture on average, {max(shares):.1%} at most"


def arrange(
    sizes: Sequence[tuple[int, int]], shapes: Sequence[Shape], batch_size: int
) -> list[tuple[int, list[int]]]:
    """Batches out of the images of a window, (width, height) each, whose number is a multiple of
    the batch size: the bucket of each batch, and which images are in it.

    Each bucket gives its whole batches. The images that are left go together in the order of their
    shapes, and each batch of them to the bucket that cuts the least off it.
    """
    own: list[list[int]] = [[] for _ in shapes]
    for image, size in enumerate(sizes):
        own[nearest(size, shapes)].append(image)
    batches, left = [], list[int]()
    for bucket, images in enumerate(own):
        whole = len(images) // batch_size * batch_size
        batches += [(bucket, part) for part in _parts(images[:whole], batch_size)]
        left += images[whole:]
    left.sort(key=lambda image: sizes[image][0] / sizes[image][1])
    for part in _parts(left, batch_size):
        cut = [sum(crop_share(sizes[image], shape) for image in part) for shape in shapes]
        batches.append((cut.index(min(cut)), part))
    return batches


def _parts(images: Sequence[int], size: int) -> list[list[int]]:
    return [list(images[i : i + size]) for i in range(0, len(images), size)]
