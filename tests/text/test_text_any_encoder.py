"""Any encoder of text: its last hidden states, and their mean over what is not padding."""

import json
from pathlib import Path

import pytest
import torch
from tiny_encoders import CLIP_WIDTH, KNOWN, save_clip_tokenizer

from fluxsmith.errors import UserError
from fluxsmith.storage.stores import open_store
from fluxsmith.text.any_encoder import Settings, build

PROMPTS = ["3", "a photo of the red seven", "", "three"]


def make(model: object, **settings: object):
    given = Settings(str(model), **({"cache": "memory", "max_tokens": 12} | settings))
    return build(given, torch.device("cpu"), open_store("text", given.cache))


def save_bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *KNOWN, *"0123456789"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """A decoder, whose tokenizer has no padding and puts nothing around a prompt."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import GPT2Config, GPT2Model

    folder.mkdir()
    alphabet = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({a: i for i, a in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    about = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64}
    about |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = GPT2Config(vocab_size=len(alphabet), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2Model(config).save_pretrained(folder)
    return folder


def test_bert_is_bert_and_its_masked_mean(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    folder = save_bert(tmp_path / "bert")
    ours = make(folder, padding="mask")(PROMPTS)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    batch = tokenizer(PROMPTS, padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"]
    assert torch.equal(ours.mask, mask.bool())
    torch.testing.assert_close(ours.tokens[ours.mask], states[ours.mask], atol=1e-5, rtol=1e-5)
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(ours.pooled, mean, atol=1e-5, rtol=1e-5)


def test_t5_is_read_by_its_encoder_alone(folders, clip_t5):
    ours, pair = make(folders["t5"])(PROMPTS), clip_t5()(PROMPTS)
    assert torch.equal(ours.tokens, pair.tokens)
    assert ours.pooled.shape == ours.tokens.shape[::2]


def test_clip_is_read_by_its_text_half(folders):
    ours = make(folders["clip"])(["seven"])
    assert ours.tokens.shape == (1, 3, CLIP_WIDTH)  # start, seven, end
    torch.testing.assert_close(ours.pooled, ours.tokens.mean(1))


@pytest.mark.parametrize("padding", ["trim", "mask", "full"])
def test_a_decoder_without_padding_encodes_too(tmp_path, padding):
    text = make(save_gpt2(tmp_path / "gpt2"), padding=padding)
    together = text(["three", "", "3"])
    assert together.tokens.isfinite().all()
    assert text.token_counts(["three", "", "3"]) == [5, 1, 1]
    alone = make(tmp_path / "gpt2", padding=padding)(["3"])
    torch.testing.assert_close(together.pooled[2], alone.pooled[0], atol=1e-5, rtol=0)
    assert (together.pooled[0] - together.pooled[2]).abs().max() > 1e-3


def test_what_reads_no_text_is_named(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        image_size=8, patch_size=8,
    )  # fmt: skip
    ViTModel(config).save_pretrained(tmp_path / "vit")
    save_clip_tokenizer(tmp_path / "vit")
    with pytest.raises(UserError, match=r"text\.pretrained=.*vit.* encoder of text"):
        make(tmp_path / "vit")(["3"])
