"""The page on reliability says which test holds each line; those tests are there."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"


def test_every_fault_names_tests_that_exist():
    there = {
        name
        for file in [
            *HERE.glob("test_*.py"),
            HERE.parent / "data" / "test_webdataset.py",
            *(HERE.parent / "parallel").glob("test_*.py"),
            HERE.parent / "training" / "test_training_on_sources.py",
        ]
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    table = PAGE.read_text(encoding="utf-8").partition("## Faults")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+?)_?(…?)`", row.split("|")[-2])
        assert named, row
        for name, cut in named:
            assert any(t == name or (cut and t.startswith(name)) for t in there), name
