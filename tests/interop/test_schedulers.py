"""What a folder of diffusers says of its scheduler and its kind: taken over, or refused by name."""

import json

import numpy as np
import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from test_importing import FLUX_WIDTHS, imported

from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_folder import transformer_config
from fluxsmith.interop.diffusers_names import to_diffusers
from fluxsmith.interop.diffusers_scheduler import schedule_from_diffusers, schedule_to_diffusers
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage.tensor_files import write_tensors

AE = "autoencoder.weights=ae.safetensors"


def write_json(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder without encoders, of FLUX.1's widths in miniature."""
    network = flux_at_random(tiny_params(guidance_embed=True, **FLUX_WIDTHS))
    place = tmp_path / "pipe" / "transformer"
    place.mkdir(parents=True)
    weights = to_diffusers(network.state_dict())
    write_tensors(place / "diffusion_pytorch_model.safetensors", weights, {})
    write_json(place / "config.json", transformer_config(network.params))
    return tmp_path / "pipe"


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": 1.0},
        {"shift": 3.0},
        {"shift": 3.0, "use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 0.8},
        {"use_dynamic_shifting": True, "base_image_seq_len": 100, "max_image_seq_len": 900},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 1.2},
        {"shift": 2.0, "shift_terminal": 0.02},
        {"shift": 2.0, "use_karras_sigmas": True},
        {"use_dynamic_shifting": True, "use_exponential_sigmas": True},
    ],
    ids=str,
)
def test_a_folders_times_are_taken_over_and_go_out_again(folder, tmp_path, settings):
    schedulers = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler
    theirs = schedulers(**settings)
    theirs.save_pretrained(folder / "scheduler")
    config = imported(folder, tmp_path, AE)
    back = schedulers.from_config(schedule_to_diffusers(config.sample))
    for scheduler in (theirs, back):
        c = scheduler.config
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        mu = c.base_shift + slope * (1024 - c.base_image_seq_len)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 9, 9), mu=mu)
        ours = config.sample.choice(9, 1024)
        torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"invert_sigmas": True}, "scheduler's invert_sigmas=True"),
        ({"use_beta_sigmas": True}, "scheduler's use_beta_sigmas=True"),
        ({"stochastic_sampling": True}, "scheduler's stochastic_sampling=True"),
        ({"num_train_timesteps": 500}, "scheduler's num_train_timesteps=500"),
        ({"sigma_min": 0.1}, "scheduler's sigma_min=0.1"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "is a FlowMatchHeunDiscreteScheduler"),
    ],
)
def test_what_can_not_be_drawn_with_is_refused_by_name(folder, tmp_path, settings, said):
    write_json(folder / "scheduler" / "scheduler_config.json", settings)
    with pytest.raises(UserError, match=said):
        imported(folder, tmp_path, AE)
    assert not (tmp_path / "out.pt").exists()
    imported(folder / "transformer", tmp_path, AE)  # the way out that it names


def test_what_says_nothing_new_is_no_setting():
    harmless = {"_diffusers_version": "0.35.0", "shift_terminal": None, "invert_sigmas": False}
    assert schedule_from_diffusers(harmless, "x") == {"schedule": "uniform"}


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("model_index.json", "FluxControlPipeline"),
        ("model_index.json", "FluxPriorReduxPipeline"),
        ("model_index.json", "Flux2Pipeline"),
        ("transformer/config.json", "ChromaTransformer2DModel"),
    ],
)
def test_folders_of_other_kinds_are_refused_by_name(folder, file, kind):
    write_json(folder / file, {"_class_name": kind})
    with pytest.raises(UserError, match=f"is a {kind}"):
        read_weights(folder)
