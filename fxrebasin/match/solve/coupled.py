"""Groups side by side in a tensor: a hub and its partners, solved as one for every pair of elements of the
group above.

With W[h, a, b] moved by P[h] on a and Q[h] on b, the scores of P depend on Q and the other way round: for a
pair of elements of h, the best P and Q together are a bilinear assignment. Given P, the partners are
assignments of their own. So a small hub is tried in every order, which is exact; a larger one ascends in turn
from several starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from ...spec import Group
from ..objective.nest import Nest
from ..objective.piece import PART, Piece
from .assignment import assign_many

ORDERS = 24  # a hub of at most so many orders is tried in each
TURNS = 20  # of an ascent, at most


class Star:
    """A hub and its partners within a root, and what pieces hold of a hub and a partner side by side."""

    def __init__(self, nest: Nest, hub: Group, pieces: Sequence[tuple[Group, Piece]]):
        self.nest, self.hub = nest, hub
        self.partners = list({partner.name: partner for partner, _ in pieces}.values())
        held = [[p for g, p in pieces if g is partner] for partner in self.partners]
        self.sides = [[torch.cat(side, -1) for side in zip(*(self._arrays(p, partner) for p in part))]
                      for partner, part in zip(self.partners, held)]

    def _arrays(self, piece: Piece, partner: Group) -> list[torch.Tensor]:
        """Target and moved source as (extras of the root, root, hub, partner, rest)."""
        parts = [self.nest.extras(self.nest.root), self.nest.root.members, self.hub.members, partner.members]
        axes = [[piece.factors.index(f) for f in part] for part in parts]
        axes.append([k for k in range(len(piece.factors)) if not any(k in part for part in axes)])
        shape = [math.prod(piece.target.shape[k] for k in part) for part in axes]
        return [side.permute([k for part in axes for k in part]).reshape(shape) for side in piece.sides()]

    def here(self, e: int) -> float:
        """What the pieces have in common as they stand, for an index of the root's extras."""
        return sum(float((target[e] * source[e]).sum(dtype=torch.float64)) for target, source in self.sides)

    def bounds(self, e: int) -> np.ndarray:
        """At least what the pieces can have in common, for every pair of elements of the root: the product of
        norms."""
        total = torch.zeros((), dtype=torch.float64)
        for sides in self.sides:
            old, new = (side[e].flatten(1).norm(dim=1, dtype=torch.float64) for side in sides)
            total = total + old[:, None] * new[None, :]
        return total.reshape(-1).cpu().numpy()

    def solve(self, e: int, pairs: np.ndarray, own: np.ndarray, others: Sequence[np.ndarray]):
        """The best moves found for some pairs (target element * n + source element) of elements of the root.

        own: (K, m, m) scores of the hub alone, and others: for each partner, for these K pairs. Returns the
        columns of the hub, those of each partner, and the values (K,) of all together.
        """
        n = self.nest.root.size
        most = max(t[e, 0].numel() for t, _ in self.sides)
        step = max(1, PART // max(1, most))
        found = []
        for start in range(0, len(pairs), step):
            part = slice(start, start + step)
            rows, columns = np.divmod(pairs[part], n)
            found.append(Bilinear([(t[e, rows], s[e, columns]) for t, s in self.sides], own[part],
                                [o[part] for o in others]).best())
        hub, partners, values = zip(*found)
        return np.concatenate(hub), [np.concatenate(x) for x in zip(*partners)], np.concatenate(values)


class Bilinear:
    """Bilinear assignments for K pairs at once. sides: for each partner, arrays (K, m, n, rest) of target and
    source."""

    def __init__(self, sides, own: np.ndarray, others: Sequence[np.ndarray]):
        self.sides, self.own, self.others = [_shortened(*side) for side in sides], own, others
        self.pairs, self.m = own.shape[:2]

    def best(self):
        if math.factorial(min(self.m, 10)) <= ORDERS:
            tries = [self._answered(np.tile(order, (self.pairs, 1))) for order in
                     map(np.array, itertools.permutations(range(self.m)))]
        else:
            tries = [self._ascended(start) for start in self._starts()]
        at = np.argmax([values for _, _, values in tries], axis=0)

        def pick(arrays):
            return np.stack(arrays)[at, np.arange(self.pairs)]

        hubs, others, values = zip(*tries)
        return pick(hubs), [pick(columns) for columns in zip(*others)], pick(values)

    def _starts(self):
        """Orders of the hub to ascend from: as it stands; from its own scores; from numbers sorted along the
        partners, which are the same in any order of these; and the hub's answers to partners that were placed
        in the same ways."""
        yield np.tile(np.arange(self.m), (self.pairs, 1))
        along = [_sorted_scores(t, s) for t, s in self.sides]
        yield assign_many(self.own)[0]
        yield assign_many(self.own + sum(along))[0]
        yield self._hub([assign_many(scores)[0] for scores in self.others])
        across = [_sorted_scores(t.transpose(1, 2), s.transpose(1, 2)) for t, s in self.sides]
        yield self._hub([assign_many(scores + more)[0] for scores, more in zip(self.others, across)])

    def _ascended(self, hub: np.ndarray):
        """Partners and hub in turn, until no pair gains."""
        hub, others, values = self._answered(hub)
        for _ in range(TURNS):
            found = self._answered(self._hub(others))
            better = found[2] > values + 1e-9 * np.abs(values)
            if not better.any():
                break
            keep = ~better
            hub, values = np.where(keep[:, None], hub, found[0]), np.where(keep, values, found[2])
            others = [np.where(keep[:, None], old, new) for old, new in zip(others, found[1])]
        return hub, others, values

    def _answered(self, hub: np.ndarray):
        """The best partners for an order of the hub (K, m), and the values."""
        k = np.arange(self.pairs)[:, None]
        values = self.own[k, np.arange(self.m), hub].sum(1, dtype=np.float64)
        others = []
        for (target, source), scores in zip(self.sides, self.others):
            columns, gained = assign_many(scores + _products(target, source[k, hub], 2))
            others.append(columns)
            values = values + gained
        return hub, others, values

    def _hub(self, others: Sequence[np.ndarray]) -> np.ndarray:
        """The best order of the hub for orders of the partners."""
        k = np.arange(self.pairs)[:, None]
        scores = self.own
        for (target, source), columns in zip(self.sides, others):
            scores = scores + _products(target, source.transpose(1, 2)[k, columns].transpose(1, 2), 1)
        return assign_many(scores)[0]


def _products(target: torch.Tensor, source: torch.Tensor, axis: int) -> np.ndarray:
    """Inner products of (K, m, n, rest) along all but the pairs and one axis, as (K, n, n) in float64."""
    a, b = (side.transpose(1, axis).flatten(2) for side in (target, source))
    return torch.bmm(a, b.transpose(1, 2)).double().cpu().numpy()


def _sorted_scores(target: torch.Tensor, source: torch.Tensor) -> np.ndarray:
    a, b = (torch.sort(side, dim=2).values.flatten(2) for side in (target, source))
    return torch.bmm(a, b.transpose(1, 2)).double().cpu().numpy()


def _shortened(target: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrays with the same inner products of any two elements, and a rest that is no longer than there are
    elements."""
    pairs, m, n, rest = target.shape
    if rest <= m * n:
        return target, source
    products = torch.bmm(target.flatten(1, 2), source.flatten(1, 2).transpose(1, 2))  # of pairs of elements
    unit = torch.eye(m * n, dtype=target.dtype, device=target.device).expand(pairs, -1, -1)
    return unit.reshape(pairs, m, n, m * n), products.transpose(1, 2).reshape(pairs, m, n, m * n)
