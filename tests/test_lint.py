"""The linter and the type checker find nothing, with the settings in pyproject.toml."""
from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def found(tool: str, *arguments: str, cwd: Path = ROOT) -> tuple[int, str]:
    """The exit status of a tool, and what it says."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    result = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=cwd, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def test_the_linter_finds_nothing():
    status, said = found("ruff", "check", "--no-cache", ".")
    assert status == 0, said[-3000:]


def test_the_type_checker_finds_nothing(tmp_path):
    status, said = found("mypy", "--cache-dir", str(tmp_path))
    assert status == 0, said[-3000:]


@pytest.mark.parametrize("wrong", ["def name() -> str:\n    return 1\n", "def size(x=None):\n    n: int = x.y\n    n + 'a'\n"])
def test_a_wrong_type_is_found(wrong, tmp_path):
    (tmp_path / "wrong.py").write_text(wrong)
    status, said = found("mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"),
                         str(tmp_path / "wrong.py"))
    assert status == 1 and "wrong.py" in said, said
