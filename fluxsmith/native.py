"""C++ of our own: compiled by the machine's compiler where it is first needed, kept, and loaded."""

import ctypes
import functools
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from fluxsmith import processor
from fluxsmith.errors import UserError
from fluxsmith.files import cache_folder

# Not that numbers are finite: those which are not must be found.
OPTIONS = (
    "-std=c++17", "-O3", "-march=native", "-fno-fast-math", "-ffp-contract=fast",
    "-fno-math-errno", "-fopenmp", "-fPIC", "-Wno-psabi",
)  # fmt: skip

# GCC's, Clang's and Intel's, with what wheels add to their names.
OPENMP = re.compile(r"lib(gomp|omp|iomp)\d*[-.].*so")


@functools.cache
def library(source: Path, **macros: int) -> ctypes.CDLL | str:
    """What `load` gives for a file of ours, all of which want AVX-512, or why there is none.

    In words, since an error that is kept keeps all that the stack held where it was raised.
    """
    try:
        processor.require_avx512()
        return load(source, **macros)
    except UserError as error:
        return str(error)


def load(source: Path, **macros: int) -> ctypes.CDLL:
    """The library that a file of C++ makes with these macros, made by $CXX or g++ the first time.

    A library is known by its source with the headers beside it, the compiler, torch's threads, and
    the processor that it was made for, since folders travel between machines. Raises a UserError
    that says why there is none.
    """
    try:
        compiler = shlex.split(os.environ.get("CXX") or "g++")
        threads = openmp()
        command = [*compiler, *OPTIONS, *(f"-D{name}={value}" for name, value in macros.items())]
        files = (source, *sorted(source.parent.glob("*.h")))
        made_of = [*(file.read_text(encoding="utf-8") for file in files), *command, *threads]
        made_by = _run([*compiler, "--version"])
        made_for = processor.instructions()
        key = hashlib.sha256("\0".join([*made_of, made_by, made_for]).encode()).hexdigest()
        name = f"{source.stem}-{key[:16]}"
        folder = _own_folder()
        for library in folder.glob(f"{name}-*.so"):
            if library.name == _named(name, library):  # whole: a part of one kills the process
                with suppress(OSError):
                    return ctypes.CDLL(str(library))
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside, name)
            _run([*command, "-c", str(source), "-o", f"{made}.o"])
            _link(compiler, made, threads)
            made.replace(library := folder / _named(name, made))
        return ctypes.CDLL(str(library))
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"can't compile {source.name}: {error}") from None


def openmp() -> list[str]:
    """The libraries of OpenMP in this process, torch's first. Another one beside it has threads of
    its own, which wait for work busily, on cores where torch's threads compute: twice as slow."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []
    paths = {Path("/" + line.partition("/")[2]) for line in lines if "/" in line}
    found = sorted(str(path) for path in paths if OPENMP.match(path.name))
    own = str(Path(torch.__file__).parent)
    return sorted(found, key=lambda path: not path.startswith(own))


def _link(compiler: list[str], made: Path, threads: list[str]) -> None:
    """Makes the library of an object file, whole on the disk, with the first of these threads that
    can do what it calls for; with the compiler's where there are none."""
    given = ["-Wl,--as-needed", *threads] if threads else ["-fopenmp"]
    try:
        _run([*compiler, "-shared", "-Wl,--no-undefined", f"{made}.o", *given, "-o", str(made)])
    except UserError as error:
        if not threads:
            raise
        raise UserError(
            f"{compiler[0]}'s threads are not those of torch, {Path(threads[0]).name}; set CXX to "
            f"g++ ({error})"
        ) from None
    with made.open("rb") as library:
        os.fsync(library.fileno())


def _named(name: str, library: Path) -> str:
    """What a library is called, with its size, so that a part of one is known."""
    return f"{name}-{library.stat().st_size}.so"


def _own_folder() -> Path:
    """Where libraries are kept. Nobody else may write there, since what lies there is run."""
    folder = cache_folder() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise UserError(f"others may write to {folder}; delete it or set FLUXSMITH_CACHE")
    return folder


def _run(command: list[str]) -> str:
    """What the command prints. Raises a UserError with its first line where it fails."""
    try:
        return subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ).stdout
    except OSError as error:
        raise UserError(f"can't run {command[0]}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        said = error.stdout.strip().partition("\n")[0]
        raise UserError(f"{command[0]} failed: {said or error.returncode}") from None
