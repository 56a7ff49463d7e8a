"""The processes that train one model together: what they tell each other, and that they agree."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    patience = timedelta(minutes=30)  # with which the hosts wait for each other
    group: Any = None  # torch's, of the hosts
    waiting: Callable[[str], AbstractContextManager[Any]] = nullcontext  # in a call of all ranks

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

    def shared(
        self, items: Sequence[Any], work: Callable[[Any], Any], together: bool = False
    ) -> Iterator[Any]:
        """What `work` makes of each item, in order: plain data, or tensors of the host; each by one
        rank, in turn, and told to all, as a UserError is. `together`: by all at one time, on ranges
        of one length, for each has a share of a network."""
        for first in range(0, len(items), self.size):
            dealt = items[first : first + self.size]
            todo = dealt[self.rank :][:1]
            if together:  # without an item of its own, a rank repeats another's
                todo = dealt if len({*map(len, dealt)}) > 1 else todo or dealt[:1]
            done, problem = dict[Any, Any](), None
            try:
                done |= zip(todo, map(work, todo), strict=True)
            except UserError as error:
                problem = error
            told = self.tell((done, problem))
            if said := next((error for _, error in told if error), None):
                raise said
            done = {item: found for each, _ in told for item, found in each.items()}
            yield from map(done.__getitem__, dealt)

    def expect_same(self, facts: Mapping[str, Any]) -> None:
        """A UserError where the ranks differ in any of these facts, plain data by name."""
        told = self.tell(dict(facts))
        for name in dict.fromkeys(name for each in told for name in each):
            values = [str(each.get(name)) for each in told]
            if other := next((i for i, value in enumerate(values) if value != values[0]), 0):
                first, second = (shorten(values[i], 200) for i in (0, other))
                raise UserError(
                    f"{name}: {first} on rank 0 and {second} on rank {other}; all need the same"
                )

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Inside is the first rank alone, then all others: for what is downloaded or cached."""
        yield


class LaunchedRanks(Ranks):
    """One of the processes that torchrun started, on one machine or many."""

    def __init__(self, rank: int, size: int, watch: Any, patience: timedelta) -> None:
        """`watch` is told what this rank waits for; its `store` is shared by all."""
        self.rank, self.size, self.watch, self.waiting = rank, size, watch, watch.waiting
        self.group = dist.new_group(backend="gloo", timeout=patience)  # out of the gradients' way
        self.patience, self._turns = patience, 0

    def apart(self) -> Ranks:
        return LaunchedRanks(self.rank, self.size, self.watch, self.patience)

    def device(self, device: torch.device) -> torch.device:
        if device.type == "cpu":
            return device
        local, there = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if device.type != "cuda" or not dist.is_nccl_available() or local >= there:
            raise UserError(
                f"device={device.type}: ranks need NCCL and a CUDA GPU each, and where rank "
                f"{self.rank} is there are {there}; start {there or 1} there, or set device=cpu"
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    def agree(self, *numbers: int) -> list[int]:
        told = torch.tensor(numbers)
        with self.waiting("the agreement before a step"):
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
        return told.tolist()

    def gather(self, x: Tensor) -> Tensor:
        gathered = x.new_empty(self.size, *x.shape)
        all_gather(gathered.flatten(0, 1), x.contiguous())
        return gathered

    def tell(self, what: Any) -> list[Any]:
        told: list[Any] = [None] * self.size
        with self.waiting("the exchange of notes"):
            dist.all_gather_object(told, what, group=self.group)
        return told

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        self._turns += 1
        key = f"turn/{self._turns}"
        if not self.first:
            while not self.watch.store.check([key]):  # however long it takes
                time.sleep(POLL)
        try:
            yield
        finally:
            if self.first:
                self.watch.store.set(key, "done")


ALONE = Ranks()
