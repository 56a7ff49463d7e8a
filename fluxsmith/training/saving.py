"""Checkpoints are written while training goes on: it waits only for a copy of the state in memory.

A checkpoint that can't be written costs no run: the one before it is intact, and the next interval
brings the next attempt, unless train.on_save_error says to stop.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config.sections import TrainConfig
from fluxsmith.device import memory_wanted
from fluxsmith.errors import UserError
from fluxsmith.training.lock import FolderLock, FolderTakenError


class NotFiniteError(UserError):
    """A state that no checkpoint may hold."""


class Saver:
    """Writes a run's checkpoints, one at a time, and deletes those past retention."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        say: Callable[[str], object],
        lock: FolderLock | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.waited = 0.0  # seconds that training stood still for checkpoints
        self._say = say
        self._lock = lock
        self._writing: threading.Thread | None = None
        self._saved: Path | None = None
        self._error: Exception | None = None  # of the last attempt, until someone asks
        self._given_up = threading.Event()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """After an error the checkpoint under way is still completed; a second signal ends it at
        once, and leaves no half-written file."""
        if kind is not None and not issubclass(kind, Exception):
            self._given_up.set()  # the writing looks up between any two tensors
        if self._writing is not None:
            self._writing.join(timeout=5 if self._given_up.is_set() else None)

    def save(self, state: Mapping[str, Any]) -> None:
        """Starts to write the checkpoint of this state. Raises a UserError where the one before
        could not be written and the run is to stop for it."""
        began = time.perf_counter()
        self.finish()
        copy = self._copy(state) if self.config.background_save else None
        if copy is not None:
            self._writing = threading.Thread(
                target=self._attempt, args=(copy,), name="checkpoint", daemon=True
            )
            self._writing.start()
        else:
            self._attempt(state)
            self.check()
        self.waited += time.perf_counter() - began

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written at this moment."""
        return self._writing is not None and self._writing.is_alive()

    def finish(self) -> None:
        """Waits for the checkpoint being written, if there is one."""
        if self._writing is not None:
            self._writing.join()
        self.check()

    def save_last(self, state: Mapping[str, Any]) -> Path:
        """Sees to it that this state is saved, and says where. Raises a UserError if it can't be,
        whatever the policy: there is no next interval."""
        path = checkpoints.checkpoint_path(self.folder, state["step"])
        if self._writing is not None:
            self._writing.join()
        if self._saved != path:
            self._error = None  # this attempt says all that there is to say
            self._attempt(state)
            self._report(stop=True)
        return path

    def check(self) -> None:
        """Looks, without waiting, whether a checkpoint failed, and says so or stops the run."""
        if not self.busy:
            self._writing = None
            self._report(stop=self.config.on_save_error == "stop")

    def _report(self, stop: bool) -> None:
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, UserError) or isinstance(
            error, (NotFiniteError, FolderTakenError)
        ):
            raise error
        last = f"the last good checkpoint is {self.last_good()}"
        if stop:
            raise UserError(f"{error}; {last}") from None
        self._say(f"{error}; {last}; training goes on and tries again at the next interval")

    def last_good(self) -> str:
        found = checkpoints.find(self.folder)
        return str(found[-1][1]) if found else f"none in {self.folder} yet"

    def _copy(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """A copy of the state, None where there is no memory for one."""
        try:
            return copied(dict(state))
        except (RuntimeError, MemoryError) as error:
            if memory_wanted(error) is None:
                raise
            return None

    def _attempt(self, state: Mapping[str, Any]) -> None:
        try:
            self._write(on_host(state))
        except Exception as error:  # it belongs to the training thread, which asks for it
            self._error = error

    def _write(self, state: Mapping[str, Any]) -> None:
        path = checkpoints.checkpoint_path(self.folder, state["step"])
        name = first_not_finite(state)
        if name is not None:
            raise NotFiniteError(
                f"{name} is not finite at step {state['step']}, so nothing of it is saved; the "
                f"last good checkpoint is {self.last_good()}; resume from it with a lower "
                f"train.learning_rate"
            )
        if self._lock is not None:
            self._lock.take()  # a folder that was deleted is made again
        checkpoints.save(path, state, self._given_up.is_set)
        self._saved = path
        checkpoints.prune(self.folder, self.config.keep_checkpoints, self.config.keep_every)


def copied(state: Any) -> Any:
    """A copy of nested plain data in this machine's memory."""
    copy = _each(state, _copied)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copy


def on_host(state: Any) -> Any:
    """The same, where what is in this machine's memory already stays as it is. Slower from a GPU,
    and takes no memory that can't be paged."""
    return _each(state, Tensor.cpu)


def _copied(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)  # they all come side by side


def _each(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested plain data with each of its tensors changed. Equal states give equal files: a pickle
    tells one text from another that only reads the same, so keys are made one."""
    if isinstance(state, Tensor):
        return change(state.detach())
    if isinstance(state, dict):
        return {
            sys.intern(key) if isinstance(key, str) else key: _each(value, change)
            for key, value in state.items()
        }
    if isinstance(state, list):
        return [_each(value, change) for value in state]
    return state


def first_not_finite(state: Any, name: str = "") -> str | None:
    """The dotted name of the first tensor with a NaN or an infinity in it."""
    if isinstance(state, Tensor):
        if not state.is_floating_point() or not state.numel():
            return None
        return None if torch.linalg.vector_norm(state, float("inf")).isfinite() else name
    if isinstance(state, dict):
        for key, value in state.items():
            found = first_not_finite(value, f"{name}.{key}" if name else str(key))
            if found is not None:
                return found
    return None
