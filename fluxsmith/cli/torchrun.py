"""A process among the ranks that torchrun started: how it meets the others, and how all of them
end, with one voice."""

import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fluxsmith.cli.rank_watch import SILENT, Watch
from fluxsmith.errors import UserError
from fluxsmith.parallel.ranks import LaunchedRanks, Ranks

STARTING = timedelta(minutes=5)  # in which all ranks have to come
# What a collective says where a peer has gone; the watch then says which.
LOST = re.compile(r"peer|connection|broken pipe|socket|nccl|timed out", re.IGNORECASE)
LOST_WITHIN, OWN_WITHIN = 27.0, 3.0  # seconds in which somebody tells of another's end, or of ours


@contextmanager
def joined() -> Iterator[Ranks]:
    """Inside, this process belongs to its ranks: those of torchrun, or itself alone. Where one of
    several fails, all end, and one line says why: a UserError on the rank that is to print it, a
    SystemExit on the others."""
    size = _environment("WORLD_SIZE", 1)
    if size == 1:
        yield Ranks()
        return
    rank = _environment("RANK")
    try:
        stuck = max(1, _environment("FLUXSMITH_STUCK_SECONDS", 1800))
        watch = _connect(rank, size, stuck)
    except UserError:
        if rank:
            raise SystemExit(2) from None
        raise
    if rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # one voice; errors go where errors go
        logging.getLogger("fluxsmith").setLevel(logging.ERROR)
    try:
        yield LaunchedRanks(rank, size, watch, timedelta(seconds=2 * stuck))
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which would cut the line off
        mistake = isinstance(error, UserError) or hasattr(error, "format_message")  # typer's
        lost = not mistake and LOST.search(str(error))
        within = LOST_WITHIN if lost else OWN_WITHIN * (rank > 0 or not mistake)
        line = str(error) if mistake else f"rank {rank} failed: {type(error).__name__}: {error}"
        if watch.speaks(line, 2 if mistake else 1, within):
            if watch.of_another is not None:
                os.write(2, f"error: {watch.of_another}\n".encode())
            elif rank and isinstance(error, UserError):
                raise UserError(*(f"rank {rank}: {one}" for one in error.args)) from None
            else:
                raise
        raise SystemExit(watch.code) from None
    except SystemExit as stop:  # a second signal
        watch.speaks(f"rank {rank} was stopped at once", int(stop.code or 0), 0)
        raise
    finally:
        watch.over()
    dist.destroy_process_group()


def _connect(rank: int, size: int, stuck: int) -> Watch:
    """Meets the other ranks, within STARTING."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(
                f"{name} is not set, and WORLD_SIZE={size} says that there are other ranks; start "
                f"them with torchrun, which sets both"
            )
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        # A connection of its own for the watch: on one, a call that waits holds up all others.
        mine, theirs = (next(rendezvous("env://", timeout=STARTING))[0] for _ in range(2))
        mine.set(f"here/{rank}", "")
        mine.wait([f"here/{other}" for other in range(size)], STARTING)
        mine.set_timeout(timedelta(seconds=SILENT))  # where its machine is gone
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        waiting = timedelta(seconds=stuck)  # of a collective on devices, where NCCL is the watch
        dist.init_process_group(backend, store=theirs, rank=rank, world_size=size, timeout=waiting)
    except (dist.DistError, RuntimeError, ValueError) as error:
        used = re.search(r"EADDRINUSE|address already in use", str(error), re.IGNORECASE)
        why = f"the ranks did not meet there within {STARTING.seconds} s; start all {size} of them"
        if used:
            why = "the port is in use; choose another with --master-port"
        raise UserError(f"MASTER_ADDR:MASTER_PORT={where}: {why}") from None
    watch = Watch(mine, rank, size, stuck)
    watch.start()
    return watch


def _environment(name: str, default: int | None = None) -> int:
    value = os.environ.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        fix = "leave it out" if name in os.environ and default else "start ranks with torchrun"
        raise UserError(f"{name}={value or 'not set'}: must be a whole number; {fix}")
    return int(value)
