"""CLIP and T5 in miniature: the real classes with random weights, and tokenizers made here, in the
folders that a download would give."""

import io
import json
from pathlib import Path

import torch

from fluxsmith.data.captions import WORDS

CLIP_WIDTH, T5_WIDTH = 32, 48

# What the tokenizers know as whole words; anything else falls into letters or bytes.
KNOWN = (*WORDS, "a", "photo", "of", "the", "red", "blue", "on")


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIPTextModel of 2 layers and its byte-level BPE tokenizer, in one folder."""
    save_clip_tokenizer(folder)
    save_clip_model(folder, seed)
    return folder


def save_t5(folder: Path, seed: int = 0) -> Path:
    """A T5EncoderModel of 2 layers as in T5 1.1 and its sentencepiece tokenizer, in one folder.

    Half of its activations are dropped while it trains, which nobody could overlook.
    """
    save_t5_tokenizer(folder)
    save_t5_model(folder, seed)
    return folder


def save_flux_text(folder: Path, seed: int = 0) -> Path:
    """Both encoders in the four folders of FLUX.1's repositories."""
    save_clip_tokenizer(folder / "tokenizer")
    save_clip_model(folder / "text_encoder", seed)
    save_t5_tokenizer(folder / "tokenizer_2")
    save_t5_model(folder / "text_encoder_2", seed)
    return folder


def save_clip_model(folder: Path, seed: int = 0) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    start, end = (clip_vocabulary()[0][token] for token in ("<|startoftext|>", "<|endoftext|>"))
    config = CLIPTextConfig(
        vocab_size=end + 1,
        hidden_size=CLIP_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=CLIP_WIDTH,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    _save_random(CLIPTextModel(config), folder, seed)


def save_t5_model(folder: Path, seed: int = 0) -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=512,
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.5,
    )
    _save_random(T5EncoderModel(config), folder, seed + 1)


def save_clip_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt and what names their class, as in CLIP's own repositories."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    tokens = {"bos_token": "<|startoftext|>"}
    tokens |= dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(about | tokens), encoding="utf-8")


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, alone and at a word's end, the known words letter by letter; and the merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = []
    for word in KNOWN:
        letters = [*word[:-1], word[-1] + "</w>"]
        grown = letters[0]
        for letter in letters[1:]:
            merges.append((grown, letter))
            grown += letter
            tokens.append(grown)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return vocabulary, list(dict.fromkeys(merges))


def save_t5_tokenizer(folder: Path) -> None:
    """spiece.model and what names its class, as in T5's own repositories."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    sentences = [f"{a} {b} {digit}" for a in KNOWN for b in KNOWN for digit in range(10)]
    sentences += ["abcdefghijklmnopqrstuvwxyz", "A photo of a dog, it's here: yes!"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type="unigram",
        vocab_size=96,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(written.getvalue())
    about = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def _save_random(model: torch.nn.Module, folder: Path, seed: int) -> None:
    """Weights large enough that every token of a prompt shows in its embedding."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
