"""The README's commands are those that are run."""

import ast
import re
from pathlib import Path

import fxrebasin as fxr

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    steps = [line for line in script.splitlines() if ".venv" in line and "demo" not in line]
    assert len(steps) == 3 and " && ".join(steps) in README, f"not in the README: {' && '.join(steps)}"


def test_the_python_example_names_what_exists():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.strip().splitlines()) <= 20
    used = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == "fxr"}
    assert used and all(hasattr(fxr, name) for name in used)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
