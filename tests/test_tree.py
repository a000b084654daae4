"""The tree that a spec prints as: every tensor once, repeated layers folded, and why what stays stays."""
import math
import re

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, LIGHT, spec_of
from torch import nn

import fxrebasin as fxr
from fxrebasin.show import advice, reasons, tree
from fxrebasin.spec import Axis, Part


class Deep(nn.Module):
    def __init__(self, depth: int, width: int = 6):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))
                                    for _ in range(depth))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


@pytest.fixture(scope="module")
def deep():
    return fxr.infer(Deep(12), torch.randn(2, 4))


def lines_of(spec, start: str) -> list[str]:
    return [line for line in str(spec).splitlines() if line.lstrip("├└│ ").startswith(start)]


def test_layers_are_folded_and_axes_read_like_rules(deep):
    text = str(deep)
    assert text == tree(deep) and len(text.splitlines()) <= 20 and max(map(len, text.splitlines())) <= 100
    assert lines_of(deep, "layers.0-11")[0].split() == ["layers.0-11", "x12"]
    assert lines_of(deep, "1.{weight,bias}")[0].split("  ")[-1].strip() == "b x a, b"
    assert lines_of(deep, "3.{weight,bias}")[0].split("  ")[-1].strip() == "a x b, a"
    assert lines_of(deep, "0.{weight,bias}")[0].split("  ")[-1].strip() == "a"
    assert re.search(r"^a = 8! +\d", text, re.M) and re.search(r"^b = 6! x12 ", text, re.M)


def test_the_depth_does_not_change_the_number_of_lines(deep):
    deeper = fxr.infer(Deep(17), torch.randn(2, 4))
    assert len(str(deeper).splitlines()) == len(str(deep).splitlines())


def test_layers_that_differ_are_not_folded():
    model = Deep(4)
    model.layers[2] = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 8))
    spec = fxr.infer(model, torch.randn(2, 4))
    assert lines_of(spec, "0-1,3")[0].split()[-1] == "x3" and lines_of(spec, "2")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in LIGHT])
def test_every_tensor_and_group_is_shown(name):
    """A line for each is too many to ask for; but as many tensors as there are must be told apart."""
    spec = spec_of(name)
    text = tree(spec, width=400)
    letters = re.findall(r"^([a-z]+) = (\d+)!(?:\^(\d+))?(?: x(\d+))? ", text, re.M)
    assert sum(int(layers or 1) for *_, layers in letters) == len(spec.groups)
    order = sum(math.lgamma(int(n) + 1) * int(c or 1) * int(k or 1) for _, n, c, k in letters) / math.log(10)
    assert order == pytest.approx(spec.log10_order, rel=1e-9)
    for reason in reasons(spec, inside=True):
        assert reason.why in text


class Scaled(nn.Module):
    """Units that a constant tells apart, in heads that move."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.table = nn.Linear(5, 12), nn.Linear(12, 2), torch.tensor([1.0, 2.0, 4.0, 8.0])

    def forward(self, x):
        return self.down((self.up(x).view(2, 3, 4) * self.table).flatten(1))


def test_what_stays_inside_an_axis_that_moves_is_shown():
    spec = fxr.infer(Scaled(), torch.randn(2, 5))
    (inside,) = (text for reason in reasons(spec, inside=True) for text in reason.texts if "constant" in text)
    assert inside not in spec.pinned.values() and inside not in str([r.texts for r in reasons(spec)])
    (line,) = lines_of(spec, "up.{weight,bias}")
    number = re.search(r"\(a 4!([¹²³])\)", line)[1]
    assert re.search(f"^{number} stays: the constant .* varies along it", str(spec), re.M)


def test_an_entry_says_what_moves_it_and_what_does_not(deep):
    entry = deep["layers.3.1.weight"]
    assert entry.shape == (6, 8) and entry.role == "parameter" and len(entry.axes) == 2
    (rows,), (columns,) = entry.axes
    assert rows.size == 6 and rows.group in deep.groups and columns.group in deep.groups
    assert "axis 0: 6 moved by layers.3.1.weight:0" in str(entry)
    (outputs,), = deep["head.bias"].axes
    assert outputs == Part(3, None, deep.pinned["head.bias", 0]) and "3 that stay: network output" in str(deep["head.bias"])
    with pytest.raises(fxr.SpecError, match="no entry '3.1.weight': is it 'layers.3.1.weight'"):
        deep["3.1.weight"]


def test_repr_is_a_line(deep):
    assert repr(deep) == f"Spec(13 groups, order 10^{deep.log10_order:.1f}, 75 of 76 tensors can be permuted)"
    assert "<pre" in deep._repr_html_() and "&lt;" not in repr(deep)


def test_values_show_themselves_in_a_notebook(deep):
    alignment = deep.random(0)
    assert all(name in alignment._repr_html_() for name, n in alignment.moved.items() if n)
    evidence = fxr.verify(Deep(12), torch.randn(2, 4), alignment, draws=1)
    assert evidence._repr_html_().startswith("<pre") and "float64" in evidence._repr_html_()


@pytest.mark.parametrize("text, words", [
    ("network output 'cache.0.keys'", "use_cache=False"), ("network output 'output'", 'outputs="free"'),
    ("aten.odd.default has no rule (net.py:3 in forward: y)", "docs/add_a_rule.md"),
    ("right=True of aten.bucketize is not covered by its rule", "docs/add_a_rule.md"),
    ("not used by the forward pass", "infer(model, [x, y])"), ("follows an input of the network", "")])
def test_each_reason_says_how_to_free_it(text, words):
    assert (words in advice(text)) if words else advice(text) == ""


def test_names_of_the_user_stay_text():
    evil = '<script>\\"]; \x1b[31m {{ 7*7 }} [bold]\n'
    layout = ((Axis(np.arange(2), (evil,)), Axis(np.arange(3), ("p",))),)
    spec = fxr.Spec({evil: fxr.Group(evil, 2, 1, (), (evil,), (fxr.Site(evil, 0, 0),))}, {(evil, 1): evil},
                    {evil: 2, "p": 3}, {"p": evil}, {evil: layout}, {evil: (2, 3)}, notes=(evil,))
    assert "\x1b" not in str(spec) and "<script>" not in spec._repr_html_() and "[bold]" in str(spec)
