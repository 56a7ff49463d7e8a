"""TensorBoard's event file, written record by record.

torch's SummaryWriter hands its records to a thread that writes them minutes later: a killed run
loses some, a resumed one writes others twice. Here a record is in the file when `write` returns.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxsmith.storage.files import AppendedFile, make_folder


class Board:
    """One event file in `folder`; those of earlier processes are removed, and with them records
    that the caller does not write again."""

    last = last_picture = -1  # nothing is there

    def __init__(self, folder: Path) -> None:
        make_folder(folder, "output_dir")
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink(missing_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name, _event(file_version="brain.Event:2"))

    def write(self, step: int, record: Mapping[str, float]) -> None:
        self._file.append(scalars(step, record))

    def write_picture(self, step: int, png: Path) -> None:
        """A file that is no picture, or no more, is left out."""
        try:
            event = picture(step, png)
        except Exception:  # a damaged byte can raise anything in a decoder
            return
        self._file.append(event)


def scalars(step: int, record: Mapping[str, float]) -> bytes:
    """An event with all figures of a record."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=_tag(key), simple_value=value) for key, value in record.items()]
    return _event(step=step, summary=Summary(value=values))


def picture(step: int, png: Path) -> bytes:
    """An event with a PNG file as it is."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(png) as opened:
        width, height = opened.size
        colorspace = len(opened.getbands())
    encoded = Summary.Image(
        height=height, width=width, colorspace=colorspace, encoded_image_string=png.read_bytes()
    )
    return _event(step=step, summary=Summary(value=[Summary.Value(tag="samples", image=encoded)]))


def _tag(key: str) -> str:
    """In TensorBoard's groups: evaluators name their figures metric/ema, others group/figure."""
    if "/" not in key:
        return f"train/{key}"
    return f"evaluate/{key}" if key.endswith("/ema") else key


def _event(**fields: Any) -> bytes:
    """An event as the file holds it: its length and itself, each with a checksum."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    RecordWriter(stream).write(Event(wall_time=time.time(), **fields).SerializeToString())
    return stream.getvalue()
