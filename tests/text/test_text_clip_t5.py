"""FLUX.1's text encoders: what diffusers' pipeline computes, frozen, the same in any batch."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_encoders import CLIP_WIDTH, T5_WIDTH, save_flux_text

from fluxsmith.errors import UserError

PROMPTS = ["3", "a photo of the red seven", "", "three", "It's 3:05, été 🙂!", "3"]


def test_full_padding_is_what_diffusers_flux_pipeline_encodes(clip_t5, folders):
    """It attends to T5's padding, and takes CLIP's vector at the first end of text."""
    from diffusers import FluxPipeline
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    oracle = FluxPipeline(
        scheduler=None,
        vae=None,
        text_encoder=CLIPTextModel.from_pretrained(folders["clip"]),
        tokenizer=AutoTokenizer.from_pretrained(folders["clip"]),
        text_encoder_2=T5EncoderModel.from_pretrained(folders["t5"]),
        tokenizer_2=AutoTokenizer.from_pretrained(folders["t5"]),
        transformer=None,
    )
    long = "a photo of the red seven " * 20  # more than either takes
    prompts = [*PROMPTS, long]
    with torch.no_grad():
        tokens, pooled, _ = oracle.encode_prompt(prompts, None, "cpu", max_sequence_length=24)
    ours = clip_t5(padding="full", t5_tokens=24)(prompts)
    assert ours.mask is None
    torch.testing.assert_close(ours.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, atol=1e-5, rtol=1e-5)


def test_masked_padding_is_t5_with_its_attention_mask(clip_t5, folders):
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folders["t5"])
    model = T5EncoderModel.from_pretrained(folders["t5"])
    ours = clip_t5(padding="mask", t5_tokens=20)(PROMPTS)
    batch = tokenizer(PROMPTS, padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    assert torch.equal(ours.mask, batch["attention_mask"].bool())
    torch.testing.assert_close(ours.tokens[ours.mask], expected[ours.mask], atol=1e-5, rtol=1e-5)


def test_trim_keeps_what_the_longest_prompt_needs(clip_t5):
    trimmed, masked = clip_t5(padding="trim"), clip_t5(padding="mask")
    assert (trimmed.token_width, trimmed.pooled_width) == (T5_WIDTH, CLIP_WIDTH)
    assert not trimmed.is_loaded  # the widths are known without the weights
    short = trimmed(["3", ""])
    assert short.tokens.shape == (2, 3, T5_WIDTH)  # a space, a 3 and the end
    assert short.pooled.shape == (2, CLIP_WIDTH)
    assert short.mask.tolist() == [[True] * 3, [True, False, False]]
    assert trimmed(["3", "4"]).mask is None
    whole = masked(["3", ""])
    assert whole.tokens.shape == (2, 12, T5_WIDTH)
    assert torch.equal(whole.tokens[:, :3], short.tokens)
    assert torch.equal(whole.mask[:, :3], short.mask)
    assert not whole.mask[:, 3:].any()


@pytest.mark.parametrize("padding", ["trim", "mask", "full"])
def test_a_prompt_is_the_same_in_any_batch(clip_t5, padding):
    together, alone = clip_t5(padding=padding)(PROMPTS), clip_t5(padding=padding)
    for i, prompt in enumerate(PROMPTS):
        one = alone([prompt])
        n = one.tokens.shape[1]
        torch.testing.assert_close(together.tokens[i, :n], one.tokens[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.pooled[i], one.pooled[0], atol=1e-4, rtol=0)


def test_what_is_too_long_is_cut_keeps_its_end_and_is_said(clip_t5, caplog):
    text = clip_t5(t5_tokens=6)
    long = "three seven three seven"
    found = text([long, "3"])
    assert found.tokens.shape[1] == 6
    uncut = text.token_counts([long])[0]
    assert text.counts(long) == (6, uncut)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("fluxsmith")]
    assert f"'three seven three seven'... makes {uncut} tokens, of which 6 are used" in line
    text([long])
    assert len(caplog.records) == 1  # once is enough


def test_flux_repositories_are_read_as_they_are(clip_t5, tmp_path):
    """CLIP and T5 in the folders of FLUX.1's own repository, beside a transformer."""
    folder = str(save_flux_text(tmp_path))
    nested, plain = clip_t5(clip=folder, t5=folder), clip_t5()
    assert nested.identity.digests() == plain.identity.digests()
    assert torch.equal(nested(PROMPTS).tokens, plain(PROMPTS).tokens)
    assert torch.equal(nested(PROMPTS).pooled, plain(PROMPTS).pooled)


def test_a_whole_clip_gives_its_text_half(clip_t5, folders, tmp_path):
    """The repositories of CLIP hold the model of pictures too."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel

    text = CLIPTextModel.from_pretrained(folders["clip"])
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "image_size": 8, "patch_size": 8}
    config = CLIPConfig(
        text_config=text.config.to_dict(), vision_config=vision, projection_dim=CLIP_WIDTH
    )
    whole = CLIPModel(config)
    own = whole.text_model.state_dict()
    whole.text_model.load_state_dict({key: _same_name(key, text.state_dict()) for key in own})
    whole.save_pretrained(tmp_path)
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(Path(folders["clip"]) / file, tmp_path)
    halved, plain = clip_t5(clip=str(tmp_path)), clip_t5()
    assert torch.equal(halved(PROMPTS).pooled, plain(PROMPTS).pooled)
    assert halved.identity.digests() == plain.identity.digests()


def _same_name(key, weights):
    return next(tensor for name, tensor in weights.items() if name.endswith(key))


def test_neither_autocast_nor_inference_mode_around_it_reach_it(clip_t5):
    text, stream = clip_t5(), torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = text(PROMPTS)
    assert torch.equal(torch.get_rng_state(), stream)  # loading draws nothing from it
    outside = clip_t5()(PROMPTS)
    assert torch.equal(inside.tokens, outside.tokens)
    weight = torch.ones(T5_WIDTH, 1, requires_grad=True)
    (text(PROMPTS).tokens @ weight).sum().backward()  # an inference tensor would refuse
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_close(clip_t5, dtype):
    fine, coarse = clip_t5()(PROMPTS), clip_t5(t5_dtype=dtype, clip_dtype=dtype)(PROMPTS)
    assert coarse.tokens.dtype == coarse.pooled.dtype == getattr(torch, dtype)
    for a, b in ((fine.tokens, coarse.tokens), (fine.pooled, coarse.pooled)):
        assert 0 < (a - b.float()).norm() < 0.1 * a.norm()


def test_an_encoder_that_overflows_in_float16_is_refused(clip_t5, folders, tmp_path):
    from transformers import T5EncoderModel

    loud = shutil.copytree(folders["t5"], tmp_path / "loud")
    model = T5EncoderModel.from_pretrained(loud)
    with torch.no_grad():
        model.encoder.final_layer_norm.weight.fill_(1e6)
    model.save_pretrained(loud)
    assert clip_t5(t5=str(loud), t5_dtype="bfloat16")(["3"]).tokens.isfinite().all()
    assert "overflows at '3'; use bfloat16" in refused(clip_t5(t5=str(loud), t5_dtype="float16"))


def refused(text) -> str:
    with pytest.raises(UserError) as caught:
        text(["3"])
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_one_encoder_for_the_other_is_named(clip_t5, folders):
    line = refused(clip_t5(t5=folders["clip"]))
    assert f"text.t5={folders['clip']}: is a model of type clip_text_model, not t5" in line
    assert "type t5, not clip" in refused(clip_t5(clip=folders["t5"]))


def test_a_folder_that_lacks_something_is_named(clip_t5, folders, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"text.t5={empty}: can't be loaded from that folder" in refused(clip_t5(t5=str(empty)))
    gone = tmp_path / "nowhere"
    assert f"text.t5={gone}: there is no such folder" in refused(clip_t5(t5=str(gone)))
    for file in ("model.safetensors", "spiece.model"):
        folder = tmp_path / file
        shutil.copytree(folders["t5"], folder)
        (folder / file).unlink()
        line = refused(clip_t5(t5=str(folder)))
        assert f"text.t5={folder}" in line, file
        assert "save_pretrained" in line, file


def test_weights_that_are_missing_are_not_made_up(clip_t5, folders, tmp_path):
    """The library would fill them with random ones and only warn."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "t5"
    shutil.copytree(folders["t5"], folder)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("wo.weight"))
    del weights[gone]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    line = refused(clip_t5(t5=str(folder)))
    assert "1 of its weights are missing" in line
    assert gone in line


def test_without_network_the_fix_is_named(clip_t5, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused(clip_t5(t5="someone/a-model-that-is-not-here"))
    assert "text.t5=someone/a-model-that-is-not-here" in line
    assert "text.t5=FOLDER" in line
    assert "HF_HUB_OFFLINE=1" in line
