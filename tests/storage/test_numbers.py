"""The gate for kinds of numbers: scaled fp8 is what it stands for, and everything else that is
quantised is refused by name."""

import json

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from safetensors.torch import save_file

from fluxsmith.errors import UserError
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage.numbers import FP8

LAYER = "double_blocks.0.img_attn.qkv"
MARK = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)


@pytest.fixture
def weights():
    network = flux_at_random(tiny_params(guidance_embed=True)).state_dict()
    return {name: tensor.contiguous() for name, tensor in network.items()}


def scaled(weights, scale_name, by_row=False, dtype=torch.float8_e4m3fn):
    """The blocks' matrices in fp8, each with its scale; and what the file then stands for."""
    written, meant = {}, {}
    for name, tensor in weights.items():
        if "blocks" not in name or tensor.ndim != 2:
            written[name] = meant[name] = tensor
            continue
        largest = tensor.abs().amax(1) if by_row else tensor.abs().max()
        scale = largest / torch.finfo(dtype).max
        of = scale[:, None] if by_row else scale
        written[name] = (tensor / of).to(dtype)
        written[f"{name.removesuffix('weight')}{scale_name}"] = scale
        meant[name] = (written[name].float() * of).bfloat16()
    return written, meant


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scaled_fp8_is_multiplied_out(tmp_path, weights, spelling, by_row, dtype):
    written, meant = scaled(weights, spelling, by_row, dtype)
    old = spelling == "scale_weight"
    extra = {"scaled_fp8": torch.zeros(2).to(dtype)} if old else {f"{LAYER}.comfy_quant": MARK}
    extra[f"{LAYER}.{'scale_input' if old else 'input_scale'}"] = torch.tensor(0.25)
    prefixed = {f"model.diffusion_model.{n}": t for n, t in (written | extra).items()}
    save_file(prefixed, tmp_path / "x.safetensors")
    read = read_weights(tmp_path / "x.safetensors").network
    assert read.keys() == weights.keys()
    for name, tensor in meant.items():
        assert torch.equal(read[name], tensor), name
        torch.testing.assert_close(read[name].float(), weights[name], rtol=0.13, atol=0.02)
    shapes = read_weights(tmp_path / "x.safetensors", shapes=True).network
    assert {n: (t.shape, t.dtype) for n, t in shapes.items()} == {
        n: (t.shape, t.dtype) for n, t in meant.items()
    }


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}, None),
        ({"format": "mxfp8"}, "holds weights in mxfp8; give"),
        ({"format": "float8_e4m3fn", "convrot": True}, "in float8_e4m3fn and convrot; give"),
        ({}, "its marks of quantised layers can't be read; give"),
        ("nvfp4", "its marks of quantised layers can't be read; give"),
    ],
)
def test_marks_in_the_header_count_as_those_in_tensors(tmp_path, weights, mark, said):
    written, meant = scaled(weights, "weight_scale")
    marks = {"_quantization_metadata": json.dumps({"layers": {LAYER: mark}})}
    save_file(written, tmp_path / "x.safetensors", marks)
    if said is None:
        read = read_weights(tmp_path / "x.safetensors").network
        assert read.keys() == meant.keys()
        assert all(torch.equal(read[name], meant[name]) for name in meant)
        return
    with pytest.raises(UserError, match=said):
        read_weights(tmp_path / "x.safetensors")


def test_fp8_without_scales_stays_as_it_is(tmp_path, weights):
    fp8 = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}
    save_file(fp8, tmp_path / "x.safetensors")
    read = read_weights(tmp_path / "x.safetensors").network
    assert {tensor.dtype for tensor in read.values()} <= set(FP8)


def byte(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({f"{LAYER}.weight": torch.zeros(96, 32, dtype=torch.int8)}, "qkv.weight is int8"),
        ({f"{LAYER}.weight": byte(1536, 1)}, "qkv.weight is uint8"),
        ({f"{LAYER}.weight.absmax": torch.zeros(24)}, r"bitsandbytes \(NF4"),
        ({f"{LAYER}.weight.quant_state.bitsandbytes__nf4": byte(90)}, r"bitsandbytes \(NF4"),
        ({f"{LAYER}.SCB": torch.zeros(96)}, r"bitsandbytes \(int8"),
        ({f"{LAYER}.wscales": torch.zeros(1, 96)}, "for Nunchaku"),
        ({f"{LAYER}.qzeros": byte(3)}, "GPTQ or AWQ"),
        ({f"{LAYER}.weight._data": byte(3)}, "quanto"),
        ({f"{LAYER}._weight_qdata": byte(3)}, "torchao"),
        ({f"{LAYER}.weight_scale_2": torch.zeros(1)}, "NVFP4"),
        ({f"{LAYER}.weight_zero_point": torch.zeros(1)}, "quantised in some way"),
        ({f"{LAYER}.weight_scale": torch.ones(1)}, "is a scale, but .*qkv.weight is not in fp8"),
        ({"lost.weight_scale": torch.ones(1)}, "is a scale, but lost.weight is not"),
        ({f"{LAYER}.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
         "holds weights in nvfp4"),
        ({f"{LAYER}.comfy_quant": byte(5)}, "its marks of quantised layers can't be read"),
        ({f"{LAYER}.weight": torch.zeros(96, 32).to(torch.float8_e4m3fn),
          f"{LAYER}.weight_scale": torch.ones(3, 1)}, "one scale, or one a row"),
    ],
)  # fmt: skip
def test_what_is_quantised_is_refused_by_name(tmp_path, weights, added, said):
    for form in ("safetensors", "bin"):
        path = tmp_path / f"x.{form}"
        save = save_file if form == "safetensors" else torch.save
        save(weights | added, path)
        for shapes in (True, False):
            with pytest.raises(UserError, match=said) as raised:
                read_weights(path, shapes=shapes)
            assert "\n" not in str(raised.value)
            assert "give the model in" in str(raised.value)


def test_a_config_that_says_quantised_is_enough(tmp_path, weights):
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    config = {"quantization_config": {"quant_method": "torchao", "quant_type": "int8wo"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised, says its quantization_config: torchao"):
        read_weights(tmp_path)


def test_gguf_and_metadata_are_told_too(tmp_path, weights):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(100))
    with pytest.raises(UserError, match="is a GGUF file"):
        read_weights(tmp_path / "x.gguf")
    save_file(weights, tmp_path / "x.safetensors", {"quantization_config": '{"method": "svdq"}'})
    with pytest.raises(UserError, match="quantization_config"):
        read_weights(tmp_path / "x.safetensors")
