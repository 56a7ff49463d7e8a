"""How often a model of the emoji set draws what the prompt says, for prompts of training and for
those that training never saw: `python benchmarks/emoji_held_out.py RUN`.

The emoji is told by a classifier that was trained on all of them, the held-out ones too; the paper
is the one nearest to the pixels around the edge. Prints shares with 95% intervals, what each
held-out prompt gave, and writes a picture of the held-out prompts.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fluxsmith import Pipeline
from fluxsmith.data import load
from fluxsmith.data.emoji import EMOJI, PAPERS, captions, held_out, name_of
from fluxsmith.data.images import to_uint8
from fluxsmith.data.imageset import evenly
from fluxsmith.evaluation.classifier import Classifier, trained_classifier
from fluxsmith.evaluation.statistics import wilson_interval
from fluxsmith.sampling import render
from fluxsmith.storage.checkpoint import newest

NAMES = [name_of(emoji) for emoji in EMOJI]


def papers(images: Tensor) -> Tensor:
    """The paper of each picture (n, 3, h, w) uint8, by its place: (n,)."""
    frame = torch.ones(images.shape[-2:], dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    seen = images.float()[..., frame].median(-1).values  # (n, 3)
    return torch.cdist(seen, torch.tensor([*PAPERS.values()]).float()).argmin(1)


def right(classifier: Classifier, images: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Whether emoji, paper and both are as asked for: (n, 3) bool."""
    asked = torch.tensor(pairs)
    emoji = classifier.classify(images)[1] == asked[:, 0]
    paper = papers(images) == asked[:, 1]
    return torch.stack([emoji, paper, emoji & paper], dim=1)


def line(name: str, found: Tensor) -> str:
    shares = ", ".join(
        f"{what} {count / len(found):.1%} ({low:.1%} to {high:.1%})"
        for what, count in zip(("emoji", "paper", "both"), found.sum(0).tolist(), strict=True)
        for low, high in [wilson_interval(count, len(found))]
    )
    return f"{name:<30} {shares}; {len(found)} samples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=300, help="of each kind")
    parser.add_argument("--out", type=Path, default=Path("emoji-held-out.png"))
    options = parser.parse_args()
    pipeline = Pipeline.from_checkpoint(newest(options.run))
    data = pipeline.config.data
    everything = data.model_copy(update={"hold_out": []})
    classifier = trained_classifier(load(everything, "train"), load(everything, "test"))
    test = load(everything, "test")
    every = [(e, p) for e in range(len(NAMES)) for p in range(len(PAPERS))]
    print(line("real test images", right(classifier, test.images, every)))

    hidden = held_out(data.hold_out, NAMES)
    names = {phrase[0] for phrase in data.hold_out if len(phrase) == 1}
    new = {(e, p) for e, p in hidden if NAMES[e] in names}
    sets = {
        "prompts of training": sorted(set(every) - hidden),
        "held-out compositions": sorted(hidden - new),
        "held-out names": sorted(new),
    }
    for i, (name, pairs) in enumerate(sets.items()):
        if not pairs:
            continue
        asked = evenly(pairs, options.samples)
        prompts = [captions(NAMES[e], list(PAPERS)[p])[0] for e, p in asked]
        images = to_uint8(pipeline.generate(prompts, first_index=i * options.samples))
        found = right(classifier, images, asked)
        print(line(name, found))
        if name != "prompts of training":
            for e in dict.fromkeys(e for e, _ in asked):
                rows = torch.tensor([emoji == e for emoji, _ in asked])
                print(line(f"  {NAMES[e]}", found[rows]))
    prompts = [captions(NAMES[e], list(PAPERS)[p])[0] for e, p in sorted(hidden)]
    render.save_png(options.out, render.grid(to_uint8(pipeline.generate(prompts)), prompts), {})
    print(f"picture {options.out}")


if __name__ == "__main__":
    main()
