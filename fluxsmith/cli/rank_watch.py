"""A thread in every rank that notices when another is gone or stuck, so that none waits for ever.

Each rank tells the store once a second that it lives and what it waits for, and watches the next
one. The first verdict in the store is the run's: all ranks end by it, and its owner prints it.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fluxsmith.parallel.ranks import POLL
from fluxsmith.training.saving import BUSY

BEAT = 1.0  # seconds between signs of life
SILENT = 18.0  # seconds without one, after which a rank on another machine counts as gone
GRACE = 4.0  # seconds that a rank has to end by itself once there is a verdict
WRITING = 18.0  # seconds more for a checkpoint that is being written
BYE = "bye"
NO_STORE = (
    "rank 0, or torchrun on its machine, is gone: killed, or out of memory; start again with "
    "--resume auto"
)


class Verdict(NamedTuple):
    """Why the run ends."""

    owner: int  # the rank that prints it
    code: int  # with which all end
    line: str


class Watch(threading.Thread):
    """Watches over the ranks from one of them. A call of `stuck` seconds ends the run."""

    def __init__(self, store: Any, rank: int, size: int, stuck: float) -> None:
        super().__init__(name="fluxsmith-ranks", daemon=True)
        self.stuck = stuck
        self.store, self.rank, self.size = store, rank, size
        self.of_another: str | None = None  # what this rank has to tell of another's end
        self.code = 1  # with which the ranks end once there is a verdict
        self._known: Verdict | None = None  # the verdict, once this rank has seen it
        self._calls: dict[int, tuple[float, str]] = {}  # of each thread: since when, and what
        self._over = threading.Event()
        store.set(f"who/{rank}", f"{os.getpid()} {_machine()} {socket.gethostname()}")

    @contextlib.contextmanager
    def waiting(self, call: str) -> Iterator[None]:
        """Inside, this rank waits for others in a call of this name; one may be part of another."""
        mine = threading.get_ident()
        before = self._calls.get(mine)
        self._calls[mine] = time.monotonic(), call
        yield  # after an error it still counts as the last call
        if before is None:
            del self._calls[mine]
        else:
            self._calls[mine] = before

    def over(self) -> None:
        """This rank ends as it should; the first one, which may hold the store, when the others
        have ended."""
        self._over.set()
        with contextlib.suppress(RuntimeError):  # where the store is gone already
            self.store.set(f"beat/{self.rank}", BYE)
            end = time.monotonic() + GRACE
            while self.rank == 0 and time.monotonic() < end:
                if all(self._beat(rank) == BYE for rank in range(self.size)):
                    break
                time.sleep(POLL)
        self.join(GRACE)  # a thread that is in the store's C++ when Python ends can crash it

    def speaks(self, line: str, code: int, within: float) -> bool:
        """Whether this rank is the one to print, with this line or with `of_another`. The others
        have so many seconds to tell of the cause before this line is taken for it."""
        self.code, end = code, time.monotonic() + within
        try:
            verdict = self._verdict()
            while verdict is None and time.monotonic() < end:
                time.sleep(POLL)
                verdict = self._verdict()
            verdict = verdict or self._claim(line, code)
        except RuntimeError:  # the store is gone: the first rank has told, or was killed
            verdict = self._known
        if verdict is None:
            self.of_another = NO_STORE
            return self.rank == 1 and code != 2
        owner, self.code, told = verdict
        self.of_another = None if told == line else told
        return owner == self.rank

    def run(self) -> None:
        beats, neighbour = 0, (self.rank + 1) % self.size
        heard, at = "", time.monotonic()
        try:
            pid, machine, host = self.store.get(f"who/{neighbour}").decode().split(" ", 2)
            here = machine == _machine()
            while not self._over.wait(BEAT):
                beats += 1
                self.store.set(f"beat/{self.rank}", f"{beats} {self._state()}")
                if verdict := self._verdict():
                    return self._leave(verdict)
                beat = self._beat(neighbour)
                if beat != heard:
                    heard, at = beat, time.monotonic()
                silent = time.monotonic() - at > SILENT
                if beat != BYE and (silent or (here and _ended(int(pid)))):
                    if self._beat(neighbour) == BYE:
                        continue
                    what = f"gives no sign of life for {SILENT:.0f} s" if silent else "is gone"
                    self._claim(
                        f"rank {neighbour} (process {pid} on {host}) {what}: killed, or out of "
                        f"memory; start again with --resume auto"
                    )
                elif self._longest()[0] > self.stuck:
                    beats_of_all = enumerate(map(self._beat, range(self.size)))
                    states = [f"rank {r} {told.partition(' ')[2]}" for r, told in beats_of_all]
                    self._claim(f"nothing moved for {self.stuck:.0f} s: {', '.join(states)}")
        except RuntimeError:  # the store is gone, and with it torchrun or the rank that holds it
            self._leave(Verdict(1, 1, NO_STORE))

    def _longest(self) -> tuple[float, str]:
        """For how many seconds this rank waits, and in what; 0 where it doesn't."""
        since, call = min(self._calls.copy().values(), default=(time.monotonic(), ""))
        return time.monotonic() - since, call

    def _state(self) -> str:
        seconds, call = self._longest()
        return f"waits in {call} for {seconds:.0f} s" if call else "computes or reads"

    def _beat(self, rank: int) -> str:
        key = f"beat/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _claim(self, line: str, code: int = 1) -> Verdict:
        """The verdict, which is this one where there was none."""
        mine = json.dumps((self.rank, code, line))
        self._known = Verdict(*json.loads(self.store.compare_set("verdict", "", mine)))
        return self._known

    def _verdict(self) -> Verdict | None:
        if self._known is None and self.store.check(["verdict"]):
            self._known = Verdict(*json.loads(self.store.get("verdict")))
        return self._known

    def _leave(self, verdict: Verdict) -> None:
        """Ends this process where its main thread does not end by itself."""
        if self._over.wait(GRACE):
            return
        end = time.monotonic() + WRITING
        while BUSY.is_set() and time.monotonic() < end:
            time.sleep(POLL)
        if verdict.owner == self.rank:
            os.write(2, f"error: {verdict.line}\n".encode())
        os._exit(verdict.code)


def _machine() -> str:
    """What tells where a process's number means the same: machines, and containers, may share a
    name."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(str(Path("/proc/self/ns/pid").readlink()))
    return "|".join(found).replace(" ", "_")


def _ended(pid: int) -> bool:
    """Whether a process of this machine is over, though perhaps nobody has asked for its code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return Path("/proc/self/stat").exists()  # there is no /proc elsewhere
    except OSError:
        return False
