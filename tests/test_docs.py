"""The documentation runs: the code of a page, in order, in an empty folder."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
RUNNABLE = ["tutorial.md", *sorted(f"how_to/{page.name}" for page in (DOCS / "how_to").glob("*.md"))]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.S | re.M)


def script(page: Path) -> str:
    """All blocks of a page as one program; commands run in a shell of the same environment."""
    parts = ["import subprocess, sys, os, torch", "torch.manual_seed(0)", "sys.path.insert(0, '')"]
    for kind, code in BLOCK.findall(page.read_text()):
        if kind == "sh":
            lines = [line.replace("fxrebasin ", f"{sys.executable} -m fxrebasin ", 1)
                     for line in code.strip().splitlines()]
            code = "\n".join(f"subprocess.run({line!r}, shell=True, check=True)" for line in lines)
        parts.append(code)
    return "\n".join(parts)


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_code_of_a_page_runs(name, tmp_path):
    program = tmp_path / "page.py"
    program.write_text(script(DOCS / name))
    result = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                            env={**os.environ, "PYTHONPATH": f"{DOCS.parent}:{tmp_path}"})
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, timeout=300,
                            env={**os.environ, "PYTHONPATH": str(DOCS.parent), "NO_MKDOCS_2_WARNING": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "site" / "reference.html").read_text().count("fxrebasin.infer.infer") > 0


def test_links_lead_somewhere():
    for page in DOCS.rglob("*.md"):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text()):
            place = (page.parent / target) if target else page
            assert place.exists(), f"{page.name} links to {target}"
            if anchor:
                headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-")
                            for h in re.findall(r"^#+ (.*)$", place.read_text(), re.M)}
                assert anchor[1:] in headings, f"{page.name} links to {target}{anchor}"
