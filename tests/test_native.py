"""C++ that the machine compiles: kept, told apart by what it was made of, and explained."""

import weakref
from pathlib import Path

import pytest
import torch
from helpers import needs_compiler

from fluxsmith import native
from fluxsmith.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('#include "plus.h"\nextern "C" int answer() { return ANSWER + PLUS; }\n')
    (tmp_path / "plus.h").write_text("#define PLUS 0\n")
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("FLUXSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@needs_compiler
def test_a_library_is_made_once_for_each_source_and_macro(source: Path, folder: Path) -> None:
    assert native.load(source, ANSWER=6).answer() == 6
    assert native.load(source, ANSWER=7).answer() == 7
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(first) == 2
    assert native.load(source, ANSWER=6).answer() == 6
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    source.with_name("plus.h").write_text("#define PLUS 1\n")
    assert native.load(source, ANSWER=6).answer() == 7


@needs_compiler
def test_a_failure_is_told_in_a_line_and_leaves_nothing(source: Path, folder: Path) -> None:
    source.write_text("no C++\n")
    with pytest.raises(UserError, match=r"g\+\+ failed: .*answer\.cpp:1") as failure:
        native.load(source)
    assert "\n" not in str(failure.value)
    assert not list(folder.iterdir())


@needs_compiler
@pytest.mark.skipif(not native.openmp(), reason="torch's OpenMP has a name of its own")
def test_its_threads_are_torchs(source: Path) -> None:
    """Two libraries of threads in a process fight over the cores."""
    there = native.openmp()
    source.write_text(
        "#include <omp.h>\n"
        'extern "C" int answer() {\n'
        "    int sum = 0;\n"
        "#pragma omp parallel for reduction(+ : sum) num_threads(2)\n"
        "    for (int n = 0; n < 4; n++) sum += n;\n"
        "    return sum;\n"
        "}\n"
    )
    assert native.load(source).answer() == 6
    assert native.openmp() == there
    assert there[0].startswith(str(Path(torch.__file__).parent))


@needs_compiler
@pytest.mark.skipif(not native.openmp(), reason="torch's OpenMP has a name of its own")
def test_threads_that_are_not_torchs_are_refused(source: Path, folder: Path) -> None:
    source.write_text(  # as Clang's code calls its own
        'extern "C" void __kmpc_of_another();\nextern "C" void answer() { __kmpc_of_another(); }\n'
    )
    with pytest.raises(
        UserError, match=r"not those of torch, .*omp.*; set CXX to g\+\+"
    ) as failure:
        native.load(source)
    assert "\n" not in str(failure.value)
    assert not list(folder.iterdir())


def test_what_is_said_of_a_failure_holds_nothing(source: Path) -> None:
    class Held:
        pass

    def call() -> "weakref.ref[Held]":
        held = Held()
        source.write_text("no C++\n")
        assert isinstance(native.library(source), str)
        return weakref.ref(held)

    assert call()() is None


@needs_compiler
@pytest.mark.parametrize("kept", [0, 1000, 9000])
def test_a_part_of_a_library_is_made_anew(source: Path, folder: Path, kept: int) -> None:
    native.load(source, ANSWER=6)
    (library,) = folder.iterdir()
    whole = library.read_bytes()
    assert len(whole) > kept
    library.unlink()  # what is loaded stays mapped
    library.write_bytes(whole[:kept])
    assert native.load(source, ANSWER=6).answer() == 6
    assert library.read_bytes() == whole


@needs_compiler
def test_a_compiler_may_have_options(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++ -DANSWER=3")
    assert native.load(source).answer() == 3


@pytest.mark.parametrize(
    ("compiler", "says"),
    [("/no/such", "can't run /no/such: No such file"), ('g++ "oops', "No closing quotation")],
)
def test_no_compiler_is_a_reason(
    compiler: str, says: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(UserError, match=says):
        native.load(source)


def test_no_source_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't compile none\.cpp"):
        native.load(tmp_path / "none.cpp")


@needs_compiler
def test_what_others_may_have_put_there_is_not_run(source: Path, folder: Path) -> None:
    native.load(source, ANSWER=6)
    folder.chmod(0o777)
    with pytest.raises(UserError, match="others may write"):
        native.load(source, ANSWER=6)
