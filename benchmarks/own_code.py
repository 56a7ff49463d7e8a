"""What each part of our C++ is worth: a training step, and drawing, with torch's operations in its
place, at turns in one process.

    python benchmarks/own_code.py configs/image/mnist/flux.yaml
    python benchmarks/own_code.py configs/image/mnist/flux.yaml train.compile=true
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from fluxsmith.benchmark.ours import Ours
from fluxsmith.config import read_config
from fluxsmith.errors import UserError
from fluxsmith.model import fused_attention, passes
from fluxsmith.training import update


def refuse(*_: object) -> None:
    raise UserError("by torch")


WITHOUT = {
    "all of it": (),
    "attention by torch": ((fused_attention, "LONGEST", 0),),
    "passes around products by torch": ((passes, "serve", lambda *_: False),),
    "optimiser by torch": ((update, "OnePass", refuse),),
    "none of it": (
        (fused_attention, "LONGEST", 0),
        (passes, "serve", lambda *_: False),
        (update, "OnePass", refuse),
    ),
}


@contextmanager
def replaced(parts: tuple[tuple[object, str, object], ...]) -> Iterator[None]:
    """Inside, these stand in for what the modules have under those names."""
    patches = [mock.patch.object(*part) for part in parts]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def compare(work: Callable[[], object], rounds: int) -> None:
    taken: dict[str, list[float]] = {name: [] for name in WITHOUT}
    for n in range(rounds + 2):  # two to warm up, and compile
        names = list(WITHOUT)
        for name in names[n % len(names) :] + names[: n % len(names)]:
            parts = WITHOUT[name]
            with replaced(parts):
                began = time.perf_counter()
                work()
                if n >= 2:
                    taken[name].append(time.perf_counter() - began)
    whole = taken["all of it"]
    for name, times in taken.items():
        ratio = statistics.median(one / best for one, best in zip(times, whole, strict=True))
        print(f"  {name:32} {statistics.median(times) * 1e3:8.1f} ms   {ratio:.3f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    found = passes.library()
    if isinstance(found, str):
        parser.error(f"there is no C++ of ours here: {found}")
    ours = Ours(read_config(options.config, options.overrides), torch.device("cpu"))
    prompts = [ours.trainer.captions[i % len(ours.trainer.captions)] for i in range(64)]
    print("a training step, with")
    compare(ours.train_step, options.rounds)
    print("drawing 64 pictures in 4 steps at guidance 2, with")
    compare(lambda: ours.sample(prompts, 4, 2.0), max(3, options.rounds // 3))


if __name__ == "__main__":
    main()
