"""The same small pictures kept in every way that a source reads."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Item = tuple[bytes, str]  # a PNG, its caption


def items(n: int, size: int = 12) -> list[Item]:
    """n different pictures, each with a caption of its own."""
    return of_sizes([(size, size)] * n)


def of_sizes(sizes: Sequence[tuple[int, int]]) -> list[Item]:
    """A picture of each (width, height)."""
    draw = np.random.default_rng(7)
    found = []
    for i, (width, height) in enumerate(sizes):
        stream = io.BytesIO()
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, format="PNG")
        found.append((stream.getvalue(), f"picture number {i}"))
    return found


def replace(path: Path) -> None:
    """Another picture in place of a PNG, of the same sizes and time of change, as a copy that keeps
    times would put it there."""
    known, stream = path.stat(), io.BytesIO()
    Image.new("RGB", Image.open(path).size, "red").save(stream, format="PNG")
    path.write_bytes(stream.getvalue().ljust(known.st_size, b"\0"))
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


def as_folder(folder: Path, made: Sequence[Item], layout: str = "jsonl") -> Path:
    """With metadata.jsonl, metadata.csv, or a text file beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (png, caption) in enumerate(made):
        (folder / f"{i:05d}.png").write_bytes(png)
        rows.append({"file_name": f"{i:05d}.png", "text": caption})
        if layout == "txt":
            (folder / f"{i:05d}.txt").write_text(caption + "\n", encoding="utf-8")
    if layout == "jsonl":
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    if layout == "csv":
        lines = "".join(f'{row["file_name"]},"{row["text"]}"\n' for row in rows)
        (folder / "metadata.csv").write_text("file_name,text\n" + lines, encoding="utf-8")
    return folder


def as_classes(folder: Path, made: Sequence[Item], names: Sequence[str]) -> Path:
    """A folder for each class, in turn."""
    for i, (png, _) in enumerate(made):
        place = folder / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:05d}.png").write_bytes(png)
    return folder


def as_parquet(file: Path, made: Sequence[Item], rows_a_group: int = 50) -> Path:
    from datasets import Dataset, Features, Image, Value

    columns = {
        "image": [{"bytes": png, "path": None} for png, _ in made],
        "text": [caption for _, caption in made],
    }
    features = Features({"image": Image(), "text": Value("string")})
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(file, batch_size=rows_a_group)
    return file


def as_shards(folder: Path, made: Sequence[Item], shards: int, caption: str = "txt") -> str:
    """Tar files, and the pattern that names them all."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for i in range(shard, len(made), shards):
                png, text = made[i]
                kept = text if caption == "txt" else json.dumps({"caption": text})
                add(tar, f"{i:05d}.png", png)
                add(tar, f"{i:05d}.{caption}", kept.encode())
    return f"{folder}/{{000..{shards - 1:03d}}}.tar"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
