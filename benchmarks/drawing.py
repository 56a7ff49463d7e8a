"""What guidance in one batch of both its halves gains over two batches, and weights that stay laid
out for oneDNN over weights as they are, by the number of pictures drawn at once.

    python benchmarks/drawing.py configs/image/mnist/flux.yaml --pictures 1 4 16 64
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from fluxsmith.benchmark.timing import take_turns
from fluxsmith.config import read_config
from fluxsmith.device import pick_device
from fluxsmith.model import layouts, onednn
from fluxsmith.pipeline import Pipeline
from fluxsmith.pipeline import pipeline as pipelines

ALWAYS, NEVER = 1 << 62, 0
WAYS = {  # (tokens up to which guidance takes one batch, twice; bytes of weights kept laid out)
    "as it is": (pipelines.TOGETHER, pipelines.TOGETHER_PADDED, layouts.ROOM),
    "one batch": (ALWAYS, ALWAYS, layouts.ROOM),
    "two batches": (NEVER, NEVER, layouts.ROOM),
    "weights as they are": (pipelines.TOGETHER, pipelines.TOGETHER_PADDED, NEVER),
}


@contextmanager
def limits(together: int, padded: int, room: int) -> Iterator[None]:
    before = pipelines.TOGETHER, pipelines.TOGETHER_PADDED, layouts.ROOM
    pipelines.TOGETHER, pipelines.TOGETHER_PADDED, layouts.ROOM = together, padded, room
    try:
        yield
    finally:
        pipelines.TOGETHER, pipelines.TOGETHER_PADDED, layouts.ROOM = before


def draw(pipeline: Pipeline, prompts: list[str], steps: int, way: tuple[int, int, int]) -> None:
    with limits(*way):
        pipeline.generate(
            prompts, steps=steps, guidance=2.0, solver="euler", batch_size=len(prompts)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--prompt", default="3")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    config = read_config(options.config, options.overrides)
    device = pick_device(config.device)
    if device.type != "cpu" or not onednn.ONEDNN_IS_QUICKER or options.steps < layouts.OFTEN:
        print("nothing is laid out here: 'weights as they are' is the same as 'as it is'")
    pipeline = Pipeline.build(config, device).eval()
    print(f"{options.steps} Euler steps, guidance 2: seconds, and how often that of 'as it is'")
    for count in options.pictures:
        prompts = [options.prompt] * count
        calls: dict[str, Callable[[], object]] = {
            name: partial(draw, pipeline, prompts, options.steps, way) for name, way in WAYS.items()
        }
        taken = take_turns(calls, device, options.rounds)
        ours = taken["as it is"]
        for name, seconds in taken.items():
            pairs = [one / other for one, other in zip(seconds, ours, strict=False)]
            print(
                f"{count:>5} pictures  {name:<20}{statistics.median(seconds):>9.3f}"
                f"{statistics.median(pairs):>8.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
