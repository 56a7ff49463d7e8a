"""A pretrained encoder from `transformers`: found by hub id or folder, loaded when it is first
needed, frozen, and told from others by a digest of what it computes with.

It is a submodule of nothing: whatever happens to the model around it, it stays in eval mode,
untrained, where it is, and out of checkpoints.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.errors import UserError
from fluxsmith.optional import optional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What a tokenizer makes of these tells it from others: letters, numbers, signs, scripts.
PROBES = (
    "the quick brown fox jumps over the lazy dog 0123456789 zero one two three four five six seven",
    "A Photo of a RED cat, it's 3:05! (well-known) #1 @home 50% $4.99 a/b\\c <x> {y} [z] ~ ^ | & *",
    "été naïve größer señor 零一二三 семь восемь שלום مرحبا 한국어 ひらがな 🙂 \t\n e\u0301 ﬁ ½",
)
LEAST_KNOWN = 8  # different tokens among the probes' of any tokenizer


@dataclass(frozen=True)
class Source:
    """A pretrained encoder as the config names it."""

    key: str  # the config's key for the name, such as text.t5
    name: str  # a hub id or a folder
    max_tokens: int
    max_tokens_key: str
    dtype: str
    device: torch.device
    subfolders: tuple[str, str] | None = None  # its model and tokenizer in FLUX.1's repositories

    @property
    def folder(self) -> Path | None:
        """The local folder that the name stands for; None for a hub id."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None


class Pretrained:
    """An encoder and its tokenizer. Config, tokenizer and weights are each loaded on first use.

    Subclasses say which models fit and which class loads them. Every failure to load is a UserError
    that names the config's key.
    """

    families: tuple[str, ...] = ()  # model types that fit; empty: all

    def __init__(self, source: Source) -> None:
        self.source = source
        self._in_subfolders = False

    def model_class(self, transformers: Any) -> Any:
        raise NotImplementedError

    def text_part(self, model: Any) -> nn.Module:
        """The part of the model that reads text."""
        return model

    @cached_property
    def config(self) -> Any:
        """The configuration, of a family that fits and for as many tokens as are asked for."""
        transformers = _transformers()
        config = self._load_config(transformers)
        if self.families and config.model_type not in self.families:
            raise UserError(
                f"{self._named}: is a model of type {config.model_type}, not {self.families[0]}; "
                f"give one that is, or use text.encoder=transformers"
            )
        text = config.get_text_config()
        positions = getattr(text, "max_position_embeddings", None)
        if positions is not None and self.source.max_tokens > positions:
            raise UserError(
                f"{self.source.max_tokens_key}={self.source.max_tokens}: {self.source.name} takes "
                f"{positions} tokens at most"
            )
        return config

    @property
    def width(self) -> int:
        """The width of its tokens."""
        return int(self.config.get_text_config().hidden_size)

    @cached_property
    def tokenizer(self) -> Any:
        transformers = _transformers()
        _ = self.config  # finds out where the tokenizer lies
        found = self._from_pretrained(transformers, transformers.AutoTokenizer, 1)
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
        transformers = _transformers()
        _ = self.config  # checked, and finds out where the weights lie
        kind = self.model_class(transformers)
        word = "dtype" if _version(transformers) >= (4, 56) else "torch_dtype"
        options = {word: DTYPES[self.source.dtype], "output_loading_info": True}
        with torch.random.fork_rng(devices=[]):  # what it initialises and overwrites is not ours
            whole, info = self._from_pretrained(transformers, kind, 0, **options)
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing:
            raise UserError(
                f"{self._named}: {len(missing)} of its weights are missing, such as {missing[0]}; "
                f"fetch it again, or name another"
            )
        return self.text_part(whole).eval().requires_grad_(False).to(self.source.device)

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
        ids = [self.ids(probe) for probe in PROBES]
        return hashlib.sha256(repr((weights, ids)).encode()).hexdigest()[:16]

    def fingerprint(self) -> str | None:
        """Names, sizes and times of its files, cheap to compare; None where it isn't here yet."""
        folder = self.source.folder or _in_hub_cache(self.source)
        if folder is None:
            return None
        found = [str(folder.resolve())]
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            stat = path.stat()
            found.append(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
        return hashlib.sha256("\n".join(found).encode()).hexdigest()

    def ids(self, prompt: str) -> list[int]:
        """The token ids of a prompt, uncut; at least one."""
        with _quiet(_transformers()):
            found = list(self.tokenizer(prompt, truncation=False)["input_ids"])
        return found or [self.pad]

    def cut_ids(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """The ids of each prompt, cut at max_tokens as its tokenizer cuts, and their uncut
        numbers."""
        limit = self.source.max_tokens
        with _quiet(_transformers()):
            whole = self.tokenizer(list(prompts), truncation=False)["input_ids"]
            cut = self.tokenizer(list(prompts), truncation=True, max_length=limit)["input_ids"]
        return [list(ids) or [self.pad] for ids in cut], [max(1, len(ids)) for ids in whole]

    @property
    def pad(self) -> int:
        """The id that fills up; any will do where the padding is masked."""
        tokenizer = self.tokenizer
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        return next((int(i) for i in ids if i is not None), 0)

    def padded(self, ids: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of the real ones, (n, length) each, on the encoder's device."""
        rows = torch.tensor([[*row, *[self.pad] * (length - len(row))] for row in ids])
        real = torch.tensor([len(row) for row in ids])
        mask = torch.arange(length) < real[:, None]
        return rows.to(self.source.device), mask.to(self.source.device)

    @property
    def _named(self) -> str:
        return f"{self.source.key}={self.source.name}"

    def _load_config(self, transformers: Any) -> Any:
        """From the folder or repository itself, or from where FLUX.1's repositories keep it."""
        errors = []
        for local in (True,) if self.source.folder else (True, False):
            for nested in (False, True) if self.source.subfolders else (False,):
                self._in_subfolders = nested
                try:
                    return self._call(transformers, transformers.AutoConfig, 0, local)
                except Exception as error:  # the library raises many kinds
                    errors.append(error)
        raise UserError(self._not_found(errors)) from None

    def _from_pretrained(self, transformers: Any, kind: Any, place: int, **options: Any) -> Any:
        """`kind.from_pretrained`, from disk where it's there; place 0 is the model's, 1 the
        tokenizer's."""
        errors = []
        for local in (True,) if self.source.folder else (True, False):
            try:
                return self._call(transformers, kind, place, local, **options)
            except Exception as error:  # the library raises many kinds
                errors.append(error)
        raise UserError(self._not_found(errors)) from None

    def _call(self, transformers: Any, kind: Any, place: int, local: bool, **options: Any) -> Any:
        nested = self.source.subfolders if self._in_subfolders else None
        if nested is not None:
            options["subfolder"] = nested[place]
        name = str(self.source.folder or self.source.name)
        options |= {"local_files_only": local, "trust_remote_code": False}  # nor asked about
        with _quiet(transformers, bars=not local):
            return kind.from_pretrained(name, **options)

    def _not_found(self, errors: Sequence[Exception]) -> str:
        """One line for why it could not be loaded, and what to do."""
        lines = str(errors[-1]).strip().splitlines()
        reason = lines[0] if lines else type(errors[-1]).__name__
        key, name = self.source.key, self.source.name
        if self.source.folder:
            return (
                f"{self._named}: can't be loaded from that folder ({reason}); it needs what "
                f"save_pretrained writes: config.json, the weights and the tokenizer's files"
            )
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            return f"{self._named}: there is no such folder; set {key} to one, or to a hub id"
        return (
            f"{self._named}: is neither a folder nor in the Hugging Face cache, and can't be "
            f"downloaded here ({reason}); put the model {name} in a folder and set {key}=FOLDER, "
            f"or copy a cache that has it and point HF_HOME at it; HF_HUB_OFFLINE=1 and "
            f"TRANSFORMERS_OFFLINE=1 keep it from looking on the network"
        )


def _transformers() -> Any:
    return optional("transformers", "hf", "a pretrained text encoder")


def _version(transformers: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in transformers.__version__.split(".")[:2])


@contextmanager
def _quiet(transformers: Any, bars: bool = False) -> Iterator[None]:
    """Keeps the library from reporting what we check ourselves; `bars` are for downloads."""
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


def _in_hub_cache(source: Source) -> Path | None:
    """The folder that holds a hub id's files on this machine."""
    hub = optional("huggingface_hub", "hf", "a pretrained text encoder")
    nested = f"{source.subfolders[0]}/config.json" if source.subfolders else None
    for file in filter(None, ("config.json", nested)):
        try:
            found = hub.try_to_load_from_cache(source.name, file)
        except ValueError:  # the name can't be a hub id
            return None
        if isinstance(found, str):
            return Path(found).parents[file.count("/")]
    return None
