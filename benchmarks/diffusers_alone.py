"""A trained model of pixels in diffusers alone: the same pictures, where fluxsmith isn't installed?

    python benchmarks/diffusers_alone.py RUN FOLDER

exports RUN to FOLDER/model, installs diffusers into a new environment in FOLDER/venv, runs the
lines of docs/interop.md there for each prompt, and holds what they draw against `fluxsmith sample`
with the same noise. Delete FOLDER (1.5 GB) afterwards.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from fluxsmith import Pipeline
from fluxsmith.data.images import to_uint8
from fluxsmith.interop.exporting import export
from fluxsmith.randomness import address_seed
from fluxsmith.sampling.generate import Sampler
from fluxsmith.sampling.render import to_pil
from fluxsmith.storage import checkpoint as checkpoints

TORCH = torch.__version__.partition("+")[0]
PACKAGES = (f"torch=={TORCH}", "diffusers", "transformers", "safetensors")
DIGITS = [str(digit) for digit in range(10)]
SEED = 0

# What runs in the new environment: each block of code leaves its picture in `image`.
DRIVER = """
import importlib.metadata, importlib.util, json, sys
from safetensors.torch import save_file

assert importlib.util.find_spec("fluxsmith") is None
images = {}
for i, code in enumerate(json.load(open(sys.argv[1]))):
    found = {}
    exec(code, found)
    images[str(i)] = found["image"].contiguous()
save_file(images, sys.argv[2])
for name in ("torch", "diffusers", "transformers"):
    print(f"{name:11} {importlib.metadata.version(name)}")
"""


def code_of_the_docs() -> str:
    page = (Path(__file__).parents[1] / "docs" / "interop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    return next(block for block in blocks if "FluxTransformer2DModel" in block)


def filled_in(code: str, pipeline: Pipeline, folder: Path, i: int, prompt: str) -> str:
    """The lines as they stand there, with this model's folder and sizes, and picture i's noise."""
    config = pipeline.config
    sizes = config.data.channels, config.data.image_size, config.model.patch_size
    asked = str(folder), prompt, config.sample.guidance, config.sample.steps
    for before, after in (
        ('"FOLDER", "seven", 2.0, 20', repr(asked)[1:-1]),
        ("= 1, 32, 8 ", f"= {repr(sizes)[1:-1]} "),
        ("manual_seed(0)", f"manual_seed({address_seed(SEED, 'image', i)})"),
    ):
        assert before in code, before
        code = code.replace(before, after)
    return code


def drawn_by_the_command(checkpoint: Path, prompts: list[str], folder: Path) -> list[Image.Image]:
    words = [sys.executable, "-m", "fluxsmith", "sample", str(checkpoint), "--device", "cpu"]
    words += ["--seed", str(SEED), "--out", str(folder)]
    words += [word for prompt in prompts for word in ("--prompt", prompt)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return [Image.open(path) for path in sorted(folder.glob("sample-*/*.png"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", action="append", help="may be repeated; the digits by default")
    options = parser.parse_args()
    prompts, folder = options.prompt or DIGITS, options.folder.absolute()

    checkpoint = checkpoints.newest(options.run)
    pipeline = Pipeline.from_checkpoint(checkpoint, "cpu")
    export(checkpoint, folder / "model", "diffusers", samples=False)
    code = code_of_the_docs()
    blocks = [filled_in(code, pipeline, folder / "model", i, p) for i, p in enumerate(prompts)]
    (folder / "code.json").write_text(json.dumps(blocks), encoding="utf-8")

    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, env=clean)
    drawing = [python, "-c", DRIVER, folder / "code.json", folder / "theirs.safetensors"]
    subprocess.run(drawing, check=True, env=clean, cwd=folder)

    theirs = load_file(folder / "theirs.safetensors")
    images = torch.cat([theirs[str(i)] for i in range(len(prompts))])  # (n, c, h, w)
    difference = (images - Sampler(pipeline).generate(prompts, seed=SEED)).abs().max().item()
    print(f"largest difference of a pixel, in [-1, 1]: {difference:.2g}")
    files = drawn_by_the_command(checkpoint, prompts, folder / "ours")
    rounded = [to_pil(picture) for picture in to_uint8(images)]
    unequal = sum(a != b for one, two in zip(rounded, files, strict=True)
                  for a, b in zip(one.tobytes(), two.tobytes(), strict=True))  # fmt: skip
    total = sum(len(picture.tobytes()) for picture in rounded)
    print(f"pixels of the PNG files that differ: {unequal:,} of {total:,}")


if __name__ == "__main__":
    main()
