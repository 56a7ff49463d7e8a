"""The one way to call the model: build, load, encode, velocity."""

import pytest
import torch
from helpers import randomise

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.model.tokens import image_ids, patchify, text_ids, unpatchify


def test_build_is_the_same_every_time_and_leaves_the_global_stream_alone(toy):
    before = torch.get_rng_state()
    one, two = Pipeline.build(toy()), Pipeline.build(toy())
    other = Pipeline.build(toy("seed=1"))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert not torch.equal(one.network.img_in.weight, other.network.img_in.weight)


def test_tensors_are_named_as_checkpoints_have_them(pipeline):
    names = pipeline.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"network", "text"}
    assert "network.double_blocks.0.img_attn.qkv.weight" in names


def test_velocity_is_patchify_flux_unpatchify(pipeline):
    x = torch.randn(3, 1, 16, 16)
    t = torch.tensor([0.1, 0.5, 0.9])
    cond = pipeline.encode_text(["3", "five", ""])
    tokens = pipeline.network(
        patchify(x, 4),
        image_ids(4, 4, x.device),
        cond.tokens,
        text_ids(1, x.device),
        t,
        cond.pooled,
    )
    expected = unpatchify(tokens, 4, 16, 16)
    assert torch.equal(pipeline.velocity(x, t, cond), expected)
    assert expected.abs().mean() > 0.1


def test_a_network_that_predicts_data_gives_the_velocity_towards_it(toy):
    """The same weights, read as the velocity and as the data."""
    pipeline = randomise(Pipeline.build(toy("flow.prediction=data")).eval())
    plain = randomise(Pipeline.build(toy()).eval())
    x, cond = torch.randn(3, 1, 16, 16), pipeline.encode_text(["3", "five", ""])
    t = torch.tensor([0.02, 0.5, 1.0])
    with torch.no_grad():
        x0 = plain.velocity(x, t, cond)
        expected = (x - x0) / torch.tensor([0.05, 0.5, 1.0])[:, None, None, None]
        torch.testing.assert_close(pipeline.velocity(x, t, cond), expected)
    assert pipeline.digest() != plain.digest()


def test_each_picture_may_have_a_guidance_of_its_own(toy):
    pipeline = Pipeline.build(toy("model.guidance_embed=true")).eval()
    randomise(pipeline)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor(0.5)
    cond = pipeline.encode_text(["3", "4"])
    with torch.no_grad():
        together = pipeline.velocity(x, t, cond, torch.tensor([1.5, 4.0]))
        for i, scale in enumerate((1.5, 4.0)):
            alone = pipeline.velocity(x[i : i + 1], t, cond[i : i + 1], scale)
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together, pipeline.velocity(x, t, cond, 1.5), atol=1e-3)


def test_bfloat16_autocast_stays_close_to_float32(pipeline):
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.2, 0.8])
    fine = pipeline.velocity(x, t, pipeline.encode_text(["3", "4"]))
    cond = pipeline.encode_text(["3", "4"], "bfloat16")
    rough = pipeline.velocity(x, t, cond, precision="bfloat16")
    assert rough.dtype == torch.float32
    assert (rough - fine).norm() / fine.norm() < 0.05


def test_weights_that_do_not_fit_are_named(toy, pipeline):
    other = Pipeline.build(toy("model.hidden_size=128", "model.num_heads=2"))
    with pytest.raises(UserError, match=r"size mismatch for network\.\S+: "):
        pipeline.load_weights(other.state_dict(), "x.pt")
    deeper = Pipeline.build(toy("model.depth=2"))
    with pytest.raises(UserError, match=r"x\.pt .* Unexpected key.*network\.double_blocks\.1"):
        pipeline.load_weights(deeper.state_dict(), "x.pt")


def test_digest_tells_weights_apart(toy, pipeline):
    digest = pipeline.digest()
    assert digest == pipeline.digest()
    with torch.no_grad():
        pipeline.network.img_in.bias[0] += 1e-6
    assert pipeline.digest() != digest
