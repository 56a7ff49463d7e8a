"""Compiles our C++ by the machine's compiler when it is first needed, keeps it, and loads it."""

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
from torch import Tensor

from fluxsmith.device import cache_folder
from fluxsmith.errors import UserError
from fluxsmith.kernels.cpu import features

# Numbers that are not finite must stay so: no -ffast-math.
OPTIONS = (
    "-std=c++17", "-O3", "-march=native", "-fno-fast-math", "-ffp-contract=fast",
    "-fno-math-errno", "-fopenmp", "-fPIC", "-Wno-psabi",
)  # fmt: skip

# Without AVX-512 even where the processor has it.
FOR_VECTORS = {"avx512": (), "avx2": ("-mno-avx512f",)}

# GCC's, Clang's and Intel's, with what wheels add to their names.
OPENMP = re.compile(r"lib(gomp|omp|iomp)\d*[-.].*so")


def library(source: Path, **macros: int) -> ctypes.CDLL | str:
    """What `load` returns for a file and this processor, or why there is none."""
    if not (vectors := features.vectors()):
        return "the processor has neither AVX2 nor AVX-512"
    return _once(source, vectors, **macros)


@functools.cache
def _once(source: Path, vectors: str, **macros: int) -> ctypes.CDLL | str:
    # A reason in words: an error that is kept would keep alive all that its stack held.
    try:
        return load(source, vectors, **macros)
    except UserError as error:
        return str(error)


def load(source: Path, vectors: str, **macros: int) -> ctypes.CDLL:
    """The library that $CXX or g++ makes of a file, compiled when it is first asked for.

    It is found again by its source with the headers beside it, the macros and vectors, the
    compiler, torch's OpenMP, and the processor, since a home folder may be shared by several
    machines. Raises a UserError that says why there is none.
    """
    named = os.environ.get("CXX") or "g++"
    try:
        compiler, threads = shlex.split(named), openmp()
        macros = {"WIDTH": features.WIDTHS[vectors], **macros}
        command = [*compiler, *OPTIONS, *FOR_VECTORS[vectors]]
        command += [f"-D{name}={value}" for name, value in macros.items()]
        files = (source, *sorted(source.parent.glob("*.h")))
        made_of = [*(file.read_text(encoding="utf-8") for file in files), *command, *threads]
        made_by = _run([*compiler, "--version"])
        key = hashlib.sha256("\0".join([*made_of, made_by, features.kind()]).encode()).hexdigest()
        folder = cache_folder() / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        library = folder / f"{source.stem}-{key[:16]}.so"
        with suppress(OSError):  # there is none yet, or it is broken
            return ctypes.CDLL(str(library))
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside, "made")
            _run([*command, "-c", str(source), "-o", f"{made}.o"])
            # Linked with torch's threads alone: -fopenmp here would add the compiler's.
            shared = ["-shared", "-Wl,--no-undefined", "-Wl,--as-needed"]
            _run([*compiler, *shared, f"{made}.o", *(threads or ["-fopenmp"]), "-o", str(made)])
            made.replace(library)
        return ctypes.CDLL(str(library))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "output", "") or error).strip().partition("\n")[0]
        raise UserError(f"can't compile {source.name} with CXX={named}: {said}") from None


def openmp() -> list[str]:
    """The OpenMP libraries in this process, torch's first. Ours must use torch's: the idle threads
    of a second one spin on the cores where torch's compute, which takes twice as long."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []
    paths = {Path("/" + line.partition("/")[2]) for line in lines if "/" in line}
    found = sorted(str(path) for path in paths if OPENMP.match(path.name))
    own = str(Path(torch.__file__).resolve().parent)
    return sorted(found, key=lambda path: not path.startswith(own))


def _run(command: list[str]) -> str:
    """What the command prints."""
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout


def words(*values: int | Tensor | None) -> ctypes.Array[ctypes.c_int64]:
    """A struct of the C++ with whole numbers, pointers to tensors and null."""
    numbers = (x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in values)
    return (ctypes.c_int64 * len(values))(*numbers)
