"""A teacher's ways from noise to data, made once and kept on disk for every student.

A trajectory is a function of the teacher, the recipe and its number, by which its noise, prompt and
scale are addressed. Shards are written whole, so what was made stays when the work is cut off, and
asking for more later adds to them.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fluxsmith.data.fingerprints import same_data
from fluxsmith.data.loader import Batch, BucketOrder, Rows
from fluxsmith.device import to_device
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.errors import UserError
from fluxsmith.flow.solvers import adams2
from fluxsmith.kernels.memory import release_freed_memory
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.randomness import address_seed, generator, image_noise
from fluxsmith.storage.files import first_line, make_folder
from fluxsmith.storage.tensor_files import write_tensors
from fluxsmith.text.encoder import NULL_PROMPT
from fluxsmith.training.console import ProgressConsole

SHARD = 64  # trajectories that are made together and stand in one file
DTYPE = torch.float16  # of the states on disk: they are of the size of 1


@dataclass(frozen=True)
class Recipe:
    """How trajectories are made: the times of the states that are kept, from 1 for the noise, and
    the solver's steps between two of them."""

    times: tuple[float, ...]
    between: int
    lowest_scale: float  # scales are drawn between these, evenly
    highest_scale: float
    unguided: float = 0.0  # share with a scale of 1
    no_prompt: float = 0.0  # share with the null prompt, and a scale of 1
    shifted: bool = False  # whether each shard has times of its own between these


@dataclass(frozen=True)
class Trajectories(Batch):
    """Batch.images (b, k + 1, c, h, w) are states, from noise to data."""

    t: Tensor = field(default_factory=lambda: torch.empty(0))  # (b, k + 1)
    scale: Tensor = field(default_factory=lambda: torch.empty(0))  # (b,)

    def __len__(self) -> int:
        return len(self.captions)

    def split(self, parts: int) -> "list[Trajectories]":  # type: ignore[override]
        size = len(self) // parts
        tensors = (self.t.split(size), self.scale.split(size))
        return [
            Trajectories(batch.images, batch.captions, True, t=t, scale=scale)
            for batch, t, scale in zip(super().split(parts), *tensors, strict=True)
        ]


class TrajectoryStore:
    """`count` trajectories of a teacher, in shards on disk; `make` makes those that are missing."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, count: int, seed: int, folder: str | None = None
    ) -> None:
        self.teacher = teacher
        self.recipe = recipe
        self.count = whole_shards(count)
        self.seed = address_seed(seed, "trajectories")
        self.prompts = teacher.prompts
        self.grid = torch.tensor(recipe.times)  # (k + 1,)
        about = {
            "teacher": teacher.digest,
            "recipe": asdict(recipe),
            "seed": seed,
            "shape": teacher.pipeline.latent_shape,
            "prompts": self.prompts,
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        root = Path(folder) if folder else teacher.path.parent / "trajectories"
        self.folder = root / key
        self._shard = lru_cache(maxsize=None)(self._open)

    def make(self, ranks: Ranks = ALONE) -> None:
        """Makes what is not on disk yet, shared out over ranks; a UserError where it can't be
        written."""
        missing = [i for i in range(self.count // SHARD) if not self._path(i).is_file()]
        missing = ranks.tell(missing)[0]
        if not missing:
            return
        make_folder(self.folder, "objective.cache to another")
        began = time.monotonic()
        with ProgressConsole() as console:
            for done, _ in enumerate(ranks.shared(missing, self._make), start=1):
                left = (time.monotonic() - began) / done * (len(missing) - done)
                made = self.count - (len(missing) - done) * SHARD
                console.report(f"trajectories {made:,}/{self.count:,} of the teacher", left)
            console.report(f"trajectories {self.count:,} in {self.folder}", None, last=True)
        release_freed_memory()  # training asks for blocks of other sizes

    def rows(self, indices: Sequence[int]) -> Trajectories:
        """These trajectories, on the teacher's device."""
        states, times, scales, captions = [], [], [], []
        for index in indices:
            shard, row = divmod(index, SHARD)
            file, t, scale, prompts = self._shard(shard)
            states.append(file.get_slice("states")[row])
            times.append(t)
            scales.append(scale[row])
            captions.append(prompts[row])
        device = self.teacher.pipeline.device
        x = to_device(torch.stack(states), device).float()  # (b, k + 1, c, h, w)
        t, scale = to_device(torch.stack(times), device), to_device(torch.stack(scales), device)
        return Trajectories(x, captions, True, t=t, scale=scale)

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"

    def _open(self, shard: int) -> tuple[Any, Tensor, Tensor, list[str]]:
        try:
            file = safe_open(self._path(shard), framework="pt")
            prompts = json.loads(file.metadata()["prompts"])
            return file, file.get_tensor("t"), file.get_tensor("scale"), prompts
        except Exception as error:  # whatever is wrong with it
            raise UserError(
                f"{self._path(shard)} can't be read ({first_line(error)}); delete it, and it is "
                f"made again"
            ) from None

    @torch.no_grad()
    def _make(self, shard: int) -> None:
        teacher = self.teacher
        draw = generator(self.seed, "shard", shard)
        prompts, scale = self._prompts(draw)
        ts = self.grid
        if self.recipe.shifted:
            share = torch.rand((), generator=draw)
            ts = torch.cat((ts[:1], torch.lerp(ts[:-1], ts[1:], share)))
        device = teacher.pipeline.device
        indices = range(shard * SHARD, (shard + 1) * SHARD)
        x = image_noise(teacher.pipeline.latent_shape, self.seed, indices).to(device)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return teacher.velocity(x, t, prompts, scale.to(device))

        states, between = list[Tensor](), self.recipe.between

        def keep(step: int, t: Tensor, x: Tensor) -> None:
            if step % between == 0:
                states.append(x)

        finer = [torch.linspace(a, b, between + 1)[:-1] for a, b in pairwise(ts.tolist())]
        adams2(velocity, x, torch.cat((*finer, ts[-1:])), keep)
        found = {"states": torch.stack(states, 1).to(DTYPE).cpu(), "t": ts, "scale": scale}
        write_tensors(self._path(shard), found, {"prompts": json.dumps(prompts)})

    def _prompts(self, draw: torch.Generator) -> tuple[list[str], Tensor]:
        """A shard's prompts and scales (SHARD,)."""
        recipe = self.recipe
        nothing, unguided, which, share = torch.rand(4, SHARD, generator=draw)
        chosen = (which * len(self.prompts)).long().tolist()
        empty = nothing < recipe.no_prompt
        prompts = [
            NULL_PROMPT if none else self.prompts[i]
            for none, i in zip(empty.tolist(), chosen, strict=True)
        ]
        scale = torch.lerp(
            torch.tensor(recipe.lowest_scale), torch.tensor(recipe.highest_scale), share
        )
        return prompts, torch.where(empty | (unguided < recipe.unguided), 1.0, scale)


class TrajectoryLoader:
    """Batches of trajectories, each once an epoch, as a function of the step."""

    def __init__(self, store: TrajectoryStore, batch_size: int, seed: int) -> None:
        self.store = store
        self.batch_size = batch_size
        self.digest = store.folder.name
        self._rows = BucketOrder([store.count], batch_size, seed)
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._seed = seed

    def batch(self, step: int, rows: Rows = None) -> Trajectories:
        _, places = self._rows.places(step)
        if rows is not None:
            places = [places[row] for row in rows]
        return self.store.rows([self._order(epoch)[place] for epoch, place in places])

    def position(self, step: int) -> dict[str, Any]:
        return {"images": self.store.count, "digest": self.digest}

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        same_data(position, self.position(step), origin)

    def captions(self) -> list[str]:
        return self.store.prompts

    def describe(self) -> str:
        return f"{self.store.count:,} trajectories of {self.store.teacher.path}"

    def _draw_order(self, epoch: int) -> list[int]:
        draw = generator(self._seed, "order", epoch)
        return torch.randperm(self.store.count, generator=draw).tolist()


def whole_shards(count: float) -> int:
    """So many trajectories or a few more, and at least one shard."""
    return max(1, math.ceil(count / SHARD)) * SHARD
