"""The processes that train one model together: what they tell each other, and that they agree."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from textwrap import shorten
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.parallel.sums import all_gather

POLL = 0.05  # seconds between looks at the store


class Ranks:
    """A process that trains alone: it agrees with itself and waits for nobody."""

    rank, size = 0, 1
    group: Any = None  # torch's, of the hosts

    def apart(self) -> "Ranks":
        """The same ranks, for another thread to talk in; a call of all ranks at once."""
        return self

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, logs, locks and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this rank, where all were told to use this one."""
        return device

    def agree(self, *numbers: int) -> list[int]:
        """Each the largest that any rank gives."""
        return list(numbers)

    def gather(self, x: Tensor) -> Tensor:
        """(n, ...) of each rank, all of one shape -> (size, n, ...)."""
        return x[None]

    def tell(self, what: Any) -> list[Any]:
        """What each rank tells: plain data, in the order of ranks."""
        return [what]

    def expect_same(self, facts: Mapping[str, Any]) -> None:
        """A UserError where the ranks differ in any of these facts, plain data by name."""

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Inside is the first rank alone, then all others: for what is downloaded or cached."""
        yield


class LaunchedRanks(Ranks):
    """One of the processes that torchrun started, on one machine or many."""

    def __init__(self, rank: int, size: int, watch: Any, patience: timedelta) -> None:
        """`watch` is told what this rank waits for; its `store` is shared by all. The hosts wait
        for each other with this patience."""
        self.rank, self.size, self.watch, self._patience = rank, size, watch, patience
        # For what the hosts tell each other: on CPUs, and out of the way of the gradients.
        self.group = dist.new_group(backend="gloo", timeout=patience)
        self._turns = 0

    def apart(self) -> Ranks:
        return LaunchedRanks(self.rank, self.size, self.watch, self._patience)

    def device(self, device: torch.device) -> torch.device:
        if device.type == "cpu":
            return device
        local, there = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if device.type != "cuda" or not dist.is_nccl_available():
            lacking = "NCCL" if device.type == "cuda" else "CUDA GPUs or device=cpu"
            raise UserError(
                f"device={device.type}: several ranks need {lacking}, which is not here; start one "
                f"process, or set device=cpu"
            )
        if local >= there:
            raise UserError(
                f"rank {self.rank} is the {local + 1}th of its machine, which has {there} GPUs; "
                f"start torchrun with --nproc-per-node {there}"
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    def agree(self, *numbers: int) -> list[int]:
        told = torch.tensor(numbers)
        with self.watch.waiting("the agreement before a step"):
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
        return told.tolist()

    def gather(self, x: Tensor) -> Tensor:
        gathered = x.new_empty(self.size, *x.shape)
        with self.watch.waiting("the gathering of losses"):
            all_gather(gathered.flatten(0, 1), x.contiguous())
        return gathered

    def tell(self, what: Any) -> list[Any]:
        told: list[Any] = [None] * self.size
        with self.watch.waiting("the exchange of notes"):
            dist.all_gather_object(told, what, group=self.group)
        return told

    def expect_same(self, facts: Mapping[str, Any]) -> None:
        told = self.tell(dict(facts))
        for name in dict.fromkeys(name for each in told for name in each):
            values = [shorten(str(each.get(name)), 60) for each in told]
            if other := next((i for i, value in enumerate(values) if value != values[0]), 0):
                raise UserError(
                    f"{name}: {values[0]} on rank 0 and {values[other]} on rank {other}; all ranks "
                    f"need the same"
                )

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        self._turns += 1
        key = f"turn/{self._turns}"
        if not self.first:
            while not self.watch.store.check([key]):  # however long it takes
                time.sleep(POLL)
        yield
        if self.first:
            self.watch.store.set(key, "done")
