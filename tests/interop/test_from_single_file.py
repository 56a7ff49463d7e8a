"""diffusers' from_single_file on a BFL export: at FLUX.1's width, and only there."""

import json

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params

from fluxsmith.interop.diffusers_folder import transformer_config
from fluxsmith.interop.diffusers_names import to_diffusers
from fluxsmith.storage.tensor_files import write_tensors

diffusers = pytest.importorskip("diffusers")


def load(folder, params):
    """(our weights under diffusers' names, the model that from_single_file makes of our file)"""
    weights = flux_at_random(params).bfloat16().state_dict()
    write_tensors(folder / "flux.safetensors", weights, {})
    (folder / "config.json").write_text(json.dumps(transformer_config(params)))
    model = diffusers.FluxTransformer2DModel.from_single_file(
        str(folder / "flux.safetensors"), config=str(folder), torch_dtype=torch.bfloat16
    )
    return to_diffusers(weights), model.state_dict()


@pytest.mark.slow
def test_at_its_width_it_is_the_same_model(tmp_path):
    sizes = {"hidden_size": 3072, "num_heads": 24, "axes_dim": (16, 56, 56)}
    params = tiny_params(**sizes, depth=1, depth_single_blocks=1, guidance_embed=True)
    ours, theirs = load(tmp_path, params)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_at_other_widths_it_does_not_work(tmp_path):
    with pytest.raises(Exception, match=r"split|size|shape"):
        load(tmp_path, tiny_params())
