"""A file imports only from lower layers or its own package: the layers of DESIGN.md, held."""

import ast
import re
import subprocess
import sys
from pathlib import Path, PurePath

import pytest

PACKAGE = Path(__file__).parents[1] / "fluxsmith"

# A unit is a module or a package directly below fluxsmith/.
LAYERS = {
    "errors": -3,
    "version": -3,
    "files": -2,
    "threads": -2,
    "allocator": -2,
    "digest": -2,
    "nesting": -2,
    "processor": -2,
    "native": -1,
    "tensorfile": -1,
    "randomness": -1,
    "device": -1,
    "optional": -1,
    "flow": 0,
    "model": 0,
    "autoencoder": 0,
    "text": 0,
    "data": 0,
    "render": 0,
    "compiling": 1,
    "graphs": 1,
    "config": 1,
    "checkpoint": 1,
    "pipeline": 2,
    "interop": 3,
    "training": 4,
    "evaluation": 4,
    "drawing": 4,
    "starting": 4,
    "survey": 4,
    "benchmark": 5,
    "distillation": 5,
    "studies": 6,
    "cli": 7,
    "web": 7,
    "__main__": 8,  # calls cli and is called by nobody
}


def imported(source: str, file: PurePath) -> set[str]:
    """The dotted name of everything a file imports, wherever in it; `file` is below fluxsmith/.

    A string that spells one of our modules counts too, as `import_module` would take it.
    """
    here = ["fluxsmith", *file.parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"\Afluxsmith(?:\.\w+)+\Z", node.value))
    return names


def unit(dotted: str) -> str:
    """The unit that a dotted name of ours lies in; the package root itself is none."""
    return dotted.partition(".")[2].partition(".")[0]


def violations(source: str, file: str) -> list[str]:
    """What is wrong with the imports of a file, given by its path below fluxsmith/."""
    path = PurePath(file)
    own = path.parts[0].removesuffix(".py")
    if own not in LAYERS:
        return [f"{file}: {own} is in no layer; add it to DESIGN.md and to this test"]
    wrong = []
    for name in sorted(imported(source, path)):
        if name.split(".")[0] != "fluxsmith":
            standard = name.split(".")[0] in sys.stdlib_module_names
            if own == "flow" and not standard and name.split(".")[0] != "torch":
                wrong.append(f"{file}: {name}: flow/ takes torch and the standard library only")
            continue
        other = unit(name)
        if other == own:
            continue
        if other not in LAYERS:
            wrong.append(f"{file}: {name}: not a unit of any layer")
        elif LAYERS[other] >= LAYERS[own] or own == "flow":
            wrong.append(f"{file}: {name}: layer {LAYERS[own]} can't import layer {LAYERS[other]}")
    return wrong


def test_every_file_imports_from_lower_layers_only():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    wrong = []
    for file in files:
        if file != PACKAGE / "__init__.py":  # the public surface, which loads lazily
            below = file.relative_to(PACKAGE).as_posix()
            wrong += violations(file.read_text(encoding="utf-8"), below)
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("flow/path.py", "from fluxsmith.model import flux"),
        ("flow/path.py", "import fluxsmith.pipeline"),
        ("flow/path.py", "from fluxsmith.errors import UserError"),
        ("flow/path.py", "import numpy as np"),
        ("flow/path.py", "from einops import rearrange"),
        ("data/loader.py", "from fluxsmith import render"),
        ("data/loader.py", "from ..text.encoder import TextEmbedding"),
        ("data/loader.py", "from .. import render"),
        ("data/loader.py", "import_module('fluxsmith.training.run')"),
        ("config/sections.py", "from fluxsmith.checkpoint import load"),
        ("render.py", "def late():\n    from fluxsmith.pipeline import Pipeline"),
        ("model/flux.py", "if TYPE_CHECKING:\n    from fluxsmith.config import RunConfig"),
        ("text/encoder.py", "try:\n    import fluxsmith.data as data\nexcept ImportError: pass"),
        ("training/run.py", "from fluxsmith.evaluation import Settings"),
        ("device.py", "from fluxsmith.randomness import generator"),
        ("errors.py", "from fluxsmith.device import pick_device"),
        ("pipeline.py", "from fluxsmith import *"),
        ("pipeline.py", "from fluxsmith import Flux"),
        ("pipeline.py", "import fluxsmith"),
        ("cli/entry.py", "from fluxsmith.__main__ import main"),
        ("extras.py", ""),
        ("extras/new.py", "import torch"),
    ],
)
def test_a_violation_is_caught(file, source):
    assert len(violations(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("flow/path.py", "import math\nimport torch.nn.functional as F\nfrom torch import Tensor"),
        ("flow/solvers.py", "from fluxsmith.flow.path import Velocity\nfrom . import schedule"),
        ("data/mnist.py", "import numpy\nfrom fluxsmith.errors import UserError"),
        ("data/mnist.py", "from .images import Split\nfrom ..randomness import generator"),
        ("device.py", "from fluxsmith.errors import UserError"),
        ("pipeline.py", "from fluxsmith import checkpoint as checkpoints"),
        ("training/run.py", '"""Not fluxsmith.web, only a mention of it."""'),
        ("__main__.py", "from fluxsmith.cli import main"),
    ],
)
def test_an_import_from_below_is_accepted(file, source):
    assert violations(source, file) == []


def test_importing_the_package_or_the_command_line_loads_nothing_heavy():
    code = "import sys, fluxsmith, fluxsmith.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = set(done.stdout.split())
    assert {"fluxsmith", "fluxsmith.cli"} <= loaded
    assert loaded.isdisjoint({"torch", "matplotlib", "pydantic", "numpy", "PIL", "yaml"})
