"""Fixed values stay in place: no alignment that `match` finds moves one onto another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxrebasin as fxr
from fxrebasin.spec.hold import hold
from fxrebasin.spec.validity import validate


class Tables(nn.Module):
    """A residual stream of heads x units onto which a table is added."""

    def __init__(self, table: torch.Tensor, width: int = 12, heads: int = 3):
        super().__init__()
        self.inner, self.heads = nn.Linear(4, width), heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.out = nn.Linear(width, 16), nn.Linear(16, width), nn.Linear(width, 3)
        self.register_buffer("table", table)

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def attended(self, x):
        return nn.functional.scaled_dot_product_attention(*(self.split(f(x)) for f in (self.q, self.k, self.v)))

    def forward(self, x):
        x = self.inner(x) + self.table
        x = x + self.o(self.attended(x).transpose(1, 2).flatten(2))
        return self.out(x + self.down(self.up(x).relu()))


class PerHead(Tables):
    """The table scales the units of each head."""

    def forward(self, x):
        x = self.inner(x)
        attended = self.attended(x) * self.table.view(self.heads, 1, -1)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        return self.out(x + self.down(self.up(x).relu()))


def sinusoids(width: int = 12, length: int = 5) -> torch.Tensor:
    place = torch.arange(length)[:, None] / 10 ** (torch.arange(0, width, 2) / width)
    return torch.stack([place.sin(), place.cos()], -1).reshape(length, width)


def state_of(module, seed: int) -> dict[str, torch.Tensor]:
    """Random parameters, the module's own buffers."""
    torch.manual_seed(seed)
    names = {name for name, _ in module.named_parameters()}
    return {k: torch.randn_like(v) if k in names else v.clone() for k, v in module.state_dict().items()}


def spec_of(module):
    return fxr.infer(module, torch.randn(2, 5, 4))


def planted(spec, module, kept, seed: int):
    """A state, a planted alignment that keeps the held numbers, and the moved state under noise."""
    held = hold(spec, {name: [module.state_dict()[name]] for name in kept})
    validate(held.spec)
    pi = fxr.Alignment(spec, held.lift(held.spec.random(seed).permutations))
    a = state_of(module, seed)
    noise = torch.Generator().manual_seed(seed)
    b = {k: v if k in kept else v + 0.3 * torch.randn(v.shape, generator=noise) for k, v in pi.apply(a).items()}
    assert all(torch.equal(b[k], a[k]) for k in kept), "the planted alignment moves what is held"
    return held, pi, a, b


def same(one, other) -> bool:
    return all(np.array_equal(one.permutations[g], other.permutations[g]) for g in one.permutations)


@pytest.mark.parametrize("method", ["exact", "transfusion", "git-rebasin", "ot", "identity"])
def test_sinusoids_stay_where_they_are(method):
    module = Tables(sinusoids())
    spec, a, b = spec_of(module), state_of(module, 0), state_of(module, 1)
    assert spec.group_of[spec.layout("table")[0][1].factors[0]], "free as far as the graph goes"
    pi = fxr.match(spec, a, b, method)
    assert torch.equal(pi.apply(a)["table"], a["table"])
    assert fxr.match(spec, a, a, method).objective == pytest.approx(1, abs=1e-6)
    assert sum(pi.moved.values()) > 0 or method == "identity", "the inner layers move all the same"
    if method == "exact":
        assert pi.spec == spec


def test_a_table_that_differs_is_matched():
    module = Tables(torch.randn(5, 12))
    spec, a = spec_of(module), state_of(module, 0)
    pi = spec.random(4)
    assert same(fxr.match(spec, a, pi.apply(a)), pi)


HALVES = torch.tensor([1.0] * 5 + [2.0] * 6 + [3.0])


@pytest.mark.parametrize(
    "table", [sinusoids(), HALVES.expand(5, 12).clone(), torch.ones(5, 12)], ids=["all", "some", "none"]
)
@pytest.mark.parametrize("seed", range(3))
def test_what_may_move_is_recovered(table, seed):
    module = Tables(table)
    spec = spec_of(module)
    held, pi, a, b = planted(spec, module, ["table"], seed)
    found = fxr.match(spec, a, b)
    assert same(found, pi) and found.spec == spec
    stream = {1: math.factorial(12), 3: math.factorial(5) * math.factorial(6), 12: 1}[len(table.unique(dim=1).T)]
    assert held.spec.order * math.factorial(12) == spec.order * stream


@pytest.mark.parametrize(
    "rows, heads, units",
    [
        ([[1, 1, 1, 1]] * 3, 6, 24**3),
        ([[1, 1, 2, 2]] * 3, 6, 4**3),
        ([[1, 1, 2, 2]] * 2 + [[5, 5, 5, 5]], 2, 4 * 4 * 24),
        ([[1, 2, 3, 4]] * 3, 6, 1),
        ([[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]], 2, 1),
    ],
)
def test_heads_and_their_units(rows, heads, units):
    module = PerHead(torch.tensor(rows).float().reshape(-1))
    spec = spec_of(module)
    held, pi, a, b = planted(spec, module, ["table"], 1)
    inner = (6 * 24 ** 3) ** 2 // (6 * 24 ** 3)  # heads with the units of values; those of queries and keys stay free
    assert held.spec.order * inner == spec.order * heads * units
    assert same(fxr.match(spec, a, b), pi)


class Graph(nn.Module):
    """A square buffer along one axis twice: an adjacency."""

    def __init__(self, adjacency):
        super().__init__()
        self.inner, self.out = nn.Linear(4, len(adjacency)), nn.Linear(len(adjacency), 3)
        self.register_buffer("adjacency", adjacency)

    def forward(self, x):
        x = self.inner(x).relu()
        return self.out((x + x @ self.adjacency).relu())


def test_what_every_permutation_keeps_asks_nothing():
    spec = spec_of(Graph(torch.eye(6)))
    assert hold(spec, {"adjacency": [2 * torch.eye(6) + 1]}).spec == spec
    assert hold(spec, {"adjacency": [torch.arange(36.0).view(6, 6)]}).spec.order == 1
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))
    assert hold(spec, {"adjacency": [blocks]}).spec.order == 36


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(0, 100))
def test_no_element_of_the_part_moves_a_held_number(values, seed):
    for kind in (Tables, PerHead):
        module = kind(torch.tensor(values).float())
        spec = spec_of(module) if kind not in SPECS else SPECS[kind]
        SPECS[kind] = spec
        held = hold(spec, {"table": [module.table]})
        validate(held.spec)
        pi = fxr.Alignment(spec, held.lift(held.spec.random(seed).permutations))
        assert torch.equal(pi.apply(module.state_dict())["table"], module.table)
        back = held.restrict(pi.permutations)
        assert all(np.array_equal(p, held.lift(back)[g]) for g, p in pi.permutations.items())


SPECS: dict = {}


def test_infinite_places_stay():
    bias = torch.zeros(12)
    bias[:4] = -math.inf

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(4, 12), nn.Linear(12, 3)
            self.register_buffer("mask", bias.clone())

        def forward(self, x):
            return self.out((self.inner(x) + self.mask).softmax(-1))
    module = Masked()
    spec = fxr.infer(module, torch.randn(5, 4))
    a, b = state_of(module, 0), state_of(module, 1)
    b["mask"] = torch.where(bias.isinf(), bias, torch.ones(12))  # another table, infinite at the same places
    pi = fxr.match(spec, a, b)
    assert torch.equal(pi.apply(a)["mask"].isinf(), bias.isinf()) and math.isfinite(pi.objective)
    result = fxr.transport(a, b, b, pi)
    assert torch.equal(result["mask"].isinf(), bias.isinf()) and not any(v.isnan().any() for v in result.values())
    b["mask"] = bias.roll(1)
    with pytest.raises(fxr.StateError, match="'mask' .buffer. is infinite at other places than in the target"):
        fxr.match(spec, a, b)


def test_the_search_goes_on_from_a_file(tmp_path):
    module = Tables(HALVES.expand(5, 12).clone())
    spec = spec_of(module)
    _, pi, a, b = planted(spec, module, ["table"], 1)
    path = tmp_path / "so-far.safetensors"
    first = fxr.match(spec, a, b, checkpoint=path)
    assert same(fxr.Alignment.load(path), first) and same(fxr.match(spec, a, b, checkpoint=path), pi)
