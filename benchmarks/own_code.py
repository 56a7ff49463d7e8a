"""What each part of the kernels is worth: a training step and a drawing without it, in turn, in one
process.

    python benchmarks/own_code.py configs/image/mnist/flux.yaml train.compile=false
    FLUXSMITH_CPU_ISA=avx2 python benchmarks/own_code.py configs/image/mnist/small.yaml

A part stays in the program where it gains 3% of a step or of a drawing on some processor.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor

from fluxsmith.cli.benchmark.sides import Ours
from fluxsmith.config import read_config
from fluxsmith.kernels.accelerate import FAST, accelerate, why_plain
from fluxsmith.kernels.cpu import fused_attention, gelu_linear, onednn


def joined_by_copy(xs: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(torch.cat(xs, dim=-1), weight, bias)


WITHOUT = {
    "all of it": (),
    "attention by torch": ((fused_attention, "serves", lambda *_: False),),
    "GELU and linear layers by torch": ((gelu_linear, "serves", lambda *_: False),),
    "products by torch": ((onednn, "ONEDNN_IS_QUICKER", False),),
    "inputs of linear2 joined by a copy": ((onednn, "joined_linear", joined_by_copy),),
    "weights not packed": ((onednn, "ROOM", 0),),
    "none of it": tuple((fast, "serves", staticmethod(lambda *_: False)) for fast in FAST.values()),
}


@contextmanager
def replaced(parts: tuple[tuple[object, str, object], ...], ours: Ours) -> Iterator[None]:
    """Inside, these stand in for what the modules have under those names."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(mock.patch.object(*part))
        accelerate(ours.pipeline.network)
        yield


def compare(work: Callable[[], object], ours: Ours, rounds: int, cpu_time: bool) -> None:
    now = time.process_time if cpu_time else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in WITHOUT}
    for n in range(rounds + 2):  # two to warm up, and compile
        names = list(WITHOUT)
        for name in names[n % len(names) :] + names[: n % len(names)]:
            with replaced(WITHOUT[name], ours):
                began = now()
                work()
                if n >= 2:
                    taken[name].append(now() - began)
    whole = taken["all of it"]
    for name, times in taken.items():
        ratio = statistics.median(one / best for one, best in zip(times, whole, strict=True))
        print(f"  {name:36} {statistics.median(times) * 1e3:8.1f} ms   {ratio:.3f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, on a busy machine")
    options = parser.parse_args()
    if reason := why_plain():
        parser.error(f"there is no C++ of ours here: {reason}")
    ours = Ours(read_config(options.config, options.overrides), torch.device("cpu"))
    if options.cpu_time:
        torch.set_num_threads(1)
    captions = ours.trainer.captions
    prompts = [captions[i % len(captions)] for i in range(options.pictures)]
    print("a training step, with", flush=True)
    compare(ours.train_step, ours, options.rounds, options.cpu_time)
    print(f"drawing {options.pictures} pictures in 8 steps at guidance 2, with", flush=True)
    rounds = max(3, options.rounds // 3)
    compare(lambda: ours.sample(prompts, 8, 2.0), ours, rounds, options.cpu_time)


if __name__ == "__main__":
    main()
