"""diffusers' network with the weights of ours: both must then compute the same."""

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from fluxsmith.interop.diffusers_folder import transformer_config
from fluxsmith.interop.diffusers_names import to_diffusers


def diffusers_flux(flux):
    with torch.device("meta"):
        theirs = FluxTransformer2DModel.from_config(transformer_config(flux.params))
    theirs.load_state_dict(to_diffusers(flux.state_dict()), assign=True)
    return theirs.eval()
