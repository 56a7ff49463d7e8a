"""A LoRA run: what it trains, keeps, resumes, draws with, and how it is told from its base."""

import shutil

import numpy as np
import pytest
import torch
from helpers import randomise, same
from PIL import Image
from test_exporting import save_checkpoint

from fluxsmith import Pipeline
from fluxsmith.adapters.layers import lora_layers
from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.lora_files import read_lora
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_files import read_metadata
from fluxsmith.training.run import build_trainer, train


@pytest.fixture
def base(toy, tmp_path):
    """A trained model, as far as one can tell."""
    return save_checkpoint(tmp_path / "base.pt", randomise(Pipeline.build(toy())).eval())


@pytest.fixture
def lora(toy, base):
    """lora("train.steps=3", ...) is the config of a LoRA run beside it."""
    own = (f"train.init_from={base}", "train.adapter.kind=lora", "train.adapter.rank=4")
    return lambda *more: toy(*own, *more)


def last(tmp_path):
    return checkpoints.newest(tmp_path / "run")


def drawn(pipeline):
    return pipeline.generate(["three", "7"], steps=2, guidance=2, seed=1)


@pytest.mark.parametrize("base_dtype", ["stored", "bfloat16", "float8"])
def test_only_the_adapter_is_trained_and_kept(lora, base, tmp_path, base_dtype):
    trainer = build_trainer(lora(f"train.adapter.base_dtype={base_dtype}"), torch.device("cpu"))
    before = {n: p.clone() for n, p in trainer.pipeline.named_parameters()}
    for _ in range(3):
        trainer.train_step()
    moved = {n for n, p in trainer.pipeline.named_parameters() if not torch.equal(p, before[n])}
    adapter = {n for n in before if n.endswith(("lora_A", "lora_B"))}
    assert moved == adapter
    assert adapter == {n for n, p in trainer.pipeline.named_parameters() if p.requires_grad}
    state = trainer.state_dict()
    assert state["model"].keys() == state["ema"].keys() == adapter
    stored = {"stored": 4, "bfloat16": 2, "float8": 1}[base_dtype]
    assert (
        trainer.pipeline.network.get_submodule("double_blocks.0.img_mlp.0").weight.itemsize
        == stored
    )
    assert state["metadata"]["base"]["path"] == str(base)


@pytest.mark.parametrize("more", [(), ("train.adapter.base_dtype=float8",)])
def test_a_resumed_run_is_the_run(lora, tmp_path, more):
    """To the bit, with dropout, in pieces and through its average."""
    plan = ("train.adapter.dropout=0.3", "train.accumulate=2", *more)
    assert train(lora(*plan, "train.checkpoint_every=3")) == 0
    whole = checkpoints.load(last(tmp_path))
    last(tmp_path).unlink()
    assert last(tmp_path).name == "diffusion-3.pt"
    assert train(lora(*plan), resume="auto") == 0
    again = checkpoints.load(last(tmp_path))
    assert again["step"] == 6
    for key in ("model", "ema", "optimizer", "window"):
        assert same(again[key], whole[key])


@pytest.mark.parametrize("kept", ["blocks", "selective"])
@pytest.mark.parametrize("more", [(), ("train.adapter.base_dtype=float8",)])
def test_blocks_that_are_computed_again_learn_the_same(lora, kept, more):
    """With dropout, which is drawn again as it was: the same bits."""
    plan = ("train.adapter.dropout=0.3", "train.adapter.targets=[all]", *more)
    states = []
    for kind in ("none", kept):
        config = lora(f"parallel.checkpoint_activations={kind}", *plan)
        trainer = build_trainer(config, torch.device("cpu"))
        for _ in range(3):
            trainer.train_step()
        states.append(trainer.state_dict()["model"])
    assert same(*states)
    assert all(up.any() for name, up in states[0].items() if name.endswith("lora_B"))


def test_a_base_that_is_stored_in_fp8(base, lora, tmp_path):
    """It computes in bfloat16, is resumed to the bit, drawn with as it is, and merged into what can
    hold the change."""
    state = checkpoints.load(base)
    half = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 and "network" in n else t
            for n, t in state["ema"].items()}  # fmt: skip
    checkpoints.save(base, state | {"model": half, "ema": half})
    trainer = build_trainer(lora(), torch.device("cpu"))
    assert trainer.pipeline.network.img_in.weight.dtype == torch.bfloat16
    assert train(lora("train.checkpoint_every=3")) == 0
    whole = checkpoints.load(last(tmp_path))
    last(tmp_path).unlink()
    assert train(lora(), resume="auto") == 0
    assert same(checkpoints.load(last(tmp_path))["ema"], whole["ema"])
    expected = drawn(Pipeline.from_checkpoint(last(tmp_path), "cpu"))
    with pytest.raises(UserError, match="give --dtype bfloat16"):
        export(last(tmp_path), tmp_path / "no.safetensors", "bfl")
    for dtype in ("bfloat16", None):
        out = tmp_path / f"small-{dtype}"
        export(last(tmp_path), out, "fluxsmith", dtype=dtype, samples=False)
        small = drawn(Pipeline.from_checkpoint(out / "diffusion-6.pt", "cpu"))
        assert (small - expected).abs().mean() < 0.02


def test_dropout_draws_anew_in_each_step(lora):
    losses = []
    for dropout in (0, 0.9):
        trainer = build_trainer(lora(f"train.adapter.dropout={dropout}"), torch.device("cpu"))
        for _, layer in lora_layers(trainer.pipeline.network):
            layer.lora_B.data.fill_(0.1)
        trainer.train_step()
        losses.append(trainer.means.means()["loss"])
    assert losses[0] != losses[1]


def test_a_runs_checkpoint_draws_and_exports_as_the_whole_model(lora, base, tmp_path, capsys):
    """Sampled as it is, merged, exported and imported: the same pictures, and not the base's."""
    assert train(lora("train.steps=20")) == 0
    path = last(tmp_path)
    assert path.stat().st_size < base.stat().st_size / 2
    pipeline = Pipeline.from_checkpoint(path, "cpu")
    assert not [*lora_layers(pipeline.network)]  # in float32 they are in the weights
    expected = drawn(pipeline)
    assert (expected - drawn(Pipeline.from_checkpoint(base, "cpu"))).abs().mean() > 0.01
    export(path, tmp_path / "whole.safetensors", "bfl")
    import_model(tmp_path / "whole.safetensors", tmp_path / "whole.pt")
    assert torch.equal(drawn(Pipeline.from_checkpoint(tmp_path / "whole.pt", "cpu")), expected)
    for command in (
        f"lora merge {path} {tmp_path / 'merged.safetensors'}",
        f"import {tmp_path / 'merged.safetensors'} {tmp_path / 'merged.pt'}",
        f"lora convert {path} {tmp_path / 'lora.safetensors'} --format kohya",
        f"lora merge {base} {tmp_path / 'again.safetensors'}"
        f" --lora {tmp_path / 'lora.safetensors'}",
        f"lora show {tmp_path / 'run'}",
        f"sample {tmp_path / 'run'} --prompt 3 --steps 2 --out {tmp_path / 'a'}",
        f"sample {base} --lora {path} --prompt 3 --steps 2 --out {tmp_path / 'b'}",
        f"sample {base} --prompt 3 --steps 2 --out {tmp_path / 'c'}"
        f" --lora {tmp_path / 'lora.safetensors'}:0.25 --lora {tmp_path / 'lora.safetensors'}:0.75",
    ):
        with pytest.raises(SystemExit) as ended:
            main(command.split())
        assert not ended.value.code, capsys.readouterr().err
    assert torch.equal(drawn(Pipeline.from_checkpoint(tmp_path / "merged.pt", "cpu")), expected)
    merged, again = (
        read_weights(tmp_path / f"{name}.safetensors").network for name in ("merged", "again")
    )
    assert all(torch.allclose(merged[name], again[name], atol=1e-6) for name in merged)
    files = [next((tmp_path / name).glob("*/0000.png")) for name in "abc"]
    a, b, c = (np.asarray(Image.open(file).convert("L"), dtype=int) for file in files)
    assert (a == b).all() and abs(a - c).max() <= 1  # whose halves add up to it in float32


def test_a_runs_file_says_what_it_is(lora, base, tmp_path):
    """Where its base comes from and on what terms goes through training; a trigger is told."""
    state = checkpoints.load(base)
    source = {"name": "foxes", "license": "other", "license_name": "fox-1", "base_model": "fox/es"}
    checkpoints.save(base, state | {"metadata": state["metadata"] | {"source": source}})
    assert train(lora("train.steps=1", "name=ink")) == 0
    for form, ranks in (("kohya", "ss_network_dim"), ("diffusers", "lora_adapter_metadata")):
        out = tmp_path / f"{form}.safetensors"
        typed = f"lora convert {tmp_path / 'run'} {out} --format {form} --trigger ink"
        with pytest.raises(SystemExit) as ended:
            main(typed.split())
        assert not ended.value.code
        metadata = read_metadata(out)
        assert metadata.items() >= {
            "modelspec.architecture": "flux/lora", "modelspec.title": "ink",
            "modelspec.license": "fox-1", "modelspec.trigger_phrase": "ink",
            "ss_sd_model_name": "base.pt", "base_model": "fox/es",
        }.items()  # fmt: skip
        assert ranks in metadata and str(tmp_path) not in str(metadata)
    state = checkpoints.load(last(tmp_path))
    told = state["metadata"] | {"captions": ["", "a fox in ink"]}
    checkpoints.save(tmp_path / "one.pt", state | {"metadata": told})
    for path, phrase in ((tmp_path / "run", None), (tmp_path / "one.pt", "a fox in ink")):
        assert read_lora(path).metadata.get("modelspec.trigger_phrase") == phrase


def test_weights_in_bfloat16_keep_their_changes_beside_them(toy, lora, tmp_path):
    """And the drawing is that of training, where merging would round."""
    pipeline = randomise(Pipeline.build(toy())).eval()
    pipeline.network.to(torch.bfloat16)
    base = save_checkpoint(tmp_path / "half.pt", pipeline)
    assert train(lora(f"train.init_from={base}", "train.steps=4")) == 0
    loaded = Pipeline.from_checkpoint(last(tmp_path), "cpu")
    assert [*lora_layers(loaded.network)]
    export(last(tmp_path), tmp_path / "whole.safetensors", "bfl", dtype="float32")
    whole = read_weights(tmp_path / "whole.safetensors").network
    name, layer = next(lora_layers(loaded.network))
    expected = layer.weight.float() + layer.lora_B.float() @ layer.lora_A.float()
    assert (whole[f"{name}.weight"] - expected).abs().max() < 1e-3
    assert whole.keys() == pipeline.network.state_dict().keys()


def test_a_missing_base_and_another_one_are_named(lora, base, tmp_path):
    assert train(lora("train.steps=2")) == 0
    path, moved = last(tmp_path), tmp_path / "elsewhere.pt"
    expected = drawn(Pipeline.from_checkpoint(path, "cpu"))
    shutil.move(base, moved)
    with pytest.raises(UserError, match=r"base\.pt.*--set train.init_from"):
        Pipeline.from_checkpoint(path, "cpu")
    found = Pipeline.from_checkpoint(path, "cpu", overrides=[f"train.init_from={moved}"])
    assert torch.equal(drawn(found), expected)
    other = randomise(Pipeline.from_checkpoint(moved, "cpu"))
    save_checkpoint(base, other)
    with pytest.raises(UserError, match="was trained beside the weights"):
        Pipeline.from_checkpoint(path, "cpu")
    with pytest.raises(UserError, match="was trained beside the weights"):
        train(lora("train.steps=4"), resume="auto")


@pytest.mark.slow
def test_commands_are_told_where_a_base_is_now(lora, base, tmp_path, capsys):
    assert train(lora("train.steps=2")) == 0
    path, moved = last(tmp_path), tmp_path / "elsewhere.pt"
    shutil.move(base, moved)
    now = f"--set train.init_from={moved}"
    for command in (
        f"export {path} {tmp_path / 'whole.safetensors'} --format bfl {now}",
        f"compare {path} {moved} --num-samples 10 --steps 1 {now}",
        f"lora merge {moved} {tmp_path / 'merged.safetensors'} --lora {path}",
    ):
        with pytest.raises(SystemExit) as ended:
            main(command.split())
        assert not ended.value.code
    for command, says in (
        (f"export {path} {tmp_path / 'no.safetensors'} --format bfl", "--set train.init_from=PATH"),
        (f"lora merge {path} {tmp_path / 'no.safetensors'}", f"--lora {path}"),
        (f"compare {moved} {moved}", "is named twice"),
        (f"lora extract {moved} {path} {tmp_path / 'no.safetensors'}", f"lora convert {path}"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(command.split())
        assert ended.value.code == 2 and says in capsys.readouterr().err


def test_a_base_is_found_by_the_name_that_it_had(lora, base, tmp_path, monkeypatch):
    """Also where all was moved together, and nothing is at the path of before."""
    (tmp_path / "a").mkdir()
    shutil.move(base, tmp_path / "a" / "base.pt")
    monkeypatch.chdir(tmp_path / "a")
    assert train(lora("train.init_from=base.pt", "train.steps=2")) == 0
    path = last(tmp_path)
    expected = drawn(Pipeline.from_checkpoint(path, "cpu"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    assert torch.equal(drawn(Pipeline.from_checkpoint(path, "cpu")), expected)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.init_from=null"], "train.adapter.kind=lora: changes a trained model; name its"),
        (["train.adapter.targets=[attn]"], "train.adapter.targets=.*must be some of attention"),
        (["train.adapter.targets=[]"], "train.adapter.targets=.*must be some of attention"),
        (["train.adapter.blocks=[double]"], "double must be such as dual, single"),
        (["train.adapter.blocks=[dual.1]"], "train.adapter.blocks=dual.1: the network has 1 dual"),
        (["train.adapter.blocks=[]"], "no layer of train.adapter.blocks"),
        (["train.adapter.rank=0"], "train.adapter.rank=0: must be greater"),
        (["train.adapter.dropout=1"], "train.adapter.dropout=1: must be less than 1"),
        (["train.adapter.kind=none"], "train.adapter.rank=4: train.adapter.kind=none has no rank"),
        (["train.adapter.kind=dora"], "train.adapter.kind='dora': must be one of none, lora"),
        (["model.hidden_size=128", "model.num_heads=2"], "hidden_size"),
    ],
)
def test_bad_settings_are_named(lora, settings, says):
    with pytest.raises(UserError, match=says):
        train(lora(*settings))


def test_a_lora_run_resumes_with_its_own_settings_only(lora, tmp_path):
    assert train(lora("train.steps=2")) == 0
    with pytest.raises(UserError, match=r"train.adapter.rank=8: .* was trained with .*=4"):
        train(lora("train.adapter.rank=8"), resume="auto")


def test_a_lora_run_can_be_forked(lora, tmp_path):
    assert train(lora("train.steps=2")) == 0
    new = f"output_dir={tmp_path / 'new'}"
    again = lora("train.steps=1", "seed=1", "train.learning_rate=1e-9", new)
    assert train(again, fork=tmp_path / "run") == 0
    first, forked = (checkpoints.load(checkpoints.newest(tmp_path / f)) for f in ("run", "new"))
    for name, averaged in first["ema"].items():
        torch.testing.assert_close(forked["model"][name], averaged, atol=1e-7, rtol=1e-6)


def test_it_learns_what_the_base_does_not_know(lora, tmp_path):
    """Twenty times the base's loss is not needed to see it fall."""
    trainer = build_trainer(lora("train.steps=60", "train.warmup_steps=1"), torch.device("cpu"))
    losses = []
    for _ in range(6):
        for _ in range(10):
            trainer.train_step()
        losses.append(trainer.means.means()["loss"])
    assert losses[-1] < 0.7 * losses[0]
