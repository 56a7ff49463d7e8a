"""Images/s of reading, decoding and resizing JPEG files to batches, by the number of workers,
beside `datasets` and `webdataset` on the same files.

    python benchmarks/loading.py --size 512 --workers 1 2 4

The pictures are made: blurred noise with about the detail of photographs, at JPEG quality 90. All
give the same: an epoch of shuffled batches, float32 in [-1, 1], with captions. Ours decodes in
threads, the others in processes of torch's DataLoader, as their documentation says, which hand over
uint8. They take turns. Beside the images/s stand images per second of CPU time, of all threads and
processes together, which tell more where the machine is shared.
"""

import argparse
import gc
import io
import resource
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from fluxsmith.config.data_section import DataConfig
from fluxsmith.data import build_loader
from fluxsmith.data.images import to_unit

PICTURES = 32  # different ones, repeated
WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
Batches = Iterator[tuple[torch.Tensor, list[str]]]


class Options(NamedTuple):
    to: int
    batch: int
    images: int
    workers: int


def make_pictures(size: int) -> list[bytes]:
    draw, found = np.random.default_rng(0), []
    for _ in range(PICTURES):
        noise = draw.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.filter(ImageFilter.GaussianBlur(1)).save(stream, format="JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def write_files(root: Path, pictures: list[bytes], n: int, shards: int) -> None:
    """As a folder with sidecar texts, and as tar shards."""
    (root / "folder").mkdir()
    for shard in range(shards):
        with tarfile.open(root / f"{shard:03d}.tar", "w") as tar:
            for i in range(shard, n, shards):
                picture, text = root / "folder" / f"{i:06d}.jpg", root / "folder" / f"{i:06d}.txt"
                picture.write_bytes(pictures[i % PICTURES])
                text.write_text(f"picture {i}", encoding="utf-8")
                for file in (picture, text):
                    tar.add(file, file.name)


def cropped(picture: Image.Image, to: int) -> torch.Tensor:
    """What the other loaders' users write: a crop from the middle, scaled, as uint8."""
    picture = picture.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    scaled = picture.resize((to, to), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1)


def ours(source: str, path: str, options: Options, **more: Any) -> Batches:
    settings = DataConfig.model_validate(
        {"source": source, "path": path, "image_size": options.to, "channels": 3,
         "resize": "center-crop", "test_share": 0.0, "caption_dropout": 0.0,
         "workers": options.workers, **more}
    )  # fmt: skip
    loader = build_loader(settings, options.batch, seed=0)
    for step in range(options.images // options.batch):
        batch = loader.batch(step)
        yield batch.images, batch.captions


def _transform(rows: dict[str, list[Any]], to: int) -> dict[str, list[Any]]:
    return {"image": [cropped(p, to) for p in rows["image"]], "text": rows["text"]}


def theirs_datasets(folder: Path, options: Options) -> Batches:
    import datasets

    files = sorted(folder.glob("*.jpg"))
    columns = {
        "image": [str(file) for file in files],
        "text": [file.with_suffix(".txt").read_text() for file in files],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.set_transform(partial(_transform, to=options.to))
    loader: Any = DataLoader(rows, options.batch, shuffle=True, num_workers=options.workers)
    for batch in loader:
        yield to_unit(batch["image"]), batch["text"]


def _sample(pair: tuple[Image.Image, str], to: int) -> tuple[torch.Tensor, str]:
    return cropped(pair[0], to), pair[1]


def theirs_webdataset(pattern: str, options: Options) -> Batches:
    import webdataset

    found = (
        webdataset.WebDataset(pattern, shardshuffle=100, nodesplitter=None)
        .shuffle(200)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map(partial(_sample, to=options.to))
        .batched(options.batch)
    )
    loader = webdataset.WebLoader(found, batch_size=None, num_workers=options.workers)
    for images, texts in loader:
        yield to_unit(images), texts


def cpu_time() -> float:
    """Seconds of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in WHO)


def speed(way: Callable[[], Batches]) -> tuple[float, float]:
    """Images a second, and a second of CPU time."""
    began, cpu, images = time.perf_counter(), cpu_time(), 0
    for batch, _ in way():
        images += len(batch)
    took = time.perf_counter() - began
    gc.collect()  # the workers end
    return images / took, images / (cpu_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--size", type=int, default=512, help="the side of the files' pictures")
    parser.add_argument("--to", type=int, default=512, help="the side of what is loaded")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*create .* worker processes")
    console = Console()
    with tempfile.TemporaryDirectory() as where:
        root, shards = Path(where), 2 * max(given.workers)
        pictures = make_pictures(given.size)
        write_files(root, pictures, given.images, shards)
        folder, pattern = str(root / "folder"), f"{root}/{{000..{shards - 1:03d}}}.tar"
        mean = sum(map(len, pictures)) / len(pictures) / 1024
        title = f"JPEG {given.size} ({mean:.0f} KiB) to {given.to}: images/s (a CPU second)"
        table = Table("workers", "ours, folder", "datasets", "ours, tar", "webdataset", title=title)
        for workers in given.workers:
            options = Options(given.to, given.batch, given.images, workers)
            ways: list[Callable[[], Batches]] = [
                partial(ours, "folder", folder, options, in_memory=False),
                partial(theirs_datasets, root / "folder", options),
                partial(ours, "webdataset", pattern, options, shuffle_buffer=200),
                partial(theirs_webdataset, pattern, options),
            ]
            rounds = [[speed(way) for way in ways] for _ in range(given.rounds)]
            cells = (
                f"{statistics.median(wall):.0f} ({statistics.median(cpu):.0f})"
                for wall, cpu in (zip(*found, strict=True) for found in zip(*rounds, strict=True))
            )
            table.add_row(str(workers), *cells)
            console.print(f"{workers} workers done")
        console.print(table)


if __name__ == "__main__":
    main()
