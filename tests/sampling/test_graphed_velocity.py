"""Pictures drawn by CUDA graphs are the pictures: on the CPU by a stand-in."""

import pytest
import torch
from helpers import randomise
from kernels.fake_cuda_graph import ByOperations

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.kernels.cuda_graphs import CudaCapture
from fluxsmith.sampling.generate import Sampler
from fluxsmith.sampling.graphed_velocity import GraphedVelocity
from fluxsmith.training.run import train

PROMPTS = ["3", "four", "a long one", "7 and more than that", "3"]


def built(config, device: torch.device) -> Pipeline:
    return randomise(Pipeline.build(config)).to(device).eval()


def graphed(pipeline: Pipeline, **settings) -> tuple[Sampler, ByOperations | CudaCapture]:
    on_gpu = pipeline.device.type == "cuda"
    capture = CudaCapture(pipeline.device) if on_gpu else ByOperations()
    sample = pipeline.config.sample.model_copy(update=settings)
    return Sampler(pipeline, sample, cuda_graphs=capture), capture


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sample.solver=heun", "sample.guidance_interval=[0.3, 0.8]"),
        ("model.guidance_embed=true", "sample.guidance_method=embedded"),
        ("sample.precision=bfloat16",),
    ],
    ids=" ".join,
)
def test_pictures_are_those_of_the_plain_path(toy, device, overrides, guidance):
    """With prompts of several lengths, masked beside each other, and a last batch that is smaller;
    a second time by the graphs that there are."""
    config = toy("sample.precision=float32", *overrides)
    pipeline = built(config, device)
    plain = Sampler(pipeline).generate(PROMPTS, guidance=guidance, batch_size=2)
    again = Sampler(pipeline).generate(PROMPTS[::-1], guidance=guidance, batch_size=2)
    sampler, capture = graphed(pipeline)
    within = {"atol": 1e-5 if config.sample.precision == "float32" else 0.02, "rtol": 0}
    drawn = sampler.generate(PROMPTS, guidance=guidance, batch_size=2)
    torch.testing.assert_close(drawn, plain, **within)
    captured = len(capture.captured) if isinstance(capture, ByOperations) else 0
    drawn = sampler.generate(PROMPTS[::-1], guidance=guidance, batch_size=2)
    torch.testing.assert_close(drawn, again, **within)
    if isinstance(capture, ByOperations):
        assert 0 < captured < capture.replays


def test_a_step_is_a_replay(toy, device):
    """What a solver asks for again and again is captured once."""
    pipeline = built(toy("device=cpu"), device)
    sampler, capture = graphed(pipeline)
    sampler.generate(["3"], steps=7, guidance=1.0)
    if isinstance(capture, ByOperations):
        assert (len(capture.captured), capture.replays) == (1, 7)


def test_each_precision_gives_its_own_velocity(toy, device):
    pipeline = built(toy(), device)
    cond = pipeline.encode_text(["3"])
    x = torch.randn(1, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for precision in ("float32", "bfloat16"):
        plain = Sampler(
            pipeline, pipeline.config.sample.model_copy(update={"precision": precision})
        )
        for sampler in (plain, graphed(pipeline, precision=precision)[0]):
            with torch.no_grad():
                v = sampler.guided_velocity(cond, 1.0)(x.to(device), torch.tensor(0.5))
            found.setdefault(precision, []).append(v)
    for plain, by_graphs in found.values():
        torch.testing.assert_close(by_graphs, plain, rtol=0, atol=1e-5)
    assert (found["float32"][0] - found["bfloat16"][0]).abs().max() > 1e-4


def test_a_gradient_goes_through_the_plain_path(toy, device):
    pipeline = built(toy(), device)
    x = torch.zeros(1, *pipeline.latent_shape, device=device, requires_grad=True)
    sampler, capture = graphed(pipeline)
    slopes = []
    for one in (Sampler(pipeline), sampler):
        velocity = one.guided_velocity(pipeline.encode_text(["3"]), 1.0)
        (slope,) = torch.autograd.grad(velocity(x, torch.tensor(0.5)).sum(), x)
        slopes.append(slope)
    if isinstance(capture, ByOperations):
        assert not capture.captured
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().max() > 0


def test_without_a_gpu_they_are_refused(toy, toy_file, tmp_path, capsys):
    assert train(toy("train.steps=1")) == 0
    capsys.readouterr()
    for command in (["sample"], ["evaluate"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, str(tmp_path / "run"), "--cuda-graphs", "--device", "cpu"])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert said == "error: --cuda-graphs needs a CUDA GPU, and this is cpu; leave it out\n"


def test_a_guidance_that_the_network_has_no_use_for_is_refused(toy, device):
    pipeline = built(toy(), device)
    velocity = GraphedVelocity(pipeline, "float32", ByOperations())
    cond, x = pipeline.encode_text(["3"]), torch.zeros(1, *pipeline.latent_shape, device=device)
    with torch.no_grad(), pytest.raises(ValueError, match="without a guidance input"):
        velocity(x, torch.tensor(0.5), cond, 3.0)
