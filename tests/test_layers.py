"""The layers of CONTRIBUTING.md: who may import whom, no circles, and where files may lie."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePath

import pytest

PACKAGE = Path(__file__).parents[1] / "fluxsmith"
BASE = -1  # small modules, which may import each other; no two units of another layer do
LAYERS: dict[int, str] = {
    BASE: "errors device randomness optional version",
    0: "storage flow model autoencoder text data parallel",
    1: "kernels config",
    2: "pipeline",
    3: "sampling adapters",
    4: "interop",
    5: "training evaluation",
    6: "distillation planning",
    7: "studies web",
    8: "cli",
    9: "__main__",
}
LAYER = {unit: layer for layer, units in LAYERS.items() for unit in units.split()}
TORCH_ALONE = ("flow", "model")  # they import torch and the standard library, and nothing of ours
MOST_LOOSE = 8  # files directly in the package

# Registries name modules by strings, which are imported when an entry is chosen (as entry points
# do), so an entry may lie in a higher layer than its registry. Everywhere else, a string that
# spells one of our modules counts as an import of it.
REGISTRIES = {
    ("config/objective_section.py", "OBJECTIVES"),
    ("config/adapter_section.py", "ADAPTERS"),
}  # (file, name of the variable)


def in_registry(tree: ast.Module, file: PurePath) -> set[ast.AST]:
    """The nodes of the values of the registries that this file may hold."""
    named = {name for where, name in REGISTRIES if where == file.as_posix()}
    found: set[ast.AST] = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id in named for target in targets):
            found |= set(ast.walk(node))
    return found


def imports(source: str, file: PurePath) -> Iterator[str]:
    """The dotted name of all that a file imports, wherever in it; `file` is below fluxsmith/."""
    here = ["fluxsmith", *file.parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def spelled(source: str, file: PurePath) -> Iterator[str]:
    """The strings outside registries that spell a module of ours, as `import_module` takes it."""
    tree = ast.parse(source)
    allowed = in_registry(tree, file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in allowed:
            yield from re.findall(r"\A(fluxsmith(?:\.\w+)+)(?::\w+)?\Z", node.value)


def violations(source: str, file: str) -> list[str]:
    """What is wrong with the imports of a file, given by its path below fluxsmith/."""
    path = PurePath(file)
    own = path.parts[0].removesuffix(".py")
    if own not in LAYER:
        return [f"{file}: {own} is in no layer; add it to CONTRIBUTING.md and to this test"]
    wrong = []
    for name in sorted({*imports(source, path), *spelled(source, path)}):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top != "fluxsmith":
            if own in TORCH_ALONE and top != "torch" and top not in sys.stdlib_module_names:
                wrong.append(f"{file}: {name}: {own}/ takes torch and the standard library only")
        elif other == own:
            continue
        elif other not in LAYER:
            wrong.append(f"{file}: {name}: not a unit of any layer")
        elif own in TORCH_ALONE:
            wrong.append(f"{file}: {name}: {own}/ imports nothing else of ours")
        elif LAYER[other] > LAYER[own] or LAYER[other] == LAYER[own] != BASE:
            wrong.append(f"{file}: {name}: layer {LAYER[own]} can't import layer {LAYER[other]}")
    return wrong


def circle(sources: dict[str, str]) -> list[str]:
    """Files, by their path below fluxsmith/, that import each other in a circle, if any do."""
    modules = {_dotted(file): file for file in sources}
    graph: dict[str, set[str]] = {}
    for file, source in sources.items():
        names = imports(source, PurePath(file))
        found = {modules.get(name) or modules.get(name.rpartition(".")[0]) for name in names}
        graph[file] = {other for other in found if other and other != file}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def _dotted(file: str) -> str:
    parts = PurePath(file).with_suffix("").parts
    return ".".join(["fluxsmith", *parts]).removesuffix(".__init__")


def misplaced(files: list[str]) -> list[str]:
    """Files whose name is taken already, and loose files beyond those allowed."""
    paths = [PurePath(file) for file in files]
    counted = Counter(path.name for path in paths if path.name != "__init__.py")
    loose = [path.name for path in paths if len(path.parts) == 1]
    twice = [f"{name} occurs {n} times" for name, n in counted.items() if n > 1]
    return twice + ([f"{len(loose)} loose files: {sorted(loose)}"] * (len(loose) > MOST_LOOSE))


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every file of the package."""
    files = {
        file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(files) > 60
    return files


def test_every_file_imports_from_lower_layers_only(sources):
    # the package's own __init__ is the public surface, which loads on first use
    below = {file: source for file, source in sources.items() if file != "__init__.py"}
    assert [line for file, source in below.items() for line in violations(source, file)] == []


def test_no_two_files_import_each_other(sources):
    assert circle(sources) == []


def test_files_are_few_at_the_top_and_their_names_differ(sources):
    assert misplaced(list(sources)) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("flow/path.py", "from fluxsmith.errors import UserError"),
        ("flow/path.py", "import numpy as np"),
        ("model/flux.py", "if TYPE_CHECKING:\n    from fluxsmith.config import RunConfig"),
        ("data/loader.py", "from ..text.encoder import TextEmbedding"),
        ("data/loader.py", "from .. import sampling"),
        ("data/loader.py", "import_module('fluxsmith.training.run')"),
        ("data/loader.py", "ENTRIES = {'run': 'fluxsmith.training.run:train'}"),
        ("config/model.py", "def late():\n    from fluxsmith.pipeline import Pipeline"),
        ("config/model.py", "from fluxsmith.kernels.threads import threads"),
        ("errors.py", "from fluxsmith.storage import files"),
        ("pipeline.py", "import fluxsmith"),
        ("extras/new.py", "import torch"),
    ],
)
def test_an_import_against_the_layers_is_caught(file, source):
    assert len(violations(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("flow/path.py", "import math\nimport torch.nn.functional as F\nfrom torch import Tensor"),
        ("flow/solvers.py", "from fluxsmith.flow.path import Velocity\nfrom . import schedule"),
        ("data/mnist.py", "import numpy\nfrom ..errors import UserError\nfrom .x import y"),
        ("config/objective_section.py", "OBJECTIVES = {'a': 'fluxsmith.training.a:A'}"),
        ("device.py", "from fluxsmith.errors import UserError"),
        ("training/run.py", '"""Not fluxsmith.web, only a mention of it."""'),
    ],
)
def test_an_import_along_the_layers_is_accepted(file, source):
    assert violations(source, file) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"a/x.py": "from . import y", "a/y.py": "def late():\n    from .x import f"},
        {"a/x.py": "import fluxsmith.b.y", "b/y.py": "if TYPE_CHECKING:\n    from ..a.x import F"},
        {"a/__init__.py": "from fluxsmith.a.x import f", "a/x.py": "from fluxsmith.a import NAME"},
        {"a/x.py": "from .y import f", "a/y.py": "from .z import f", "a/z.py": "from .x import f"},
    ],
)
def test_a_circle_is_caught(sources):
    assert set(circle(sources)) == set(sources)


def test_a_name_that_occurs_twice_and_a_ninth_loose_file_are_caught():
    assert misplaced(["a/run.py", "b/run.py", "a/__init__.py", "b/__init__.py", "run_on.py"]) == [
        "run.py occurs 2 times"
    ]
    assert misplaced([f"{i}.py" for i in range(8)]) == []
    assert len(misplaced([f"{i}.py" for i in range(9)])) == 1


def test_importing_the_package_or_the_command_line_loads_nothing_heavy():
    code = "import sys, fluxsmith, fluxsmith.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = set(done.stdout.split())
    assert {"fluxsmith", "fluxsmith.cli"} <= loaded
    assert loaded.isdisjoint({"torch", "matplotlib", "pydantic", "numpy", "PIL", "yaml"})
