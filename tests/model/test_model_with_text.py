"""From prompts through the byte encoder and the network: padding must not leak into a velocity."""

import pytest
import torch
from flux_at_random import CPU, flux_at_random, inputs, tiny_params

from fluxsmith.model.tokens import text_ids
from fluxsmith.text.byte_encoder import ByteEncoder


@pytest.mark.parametrize("training", [True, False], ids=["training", "sampling"])
@pytest.mark.parametrize("other", ["7", "a much longer prompt here", ""])
def test_a_prompt_gives_the_same_velocity_alone_and_beside_another(other, training):
    flux = flux_at_random(tiny_params(vec_in_dim=24, context_in_dim=24))
    torch.manual_seed(0)
    encode = ByteEncoder(width=24, hidden_size=64, depth=2, max_tokens=8).train(training)
    x = inputs(flux.params, batch=2)

    def velocity(prompts):
        text, n = encode(prompts), len(prompts)
        return flux(
            img=x["img"][:n],
            img_ids=x["img_ids"],
            txt=text.tokens,
            txt_ids=text_ids(text.tokens.shape[1], CPU),
            timesteps=x["timesteps"][:n],
            y=text.pooled,
            txt_mask=text.mask,
        )

    with torch.set_grad_enabled(training):
        alone, beside = velocity(["3"])[0], velocity(["3", other])[0]
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)
    assert alone.std() > 0.3
    assert (velocity(["eight"])[0] - alone).abs().max() > 1e-2
