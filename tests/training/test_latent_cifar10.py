"""A latent model of CIFAR-10 by the command line: it learns, its samples decode, and killed in the
middle it goes on as if nothing had happened. The autoencoder is a tiny random one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import same
from PIL import Image
from tiny_autoencoder import save_standardised

from fluxsmith import checkpoint as checkpoints
from fluxsmith.cli import main
from fluxsmith.config import read_config
from fluxsmith.data import load
from fluxsmith.data.images import to_unit
from fluxsmith.training.metrics import read_metrics

DATA = Path(os.environ.get("FLUXSMITH_DATA", "")) / "cifar10"
STEPS = 200

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no $FLUXSMITH_DATA/cifar10")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """configs/image/cifar10/flux.yaml, made small, over 8x8 latents of 4 channels."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))  # of the process to be killed
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    shipped = Path(__file__).parents[2] / "configs/image/cifar10/flux.yaml"
    images = load(read_config(shipped, [f"data.path={DATA}"]).data.settings(), "test").images
    autoencoder = save_standardised(tmp_path / "ae.safetensors", to_unit(images[:64]))
    data = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    data["data"] |= {"path": str(DATA), "train_split": "test", "in_memory": True}
    data["text"] = {"width": 64, "hidden_size": 64}
    data["autoencoder"] = {"kind": "flux", "weights": str(autoencoder)}
    data["model"] |= {"patch_size": 2, "hidden_size": 64, "num_heads": 1}
    data["model"] |= {"depth": 1, "depth_single_blocks": 1}
    data["train"] = {"steps": STEPS, "batch_size": 4, "learning_rate": 0.003, "warmup_steps": 10}
    data["train"] |= {"checkpoint_every": STEPS // 2, "sample_every": STEPS, "log_every": 20}
    data["sample"] = {"steps": 4, "num_samples": 10, "guidance": 1.5}
    path = tmp_path / "latent.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert not stopped.value.code


def killed_after(folder, checkpoint, *arguments):
    """The command as a process of its own, killed as soon as the checkpoint is there."""
    process = subprocess.Popen([sys.executable, "-m", "fluxsmith", *map(str, arguments)])
    try:
        end = time.monotonic() + 120
        while not (folder / checkpoint).exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_it_learns_draws_and_survives_being_killed(config, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run("train", config, f"output_dir={one}")
    losses = [record["loss"] for record in read_metrics(one / "metrics.jsonl")]
    # New, the network predicts 0 and is wrong by the variance of noise plus that of latents, 2.
    assert 1.8 < losses[0] < 2.2
    assert losses[-1] < 0.92 * losses[0]

    killed_after(two, "diffusion-100.pt", "train", config, f"output_dir={two}")
    run("train", config, f"output_dir={two}", "--resume", "auto")
    last = f"diffusion-{STEPS}.pt"
    whole, resumed = (checkpoints.load(folder / last) for folder in (one, two))
    for key in ("step", "model", "ema", "optimizer", "window", "data", "metadata"):
        assert same(whole[key], resumed[key]), key
    picture = f"sample-{STEPS}.png"
    assert (one / picture).read_bytes() == (two / picture).read_bytes()

    prompts = ("--prompt", "a photo of a cat", "--prompt", "ship")
    run("sample", one, *prompts, "--out", tmp_path / "drawn")
    for name in ("0000.png", "0001.png"):
        with Image.open(tmp_path / "drawn" / f"sample-{STEPS}-seed0" / name) as drawn:
            assert (drawn.size, drawn.mode) == ((32, 32), "RGB")
            darkest, brightest = drawn.convert("L").getextrema()
            assert darkest < brightest
