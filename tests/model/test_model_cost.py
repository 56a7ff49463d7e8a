"""The arithmetic of a forward pass, against what PyTorch counts as it runs."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fluxsmith.model.cost import forward_flops
from fluxsmith.model.flux import Flux, FluxParams
from fluxsmith.model.tokens import image_ids, text_ids

TINY = FluxParams(
    in_channels=12,
    vec_in_dim=20,
    context_in_dim=28,
    hidden_size=32,
    mlp_ratio=2.5,
    num_heads=2,
    depth=2,
    depth_single_blocks=3,
    axes_dim=(4, 6, 6),
    theta=10_000,
    qkv_bias=True,
    guidance_embed=False,
)


@pytest.mark.parametrize("txt", [1, 7, 50])
@pytest.mark.parametrize(
    "params",
    [TINY, replace(TINY, guidance_embed=True, out_channels=24), replace(TINY, depth=0)],
    ids=["plain", "guided", "single"],
)
def test_it_is_what_pytorch_counts(params, txt):
    network, batch = Flux(params), 2
    inputs = {
        "img": torch.randn(batch, 6, 12),
        "img_ids": image_ids(2, 3, torch.device("cpu")),
        "txt": torch.randn(batch, txt, 28),
        "txt_ids": text_ids(txt, torch.device("cpu")),
        "timesteps": torch.rand(batch),
        "y": torch.randn(batch, 20),
        "guidance": torch.ones(batch) if params.guidance_embed else None,
    }
    # Of attention's ways to be computed it counts the plain one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(**inputs)
    assert batch * forward_flops(params, txt, 6) == counter.get_total_flops()
