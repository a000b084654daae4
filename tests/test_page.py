"""The page of a spec in a browser: what is rendered, and that nothing is wider than a phone."""
import json
import re
import shutil
import subprocess

import pytest
import torch
from architectures import spec_of
from torch import nn

import fxrebasin as fxr
from fxrebasin.show.page import _coloured

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=3000"]


def test_letters_are_coloured_and_nothing_else():
    text = "".join(_coloured("((2!¹ b 4!²) | (c.0 c.1)) x a", {"a": 0, "b": 1, "c": 2}))
    assert re.sub(r"<[^>]*>", "", text) == "((2!¹ b 4!²) | (c.0 c.1)) x a"
    assert re.findall(r"<b[^>]*>([^<]*)</b>", text) == ["b", "c.0", "c.1", "a"]
    assert re.findall(r'<span class="p">([^<]*)</span>', text) == ["2!¹", "4!²"]
    assert "".join(_coloured("= a.<b>", {"a": 0})) == "= a.&lt;b&gt;"


def test_the_title_names_model_and_command():
    page = spec_of("mlp").to_html("net:make --input <2x3>")
    assert "<title>fxrebasin: net:make --input &lt;2x3&gt;</title>" in page and "<2x3>" not in page


def test_full_names_are_found_where_layers_are_folded():
    layers = nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)))
    spec = fxr.infer(layers, torch.randn(2, 8))
    found = " ".join(re.findall(r'data-more="([^"]*)"', spec.to_html())).split()
    assert set(spec.layouts) | set(spec.groups) <= set(found)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("name", ["llama", "resnet18"])
def test_in_a_browser_nothing_overflows_a_phone(name, tmp_path):
    """The page is measured by a script of the test's own, which writes what it finds into the title."""
    measure = ("<script>document.title = JSON.stringify({scroll: document.documentElement.scrollWidth,"
               " width: document.documentElement.clientWidth, rows: document.querySelectorAll('.row').length,"
               " text: document.body.innerText.length})</script>")
    page = tmp_path / "frame.html"
    (tmp_path / "page.html").write_text(spec_of(name).to_html("a:b").replace("</body>", measure + "</body>"))
    page.write_text('<iframe src="page.html" width="400" height="900"></iframe>'
                    "<script>setTimeout(() => { document.title = document.querySelector('iframe')"
                    ".contentDocument.title; document.body.append(document.title) }, 500)</script>")
    dom = subprocess.run([CHROMIUM, *FLAGS, "--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile",
                          "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1])
    assert 380 <= found["width"] <= 400 and found["scroll"] <= found["width"]  # less a scroll bar
    assert found["rows"] >= len(spec_of(name).groups) / 32 and found["text"] > 500
