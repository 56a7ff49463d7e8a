"""What frozen text encoders and their padding cost a training step, at the size of the lesson.

    python benchmarks/text_encoders.py --seconds 180

Trains the lesson's network on MNIST with encoders of the size of CLIP ViT-L/14 and T5-v1.1-base,
whose weights are random (time does not depend on them) and whose tokenizers give each caption as
many tokens as the real ones: 2 of T5, 3 of CLIP. The variants take turns, in one process, and each
figure is a median over the rounds:

- `full`, each step: what the lesson does, both encoders on all captions of every batch, padded to
  128 tokens that the network attends to.
- `full`, cached; `trim`, each step; `trim`, cached.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fluxsmith.config import read_config
from fluxsmith.data.captions import WORDS
from fluxsmith.text.encoder import TextEmbedding
from fluxsmith.text.frozen import FrozenText
from fluxsmith.text.padding import assemble
from fluxsmith.training.caption_encoding import prepare_text
from fluxsmith.training.run import build_trainer
from fluxsmith.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs/image/mnist/flux-clip-t5.yaml"
KNOWN = [*map(str, range(10)), *WORDS]


class EachStep:
    """The encoders run on every caption of every batch."""

    def __init__(self, text: FrozenText) -> None:
        self.text = text

    @torch.no_grad()
    def read(self, prompts: Sequence[str], room: int = 0) -> TextEmbedding:
        encoded = self.text.encode(prompts)
        return assemble(encoded, self.text.padding, self.text.max_tokens)

    def embed(self, read: TextEmbedding) -> TextEmbedding:
        return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180, help="time to measure for")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip, t5 = save_clip(Path(folder) / "clip"), save_t5(Path(folder) / "t5")
        trainers = {}
        for padding in ("full", "trim"):
            settings = [f"text.clip={clip}", f"text.t5={t5}", "text.cache=memory", "device=cpu"]
            settings += [f"text.padding={padding}", f"train.batch_size={options.batch_size}"]
            trainers[padding] = build_trainer(read_config(CONFIG, settings), torch.device("cpu"))
            for line in prepared(trainers[padding]):
                print(line)
        measure(trainers, options.seconds)


def prepared(trainer: Trainer) -> list[str]:
    lines = prepare_text(trainer.pipeline, trainer.loader.captions())
    return [line for line in lines if "padding" in line]


def measure(trainers: dict[str, Trainer], seconds: float) -> None:
    """Takes turns until the time is up, and prints the medians."""
    texts = {padding: trainer.pipeline.text for padding, trainer in trainers.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for padding, trainer in trainers.items():  # loads the encoders, and warms up
        texts[padding].encode(["3"])
        trainer.train_step()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for padding, trainer in trainers.items():
            for cache in ("each step", "cached"):
                text = texts[padding]
                trainer.pipeline.text = EachStep(text) if cache == "each step" else text
                start = time.perf_counter()
                trainer.train_step()
                times.setdefault((padding, cache), []).append(time.perf_counter() - start)
    least = statistics.median(times["trim", "cached"])
    print(f"{'padding':8} {'encoders':10} {'s a step':>9} {'ratio':>6}   rounds and their range")
    for (padding, cache), taken in times.items():
        median = statistics.median(taken)
        print(
            f"{padding:8} {cache:10} {median:9.2f} {median / least:6.1f}   "
            f"{len(taken)}: {min(taken):.2f} to {max(taken):.2f}"
        )


def save_clip(folder: Path) -> Path:
    """CLIP ViT-L/14's text half."""
    from transformers import CLIPTextConfig, CLIPTextModel

    save_tokenizer(folder, "<|startoftext|> $A <|endoftext|>", pad="<|endoftext|>")
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, eos_token_id=1, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def save_t5(folder: Path) -> Path:
    """The encoder of T5-v1.1-base."""
    from transformers import T5Config, T5EncoderModel

    save_tokenizer(folder, "$A </s>", pad="<pad>")
    config = T5Config(
        d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, template: str, pad: str) -> None:
    """A token a word, and those around it that the template has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [token for token in template.split() if token != "$A"]
    tokens = dict.fromkeys([*special, pad, "<unk>", *KNOWN])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in special]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token="<unk>")
    fast.save_pretrained(folder)


if __name__ == "__main__":
    main()
