"""Similarities kept from one step to the next: only what changed is computed again.

The scores of a group are sums over its neighbours (the sets of other nests that its pieces hold). A neighbour's share stays
right until that neighbour moves; when the group's own nest moves, the share is permuted along with the source.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..spec import Group
from .problem import Nest, Piece, Problem, similarity


class Similarities:
    """A bounded store: at most `room` bytes, the least recently used share goes first."""

    def __init__(self, problem: Problem):
        self.problem = problem
        largest = max((g.size for g in problem.spec.groups.values()), default=0)
        self.room = 2 * 4 * largest ** 2  # two matrices of the largest group, beside the one that is being solved
        self.shares: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self.held: dict[tuple, set[str]] = {}  # the factors of the pieces behind a share
        problem.watch(self._moved)

    def __call__(self, nest: Nest, group: Group, pieces: Sequence[Piece]) -> torch.Tensor:
        """As `similarity`, from what is known of every neighbour."""
        parts: dict[tuple[str, ...], list[Piece]] = {}
        for piece in pieces:
            parts.setdefault(self.problem.roots_in(piece), []).append(piece)
        if len(parts) < 2:  # nothing to be had twice
            return similarity(nest, group, pieces)
        total: torch.Tensor | None = None
        for near, part in parts.items():
            share = self._share(nest, group, near, part)
            total = share.clone() if total is None else total.add_(share)
        return total

    def _share(self, nest: Nest, group: Group, near: tuple[str, ...], part: list[Piece]) -> torch.Tensor:
        key = nest.root.name, group.name, near, tuple(id(piece) for piece in part)
        if key in self.shares:
            self.shares.move_to_end(key)
            return self.shares[key]
        share = similarity(nest, group, part)
        if share.nbytes <= self.room:
            self.shares[key] = share
            self.held[key] = {f for piece in part for f in piece.factors}
            while sum(s.nbytes for s in self.shares.values()) > self.room:
                self.shares.popitem(last=False)
        return share

    def _moved(self, moves: Mapping[str, np.ndarray], flat) -> None:
        """After a move: drops what neighbours had a part in, permutes the nest's own shares."""
        roots = {root for root in self.problem.roots if any(g.name in moves for g in self.problem.nests[root].groups)}
        for key in list(self.shares):
            root, group, near, _ = key
            nest = self.problem.nests[root]
            beside = {f for g in nest.groups if g.name in moves and g not in nest.chains[group] for f in g.members}
            if roots & set(near) - {root} or beside & self.held[key]:
                del self.shares[key]
            elif root in roots:
                order = flat(nest, self.problem.spec.groups[group])
                if order is None:
                    del self.shares[key]
                else:
                    self.shares[key] = self.shares[key].index_select(2, order.to(self.shares[key].device))
