"""The lesson's own checkpoints: time runs the other way there; importing changes weights alone."""

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params
from helpers import assert_agree

from fluxsmith.errors import UserError
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.interop.xdiffusion import reversed_time
from fluxsmith.model.flux import PRESETS, Flux


def save(path, network):
    """A checkpoint as their training script writes it, its frozen CLIP and T5 in it."""
    state = {f"_score_network.{name}": t for name, t in network.state_dict().items()}
    state |= {"_context_preprocessors.0._clip.text_model.weight": torch.zeros(3)}
    params = {"axes_dim": list(network.params.axes_dim), "patch_size": 2, "theta": 10000}
    config = {
        "data": {"image_size": 32, "num_channels": 1},
        "diffusion": {"score_network": {"target": "xdiffusion.flux.Flux", "params": params}},
    }
    contents = {
        "step": 10000,
        "model_state_dict": state,
        "num_optimizers": 1,
        "optimizer_state_dicts": [{"state": {}, "param_groups": []}],
        "loss": torch.tensor(0.1),
        "config": config,
    }
    torch.save(contents, path)
    return path


@pytest.mark.parametrize(
    "params", [tiny_params(), tiny_params(guidance_embed=True), PRESETS["lesson"]],
    ids=["tiny", "guidance", "lesson"],
)  # fmt: skip
@torch.no_grad()
def test_the_imported_network_is_theirs_with_the_time_reversed(tmp_path, params):
    network = flux_at_random(params)
    read = read_weights(save(tmp_path / "diffusion-10000.pt", network))
    with torch.device("meta"):
        imported = Flux(params)
    imported.load_state_dict(read.network, assign=True)
    x = inputs(params, batch=7)
    t = torch.linspace(0, 1, 7)  # both ends too
    u = network(**{**x, "timesteps": 1 - t})  # at their time, where x_s moves with x0 - eps
    v = imported(**{**x, "timesteps": t})
    assert u.std() > 0.3
    assert_agree(v, -u, within=1e-4)
    assert (imported(**{**x, "timesteps": 1 - t}) + u).abs().max() > 0.01  # time matters here


def test_nothing_but_time_and_sign_changes(tmp_path):
    network = flux_at_random(tiny_params())
    read = read_weights(save(tmp_path / "diffusion-10000.pt", network))
    own = network.state_dict()
    assert read.network.keys() == own.keys()
    changed = {name for name in own if not torch.equal(own[name], read.network[name])}
    last = {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert changed == {"time_in.in_layer.weight", *last}
    assert (read.kind, read.step) == ("xdiffusion", 10000)
    known = {"axes_dim": [4, 6, 6], "patch_size": 2, "theta": 10000, "image_size": 32}
    assert read.settings == known


def test_reversing_twice_is_the_identity():
    weights = flux_at_random(tiny_params()).state_dict()
    twice = reversed_time(reversed_time(weights))
    for name, tensor in weights.items():
        torch.testing.assert_close(twice[name], tensor, rtol=0, atol=1e-6)


def test_weights_of_a_compiled_model_are_found(tmp_path):
    network = flux_at_random(tiny_params())
    state = {f"_orig_mod._score_network.{n}": t for n, t in network.state_dict().items()}
    torch.save({"model_state_dict": state, "config": {}}, tmp_path / "diffusion-1.pt")
    assert read_weights(tmp_path / "diffusion-1.pt").network.keys() == network.state_dict().keys()


def test_another_model_of_that_repository_is_named(tmp_path):
    torch.save({"model_state_dict": {"_score_network.conv": torch.zeros(1)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"holds no Flux: there is no img_in\.weight, but conv"):
        import_model(tmp_path / "a.pt", tmp_path / "b.pt")
