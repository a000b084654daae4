"""Imports run one way, and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fxrebasin

ROOT = Path(fxrebasin.__file__).parent
# A module may import those before it. `infer` makes a Spec, so the values of spec.py come first. `check` tries
# the rules out on real tensors: it stands on the finished parts, and the rules do not know it.
ORDER = ("errors", "draft", "capture", "factors", "rules", "spec", "evaluate", "reroll", "rewrite", "passes", "infer", "alignment", "parts",
         "fingerprint", "statistics", "check", "match", "transport", "curves", "checkpoint", "shards", "verify", "show", "report", "demo", "cli",
         "__main__")
STRANGERS = {("factors", "capture"), ("capture", "factors"), ("rules", "capture"), ("evaluate", "factors"), ("evaluate", "rules"),
             ("evaluate", "spec")}  # nothing of each other
LAZY = {("spec", "alignment"), ("spec", "show"), ("alignment", "show"), ("verify", "show"),
        ("transport", "checkpoint")}  # imported inside convenience methods
HEAVY = ("matplotlib", "numba", "transformers", "networkx", "jinja2", "timm", "torchvision")


def part_of(path: Path) -> str:
    """The name in ORDER that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path, node: ast.AST) -> list[str]:
    """The parts of this package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level:
        package = ["fxrebasin", *path.relative_to(ROOT).parts[:-1]]
        inner = node.module.split(".") if node.module else []
        base = ".".join(package[:len(package) - node.level + 1] + inner)
        names = [f"{base}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        names = []
    found = [name.split(".")[1] for name in names if name.startswith("fxrebasin.")]
    return [name for name in dict.fromkeys(found) if name != "__version__"]


def edges(path: Path) -> list[tuple[str, str, bool, int]]:
    """(part, part that it imports, inside a function, line)."""
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    typing = {id(n) for f in ast.walk(tree) if isinstance(f, ast.If) and ast.unparse(f.test) == "TYPE_CHECKING"
              for n in ast.walk(f)}  # for annotations alone: nothing is imported when the program runs
    return [(part_of(path), other, id(node) in inside, node.lineno)
            for node in ast.walk(tree) if id(node) not in typing for other in imported(path, node)]


def faults(found: list[tuple[str, str, bool, int]]) -> list[str]:
    """What breaks the order."""
    wrong = []
    for part, other, lazy, line in found:
        if part == other or (lazy and (part, other) in LAZY):
            continue
        if other not in ORDER or ORDER.index(other) > ORDER.index(part) or (part, other) in STRANGERS:
            wrong.append(f"{part} imports {other} (line {line})")
    return wrong


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert part_of(path) in ORDER, f"{path.name} has no place in the order"
    assert not faults(edges(path))


def test_an_upward_import_is_seen():
    def seen(part: str, text: str) -> list[str]:
        path = ROOT / f"{part}.py"
        return faults([(part, other, False, 1)
                       for node in ast.walk(ast.parse(text)) for other in imported(path, node)])
    assert seen("spec", "from .alignment import Alignment") == ["spec imports alignment (line 1)"]
    assert seen("capture", "from fxrebasin.match.objective.nest import Nest") == ["capture imports match (line 1)"]
    assert seen("rules", "from .check import check") and seen("rules", "import fxrebasin.infer")
    assert seen("errors", "from . import show")
    assert seen("factors", "from .capture import capture") and seen("transport", "from fxrebasin import cli")
    assert not seen("transport", "from .alignment import Alignment") and not seen("spec", "import torch")
    assert not faults([("spec", "alignment", True, 1)]) and faults([("rules", "infer", True, 1)])
    inner = ROOT / "match" / "objective" / "problem.py"
    assert imported(inner, ast.parse("from ...alignment import Alignment").body[0]) == ["alignment"]
    assert imported(inner, ast.parse("from .piece import Piece").body[0]) == ["match"]


def test_factors_know_nothing_of_torch():
    files = sorted((ROOT / "factors").glob("*.py"))
    assert files
    for tree in (ast.parse(file.read_text()) for file in files):
        modules = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names} | {
            n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not any(m.split(".")[0] == "torch" for m in modules if m)


def test_importing_the_package_is_light():
    code = ("import sys, torch; before = set(sys.modules); import fxrebasin; "
            "[getattr(fxrebasin, name) for name in fxrebasin.__all__]; "
            "print('\\n'.join({m.split('.')[0] for m in set(sys.modules) - before}))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            cwd=ROOT.parent)
    new = set(result.stdout.split())
    assert "fxrebasin" in new
    assert not new & set(HEAVY), new & set(HEAVY)


def test_names_are_loaded_on_use():
    """And whatever is imported first, `fxrebasin.match` is the function, not the package of that name."""
    code = ("import sys, fxrebasin; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; "
            "import fxrebasin.match.methods, fxrebasin.infer, fxrebasin.verify; from fxrebasin import match; "
            "assert match is fxrebasin.match and callable(match) and callable(fxrebasin.infer); "
            "assert callable(fxrebasin.verify) and 'find_equivalence' in dir(fxrebasin); print('done')")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "done", result.stderr
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fxrebasin.nothing


def test_public_names():
    for name in fxrebasin.__all__:
        assert getattr(fxrebasin, name) is not None
    needed = {"infer", "match", "transport", "verify", "find_equivalence", "Spec", "Alignment",
              "NotEquivalentError"}
    assert needed <= set(fxrebasin.__all__)
    assert sorted(fxrebasin.__all__) == list(fxrebasin.__all__)
