"""Writing checkpoints in the background: training waits only until its state is copied in memory.

If a checkpoint can't be written, training goes on and tries again at the next interval, unless
train.on_save_error says to stop; the checkpoint before it stays intact.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.config.train_section import TrainConfig
from fluxsmith.device import free_memory, memory_wanted
from fluxsmith.errors import UserError
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.parallel.shares import Whole, is_cut
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage import sharded
from fluxsmith.training.lock import FolderLock, FolderTakenError

WHOLE = Whole(nn.Module())
BUSY = threading.Event()  # set while this process writes a checkpoint by itself


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
        ranks: Ranks = ALONE,
        held: Whole = WHOLE,
    ) -> None:
        """`ranks` save together; the first one writes files, and has the lock. `held` is what this
        one has of the model."""
        self.folder = folder
        self.config = config
        self._say = say
        self._lock = lock
        self._ranks, self._held = ranks, held
        self._apart = ranks.apart()  # for the thread that writes, while training goes on
        self._in_shares: bool | None = None  # whether to a folder; not decided yet
        self._writing: threading.Thread | None = None
        self._saved: Path | None = None
        self._error: Exception | None = None  # of the last attempt, until it is reported
        self._given_up = threading.Event()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """After an error the checkpoint being written is completed; a second signal stops it at
        once, and the half-written file is deleted."""
        if kind is not None and not issubclass(kind, Exception):
            self._given_up.set()  # the writing checks this between tensors
        # A signal may come just before it is started.
        if self._writing is not None and self._writing.is_alive():
            self._writing.join(timeout=5 if self._given_up.is_set() else None)

    def save(self, state: Mapping[str, Any]) -> None:
        """Starts to write the checkpoint of this state. Raises a UserError where the one before
        could not be written and the run is to stop for it."""
        self.finish()
        mine = self._mine(state)
        if mine is None:
            return
        copy = None
        if self.config.background_save:
            copy = mine if self._gathers(state) else self._copy(mine)
        if copy is not None:
            self._writing = threading.Thread(
                target=self._attempt, args=(copy,), name="checkpoint", daemon=True
            )
            self._writing.start()
        else:
            self._attempt(mine)
            self.check()

    def finish(self) -> None:
        """Waits for the checkpoint being written, if there is one."""
        if self._writing is not None:
            self._writing.join()
        self.check()

    def save_last(self, state: Mapping[str, Any]) -> Path:
        """Makes sure that this state is saved, and returns where. Raises a UserError if it can't
        be, whatever train.on_save_error says: there is no next interval."""
        if self._writing is not None:
            self._writing.join()
        missing = self._saved is None or self._saved != self._path(state)
        if any(self._ranks.agree(int(self._ranks.first and missing))):
            self._error = None  # an earlier failure no longer matters
            mine = self._mine(state)
            if mine is not None:
                self._attempt(mine)
                self._report(stop=True)
        return self._path(state)

    def check(self) -> None:
        """Reports a checkpoint that failed, or stops the run for it. Does not wait."""
        if self._writing is None or not self._writing.is_alive():
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

    def _path(self, state: Mapping[str, Any]) -> Path:
        return checkpoints.checkpoint_path(self.folder, state["step"], bool(self._in_shares))

    def _mine(self, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What this rank writes of a state, None where that is nothing; a call of all ranks."""
        if self._in_shares is None:
            self._in_shares = self._ranks.tell(self._wants_shares(state))[0]
        if self._gathers(state):
            with self._held.waiting("the gathering of a checkpoint"):
                state = _each(dict(state), self._gathered)
        return state if self._in_shares or self._ranks.first else None

    def _wants_shares(self, state: Mapping[str, Any]) -> bool:
        wanted = self.config.checkpoint_format
        if wanted == "auto" and any(map(is_cut, state["model"].values())):
            room = free_memory(torch.device("cpu"))
            return room is not None and 2 * _bytes(state) > room  # gathered, and copied
        return wanted == "sharded"

    def _gathered(self, tensor: Tensor) -> Tensor:
        """A copy of its own on the first rank, of whatever it was."""
        whole = tensor.full_tensor() if is_cut(tensor) else tensor.clone()  # type: ignore[attr-defined]
        return whole.cpu() if self._ranks.first else torch.empty(0)

    def _gathers(self, state: Mapping[str, Any]) -> bool:
        """Whether a state that is cut over ranks is written whole."""
        return not self._in_shares and any(map(is_cut, state["model"].values()))

    def _copy(self, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """A copy of the state, None where there is no memory for one."""
        try:
            return copied(dict(state), self._held)
        except (RuntimeError, MemoryError) as error:
            if memory_wanted(error) is None:
                raise
            return None

    def _attempt(self, state: Mapping[str, Any]) -> None:
        if not self._in_shares:
            BUSY.set()
        try:
            self._write(state)
        except Exception as error:  # reported by the training thread
            self._error = error
        finally:
            BUSY.clear()

    def _write(self, state: Mapping[str, Any]) -> None:
        path, first = self._path(state), self._ranks.first
        problem: Exception | None = None
        try:
            state = self._ready(state)
        except Exception as error:
            problem = error
        if self._in_shares:  # so that none goes on to write alone
            problem = next(filter(None, self._apart.tell(problem)), None)
        if problem is not None:
            raise problem
        if self._in_shares:
            sharded.save(path, state, self._apart.rank, self._apart.tell, self._apart.group)
        else:
            checkpoints.save(path, state, self._given_up.is_set)
        self._saved = path
        if first:
            checkpoints.prune(self.folder, self.config.keep_checkpoints, self.config.keep_every)

    def _ready(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state in this machine's memory, and the folder there, to be written."""
        state = on_host(state, self._held)
        if (name := first_not_finite(state)) is not None:
            raise NotFiniteError(
                f"{name} is not finite at step {state['step']}, so nothing of it is saved; the "
                f"last good checkpoint is {self.last_good()}; resume from it with a lower "
                f"train.learning_rate"
            )
        if self._lock is not None:
            self._lock.take()  # makes the folder again if it was deleted
        return state


def copied(state: Any, held: Whole = WHOLE) -> Any:
    """A copy of nested plain data in this machine's memory; of tensors that are cut over ranks, as
    they are `held`."""
    copy = _each(state, lambda x: held.on_host(x, True) if is_cut(x) else _copied(x))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copy


def on_host(state: Any, held: Whole = WHOLE) -> Any:
    """The same, but tensors in this machine's memory are not copied. Slower from a GPU than
    `copied`, and needs no pinned memory."""
    return _each(state, lambda x: held.on_host(x, False) if is_cut(x) else x.cpu())


def _copied(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)  # all at once, without waiting for each


def _each(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested plain data with each of its tensors changed. Keys are interned, so that equal states
    give equal files: a pickle stores an object that occurs twice only once."""
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


def _bytes(state: Any) -> int:
    """Of all tensors in nested plain data, whole."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return sum(map(_bytes, parts))


def first_not_finite(state: Any, name: str = "") -> str | None:
    """The dotted name of the first tensor with a NaN or an infinity in it."""
    if isinstance(state, Tensor):
        if not state.is_floating_point() or not state.numel():
            return None
        own = state.to_local() if is_cut(state) else state  # type: ignore[attr-defined]
        if not own.numel():
            return None
        return None if torch.linalg.vector_norm(own, float("inf")).isfinite() else name
    if isinstance(state, dict):
        for key, value in state.items():
            found = first_not_finite(value, f"{name}.{key}" if name else str(key))
            if found is not None:
                return found
    return None
