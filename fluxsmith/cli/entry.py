"""How a command starts and ends: what is a user's mistake, which exit code, which message."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import typer

from fluxsmith.cli.commands import app
from fluxsmith.cli.options import RANKS, TYPED
from fluxsmith.errors import UserError
from fluxsmith.kernels.threads import fit_threads


def main(arguments: list[str] | None = None) -> None:
    """The entry point: a user's mistake is a line and exit code 2, Ctrl-C is 130."""
    fit_threads()
    TYPED.set(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what it can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _ranks():
            code = app(arguments, standalone_mode=False)
        sys.exit(code)
    except UserError as error:
        _fail(*map(str, error.args))
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            _fail(f"{error.filename}: {error.strerror}; check its permissions")
        if error.errno != errno.ENAMETOOLONG:
            raise
        _fail(f"{str(error.filename)[:40]}...: no file can have so long a name; check the path")
    except typer.Abort:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        # Typer brings click along in some versions and depends on it in others, so its usage
        # errors are told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message():
            _fail(f"{message} (see --help)")
        sys.exit(2)


@contextlib.contextmanager
def _ranks() -> Iterator[None]:
    """Inside, RANKS are those that this process was started with by torchrun, if it was."""
    command, *_ = [*TYPED.get(), ""]
    if os.environ.get("WORLD_SIZE", "1") == "1" or command == "encode":  # whose ranks never meet
        yield
        return
    from fluxsmith.cli.torchrun import joined

    if command not in ("train", "distill", "sample", "evaluate"):
        if os.environ.get("RANK", "0") != "0":
            sys.exit(2)
        raise UserError(f"{command or '--help'}: runs in one process; start it without torchrun")
    with joined() as ranks:
        RANKS.set(ranks)
        yield


def _fail(*messages: str) -> NoReturn:
    """Prints a line each; what a terminal would act upon is shown as an escape."""
    for message in messages:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        typer.echo(f"error: {line}", err=True)
    sys.exit(2)
