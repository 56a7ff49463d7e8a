"""CLIP and T5 from a single file, as ComfyUI keeps them: clip_l.safetensors and
t5xxl_fp16.safetensors, or a file with other models beside. What a config.json would say is read off
the weights."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.optional import optional
from fluxsmith.text.pretrained import Pretrained, in_hub_cache, quiet

# Reads a model of a kind, "clip" or "t5", out of a file: its tensors, and what stands beside them.
Reader = Callable[[str, str], tuple[Mapping[str, Tensor], Mapping[str, Any]]]

TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip

# Older versions of the library know only names that begin so, newer ones also those without.
CLIP_PREFIX = "text_model."
CLIP_HEAD = 64  # channels of a head in every CLIP of text; no tensor's shape tells it


def clip_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of a CLIPTextConfig. A KeyError names a tensor that is missing."""
    vocabulary, width = weights[f"{CLIP_PREFIX}embeddings.token_embedding.weight"].shape
    start, end = vocabulary - 2, vocabulary - 1  # the last two tokens, as in OpenAI's vocabulary
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": weights[f"{CLIP_PREFIX}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(weights, f"{CLIP_PREFIX}encoder.layers."),
        "num_attention_heads": max(1, width // CLIP_HEAD),
        "max_position_embeddings": weights[
            f"{CLIP_PREFIX}embeddings.position_embedding.weight"
        ].shape[0],
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def t5_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of a T5Config. A KeyError names a tensor that is missing."""
    block = "encoder.block.0.layer"
    vocabulary, width = weights["shared.weight"].shape
    buckets, heads = weights[f"{block}.0.SelfAttention.relative_attention_bias.weight"].shape
    gated = f"{block}.1.DenseReluDense.wi_0.weight" in weights
    inner = weights[f"{block}.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": weights[f"{block}.0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": inner.shape[0],
        "num_layers": _count(weights, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }


def _count(weights: Mapping[str, Tensor], stack: str) -> int:
    return len({n.removeprefix(stack).partition(".")[0] for n in weights if n.startswith(stack)})


class SingleFile(Pretrained):
    """An encoder whose weights are in one file. Its tokenizer lies in the file's folder or in the
    one that FLUX.1's repositories have beside, else it is that of `tokenizer_id`."""

    read: Reader  # set before anything is read
    prefix = ""  # of its names in the library
    tokenizer_id = ""
    shapes: Callable[[Mapping[str, Tensor]], dict[str, Any]]  # the config's settings

    def place(self) -> Path | None:
        return Path(self.name).expanduser()

    def model_place(self) -> Path:
        return Path(self.name).expanduser()

    def files(self, home: Path) -> list[Path]:
        """Its tokenizer's and the config beside too."""
        beside = [self.tokenizer_folder() / name for name in TOKENIZER_FILES]
        return [home, *(p for p in (*beside, home.with_name("config.json")) if p.is_file())]

    def tokenizer_folder(self) -> Path:
        beside = self.model_place().parent
        for folder in (beside / self._subfolders[-1][1], beside):
            if any((folder / name).is_file() for name in TOKENIZER_FILES[:4]):
                return folder
        return in_hub_cache(self.tokenizer_id) or Path(self.tokenizer_id)

    def weights(self) -> dict[str, Tensor]:
        """The tensors under the names that every version of the library knows."""
        found, _ = self.read(self.name, self.key.removeprefix("text."))
        return {self.prefix + name: tensor for name, tensor in found.items()}

    def read_config(self) -> Any:
        transformers = optional("transformers", "hf", "a pretrained text encoder")
        beside = self.model_place().with_name("config.json")
        known = None
        with contextlib.suppress(OSError, ValueError):  # perhaps of something else that lies there
            known = json.loads(beside.read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("model_type") in self.families:
            return transformers.AutoConfig.from_pretrained(
                str(beside.parent), trust_remote_code=False
            )
        try:
            settings = type(self).shapes(self.weights())
        except KeyError as error:
            raise UserError(
                f"{self.key}={self.name}: holds no such encoder, it lacks {error}; give "
                f"its file, or a folder or hub id"
            ) from None
        return self.model_class(transformers).config_class(**settings)

    def read_tokenizer(self, kind: Any) -> Any:
        home = self.tokenizer_folder()
        for local in (True, False):
            try:
                return kind.from_pretrained(str(home), local_files_only=local)
            except Exception as error:  # the library raises many kinds
                problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{self.key}={self.name}: no tokenizer lies beside it, and {home} can't be fetched "
            f"({problem}); put the tokenizer's files beside it, such as {TOKENIZER_FILES[0]} and "
            f"{TOKENIZER_FILES[1]} for CLIP and {TOKENIZER_FILES[2]} for T5"
        )

    def read_model(self, kind: Any, **options: Any) -> Any:
        weights = self.weights()
        with quiet(optional("transformers", "hf", "a pretrained text encoder")):
            return kind.from_pretrained(None, config=self.config, state_dict=weights, **options)
