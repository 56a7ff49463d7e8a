"""Where a training step spends the time in which it doesn't multiply matrices: between which of
oneDNN's products, each named by rows x inputs x outputs. No profiler runs, which would slow some of
the code down and not the rest.

    python benchmarks/between_products.py configs/image/mnist/flux.yaml train.compile=true
"""

import argparse
import statistics
import time
from collections import defaultdict

import torch

from fluxsmith.benchmark.ours import Ours
from fluxsmith.config import read_config
from fluxsmith.model import onednn


class Timed:
    """Stands in for torch's oneDNN operators, and notes when each product began and ended."""

    def __init__(self) -> None:
        self.products: list[tuple[float, float, str]] = []
        self._own = torch.ops.mkldnn._linear_pointwise

    def default(self, x: torch.Tensor, weight: torch.Tensor, *others: object) -> torch.Tensor:
        return self._noted(self._own.default, x, weight, x, weight, *others)

    def binary(
        self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, *others: object
    ) -> torch.Tensor:
        return self._noted(self._own.binary, x, weight, x, y, weight, *others)

    def _noted(self, operator, x, weight, *arguments):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        result = operator(*arguments)
        rows, (outputs, inputs) = x.numel() // x.shape[-1], weight.shape
        self.products.append((began, time.perf_counter(), f"{rows}x{inputs}x{outputs}"))
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    if not onednn.ONEDNN_IS_QUICKER:
        parser.error("this machine multiplies by MKL, whose products this can't time")
    ours = Ours(read_config(options.config, options.overrides), torch.device("cpu"))
    for _ in range(3):  # compiles
        ours.train_step()
    timed = Timed()
    torch.ops.mkldnn._linear_pointwise = timed
    steps, products = [], []
    between: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(options.steps):
        timed.products.clear()
        start = time.perf_counter()
        ours.train_step()
        end = time.perf_counter()
        steps.append(end - start)
        products.append(sum(ended - began for began, ended, _ in timed.products))
        last, name = start, "start"
        for began, ended, following in [*timed.products, (end, end, "end")]:
            between[name, following].append(began - last)
            last, name = ended, following
    step, product = (statistics.median(times) * 1e3 for times in (steps, products))
    print(f"medians of {options.steps} steps: {step:.0f} ms, in products {product:.0f} ms")
    print("ms a step   times   median   longest   between")
    for (one, other), times in sorted(between.items(), key=lambda item: -sum(item[1]))[:20]:
        each, count = sum(times) / options.steps * 1e3, len(times) / options.steps
        middle, longest = statistics.median(times) * 1e3, max(times) * 1e3
        print(f"{each:9.1f} {count:7.1f} {middle:8.2f} {longest:9.2f}   {one} and {other}")


if __name__ == "__main__":
    main()
