"""A style LoRA from 50 pictures: MNIST's digits in black on white, for a model that was trained on
white on black.

    python benchmarks/lora_style.py MODEL WORK [KEY=VALUE ...]

MODEL is a trained run of configs/image/mnist/small.yaml, or its checkpoint. Writes the pictures and
their captions to WORK/pictures, trains WORK/lora with the command that it prints, and draws as many
digits with the model and with the LoRA. Prints the seconds that training took, of the clock and of
processors, how bright the pictures of each are, and how often the classifier sees what the prompt
says; it knows white digits on black only, so it sees the LoRA's inverted.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import ImageOps

from fluxsmith import Pipeline
from fluxsmith.config.reading import build_config
from fluxsmith.data import load as load_data
from fluxsmith.data.images import to_uint8
from fluxsmith.evaluation.classifier import trained_classifier
from fluxsmith.sampling import render
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage.checkpoint import load, newest

PICTURES = 50
SAMPLES = 1000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_pictures(folder, data):
    """Five of each digit, with their captions, a numeral or a word, in texts beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = dict.fromkeys(range(10), PICTURES // 10)
    for i, (image, label) in enumerate(zip(data.images, data.class_labels.tolist(), strict=True)):
        if kept[label]:
            kept[label] -= 1
            ImageOps.invert(render.to_pil(image)).save(folder / f"{i:04d}.png")
            caption = str(label) if kept[label] % 2 else WORDS[label]
            (folder / f"{i:04d}.txt").write_text(caption)


def draw(checkpoint, prompts, guidance):
    return to_uint8(
        Sampler(Pipeline.from_checkpoint(checkpoint)).generate(prompts, guidance=guidance)
    )


def main(model, work, *overrides):
    checkpoint, work = newest(Path(model)), Path(work)
    config = build_config(load(checkpoint)["config"], str(checkpoint))
    train, test = (load_data(config.data, split) for split in ("train", "test"))
    write_pictures(work / "pictures", train)
    settings = checkpoint.with_name("config.yaml")
    command = [
        "fluxsmith", "train", settings, "train.adapter.kind=lora", f"train.init_from={checkpoint}",
        "data.source=folder", f"data.path={work / 'pictures'}", f"output_dir={work / 'lora'}",
        "name=style", "train.adapter.targets=[all]", "train.adapter.rank=32", "train.steps=450",
        "train.learning_rate=6e-3", "train.warmup_steps=10", "train.ema_decay=0.95", *overrides,
    ]  # fmt: skip
    print(*command, flush=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(f"training took {seconds:.1f} s, and {cpu:.1f} s of processors, start and end included")
    classifier = trained_classifier(train, test)
    labels = torch.arange(SAMPLES) % 10
    prompts = [str(n) if i % 2 else WORDS[n] for i, n in enumerate(labels.tolist())]
    for name, path in {"model": checkpoint, "LoRA": newest(work / "lora")}.items():
        pictures = draw(path, prompts, config.sample.guidance)
        seen = classifier.classify(255 - pictures if name == "LoRA" else pictures)[1]
        print(
            f"{name:<6} prompt accuracy {float((seen == labels).float().mean()):.1%}, "
            f"mean brightness {float(pictures.float().mean()) / 255:.2f}"
        )
        render.save_png(work / f"{name}.png", render.grid(pictures[:20], prompts[:20], 10), {})


if __name__ == "__main__":
    main(*sys.argv[1:])
