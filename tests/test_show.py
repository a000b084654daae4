"""What a spec looks like: every group and every pinned axis is shown, whatever their names hold."""
import html.parser
import math
import re

import networkx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxrebasin as fxr
from fxrebasin.show import reasons, rows, table, to_mermaid
from fxrebasin.spec import Axis


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.fc1, self.fc2 = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).reshape(2, 5, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12))
        return x + self.fc2(F.relu(self.fc1(x)))


class Encoder(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


@pytest.fixture(scope="module")
def spec():
    return fxr.infer(Encoder(), torch.zeros(2, 5, 6))


def hostile_spec():
    evil = '<script>alert("x")</script>\\"]; \x1b[31m {{ 7*7 }} [bold]\n'
    group = fxr.Group(evil, 2, 1, (), (evil,), (fxr.Site(evil, 0, 0),))
    layout = ((Axis(np.arange(2), (evil,)), Axis(np.arange(3), ("p",))),)
    return fxr.Spec(
        {evil: group},
        {(evil, 1): evil},
        {evil: 2, "p": 3},
        {"p": evil},
        {evil: layout},
        {evil: (2, 3)},
        notes=(evil,),
        unruled={evil: evil},
    )


# ---- rows --------------------------------------------------------------------------------------------------


def test_repeated_layers_are_one_row(spec):
    found = {row.name: row for row in rows(spec)}
    assert [row.group.size for row in rows(spec)] == [12, 4, 3, 3, 20]
    assert [len(row.groups) for row in rows(spec)] == [1, 3, 3, 3, 3]
    assert {name for name in found if "*" in name} == {
        f"blocks.*.{x}" for x in ("qkv.weight:0.0", "qkv.weight:0.1", "qkv.weight:0.2", "fc1.weight:0")
    }
    assert found["blocks.*.qkv.weight:0.2"].within == ("blocks.*.qkv.weight:0.0",)
    assert found["blocks.*.qkv.weight:0.2"].places == [
        "blocks.*.qkv.weight[0] 24:36",
        "blocks.*.qkv.bias[0] 24:36",
        "blocks.*.proj.weight[1]",
    ]


def test_no_group_and_no_site_is_lost(spec):
    shown = [group.name for row in rows(spec) for group in row.groups]
    assert sorted(shown) == sorted(spec.groups)
    for row in rows(spec):
        axes = {(g.name, s.tensor, s.axis) for g in row.groups for s in g.sites}
        assert sum(row.sites.values()) == len(axes)
    assert sum(row.log10_order for row in rows(spec)) == pytest.approx(math.log10(spec.order), rel=1e-12)


def test_layers_that_differ_are_not_one_row():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 6)) for n in (8, 8, 9)
            )

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    spec = fxr.infer(Uneven(), torch.zeros(2, 6))
    assert [(row.name, row.group.size, len(row.groups)) for row in rows(spec)] == [
        ("layers.*.0.weight:0", 8, 2),
        ("layers.2.0.weight:0", 9, 1),
    ]


def test_a_chain_keeps_its_numbers():
    chain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert [row.name for row in rows(fxr.infer(chain, torch.zeros(2, 4)))] == ["0.weight:0", "2.weight:0"]


# ---- text --------------------------------------------------------------------------------------------------


def test_table(spec):
    text = table(spec)
    assert isinstance(text, str) and "\x1b" not in text
    assert text.startswith(f"13 groups, order 10^{spec.log10_order:.1f}\n")
    (line,) = (line for line in text.splitlines() if line.startswith("blocks.*.qkv.weight:0.1"))
    assert line.split() == [
        "blocks.*.qkv.weight:0.1",
        "3",
        "4",
        "x3",
        "10^9.3",
        "blocks.*.qkv.weight:0.0",
        "blocks.*.qkv.weight[0]",
        "0:24",
    ]
    assert re.search(r"\n +1  follows an input of the network +stem.weight\[1\]", text)
    assert "... " in text and "... " not in table(spec, sites=100)
    assert max(map(len, table(spec, width=90).splitlines())) <= 90


def test_every_pinned_axis_has_its_reason_counted(spec):
    assert sorted(axis for reason in reasons(spec) for axis in reason.axes) == sorted(spec.pinned)
    convolution = fxr.infer(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8))
    assert all("(" not in reason.why for reason in reasons(convolution))


def test_ops_without_a_rule_are_shown_with_what_they_cost():
    spec = fxr.Spec(
        {},
        {("w", 0): "aten.odd has no rule (net.py:3 in forward: y)", ("w", 1): "other"},
        {},
        {},
        {"w": ()},
        {"w": (2, 2)},
        unruled={"aten.odd": "net.py:3"},
        ties={"v": "w"},
        passed=("n",),
    )
    text = table(spec)
    assert "no rule for aten.odd (net.py:3): 1 axes pinned" in text
    assert "tied: v = w" in text and "passed through unchanged: n" in text


# ---- graphs and HTML ---------------------------------------------------------------------------------------


def test_networkx_has_a_node_for_every_group_and_axis_and_an_edge_for_every_site(spec):
    graph = spec.to_networkx()
    assert networkx.is_bipartite(graph)
    kinds = networkx.get_node_attributes(graph, "kind")
    assert {n for n in graph if kinds[n] == "group"} == set(spec.groups)
    assert {n for n in graph if kinds[n] == "axis"} == {
        (t, k) for t in spec.layouts for k in range(len(spec.shapes[t]))
    }
    assert set(map(frozenset, graph.edges)) == {
        frozenset((g.name, (s.tensor, s.axis))) for g in spec.groups.values() for s in g.sites
    }
    assert {n for n in graph if kinds[n] == "axis" and graph.nodes[n]["pinned"]} == set(spec.pinned)
    assert all(graph.degree(axis) == 0 for axis in spec.pinned)


def test_dot_and_mermaid_draw_the_same_graph(spec):
    dot, mermaid = spec.to_dot(), to_mermaid(spec)
    edges = {tuple(found) for found in re.findall(r"(g\d+) -- (t\d+)", dot)}
    assert edges == {tuple(found) for found in re.findall(r"(g\d+) ---\|[^|]*\| (t\d+)", mermaid)}
    assert len(edges) == sum(len({t for t, _, _ in row.sites}) for row in rows(spec))
    assert 'label="blocks.*.fc1.weight:0\\n20! x3"' in dot


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_one_page_without_outside_resources(spec):
    page = Page(spec.to_html())
    assert not {"link", "img", "iframe", "base", "object"} & set(page.tags)
    assert not [(k, v) for k, v in page.attributes if k in ("src", "href", "action") or "//" in (v or "")]
    text = " ".join(page.text)
    for tensor, axis in spec.pinned:
        assert tensor in text and spec.pinned[tensor, axis] in text
    more = " ".join(v for k, v in page.attributes if k == "data-more")
    assert all(name in more.split() for name in spec.groups)


def test_hostile_names_stay_text():
    spec = hostile_spec()
    clean = nn.Linear(2, 2)
    page, plain = Page(spec.to_html()), Page(fxr.infer(clean, torch.zeros(2, 2)).to_html())
    assert page.tags.count("script") == plain.tags.count("script") == 1
    assert '<script>alert("x")</script>' in "".join(page.text) and "{{ 7*7 }}" in "".join(page.text)
    for text in (str(spec), spec.to_dot(), to_mermaid(spec)):
        assert "\x1b" not in text
    assert "[bold]" in str(spec)  # no markup of ours either
    labels = re.findall(r'label="((?:[^"\\]|\\.)*)"', spec.to_dot())
    assert len(labels) == 3 and spec.to_dot().count("\n") == 3 + 3 + 1
    assert "<" not in to_mermaid(spec).replace("<br/>", "")
