"""The book, docs/lesson: its code runs and prints what stands beneath it, its parts are all there,
and its figures are made by its script."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fluxsmith.studies.declaration import read_study

ROOT = Path(__file__).parents[1]
LESSON = ROOT / "docs" / "lesson"
CHAPTERS = sorted(LESSON.glob("[0-9]*.md"), key=lambda path: int(path.name.partition("-")[0]))
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def blocks(chapter, *languages):
    """(language, text) of its fenced blocks of these languages, in order."""
    found = re.findall(
        r"^```(\w+)\n(.*?)^```$", chapter.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [block for block in found if block[0] in languages]


@pytest.fixture
def beside_the_book(monkeypatch):
    """As a reader has it, who may import the book's modules."""
    monkeypatch.syspath_prepend(str(LESSON))
    with torch.random.fork_rng():
        yield


@every_chapter
def test_code_prints_what_stands_beneath_it(chapter, beside_the_book):
    names, printed = {"__name__": "book"}, None
    for language, text in blocks(chapter, "python", "text"):
        if language == "text":
            assert printed == text
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, str(chapter), "exec"), names)
        printed = out.getvalue()
    assert printed is not None


PARTS = (
    r"\n\$\$\n",  # an equation
    r"\n\[(fluxsmith|gaussians)\.[\w.]+\]\(",  # code that is included
    r"\n!\[.+\]\(images/\w+\.png\)",
    r"\n## Exercise\n",
    r"\n<summary>Answer</summary>\n",
)


@every_chapter
def test_a_chapter_has_all_its_parts(chapter):
    text = chapter.read_text("utf-8")
    for part in PARTS:
        assert re.search(part, text), part


def test_every_figure_has_a_maker_and_is_small(beside_the_book):
    from figures import FIGURES

    shown = {
        name for c in CHAPTERS for name in re.findall(r"images/(\w+)\.png", c.read_text("utf-8"))
    }
    assert shown == FIGURES.keys()
    for name in shown:
        assert (LESSON / "images" / f"{name}.png").stat().st_size < 100_000


def test_the_study_can_be_declared(tmp_path):
    ((_, text),) = blocks(LESSON / "10-worth.md", "yaml")
    file = tmp_path / "study.yaml"
    file.write_text(text, "utf-8")
    assert list(read_study(file).arms) == ["mixed", "dual", "single"]


SHORTER = {
    "train": "train.steps=3 train.batch_size=4 train.checkpoint_every=1",
    "distill": "train.steps=2 objective.trajectories=64",
}


@pytest.mark.slow
def test_commands_run_and_every_figure_is_drawn(tmp_path):
    """From a folder of its own, with fewer pictures a step."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def run(*arguments):
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)

    for chapter in CHAPTERS:
        for _, text in blocks(chapter, "bash"):
            for line in text.splitlines():
                program, command, *rest = shlex.split(line)
                assert program == "fluxsmith"
                run("-m", program, command, *rest, *SHORTER.get(command, "").split())
    run(str(LESSON / "figures.py"), "--out", str(tmp_path))
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in (LESSON / "images").glob("*.png")}
