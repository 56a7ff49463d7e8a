"""A side at work in a process of its own, so that sides that take turns share no memory allocator,
no caches of compiled code and no settings.

    python -m fluxsmith.benchmark.worker SIDE CONFIG [KEY=VALUE ...]
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError

PATIENCE = 5  # seconds that a process has to end


class Worker:
    """A side in another process; each call returns when the work is done."""

    def __init__(self, side: str, config: str, overrides: list[str]) -> None:
        self.name = side
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fluxsmith.benchmark.worker", side, config, *overrides],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was never read by a process that is gone
                pipe.close()

    def train_step(self) -> None:
        self._call("train_step")

    def sample(self, prompts: list[str], steps: int, guidance: float) -> None:
        self._call("sample", prompts, steps, guidance)

    def _call(self, name: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        """Waits for the worker's line; a UserError where it met one."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the benchmark's process for {self.name} ended; see above")
        if message := json.loads(line):
            raise UserError(message)


def main(side: str, config_file: str, *overrides: str) -> None:
    """Builds the side, then does what each line of standard input says; answers a line each."""
    # What libraries print, in Python or below it, goes to standard error: the answers stay whole.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from fluxsmith.benchmark.sides import build
    from fluxsmith.benchmark.timing import synchronise
    from fluxsmith.config import read_config
    from fluxsmith.device import pick_device

    def answer(message: str = "") -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        config = read_config(Path(config_file), list(overrides))
        device = pick_device(config.device)
        one = build(side, config, device)
        answer()
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            getattr(one, name)(*arguments)
            synchronise(device)
            answer()
    except UserError as error:
        answer(str(error))
    except KeyboardInterrupt:  # the terminal tells every process, and one says so
        sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
