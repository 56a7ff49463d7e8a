"""What guidance in one batch of both its halves gains over two batches, by the number of pictures.

python benchmarks/drawing.py configs/image/mnist/flux.yaml --pictures 1 4 16 64
"""

import argparse
import statistics
from collections.abc import Callable

from fluxsmith.config import read_config
from fluxsmith.device import pick_device
from fluxsmith.kernels.timing import take_turns
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import JOINT_TOKENS, Sampler

ALWAYS, NEVER = 1 << 62, 0
WAYS = {  # tokens up to which guidance takes one batch, twice
    "as it is": JOINT_TOKENS,
    "one batch": (ALWAYS, ALWAYS),
    "two batches": (NEVER, NEVER),
}


def drawing(
    pipeline: Pipeline, prompts: list[str], steps: int, way: tuple[int, int]
) -> Callable[[], object]:
    sampler = Sampler(pipeline)
    sampler.joint_tokens = way
    return lambda: sampler.generate(
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
    pipeline = Pipeline.build(config, device).eval()
    print(f"{options.steps} Euler steps, guidance 2: seconds, and how often that of 'as it is'")
    for count in options.pictures:
        prompts = [options.prompt] * count
        calls = {name: drawing(pipeline, prompts, options.steps, way) for name, way in WAYS.items()}
        taken = take_turns(calls, device, options.rounds)
        for name, seconds in taken.items():
            pairs = [a / b for a, b in zip(seconds, taken["as it is"], strict=False)]
            print(
                f"{count:>5} pictures  {name:<20}{statistics.median(seconds):>9.3f}"
                f"{statistics.median(pairs):>8.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
