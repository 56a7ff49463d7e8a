"""How the work of a run is divided among its ranks, and what can't be."""

import hashlib
from pathlib import Path

import torch

from fluxsmith.config import RunConfig
from fluxsmith.config.comparing import flat, free_keys
from fluxsmith.data.fingerprints import digest_of, fingerprint
from fluxsmith.data.loader import Loader
from fluxsmith.errors import UserError
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.storage.checkpoint import find
from fluxsmith.training.resume import Start

# The keys that name weights.
WEIGHTS = ("train.init_from", "autoencoder.weights", "text.clip", "text.t5", "text.pretrained")


def pieces_of(config: RunConfig, ranks: Ranks, before: int | None = None) -> int:
    """Into how many pieces each batch is cut: as the config says, or as the run that is resumed was
    `before`, or one for each rank. Raises a UserError for what can't be divided so."""
    size, parallel, train = ranks.size, config.parallel, config.train
    if size & (size - 1):
        below = 1 << (size.bit_length() - 1)
        raise UserError(
            f"{size} ranks: must be a power of two, as the pieces of a batch are; start {below} or "
            f"{2 * below}"
        )
    if size % parallel.shard:
        raise UserError(
            f"parallel.shard={parallel.shard}: must divide the number of ranks, which is {size}; "
            f"start more with torchrun, or set it to 1 or {size}"
        )
    if parallel.shard > 1 and train.adapter.kind != "none":
        raise UserError(
            f"parallel.shard={parallel.shard}: cuts networks that are trained whole, not those "
            f"with an adapter; set it to 1"
        )
    several = (parallel.pieces or before or 1) > 1
    if several and train.cuda_graphs and getattr(train.adapter.choice, "dropout", 0.0) > 0:
        raise UserError(
            "train.cuda_graphs=true: a captured step has one dropout for all pieces of a batch; "
            "set train.adapter.dropout=0, or leave train.cuda_graphs out"
        )
    if before is not None and parallel.pieces not in (None, before):
        raise UserError(
            f"parallel.pieces={parallel.pieces}: the checkpoint was trained with {before}; set it "
            f"back, or leave it out"
        )
    pieces = parallel.pieces or max(before or 1, size)
    if pieces < size:
        raise UserError(
            f"parallel.pieces={pieces}: less than the {size} ranks, each of which needs one; set "
            f"it to {size}, or start fewer"
        )
    unit = pieces * -(-train.accumulate // pieces)
    if train.batch_size % unit:
        below = train.batch_size - train.batch_size % unit
        options = " or ".join(str(n) for n in (below, below + unit) if n)
        raise UserError(
            f"train.batch_size={train.batch_size}: not divisible into {unit} parts, for {size} "
            f"ranks, parallel.pieces={pieces} and train.accumulate={train.accumulate}; use "
            f"{options}"
        )
    if train.compile is True and parallel.shard > 1:
        raise UserError(
            "train.compile=true: not where parallel.shard cuts the network; leave it out"
        )
    if train.cuda_graphs and size > 1:
        raise UserError("train.cuda_graphs=true: is for one process; leave it out")
    return pieces


def smaller_parts(config: RunConfig, pieces: int) -> list[int]:
    """The values of train.accumulate that cut a batch of so many pieces into smaller parts."""
    now, batch = -(-config.train.accumulate // pieces), config.train.batch_size // pieces
    return [n * pieces for n in range(now + 1, batch + 1) if batch % n == 0]


def expect_same_run(config: RunConfig, ranks: Ranks, start: Start) -> None:
    """Raises a UserError where the ranks are about to do different things."""
    if ranks.size == 1:
        return
    data = config.model_dump()
    given, free = flat(data), free_keys(data)  # free: where files lie on each machine
    settings = {k: v for k, v in given.items() if k not in free or "://" in str(v)}
    others = {"the code of fluxsmith": _code_digest(), "the start": str(start)}
    weights = {key: given.get(key) for key in WEIGHTS} | {"the start": start.path}
    contents = {f"contents of {key}": _contents(path) for key, path in weights.items() if path}
    ranks.expect_same(settings | others | contents)


def expect_same_data(loader: Loader, kernels: str, ranks: Ranks) -> None:
    """Raises a UserError where the ranks found different data, or there is less than one image for
    each of them; or where they compute by different `kernels`, whose last bits differ."""
    ranks.expect_same({"the data": loader.digest, "kernels": kernels})
    images = loader.position(0).get("images", ranks.size)
    if images < ranks.size:
        raise UserError(f"{ranks.size} ranks for {images} images; start {images} at most")


def _contents(path: str | Path) -> str:
    """A digest of a file, of a run's newest checkpoint, or of all files of another folder; "" for
    what isn't here, such as a hub id."""
    root = Path(path).expanduser()
    if root.is_dir() and (there := find(root)):
        root = there[-1][1]
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    return digest_of(map(fingerprint, files)) if root.exists() else ""


def _code_digest() -> str:
    """Of this package's code and torch's version: equal where ranks run the same."""
    found, root = hashlib.sha256(torch.__version__.encode()), Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.cpp"), *root.rglob("*.h")]):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]
