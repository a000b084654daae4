"""Indices that point into an axis: what may be permuted when experts, heads or units are chosen by their scores."""

from __future__ import annotations

from math import factorial as F

import pytest
import torch
import torch.nn.functional as nnf
from tiny_networks import Parts, change, x
from torch import nn

import fxrebasin as fxr

EXACT = 1e-12
B, D, E, H = 4, 5, 6, 3  # samples, inputs, experts, hidden units


def parts(forward, **more):
    module = Parts(forward, **({"router": nn.Linear(D, E), "up": (E, H, D), "down": (E, D, H)} | more)).double().eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    return module


def gathered(index, weights):
    """Experts' weights looked up with an index of shape (B, R)."""
    def forward(m, y):
        place = index(m, y)
        h = torch.relu(torch.einsum("bd,brfd->brf", y, m.up[place]))
        out = torch.einsum("brf,brdf->brd", h, m.down[place])
        return torch.einsum("brd,br->bd", out, weights(m, y, place))
    return forward


def top(m, y, k=2):
    return m.router(y).topk(k, -1).indices


def even(m, y, place):
    return torch.ones(place.shape, dtype=y.dtype)


def scores(m, y, place):
    return torch.softmax(m.router(y), -1).gather(1, place)


def in_groups(m, y):
    """The best two experts out of the best of three groups."""
    s = torch.sigmoid(m.router(y)) + m.bias
    best = s.view(B, 3, 2).topk(2, dim=-1, sorted=False).values.sum(-1).topk(1, dim=-1, sorted=False).indices
    mask = torch.zeros(B, 3, dtype=y.dtype).scatter(1, best, 1.0).unsqueeze(-1).expand(B, 3, 2).reshape(B, E)
    return s.masked_fill(~mask.bool(), float("-inf")).topk(2, dim=-1, sorted=False).indices


def masked_scores(mask, low, k=2):
    """The k largest of scores of which a mask leaves out some."""
    def index(m, y):
        s = torch.sigmoid(m.router(y))
        return s.masked_fill(mask(s), low).topk(k, -1).indices
    return index


def all_but_groups(groups, twice=False):
    """Masks all but the best of three groups of two; `twice`: one group, named twice."""
    def mask(s):
        best = s.view(B, 3, 2).sum(-1).topk(groups, -1).indices
        best = best.expand(B, 2) if twice else best
        hot = torch.zeros(B, 3, dtype=s.dtype).scatter(1, best, 1.0)
        return ~hot.unsqueeze(-1).expand(B, 3, 2).reshape(B, E).bool()
    return mask


def times_a_whole_number(m, y):
    """Rows times whole numbers that may be zero, in a map without bias."""
    rows = (y[:, :1] > 0).long()
    return nnf.linear(y * rows, m.router.weight).topk(2, -1).indices


def flat(m, y):
    """As libraries run it: one row for each token and expert, every tensor looked up by an index viewed anew."""
    value, place = m.router(y).topk(2, -1)
    rows = y.repeat_interleave(2, dim=0).unsqueeze(-1)
    gate, up = (m.gate_up[place.reshape(-1)] @ rows).squeeze(-1).chunk(2, dim=-1)
    out = (m.down[place.view(-1)] @ (nnf.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
    return (out * value.softmax(-1).reshape(-1, 1)).view(B, 2, D).sum(1)


def masked(m, y):
    """A loop over experts, rolled up: which tokens chose which."""
    value, place = torch.softmax(m.router(y), -1).topk(2, -1)
    chosen = (place[:, None] == torch.arange(E)[None, :, None]).to(y.dtype) * value[:, None]  # B E R
    h = torch.relu(torch.einsum("bd,efd->bef", y, m.up))
    return torch.einsum("bef,edf,ber->bd", h, m.down, chosen)


def one_hot(m, y):
    value, place = torch.softmax(m.router(y), -1).topk(2, -1)
    h = torch.relu(torch.einsum("bd,efd->bef", y, m.up))
    return torch.einsum("bef,edf,bre,br->bd", h, m.down, nnf.one_hot(place, E).to(y.dtype), value)


def nothing_left(m, y):
    """A map without bias of what is zero."""
    z = torch.tanh(y)
    return (torch.nn.functional.linear(z - torch.tanh(y).view(z.shape), m.router.weight)).topk(2, -1).indices


def ranked_units(m, y):
    """All units in the order of their size: sorted values and the weights that belong to them."""
    h = torch.tanh(m.stem(y))
    value, place = h.sort(-1)
    return torch.einsum("bh,bhd->bd", value * torch.arange(1.0, 8.0), m.rows[place])


def rolled(m, y):
    """One choice and its neighbour's: a unit of one expert meets a unit of another."""
    chosen = m.up[top(m, y)]
    return torch.einsum("brfd,bd->brf", chosen * chosen.roll(1, 1), y).tanh().sum((1, 2))


def two_choices(m, y):
    a, b = m.up[m.router(y).argmax(-1)], m.up[m.router(y).argmin(-1)]
    return torch.einsum("bfd,bfd->bd", a, b)


def summed_over_choices(m, y):
    h = torch.einsum("bd,brfd->bf", y, m.up[top(m, y)])  # units of different experts in one
    return torch.einsum("bf,brdf->bd", torch.relu(h), m.down[top(m, y)])


SHARED = F(E) * F(H)  # a unit has the same place in every expert
FREE = F(E) * F(H) ** E
PINNED = F(H) ** E
CASES = {
    "gathered": (parts(gathered(top, even)), FREE),
    "weighted": (parts(gathered(top, scores)), FREE),
    "grouped": (parts(gathered(in_groups, scores), bias=(E,)), F(3) * F(2) ** 3 * F(H) ** E),
    "flat": (parts(flat, gate_up=(E, 2 * H, D)), FREE),
    "masked": (parts(masked), FREE),
    "one_hot": (parts(one_hot), FREE),
    "ranked_units": (parts(ranked_units, stem=nn.Linear(D, 7), rows=(7, D)), F(7)),
    "rolled": (parts(rolled), SHARED),
    "two_choices": (parts(two_choices), F(E) * F(H) ** D),  # summed over units alone: one order for each input
    "summed_over_choices": (parts(summed_over_choices), SHARED),
    "relu_ties": (parts(gathered(lambda m, y: torch.relu(m.router(y)).topk(2, -1).indices, even)), PINNED),
    "zero_scores": (parts(gathered(nothing_left, even)), PINNED),
    "two_groups_left": (parts(gathered(masked_scores(all_but_groups(2), 0.0, 4), even)), F(3) * F(2) ** 3 * F(H) ** E),
    "one_group_too_few": (parts(gathered(masked_scores(all_but_groups(1), 0.0, 3), even)), PINNED),
    "one_group_twice": (parts(gathered(masked_scores(all_but_groups(1, twice=True), 0.0, 3), even)), PINNED),
    "any_number_left": (parts(gathered(masked_scores(lambda s: s < 0.5, float("-inf")), even)), PINNED),
    "none_left": (parts(gathered(masked_scores(lambda s: s < 0.5, float("-inf"), 1), even)), PINNED),
    "times_a_whole_number": (parts(gathered(times_a_whole_number, even)), PINNED),
    "neighbour": (parts(gathered(lambda m, y: (top(m, y) + 1) % E, even)), PINNED),
    "capped": (parts(gathered(lambda m, y: top(m, y).clamp(0, 3), even)), PINNED),
    "number_used": (parts(lambda m, y: gathered(top, even)(m, y) * top(m, y).sum(-1, True)), PINNED),
    "two_indices_joined": (parts(gathered(lambda m, y: torch.cat([top(m, y), m.router(y).topk(1, -1, False).indices], 1),
                                          even)), PINNED),
    "from_an_input": (parts(gathered(lambda m, y: (y[:, :2] > 0).long(), even)), PINNED),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_chosen_moves_with_its_choice(name):
    module, order = CASES[name]
    inputs = (x(B, D),)
    spec = fxr.infer(module, inputs)
    for seed in range(4):
        error = change(module, inputs, spec.random(seed).apply(module.state_dict()))
        print(f"{name}: {error:.1e}")
        assert error < EXACT
    free = fxr.infer(module, inputs, outputs="free")
    unused = [name for (name, _), why in spec.pinned.items() if "not used" in why]
    assert spec.order == order, (str(spec), unused)
    assert free.order % spec.order == 0


@pytest.mark.parametrize("free", ["pinned", "free"])
def test_an_index_that_leaves_the_network_is_pinned(free):
    module = parts(lambda m, y: (gathered(top, even)(m, y), top(m, y)))
    spec = fxr.infer(module, (x(B, D),), outputs=free)
    assert not any(site.axis == 0 for group in spec.groups.values() for site in group.sites)
    assert "network output" in spec.pinned["router.weight", 0]


def test_the_reason_names_what_makes_scores_equal():
    spec = fxr.infer(CASES["relu_ties"][0], (x(B, D),))
    assert "relu makes equal numbers" in spec.pinned["up", 0]
    spec = fxr.infer(CASES["one_group_too_few"][0], (x(B, D),))
    assert "a mask may leave fewer than 3 of the numbers" in spec.pinned["up", 0]
    spec = fxr.infer(CASES["neighbour"][0], (x(B, D),))
    assert "an index into it is computed with" in spec.pinned["router.weight", 0]
    assert "looked up by numbers that do not follow it" in spec.pinned["up", 0]
