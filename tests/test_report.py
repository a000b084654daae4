"""The report: its figures are those computed anew, and what is no better than chance is said."""

from __future__ import annotations

import html.parser
import json

import numpy as np
import pytest
import torch
from architectures import spec_of, state_of
from counted import cosine as counted_cosine
from torch import nn

import fxrebasin as fxr


def noisy(state, sigma, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return {k: v + sigma * v.std() * torch.randn(v.shape, generator=noise, dtype=v.dtype) if v.is_floating_point() else v
            for k, v in state.items()}


@pytest.fixture(scope="module")
def found():
    spec, a = spec_of("vit_fused"), state_of("vit_fused")
    planted = spec.random(3)
    b = noisy(planted.apply(a), 0.5)
    alignment = fxr.match(spec, a, b)
    return spec, a, b, alignment, fxr.report(spec, a, b, alignment)


def plain(a, b, names) -> float:
    x, y = (np.concatenate([s[n].double().numpy().ravel() for n in names]) for s in (a, b))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_every_figure_is_the_one_computed_anew(found):
    spec, a, b, alignment, report = found
    states = {"before": a, "after": alignment.apply(a), "random": spec.random(0).apply(a)}
    for name, moved in states.items():
        for row in report.tensors:
            assert getattr(row, name) == pytest.approx(plain(moved, b, [row.name]), abs=1e-9)
        for kind in report.kinds:
            names = [n for n in spec.permutable if (len(spec.shapes[n]) > 1) == (kind.name == "matrices")]
            assert kind.tensors == len(names)
            assert getattr(kind, name) == pytest.approx(plain(moved, b, names), abs=1e-9)
    assert report.objective.after == pytest.approx(alignment.objective, abs=1e-12)
    assert report.objective.random == pytest.approx(counted_cosine(spec.random(0), a, b), abs=1e-9)
    assert {row.name for row in report.tensors} == set(spec.permutable)


def test_what_moved(found):
    spec, _, _, alignment, report = found
    assert [set(spec.groups)] == [{g.name for g in report.groups}]
    for group in report.groups:
        permutation = alignment.permutations[group.name]
        assert group.moved == pytest.approx(float((permutation != np.arange(group.size)).mean()))
        assert group.what == ("units" if spec.groups[group.name].copies > 1 else group.what)
        if group.journey:
            assert list(group.journey) == permutation.tolist() and group.what == "heads"
    assert {g.what for g in report.groups} == {"heads", "units", "channels"} == set(report.moved)
    excess = [g.after - g.chance for g in report.groups]
    assert excess == sorted(excess), "the weakest come first"


def test_vectors_near_one_do_not_hide_what_matrices_say():
    """Two unrelated networks with gains near 1: the vectors look alike, the objective and the matrices do not."""
    spec = spec_of("vit_fused")
    gains = {f.gain: None for f in spec.folds}
    a, b = ({k: torch.full_like(v, 1.0) + 0.03 * v if k in gains else v for k, v in state_of("vit_fused", seed).items()}
            for seed in (0, 1))
    report = fxr.report(spec, a, b, spec.identity(), chance=False)
    kinds = {kind.name: kind for kind in report.kinds}
    assert abs(report.objective.after) < 0.1 and abs(kinds["matrices"].after) < 0.1 and report.objective.chance is None


@pytest.mark.parametrize("name", ["mlp", "vit_fused", "llama", "resnet_small"])
def test_unrelated_states_are_said_to_be_chance(name):
    spec = spec_of(name)
    a, b = state_of(name), state_of(name, seed=1)
    alignment = fxr.match(spec, a, b)
    report = fxr.report(spec, a, b, alignment)
    print(name, report.objective)
    assert report.objective.after > report.objective.random  # searching alone finds this much
    assert "close to what chance gives" in report.warning and report.warning in " ".join(str(report).split())
    planted = noisy(spec.random(1).apply(a), 0.5)
    good = fxr.report(spec, a, planted, fxr.match(spec, a, planted))
    assert not good.warning and good.objective.after > 0.8 > 0.5 > good.objective.chance


def test_an_element_at_random_is_no_better_than_chance(found):
    spec, a, b, _, _ = found
    assert "a random element" in fxr.report(spec, a, b, spec.random(5), chance=False).warning
    assert fxr.report(spec, a, b, spec.random(5)).warning


def test_statistics_are_a_kind_of_their_own():
    spec, a = spec_of("resnet_small"), state_of("resnet_small")
    report = fxr.report(spec, a, spec.random(1).apply(a), spec.random(1), chance=False)
    assert [kind.name for kind in report.kinds] == ["matrices", "vectors", "statistics and constants"]
    assert all(kind.after == pytest.approx(1, abs=1e-12) for kind in report.kinds)
    assert all(("running" in row.name) == (row.kind == "statistics and constants") for row in report.tensors)


def test_as_json(found):
    data = json.loads(found[4].to_json())
    assert data["objective"]["after"] == found[4].objective.after and data["method"] == "exact"
    assert len(data["tensors"]) == len(found[0].permutable) and data["warning"] == ""


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") or name.startswith("on")]


def test_one_page_without_scripts_or_network(found):
    text = found[4].to_html()
    page = Page()
    page.feed(text)
    assert "default-src 'none'" in text and not page.links and "script" not in page.tags
    assert page.tags.count("svg") == sum(bool(g.journey) for g in found[4].groups) > 0
    assert all(row.name in text for row in found[4].tensors)


def test_names_are_shown_as_text():
    evil = "<script>alert(1)</script>[bold]"
    net = nn.Sequential()
    net.add_module(evil.replace(".", ""), nn.Linear(3, 6))
    net.add_module("act", nn.ReLU())
    net.add_module("last", nn.Linear(6, 2))
    spec = fxr.infer(net, torch.randn(2, 3))
    state = net.state_dict()
    report = fxr.report(spec, state, spec.random(1).apply(state), spec.random(1), chance=False)
    assert "<script>" not in report.to_html() and "&lt;script&gt;" in report.to_html()
    assert "[bold]" in str(report) and "<script>" not in report._repr_html_()


def test_flat_alignments_and_networks_that_cannot_move():
    spec, a, b = spec_of("vit_fused"), state_of("vit_fused"), state_of("vit_fused", seed=1)
    flat = fxr.report(spec, a, b, fxr.match(spec, a, b, "git-rebasin"))
    assert flat.method == "git-rebasin" and flat.groups and str(flat)
    still = nn.Linear(3, 2)
    rigid = fxr.infer(still, torch.randn(2, 3))
    empty = fxr.report(rigid, still.state_dict(), still.state_dict(), rigid.identity())
    assert not empty.groups and not empty.warning and "nothing can be" in str(empty) and empty.to_html()


def test_an_alignment_of_another_model_is_refused(found):
    with pytest.raises(fxr.SpecError, match="belongs to another model"):
        fxr.report(spec_of("mlp"), state_of("mlp"), state_of("mlp"), found[3])


# == on the command line =====================================================================================

NET = """
import torch
from torch import nn
def net(): return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)), torch.zeros(2, 4)
"""


@pytest.mark.parametrize("related", [True, False])
def test_match_says_what_chance_gives(tmp_path, monkeypatch, capsys, related):
    from fxrebasin.cli import DONE, run
    (tmp_path / "reportnet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    module, inputs = __import__("reportnet").net()
    spec, a = fxr.infer(module, inputs), module.state_dict()
    b = spec.random(1).apply(a) if related else __import__("reportnet").net()[0].state_dict()
    for name, state in (("a", a), ("b", b)):
        torch.save(state, f"{name}.pt")
    assert run(["match", "reportnet:net", "a.pt", "b.pt", "-o", "pi.safetensors", "--json"]) == DONE
    said = capsys.readouterr()
    data = json.loads(said.out)
    assert data["objective"] >= data["objective_chance"] - 0.05 and {"matrices", "vectors", "matrices_before"} <= set(data)
    assert ("close to what chance gives" in said.err) is not related and bool(data["warning"]) is not related
    assert run(["match", "reportnet:net", "a.pt", "b.pt", "-o", "pi.safetensors"]) == DONE
    assert "matrices" in (line := capsys.readouterr().out) and "vectors" in line and "chance" in line
