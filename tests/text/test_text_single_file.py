"""CLIP and T5 from single files give what their folders give."""

import shutil

import pytest
import torch
from helpers import same
from tiny_encoders import save_clip_tokenizer, save_t5

from fluxsmith.errors import UserError
from fluxsmith.pipeline import build_text_encoder
from fluxsmith.storage.tensor_files import read_tensors, write_tensors

transformers = pytest.importorskip("transformers")

PROMPTS = ["a photo of the red seven", "three"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """CLIP's and T5's, as save_pretrained writes them; CLIP's heads are 64 wide, as all of them."""
    clip, t5 = (tmp_path_factory.mktemp(name) for name in ("clip", "t5"))
    save_clip_tokenizer(clip)
    config = transformers.CLIPTextConfig(
        vocab_size=556, hidden_size=128, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=128, bos_token_id=554, eos_token_id=555,
        pad_token_id=555,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(clip)
    return clip, save_t5(t5)


@pytest.fixture
def files(folders, tmp_path):
    """clip_l.safetensors and t5xxl.safetensors with their tokenizers below, and nothing else."""
    names = "clip_l.safetensors", "t5xxl.safetensors"
    for folder, name, tokenizer in zip(folders, names, ("tokenizer", "tokenizer_2"), strict=True):
        tensors = read_tensors(folder)
        prefix = "text_model." if name.startswith("clip") else ""
        write_tensors(tmp_path / name, {f"{prefix}{n}": t for n, t in tensors.items()}, {})
        no_model = shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")
        shutil.copytree(folder, tmp_path / tokenizer, ignore=no_model)
    return [tmp_path / name for name in names]


@pytest.fixture
def encoded(toy):
    """The embedding of the prompts by CLIP and T5 at these places, and the encoders' digests."""

    def encoded(clip, t5):
        text = "text={encoder: clip_t5, cache: memory, padding: full, t5_tokens: 24}"
        config = toy(text, f"text.clip={clip}", f"text.t5={t5}")
        encoder = build_text_encoder(config, "cpu")
        found = encoder(PROMPTS)
        widths = encoder.token_width, encoder.pooled_width
        return found.tokens, found.pooled, widths, dict(encoder.identity.digests())

    return encoded


def test_files_give_what_folders_give(folders, files, encoded):
    assert same(encoded(*files), encoded(*folders))


def test_a_file_that_holds_both_gives_both(folders, files, encoded):
    clip, t5 = map(read_tensors, files)
    prefixes = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."
    both = {f"{prefixes[0]}{n}": t for n, t in clip.items()}
    both |= {f"{prefixes[1]}{n}": t for n, t in t5.items()}
    both["text_encoders.clip_l.logit_scale"] = torch.ones(1)
    path = files[0].with_name("all.safetensors")
    write_tensors(path, both, {})
    assert same(encoded(path, path), encoded(*folders))


def test_a_config_beside_says_what_no_shape_does(folders, files, encoded):
    """Such as the number of CLIP's heads."""
    config = transformers.CLIPTextConfig.from_pretrained(folders[0])
    config.num_attention_heads = 4
    config.save_pretrained(files[0].parent)
    other = encoded(*files)
    expected = encoded(*folders)
    assert torch.equal(other[0], expected[0])
    assert not torch.allclose(other[1], expected[1])


@pytest.mark.parametrize("text", ["{}", '{"_class_name": "FluxTransformer2DModel"}', "not json"])
def test_a_config_of_something_else_beside_says_nothing(folders, files, encoded, text):
    files[0].with_name("config.json").write_text(text)
    assert same(encoded(*files), encoded(*folders))


def test_position_numbers_of_older_clip_files_are_left_out(folders, files, encoded):
    name, tensors = "text_model.embeddings.position_ids", read_tensors(files[0])
    write_tensors(files[0], dict(tensors) | {name: torch.arange(77)[None]}, {})
    assert same(encoded(*files), encoded(*folders))


def test_another_tokenizer_or_config_beside_the_file_is_another_encoder(files, toy):
    text = "text={encoder: clip_t5, cache: memory, padding: full, t5_tokens: 24}"
    config = toy(text, f"text.clip={files[0]}", f"text.t5={files[1]}")
    clip, _ = build_text_encoder(config, "cpu").parts.values()
    seen = {clip.fingerprint()}
    vocabulary = files[0].parent / "tokenizer" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text() + " ")
    seen.add(clip.fingerprint())
    files[0].with_name("config.json").write_text("{}")
    seen.add(clip.fingerprint())
    assert len(seen) == 3


def test_t5_in_scaled_fp8_is_what_it_stands_for(files, encoded):
    written = read_tensors(files[1])
    meant = dict(written)
    for name in [n for n in written if n.endswith("SelfAttention.q.weight")]:
        scale = written[name].abs().max() / 448
        written[name] = (written[name] / scale).to(torch.float8_e4m3fn)
        written[f"{name.removesuffix('weight')}scale_weight"] = scale
        meant[name] = written[name].float().mul(scale).bfloat16()
    written["scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)
    scaled, plain = (files[1].with_name(f"{name}.safetensors") for name in ("scaled", "plain"))
    write_tensors(scaled, written, {})
    write_tensors(plain, meant, {})
    assert same(encoded(files[0], scaled), encoded(files[0], plain))


def test_a_file_of_something_else_and_a_missing_tokenizer_are_named(files, encoded, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"text\.clip=.*t5xxl.*: holds no such encoder, it lacks"):
        encoded(files[1], files[1])
    shutil.rmtree(files[0].parent / "tokenizer")
    with pytest.raises(UserError, match=r"no tokenizer lies beside it.*put the tokenizer's files"):
        encoded(*files)
