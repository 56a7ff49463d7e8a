"""Grey specks in pictures of digits: how many a model of few evaluations leaves.

    python benchmarks/specks.py mnist-small,euler,20 mnist-small-2step mnist-small-1step

Grey is 10% to 90% of white. A speck is a pixel of 10% to 80% whose eight neighbours together have
less than 80% of one white pixel, so neither a stroke's edge nor a dot. Models draw "0" to "9" in
turn, of the same noise, by their own solver and steps where none are named. The test images of the
first one's data are counted too.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fluxsmith.data.images import to_uint8
from fluxsmith.evaluation.samples import Reference
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage.checkpoint import newest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="a run or model, or MODEL,SOLVER,STEPS")
    parser.add_argument("--num-samples", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = [str(index % 10) for index in range(args.num_samples)]
    for number, model in enumerate(args.models):
        path, *drawing = model.split(",")
        pipeline = Pipeline.from_checkpoint(newest(Path(path)))
        if number == 0:
            report("test images", Reference(pipeline.config).test_batch(range(args.num_samples))[0])
        given = {"solver": drawing[0], "steps": int(drawing[1])} if drawing else {}
        images = Sampler(pipeline, pipeline.config.sample).generate(prompts, seed=0, **given)
        report(model, to_uint8(images))


def report(name: str, images: Tensor) -> None:
    """Prints how many specks `images` (n, 1, h, w), uint8, have, and how much of them is grey."""
    white = images.float() / 255
    around = functional.avg_pool2d(white, 3, 1, 1, divisor_override=1) - white
    specks = ((white > 0.1) & (white < 0.8) & (around < 0.8)).flatten(1).sum(1).float()
    grey = ((white > 0.1) & (white < 0.9)).float().mean()
    share = (specks > 0).float().mean()
    print(f"{name}: {specks.mean():.2f} specks a picture, {share:.0%} with any; {grey:.1%} is grey")


if __name__ == "__main__":
    main()
