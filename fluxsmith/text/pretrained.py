"""A pretrained encoder from `transformers`: found by hub id or folder, loaded when it is first
needed, frozen, and identified by a digest of its weights and tokenizer.

It is not a submodule of the model: so it stays in eval mode, untrained, on its own device, and out
of checkpoints.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Dtype = Literal["float32", "bfloat16", "float16"]  # as a setting
Device = Literal["network", "auto", "cpu", "cuda", "mps"]

# The ids of these texts distinguish tokenizers: letters, numbers, signs, scripts.
PROBES = (
    "the quick brown fox jumps over the lazy dog 0123456789 zero one two three four five six seven",
    "A Photo of a RED cat, it's 3:05! (well-known) #1 @home 50% $4.99 a/b\\c <x> {y} [z] ~ ^ | & *",
    "été naïve größer señor 零一二三 семь восемь שלום مرحبا 한국어 ひらがな 🙂 \t\n e\u0301 ﬁ ½",
)
LEAST_KNOWN = 8  # a tokenizer gives the probes at least so many different tokens


class Tokenized(NamedTuple):
    """Prompts as an encoder reads them, on its device."""

    ids: Tensor  # (n, l)
    mask: Tensor  # (n, l), true at real tokens
    real: list[int]  # tokens of each prompt
    needed: list[int]  # those that it would have uncut


class Pretrained:
    """An encoder and its tokenizer. Config, tokenizer and weights are each loaded on first use.

    Subclasses say which models fit and which class loads them. Every failure to load is a UserError
    that names the config's key.
    """

    families: tuple[str, ...] = ()  # model types that fit; empty: all

    def __init__(
        self,
        settings: Any,
        part: str,
        tokens: str,
        network: torch.device,
        subfolders: tuple[str, str] | None = None,
    ) -> None:
        """`settings` name it under the keys `part`, `part`_dtype and `part`_device, and under
        `tokens` the longest prompt. `network` is the network's device; `subfolders` are those of
        model and tokenizer in FLUX.1's repositories."""
        self.key = f"text.{part}"
        self.name: str = getattr(settings, part)  # a hub id or a folder
        self.dtype: str = getattr(settings, f"{part}_dtype")
        self.max_tokens: int = getattr(settings, tokens)
        self._tokens_key = f"text.{tokens}"
        # Of model and tokenizer; those that are tried until the config is found in one.
        self._subfolders = [("", ""), *([subfolders] if subfolders else [])]
        device = getattr(settings, f"{part}_device")
        try:
            self.device = network if device == "network" else pick_device(device)
        except UserError as error:
            raise UserError(f"{self.key}_device: {error}") from None

    @property
    def folder(self) -> Path | None:
        """The local folder that the name stands for; None for a hub id."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    def place(self) -> Path | None:
        """The folder, or single file, on this machine that it is in; None where it isn't here."""
        return self.folder or in_hub_cache(self.name)

    def model_place(self) -> Path:
        """The folder, or single file, that its weights are in."""
        _ = self.config
        return (self.place() or Path()) / self._subfolders[0][0]

    def tokenizer_folder(self) -> Path:
        """The folder that its tokenizer's files are in."""
        _ = self.config
        return (self.place() or Path()) / self._subfolders[0][1]

    def read_config(self) -> Any:
        return self._load(_transformers().AutoConfig, 0)

    def read_model(self, kind: Any, **options: Any) -> Any:
        return self._load(kind, 0, **options)

    def read_tokenizer(self, kind: Any) -> Any:
        return self._load(kind, 1)

    def model_class(self, transformers: Any) -> Any:
        raise NotImplementedError

    def text_part(self, model: Any) -> nn.Module:
        """The part of the model that reads text."""
        return model

    @cached_property
    def config(self) -> Any:
        """The configuration, of a family that fits and for as many tokens as are asked for."""
        config = self.read_config()
        if self.families and config.model_type not in self.families:
            raise UserError(
                f"{self._named}: is a model of type {config.model_type}, not {self.families[0]}; "
                f"give one that is, or use text.encoder=transformers"
            )
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and self.max_tokens > positions:
            raise UserError(
                f"{self._tokens_key}={self.max_tokens}: {self.name} takes "
                f"{positions} tokens at most"
            )
        return config

    @property
    def width(self) -> int:
        """The width of its tokens."""
        return int(self.config.get_text_config().hidden_size)

    @cached_property
    def tokenizer(self) -> Any:
        _ = self.config  # finds out where the tokenizer lies
        found = self.read_tokenizer(_transformers().AutoTokenizer)
        # Where its files are missing, the library may make up one that knows nothing.
        if len({i for ids in found(list(PROBES))["input_ids"] for i in ids}) < LEAST_KNOWN:
            raise UserError(
                f"{self._named}: its tokenizer knows no words; see that the tokenizer's files, as "
                f"save_pretrained writes them, are there"
            )
        return found

    @cached_property
    def model(self) -> nn.Module:
        """The part that reads text: frozen, in eval mode, on its device."""
        kind = self.model_class(_transformers())
        _ = self.config  # checked, and finds out where the weights lie
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            whole, info = self.read_model(kind, output_loading_info=True, dtype=DTYPES[self.dtype])
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing:
            raise UserError(
                f"{self._named}: {len(missing)} of its weights are missing, such as {missing[0]}; "
                f"fetch it again, or name another"
            )
        return self.text_part(whole).eval().requires_grad_(False).to(self.device)

    @property
    def is_loaded(self) -> bool:
        return "model" in self.__dict__

    def release(self) -> None:
        """Frees the weights; they are loaded again where they are needed again."""
        self.__dict__.pop("model", None)

    def digest(self) -> str:
        """What it computes with: every weight and the ids that the tokenizer gives the probes.

        It does not depend on the names of the weights, which change between versions of
        transformers, nor on how files hold them.
        """
        weights = sorted(_tensor_digest(p) for p in self.model.parameters())
        ids = [self.ids([probe])[0] for probe in PROBES]
        return hashlib.sha256(repr((weights, ids)).encode()).hexdigest()[:16]

    def fingerprint(self) -> str | None:
        """Names, sizes and times of its files, cheap to compare; None where it isn't here yet. The
        key is in it since FLUX.1's repositories hold two encoders in one folder."""
        home = self.place()
        if home is None:
            return None
        found = [str(home.resolve())]
        for path in self.files(home):
            stat = path.stat()
            found.append(f"{os.path.relpath(path, home)} {stat.st_size} {stat.st_mtime_ns}")
        files = hashlib.sha256("\n".join(found).encode()).hexdigest()
        return f"{self.key} {self.dtype} {files}"

    def files(self, home: Path) -> list[Path]:
        """All that it is read from."""
        return [home] if home.is_file() else sorted(p for p in home.rglob("*") if p.is_file())

    @property
    def label(self) -> str:
        """What it is called, at its arithmetic."""
        return f"{self.key} {self.dtype} {self.name}"

    def ids(self, prompts: Sequence[str], **truncation: Any) -> list[list[int]]:
        """The token ids of each prompt, at least one; uncut, unless `truncation` says otherwise."""
        with quiet(_transformers()):
            found = self.tokenizer(list(prompts), **{"truncation": False, **truncation})
        return [list(ids) or [self._pad] for ids in found["input_ids"]]

    def tokenize(self, prompts: Sequence[str], full: bool = False) -> Tokenized:
        """The prompts cut at max_tokens as their tokenizer cuts, and padded to the longest of them,
        or to max_tokens where `full`."""
        limit = self.max_tokens
        cut = self.ids(prompts, truncation=True, max_length=limit)
        real = list(map(len, cut))
        length = limit if full else max(real)
        rows = torch.tensor([[*row, *[self._pad] * (length - len(row))] for row in cut])
        mask = torch.arange(length) < torch.tensor(real)[:, None]
        needed = list(map(len, self.ids(prompts)))
        return Tokenized(rows.to(self.device), mask.to(self.device), real, needed)

    @property
    def _pad(self) -> int:
        """The id that fills up; any will do where the padding is masked."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(i) for i in ids if i is not None), 0)

    @property
    def _named(self) -> str:
        return f"{self.key}={self.name}"

    def _load(self, kind: Any, place: int, **options: Any) -> Any:
        """`kind.from_pretrained`, from disk where it's there, else from the hub; the model lies in
        the first of a pair of subfolders, the tokenizer in the second (`place`)."""
        for local in (True,) if self.folder else (True, False):
            for subfolders in self._subfolders:
                try:
                    with quiet(_transformers(), bars=not local):
                        found = kind.from_pretrained(
                            str(self.folder or self.name),
                            subfolder=subfolders[place],
                            local_files_only=local,
                            trust_remote_code=False,  # nor asked about
                            **options,
                        )
                except Exception as error:  # the library raises many kinds
                    failure = error
                    continue
                self._subfolders = [subfolders]
                return found
        raise UserError(self._not_found(failure)) from None

    def _not_found(self, error: Exception) -> str:
        """One line for why it could not be loaded, and what to do."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if self.folder:
            return (
                f"{self._named}: can't be loaded from that folder ({reason}); it needs what "
                f"save_pretrained writes: config.json, the weights and the tokenizer's files"
            )
        return (
            f"{self._named}: there is no such folder, it is not in the Hugging Face cache, and it "
            f"can't be downloaded here ({reason}); put the model in a folder and set "
            f"{self.key}=FOLDER, or copy a cache that has it and point HF_HOME at it; "
            f"HF_HUB_OFFLINE=1 keeps it from looking on the network"
        )


def _transformers() -> Any:
    return optional("transformers", "hf", "a pretrained text encoder")


@contextmanager
def quiet(transformers: Any, bars: bool = False) -> Iterator[None]:
    """Silences the library's warnings about what is checked here; `bars` are for downloads."""
    log = transformers.utils.logging
    verbosity, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if not bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if shown:
            log.enable_progress_bar()


def _tensor_digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(raw.data)
    return found.hexdigest()


def in_hub_cache(name: str) -> Path | None:
    """The folder that holds a hub id's files on this machine."""
    hub = optional("huggingface_hub", "hf", "a pretrained text encoder")
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not here, or no hub id at all
        return None
