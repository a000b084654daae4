"""Networks and example inputs that show little of what a network does, for tests of what shows all the
same."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fxrebasin as fxr


class Spoiled(fxr.Alignment):
    """An alignment, and then two indices exchanged at one site alone."""
    where: tuple[str, int, int, int]

    @classmethod
    def of(cls, alignment: fxr.Alignment, tensor: str, axis: int, i: int, j: int) -> Spoiled:
        spoiled = cls(alignment.spec, alignment.permutations)
        spoiled.where = (tensor, axis, i, j)
        return spoiled

    def apply(self, state):
        name, axis, i, j = self.where
        moved = dict(super().apply(state))
        order = torch.arange(moved[name].shape[axis])
        order[i], order[j] = j, i
        moved[name] = moved[name].index_select(axis, order)
        return moved


class Layers(nn.Module):
    """8 -> 24 -> 24 -> 6, and something at the end."""

    def __init__(self, last: Callable = lambda y: y, bias: float = 0.0):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 6)
        self.a.bias.data += bias
        self.last = last

    def forward(self, x):
        return self.last(self.c(self.b(self.a(x).relu()).relu()))


class MaskedKeys(nn.Module):
    """One head; keys that a mask leaves out."""

    def __init__(self, d: int = 16):
        super().__init__()
        self.e, self.q, self.k, self.v, self.o = (nn.Linear(8, d), *(nn.Linear(d, d) for _ in range(3)), nn.Linear(d, 4))

    def forward(self, x, keep):
        h = self.e(x)
        scores = (self.q(h) @ self.k(h).transpose(-1, -2)).masked_fill(~keep[:, None], -1e9)
        return self.o(scores.softmax(-1) @ self.v(h))[:, 0]


class Chosen(nn.Module):
    """Two of several experts for each token."""

    def __init__(self, experts: int = 8, d: int = 8, f: int = 16):
        super().__init__()
        self.router, self.out = nn.Linear(d, experts), nn.Linear(d, 3)
        self.up, self.down = nn.Parameter(torch.randn(experts, f, d)), nn.Parameter(torch.randn(experts, d, f))

    def forward(self, x):
        weight, place = self.router(x).softmax(-1).topk(2)
        h = torch.einsum("tkfd,td->tkf", self.up[place], x).relu()
        return self.out(x + torch.einsum("tkdf,tkf,tk->td", self.down[place], h, weight))


PAD = torch.tensor([False, True, True, True, True, True])
HIDING: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "two inputs": (Layers, lambda: torch.randn(2, 8)),
    "units that are shut": (lambda: Layers(bias=-3.0), lambda: torch.randn(2, 8)),
    "zero inputs": (Layers, lambda: torch.zeros(3, 8)),
    "equal inputs": (Layers, lambda: torch.ones(3, 8)),
    "the place of the largest output": (lambda: Layers(lambda y: y.argmax(-1)), lambda: torch.randn(4, 8)),
    "the signs of the outputs": (lambda: Layers(lambda y: y > 0), lambda: torch.randn(4, 8)),
    "outputs masked with -1e9": (
        lambda: Layers(lambda y: y.masked_fill(PAD, -1e9)),
        lambda: torch.randn(4, 8),
    ),
    "outputs masked with -inf": (
        lambda: Layers(lambda y: y.masked_fill(PAD, -torch.inf)),
        lambda: torch.randn(4, 8),
    ),
    "one output of 1e6": (
        lambda: Layers(lambda y: torch.cat([y[:, :1] * 1e6, y[:, 1:] * 1e-6], -1)),
        lambda: torch.randn(4, 8),
    ),
    "all keys but one masked": (
        MaskedKeys,
        lambda: (torch.randn(2, 6, 8), torch.tensor([[True] + [False] * 5] * 2)),
    ),
    "two tokens, eight experts": (Chosen, lambda: torch.randn(2, 8)),
}
