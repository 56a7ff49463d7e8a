"""What we export, read by the oldest and by today's versions of diffusers and transformers that we
name: in folders of packages made here, which a process of its own puts before all others."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import assert_agree
from test_against_flux_pipeline import PROMPTS, TOKENS, made, noise, ours
from tiny_encoders import save_flux_text

from fluxsmith.model.tokens import patchify, unpatchify
from fluxsmith.sampling.generate import Sampler

pytestmark = pytest.mark.slow

# Each is a set that goes together; torch is the one that runs the tests.
VERSIONS = {
    "oldest": (
        "transformers==4.56.0", "diffusers==0.35.0", "huggingface_hub==0.34.4",
        "tokenizers==0.22.0",
    ),
    "today's": (),
}  # fmt: skip

DRAW = """
import json, sys, warnings
import torch, diffusers, transformers
folder, noise, out, tokens = sys.argv[1:5]
pipe = diffusers.FluxPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
images = pipe(json.loads(sys.argv[5]), height=32, width=48, num_inference_steps=4,
              guidance_scale=3.5, max_sequence_length=int(tokens),
              latents=torch.load(noise), output_type="latent").images
torch.save(images, out)
print(transformers.__version__, diffusers.__version__)
"""


def packages(folder, wanted):
    """These packages in a folder; the test is skipped where pip can't get them."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run(
        [*command, folder, *wanted], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        pytest.skip(f"pip can't get {', '.join(wanted)}: {done.stderr.strip()[-200:]}")
    return folder


@pytest.mark.parametrize("which", VERSIONS)
@pytest.mark.parametrize("encoders", ["of the versions here", "of old names"])
def test_a_whole_pipeline_draws_the_same(toy, tmp_path, which, encoders):
    pytest.importorskip("diffusers")
    text = save_flux_text(tmp_path / "text")
    if encoders == "of old names":
        with_prefix(text / "text_encoder" / "model.safetensors")
    config, folder = made(toy, tmp_path, text, True)
    torch.save(patchify(noise(32, 48), 2), tmp_path / "noise.pt")
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    if VERSIONS[which]:
        environment["PYTHONPATH"] = str(packages(tmp_path / "packages", VERSIONS[which]))
    arguments = [folder, tmp_path / "noise.pt", tmp_path / "out.pt", TOKENS, json.dumps(PROMPTS)]
    done = subprocess.run(
        [sys.executable, "-c", DRAW, *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    for package in VERSIONS[which][:2]:
        assert package.partition("==")[2] in done.stdout
    expected = unpatchify(torch.load(tmp_path / "out.pt"), 2, 8, 12)
    pipeline, seen = ours(config, folder)
    Sampler(pipeline).generate(PROMPTS, steps=4, seed=5, size=(32, 48))
    assert_agree(seen[0], expected, within=1e-4)


def with_prefix(path):
    """The same CLIP under the names that transformers wrote up to version 4."""
    from safetensors.torch import load_file, save_file

    save_file({f"text_model.{n}": t for n, t in load_file(path).items()}, path, {"format": "pt"})
