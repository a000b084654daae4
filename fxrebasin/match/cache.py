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
        self.order: dict[tuple, torch.Tensor] = {}  # columns of a share that have moved since
        self.held: dict[tuple, set[str]] = {}  # the factors of the pieces behind a share
        problem.watch(self._moved)

    def __call__(self, nest: Nest, group: Group, pieces: Sequence[Piece]) -> torch.Tensor:
        """As `similarity`, from what is known of every neighbour."""
        parts: dict[tuple[str, ...], list[Piece]] = {}
        for piece in pieces:
            parts.setdefault(self.problem.roots_in(piece), []).append(piece)
        if len(parts) < 2:  # nothing to be had twice
            return similarity(nest, group, pieces)
        first, second, *others = parts.items()
        total = self._share(nest, group, *first) + self._share(nest, group, *second)
        for near, part in others:
            total += self._share(nest, group, near, part)
        return total

    def _share(self, nest: Nest, group: Group, near: tuple[str, ...], part: list[Piece]) -> torch.Tensor:
        key = nest.root.name, group.name, near, tuple(id(piece) for piece in part)
        if key in self.shares:
            self.shares.move_to_end(key)
            if key in self.order:
                self.shares[key] = self.shares[key].index_select(2, self.order.pop(key).to(self.shares[key].device))
            return self.shares[key]
        self.order.pop(key, None)
        share = similarity(nest, group, part)
        if share.nbytes <= self.room:
            self.shares[key] = share
            self.held[key] = {f for piece in part for f in piece.factors}
            while sum(s.nbytes for s in self.shares.values()) > self.room:
                self._drop(next(iter(self.shares)))
        return share

    def _moved(self, moves: Mapping[str, np.ndarray], flat) -> None:
        """After a move: drops what neighbours had a part in, permutes the nest's own shares."""
        roots = {root for root in self.problem.roots if any(g.name in moves for g in self.problem.nests[root].groups)}
        for key in list(self.shares):
            root, group, near, _ = key
            nest = self.problem.nests[root]
            beside = {f for g in nest.groups if g.name in moves and g not in nest.chains[group] for f in g.members}
            if roots & set(near) - {root} or beside & self.held[key]:
                self._drop(key)
            elif root in roots:
                order = flat(nest, self.problem.spec.groups[group])
                if order is None:
                    self._drop(key)
                else:  # carried out when the share is asked for, which may be never
                    self.order[key] = self.order[key][order] if key in self.order else order

    def _drop(self, key: tuple) -> None:
        for store in (self.shares, self.order, self.held):
            store.pop(key, None)
