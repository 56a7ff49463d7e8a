"""LoRA files: every format through every other, diffusers' reading of ours, and what is refused."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from flux_at_random import tiny_params
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fluxsmith.adapters.lora import Settings, chosen
from fluxsmith.adapters.low_rank import LowRank
from fluxsmith.errors import UserError
from fluxsmith.interop.lora_files import (
    Lora,
    check_lora_fits,
    read_lora,
    read_specs,
    write_lora,
)
from fluxsmith.interop.lora_names import FORMATS
from fluxsmith.model.flux import PRESETS, Flux

PARAMS = tiny_params(depth=2, depth_single_blocks=3, mlp_ratio=3.0, guidance_embed=True)
OF_ALL = [name for name in FORMATS if name != "x-flux"]  # which has names for attention alone
XFLUX = ("qkv", "proj", "linear1", "linear2")


def network_of(params):
    with torch.device("meta"):
        return Flux(params)


def random_changes(params=PARAMS, rank=3, alpha=2.0, targets=("all",)):
    """A LoRA that changes weights by numbers of order 1."""
    settings = Settings(rank=rank, alpha=alpha, targets=list(targets))
    network, g, found = network_of(params), torch.Generator().manual_seed(0), []
    for name, rows in chosen(network, settings):
        width = network.get_submodule(name).in_features
        down = torch.randn(rank, width, generator=g) * width**-0.5
        up = torch.randn(len(rows), rank, generator=g)
        found.append(LowRank(name, down, up, settings.scale, rows.start))
    return found


def for_xflux(params=PARAMS):
    """The same where x-flux has names: queries, keys and values, and what follows attention."""
    found = random_changes(params, targets=("attention",))
    return [*found, *(c for c in random_changes(params) if c.layer.endswith("linear2"))]


def whole(changes, params=PARAMS):
    """The change of each weight that is changed."""
    shapes = {name: p.shape for name, p in network_of(params).named_parameters()}
    total = {f"{c.layer}.weight": torch.zeros(shapes[f"{c.layer}.weight"]) for c in changes}
    for c in changes:
        total[f"{c.layer}.weight"][c.start : c.stop] += c.change()
    return total


def assert_equal(found, expected, params=PARAMS):
    found, expected = whole(found, params), whole(expected, params)
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert change.std() > 0.03
        torch.testing.assert_close(found[name], change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("first", "second"), [*product(FORMATS, FORMATS)])
def test_every_format_through_every_other_is_the_same_change(tmp_path, first, second, dtype):
    """And back, where a fused pair that was split is itself again, at its own rank; the scale of
    2 / 3 is rounded in no half precision."""
    both_know = for_xflux() if "x-flux" in (first, second) else random_changes()
    both_know = [replace(c, down=c.down.to(dtype), up=c.up.to(dtype)) for c in both_know]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    write_lora(paths[0], both_know, first)
    assert read_lora(paths[0]).form == first
    write_lora(paths[1], read_lora(paths[0]).changes, second)
    write_lora(paths[2], read_lora(paths[1]).changes, first)
    for path in paths:
        assert_equal(read_lora(path).changes, both_know)
    shapes = [{n: t.shape for n, t in load_file(path).items()} for path in paths]
    assert shapes[2] == shapes[0]


@pytest.mark.parametrize(("alpha", "stored"), [(1.5, torch.bfloat16), (2.0, torch.float32)])
@pytest.mark.parametrize("form", ["diffusers", "bfl", "x-flux"])
def test_a_half_precision_stays_where_the_scale_is_exact_in_it(tmp_path, form, alpha, stored):
    half = torch.bfloat16
    own = for_xflux() if form == "x-flux" else random_changes()
    own = [replace(c, down=c.down.to(half), up=c.up.to(half), scale=alpha / 3) for c in own]
    write_lora(tmp_path / "a.safetensors", own, form)
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        assert tensor.dtype == (stored if name.endswith(FORMATS[form].up) else half)


def test_queries_keys_and_values_of_their_own_make_a_block_diagonal(tmp_path):
    """As trainers on diffusers' layers write them; fused at the sum of the ranks, split again."""
    file, g, tensors = tmp_path / "split.safetensors", torch.Generator().manual_seed(0), {}
    for i, part in enumerate(("q", "k", "v")):
        name = f"transformer.transformer_blocks.1.attn.to_{part}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(i + 1, 32, generator=g)
        tensors[f"{name}.lora_B.weight"] = torch.randn(32, i + 1, generator=g)
    save_file(tensors, file)
    write_lora(tmp_path / "fused.safetensors", read_lora(file).changes, "kohya")
    fused = load_file(tmp_path / "fused.safetensors")
    base = "lora_unet_double_blocks_1_img_attn_qkv"
    assert fused[f"{base}.lora_up.weight"].shape == (96, 6)
    assert fused[f"{base}.lora_down.weight"].shape == (6, 32) and fused[f"{base}.alpha"] == 6
    write_lora(file, read_lora(tmp_path / "fused.safetensors").changes, "diffusers")
    back = load_file(file)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_the_names_are_those_that_each_program_knows(tmp_path):
    """One of each, written out."""
    known = {
        "diffusers": "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "kohya": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        "comfyui": "diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight",
        "bfl": "double_blocks.0.img_attn.qkv.lora_A.weight",
        "x-flux": "double_blocks.0.processor.qkv_lora1.down.weight",
        "onetrainer": "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
    }
    assert known.keys() == FORMATS.keys()
    for form, name in known.items():
        write_lora(tmp_path / "a.safetensors", for_xflux(), form)
        assert name in load_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("form", "targets", "alpha"),
    [
        ("kohya", ("attention", "mlp", "modulation"), 1.5),
        ("kohya", ("all",), 3.0),  # it ignores the alpha of the last layers
        ("comfyui", ("attention", "mlp", "modulation"), 1.5),
        ("x-flux", None, 1.5),
        ("onetrainer", ("attention",), 1.5),  # it knows no other layers of these
    ],
)
def test_diffusers_reads_the_same_change(tmp_path, form, targets, alpha):
    """Its own conversion knows FLUX.1's widths alone, where whole changes are too large to make."""
    mixin = pytest.importorskip("diffusers.loaders").FluxLoraLoaderMixin
    params = tiny_params(
        hidden_size=3072, num_heads=24, axes_dim=(16, 56, 56), depth=1, depth_single_blocks=1
    )
    changes = for_xflux(params) if targets is None else random_changes(params, 3, alpha, targets)
    write_lora(tmp_path / "ours.safetensors", changes, form)
    theirs = mixin.lora_state_dict(load_file(tmp_path / "ours.safetensors"))
    save_file(
        {n: t.contiguous().clone() for n, t in theirs.items()}, tmp_path / "theirs.safetensors"
    )
    found = seen_by(read_lora(tmp_path / "theirs.safetensors").changes, params)
    expected = seen_by(changes, params)
    assert found.keys() == expected.keys()
    for name, seen in expected.items():
        assert seen.std() > 0.1
        torch.testing.assert_close(found[name], seen, rtol=1e-5, atol=1e-4)


def seen_by(changes, params):
    """What each layer's change makes of a few inputs of order 1."""
    network, found = network_of(params), {}
    for c in changes:
        layer = network.get_submodule(c.layer)
        x = torch.randn(layer.in_features, 2, generator=torch.Generator().manual_seed(0))
        y = found.setdefault(c.layer, torch.zeros(layer.out_features, 2))
        y[c.start : c.stop] += c.scale * (c.up @ (c.down @ x))
    return found


def rewritten(tmp_path, form="kohya", **replaced):
    """A file with tensors under other names, or with other tensors; None takes one away."""
    write_lora(tmp_path / "a.safetensors", random_changes(), form)
    tensors = load_file(tmp_path / "a.safetensors")
    for name, new in replaced.items():
        old = tensors.pop(name)
        if isinstance(new, str):
            tensors[new] = old
        elif new is not None:
            tensors[name] = new
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


QKV = "lora_unet_double_blocks_0_img_attn_qkv"


def test_alpha_over_rank_is_the_scale_and_a_missing_alpha_is_the_rank(tmp_path):
    by_layer = {c.layer: c for c in read_lora(rewritten(tmp_path)).changes}
    assert by_layer["double_blocks.0.img_attn.qkv"].scale == pytest.approx(2 / 3)
    by_layer = {
        c.layer: c for c in read_lora(rewritten(tmp_path, **{f"{QKV}.alpha": None})).changes
    }
    assert by_layer["double_blocks.0.img_attn.qkv"].scale == 1
    assert by_layer["double_blocks.0.txt_attn.qkv"].scale == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"r": 4, "lora_alpha": 2}, {"to_k": 0.5, "to_out.0": 0.5}),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, {"to_k": 1.0, "to_out.0": 1.0}),
        (
            {"r": 4, "lora_alpha": 2, "alpha_pattern": {r"^transformer_blocks\.0\.attn\.to_k": 8}},
            {"to_k": 2.0, "to_out.0": 0.5},
        ),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_k": 1}}, {"to_k": 0.25, "to_out.0": 0.5}),
    ],
)
@pytest.mark.parametrize("where", ["metadata", "folder", "bin", "file in folder"])
def test_pefts_settings_hold(tmp_path, settings, scales, where):
    """In a file's metadata, as diffusers writes them, and in PEFT's own folder, old and new."""
    tensors = {}
    prefix = "transformer." if where == "metadata" else "base_model.model."
    for part in scales:
        tensors[f"{prefix}transformer_blocks.0.attn.{part}.lora_A.weight"] = torch.randn(4, 32)
        tensors[f"{prefix}transformer_blocks.0.attn.{part}.lora_B.weight"] = torch.randn(32, 4)
    if where == "metadata":
        path = tmp_path / "pytorch_lora_weights.safetensors"
        told = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        save_file(tensors, path, {"lora_adapter_metadata": told})
    else:
        path = tmp_path
        if where == "folder":
            save_file(tensors, path / "adapter_model.safetensors")
        else:
            torch.save(tensors, path / "adapter_model.bin")
            torch.save({"state": {}}, path / "optimizer.pt")
        (path / "adapter_config.json").write_text(json.dumps(settings))
    if where == "file in folder":
        path = path / "adapter_model.bin"
    found = {c.layer.rpartition(".")[2]: c.scale for c in read_lora(path).changes}
    assert found == {"qkv": scales["to_k"], "proj": scales["to_out.0"]}


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        ({f"{QKV}.lora_down.weight": f"{QKV}s.lora_down.weight"}, rf"{QKV}s.lora_down.weight"),
        ({f"{QKV}.lora_up.weight": None}, f"{QKV}: .*one half of a pair"),
        ({f"{QKV}.alpha": "double_blocks.99.alpha"}, "double_blocks.99.alpha"),
        ({f"{QKV}.alpha": "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"}, "--without-text"),
        ({f"{QKV}.alpha": "text_encoders.t5xxl.transformer.x.lora_A.weight"}, "--without-text"),
        ({f"{QKV}.lora_up.weight": f"{QKV}.lokr_w1"}, "it is a LoKr"),
        ({f"{QKV}.lora_up.weight": f"{QKV}.hada_w1_a"}, "it is a LoHa"),
        ({f"{QKV}.lora_up.weight": f"{QKV}.oft_blocks"}, "it is an OFT"),
        ({f"{QKV}.alpha": f"{QKV}.dora_scale"}, "it is a DoRA"),
        ({f"{QKV}.alpha": f"{QKV}.diff_b"}, "FLUX.1 Canny and Depth"),
        ({f"{QKV}.alpha": "lora_unet_down_blocks_0_attentions_0_proj_in.alpha"}, "Diffusion 1, 2"),
        ({f"{QKV}.alpha": "lora_unet_joint_blocks_0_x_block_mlp_fc1.alpha"}, "Diffusion 3"),
        ({f"{QKV}.lora_up.weight": torch.zeros(96, 4)}, r"\(3, 32\) and \(96, 4\)"),
        ({f"{QKV}.lora_up.weight": torch.zeros(95, 3)}, "has 95 rows"),
        ({f"{QKV}.lora_up.weight": torch.zeros(96, 3, dtype=torch.int8)}, "torch.int8"),
        ({f"{QKV}.alpha": torch.ones(2)}, "has 2 numbers, and must have one"),
        ({f"{QKV}.alpha": torch.tensor(torch.inf)}, "numbers that are not finite"),
        ({f"{QKV}.lora_up.weight": torch.full((96, 3), torch.nan)}, "numbers that are not finite"),
        (
            {
                f"{QKV}.lora_up.weight": torch.zeros(96, 0),
                f"{QKV}.lora_down.weight": torch.zeros(0, 32),
            },
            "has rank 0",
        ),
        (
            {
                f"{QKV}.lora_down.weight": "double_blocks.0.txt_attn.qkv.lora_down.weight",
                f"{QKV}.lora_up.weight": "double_blocks.0.txt_attn.qkv.lora_up.weight",
                f"{QKV}.alpha": "double_blocks.0.txt_attn.qkv.alpha",
            },
            "are the same layer; keep one",
        ),
    ],
)
def test_every_tensor_lands_or_the_file_is_refused(tmp_path, replaced, says):
    path = rewritten(tmp_path, **replaced)
    with pytest.raises(UserError, match=says) as refused:
        read_lora(path)
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": None},
        {"lora_alpha": "8"},
        {"alpha_pattern": ["to_k"]},
        {"alpha_pattern": {"(": 1}},
    ],
)
def test_settings_of_peft_that_are_none_are_named(tmp_path, settings):
    name = "base_model.model.transformer_blocks.0.attn.to_k"
    pair = {f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(32, 4)}
    save_file(pair, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4} | settings))
    with pytest.raises(UserError, match="can't read PEFT's settings of it"):
        read_lora(tmp_path)


def test_whole_numbers_as_alpha_and_fp8_are_read_and_written_in_every_format(tmp_path):
    path = rewritten(tmp_path, **{f"{QKV}.alpha": torch.tensor(6)})
    (first, *_) = (c for c in read_lora(path).changes if c.layer.endswith("0.img_attn.qkv"))
    assert first.scale == 2
    kept = {n: t.to(torch.float8_e4m3fn) if t.ndim else t for n, t in load_file(path).items()}
    save_file(kept, path)
    changes = read_lora(path).changes
    for form in OF_ALL:
        write_lora(tmp_path / "new" / f"{form}.safetensors", changes, form)
        assert_equal(read_lora(tmp_path / "new" / f"{form}.safetensors").changes, changes)


def test_a_file_of_torch_with_other_names_and_plain_numbers(tmp_path):
    """Its alphas may be numbers; keys that are no text are named, and nothing else is passed."""
    file, name = tmp_path / "a.pt", "double_blocks.0.img_attn.proj"
    pair = {f"{name}.lora_down.weight": torch.randn(2, 32), f"{name}.alpha": 1.0}
    pair[f"{name}.lora_up.weight"] = torch.randn(32, 2)
    for contents in (pair, {"state_dict": pair, "epoch": 3}):
        torch.save(contents, file)
        assert [c.scale for c in read_lora(file).changes] == [0.5]
    for key, value in ((7, torch.zeros(2)), (("a", 1), torch.zeros(2)), ("state", {"a": 1})):
        torch.save(pair | {key: value}, file)
        with pytest.raises(UserError, match="1 of 4 tensors have no place in a Flux") as refused:
            read_lora(file)
        assert str(key) in str(refused.value)


def test_text_encoders_are_left_out_when_that_is_asked_for(tmp_path):
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"
    path = rewritten(tmp_path, **{f"{QKV}.alpha": name})
    found = read_lora(path, without_text=True)
    assert found.left_out == [name]
    assert_equal(
        [c for c in found.changes if "0.img_attn.qkv" not in c.layer],
        [c for c in random_changes() if "0.img_attn.qkv" not in c.layer],
    )


def test_a_whole_network_and_an_empty_file_are_no_loras(tmp_path):
    save_file({"img_in.weight": torch.zeros(2, 2)}, tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match="it is a whole network; fluxsmith lora extract"):
        read_lora(tmp_path / "whole.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UserError, match="there is nothing in it"):
        read_lora(tmp_path / "empty.safetensors")


@pytest.mark.parametrize(
    "other", [{"depth": 3}, {"hidden_size": 64, "num_heads": 4}, {"mlp_ratio": 4.0}]
)
def test_a_lora_of_another_size_is_refused_with_its_shapes(tmp_path, other):
    bigger = tiny_params(**{"depth": 2, "depth_single_blocks": 3, "mlp_ratio": 3.0, **other})
    write_lora(tmp_path / "a.safetensors", random_changes(bigger), "kohya")
    lora = read_lora(tmp_path / "a.safetensors")
    check_lora_fits(lora, network_of(bigger).state_dict())
    with pytest.raises(UserError, match=r"have no layer in this network: \w+blocks.*another size"):
        check_lora_fits(lora, network_of(PARAMS).state_dict())


@pytest.mark.parametrize(
    ("layer", "start", "stop", "fits"),
    [
        ("single_blocks.0.linear1", 0, 192, True),  # queries, keys, values and the MLP
        ("single_blocks.0.linear1", 0, 96, True),
        ("single_blocks.0.linear1", 96, 192, True),
        ("single_blocks.0.linear1", 0, 160, False),  # within the MLP
        ("single_blocks.0.linear1", 96, 160, False),
        ("double_blocks.0.img_attn.qkv", 32, 64, True),
        ("double_blocks.0.img_attn.qkv", 0, 100, False),
        ("double_blocks.0.img_mlp.0", 0, 96, True),
        ("double_blocks.0.img_mlp.0", 0, 64, False),
        ("txt_in", 0, 16, False),
    ],
)
def test_a_change_covers_whole_parts_of_a_layer(layer, start, stop, fits):
    network = network_of(PARAMS).state_dict()
    width = network[f"{layer}.weight"].shape[1]
    change = LowRank(layer, torch.zeros(1, width), torch.zeros(stop - start, 1), 1.0, start)
    lora = Lora("a.safetensors", "kohya", [change])
    if fits:
        check_lora_fits(lora, network)
    else:
        with pytest.raises(UserError, match=f"{layer}.*another size"):
            check_lora_fits(lora, network)


def test_x_flux_has_no_names_for_the_other_layers(tmp_path):
    with pytest.raises(UserError, match=r"no name for \d+ of the layers, such as img_in"):
        write_lora(tmp_path / "a.safetensors", random_changes(), "x-flux")
    assert not (tmp_path / "a.safetensors").exists()


def test_metadata_go_along_but_for_what_they_say_of_another_format(tmp_path):
    """A rank in PEFT's words must not scale what was scaled already."""
    path, given = tmp_path / "a.safetensors", {"modelspec.title": "ink", "ss_network_dim": "99"}

    def metadata():
        with safe_open(path, "pt") as file:
            return file.metadata()

    write_lora(path, random_changes(), "kohya", given)
    assert metadata() == {
        "format": "pt", "modelspec.title": "ink", "ss_network_module": "networks.lora_flux",
        "ss_network_dim": "3", "ss_network_alpha": "2",
    }  # fmt: skip
    write_lora(path, random_changes(), "diffusers", metadata())
    assert metadata().keys() == {"format", "modelspec.title", "lora_adapter_metadata"}
    settings = json.loads(metadata()["lora_adapter_metadata"])
    assert settings["transformer.r"] == settings["transformer.lora_alpha"] == 3
    write_lora(path, read_lora(path).changes, "bfl", metadata())
    assert metadata() == {"format": "pt", "modelspec.title": "ink"}


def test_a_weight_behind_the_file_scales_its_change(tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, random_changes(), "kohya")
    for spec, factor in ((str(path), 1), (f"{path}:0.5", 0.5), (f"{path}:-1", -1)):
        (lora,) = read_specs([spec])
        assert lora.changes[0].scale == pytest.approx(factor * 2 / 3)
    for weight in ("much", "nan", "1e400"):
        with pytest.raises(UserError, match=f"--lora {path}:{weight}: {weight} is no number"):
            read_specs([f"{path}:{weight}"])


@pytest.mark.parametrize("form", OF_ALL)
def test_no_block_count_and_no_width_is_known_by_heart(tmp_path, form):
    """FLUX.1's own depth and width, and widths that nobody has."""
    for params in (tiny_params(depth=19, depth_single_blocks=38), PARAMS):
        write_lora(tmp_path / "a.safetensors", random_changes(params, rank=1), form)
        assert_equal(
            read_lora(tmp_path / "a.safetensors").changes, random_changes(params, rank=1), params
        )


def test_flux1s_own_lora_is_named_as_kohya_names_it():
    """All 304 layers of its blocks, whose shapes come from the network alone."""
    from fluxsmith.interop.lora_files import spelled

    with torch.device("meta"):
        network = Flux(PRESETS["flux1-dev"])
    layers = chosen(network, Settings(rank=1, targets=["attention", "mlp", "modulation"]))
    changes = [
        LowRank(
            name, torch.zeros(1, network.get_submodule(name).in_features), torch.zeros(len(rows), 1)
        )
        for name, rows in layers
    ]
    names = {name.split(".")[0] for name in spelled(changes, FORMATS["kohya"])}
    assert len(names) == 19 * 10 + 38 * 3
    assert {"lora_unet_double_blocks_18_txt_mod_lin", "lora_unet_single_blocks_37_linear2"} <= names
