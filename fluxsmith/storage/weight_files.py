"""Which files hold the weights at a path: in a folder, as diffusers and transformers choose."""

import re
from pathlib import Path

from fluxsmith.errors import UserError
from fluxsmith.storage.files import read_json

SAFETENSORS = (".safetensors", ".sft")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
ADAPTERS = ("adapter_model", "pytorch_lora_weights")
# The libraries' own names; a model comes before an adapter that lies beside it.
STANDARD = ("diffusion_pytorch_model", "model", "pytorch_model", *ADAPTERS)
VARIANTS = ("", "bf16", "fp16", "fp32", "fp8")  # what stands before an ending, the best first

INDEX = re.compile(r"(?P<stem>.+)\.(?P<kind>safetensors|bin)\.index(\.(?P<variant>\w+))?\.json")
SHARD = re.compile(r"(?P<before>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})(?P<after>.*)")

Rank = tuple[int, int, bool, bool]


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights at a path: a file, an index of shards, one of the shards, or
    a folder with any of these. In a folder, the libraries' own names come first, then files without
    a variant such as .fp16, then safetensors, then shards by their index; what is incomplete comes
    last. A UserError says what is missing, or that there is a choice."""
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; check the path")
    return _of_index(path) if path.suffix == ".json" else _with_siblings(path)


def _in_folder(folder: Path) -> list[Path]:
    found: dict[Rank, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if about := _about(path):
            rank, name = about
            found.setdefault(rank, {}).setdefault(name, path)
    problem: UserError | None = None
    for _, named in sorted(found.items()):
        paths = [*named.values()]
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths[:3])
            raise UserError(f"{folder} holds {names}; name the one to use")
        try:
            return weight_files(paths[0])
        except UserError as error:  # such as the index of shards that were not fetched
            problem = problem or error
    raise problem or UserError(
        f"there are no weights in {folder}; it should hold a .safetensors file"
    )


def _about(path: Path) -> tuple[Rank, str] | None:
    """How early a file of a folder is taken, and the name of the weights that it belongs to; None
    for other files, and for the learned text encoder beside an export of ours."""
    index, shard = INDEX.fullmatch(path.name), SHARD.fullmatch(path.stem)
    if index:
        stem, pickled, variant = index["stem"], index["kind"] == "bin", index["variant"]
    elif path.suffix in SAFETENSORS + PICKLED and not path.stem.endswith(".text"):
        stem = shard["before"] + shard["after"] if shard else path.stem
        pickled, variant = path.suffix in PICKLED, None
    else:
        return None
    if variant is None and stem.rpartition(".")[2] in VARIANTS:
        stem, _, variant = stem.rpartition(".")
    place = VARIANTS.index(variant or "") if (variant or "") in VARIANTS else len(VARIANTS)
    own = 2 if stem not in STANDARD else int(stem in ADAPTERS)
    return (own, place, pickled, not index), stem


def _of_index(index: Path) -> list[Path]:
    """All shards that an index (*.safetensors.index.json) names, in its own folder."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{index} is no index of shards: it has no weight_map")
    shards = [index.parent / Path(name).name for name in sorted(set(where.values()))]
    return _complete(shards, str(index))


def _with_siblings(path: Path) -> list[Path]:
    """The file, and where it is one of several shards, the others."""
    shard = SHARD.fullmatch(path.stem)
    if not shard:
        return [path]
    before, after, count = shard["before"], shard["after"] + path.suffix, int(shard["of"])
    names = [f"{before}-{i:05d}-of-{count:05d}{after}" for i in range(1, count + 1)]
    return _complete([path.with_name(name) for name in names], f"{path}, one of {count} shards,")


def _complete(shards: list[Path], origin: str) -> list[Path]:
    for shard in shards:
        if not shard.is_file():
            raise UserError(
                f"{origin} names {shard.name}, which is not there; fetch all its shards"
            )
    return shards
