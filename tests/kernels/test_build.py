"""C++ that the machine compiles: kept, told apart by what it was made of, and explained."""

import platform
from pathlib import Path

import pytest
import torch
from helpers import needs_compiler

from fluxsmith.errors import UserError
from fluxsmith.kernels.cpu import build, features
from fluxsmith.kernels.cpu.features import vectors


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
    assert build.load(source, vectors(), ANSWER=6).answer() == 6
    assert build.load(source, vectors(), ANSWER=7).answer() == 7
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(first) == 2
    assert build.load(source, vectors(), ANSWER=6).answer() == 6
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    source.with_name("plus.h").write_text("#define PLUS 1\n")
    assert build.load(source, vectors(), ANSWER=6).answer() == 7


@needs_compiler
def test_a_failure_is_told_in_a_line_and_leaves_nothing(source: Path, folder: Path) -> None:
    source.write_text("no C++\n")
    with pytest.raises(UserError, match=r"answer\.cpp with CXX=g\+\+: .*answer\.cpp:1") as failure:
        build.load(source, vectors())
    assert "\n" not in str(failure.value)
    assert not list(folder.iterdir())


@needs_compiler
@pytest.mark.skipif(not build.openmp(), reason="torch's OpenMP has a name of its own")
def test_its_threads_are_torchs(source: Path) -> None:
    """Two libraries of threads in a process fight over the cores."""
    there = build.openmp()
    source.write_text(
        "#include <omp.h>\n"
        'extern "C" int answer() {\n'
        "    int sum = 0;\n"
        "#pragma omp parallel for reduction(+ : sum) num_threads(2)\n"
        "    for (int n = 0; n < 4; n++) sum += n;\n"
        "    return sum;\n"
        "}\n"
    )
    assert build.load(source, vectors()).answer() == 6
    assert build.openmp() == there
    assert there[0].startswith(str(Path(torch.__file__).resolve().parent))


@needs_compiler
def test_a_broken_library_is_made_anew(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load(source, vectors(), ANSWER=6)
    (library,) = folder.iterdir()
    broken = folder.parent / "other" / "native" / library.name
    broken.parent.mkdir(parents=True)
    broken.touch()
    monkeypatch.setenv("FLUXSMITH_CACHE", str(folder.parent / "other"))
    assert build.load(source, vectors(), ANSWER=6).answer() == 6
    assert broken.read_bytes() == library.read_bytes()


@pytest.mark.parametrize(
    ("compiler", "says"),
    [("/no/such", "CXX=/no/such: .*No such file"), ('g++ "oops', "No closing quotation")],
)
def test_no_compiler_is_a_reason(
    compiler: str, says: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(UserError, match=says):
        build.load(source, vectors())


def test_the_name_of_the_processor_is_its_model_or_the_kind_of_machine(tmp_path: Path) -> None:
    said, silent = tmp_path / "cpuinfo", tmp_path / "other"
    said.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC: 9\n")
    silent.write_text("processor\t: 0\nmodel\t\t: 2\nmodel name\t:\n")
    assert features.name(said) == "AMD EPYC: 9"
    assert features.name(silent) == features.name(tmp_path / "none") == platform.machine()
