"""Similarities kept from one step to the next: only what changed is computed again.

The scores of a group are sums over its neighbours (the sets of other nests that its pieces hold). A
neighbour's share stays right until that neighbour moves; when the group's own nest moves, the share is
permuted along with the source.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...alignment import Alignment
from ...spec import Group
from .gather import flat_sources
from .nest import Nest
from .piece import Piece
from .problem import Problem
from .similarity import similarity

WORTH = 64  # products over fewer numbers than this are made again as fast as their result is added


class Similarities:
    """A bounded store: at most `room` bytes. What finds no room is not kept: in a sweep, everything else
    would be gone by the time that it is asked for."""

    def __init__(self, problem: Problem):
        self.problem = weakref.proxy(problem)  # it owns this store: a circle would keep the states for long
        largest = max((g.size for g in problem.spec.groups.values()), default=0)
        size = max((piece.dtype.itemsize for piece in problem.pieces), default=4)
        self.room = 2 * size * largest ** 2  # two matrices of the largest group, beside the one in use
        self.shares: dict[tuple, torch.Tensor] = {}
        self.order: dict[tuple, torch.Tensor] = {}  # columns of a share that have moved since
        self.held: dict[tuple, set[str]] = {}  # the factors of the pieces behind a share
        self.parted: dict[tuple[str, str], bool] = {}
        problem.watch(self._moved)

    def __call__(self, nest: Nest, group: Group, pieces: Sequence[Piece]) -> torch.Tensor:
        """As `similarity`, from what is known of every neighbour. Not to be written to."""
        if not self._worthwhile(nest, group):
            return similarity(nest, group, pieces)
        parts, rest = self._parts(nest, group, pieces)
        total = similarity(nest, group, rest) if rest or not parts else None
        for near, part in parts.items():
            share = self._share(nest, group, near, part)
            if total is None:
                total = share if len(parts) == 1 else share.clone()
            else:
                total += share
        assert total is not None  # without parts it is what the rest have in common
        return total

    def _worthwhile(self, nest: Nest, group: Group) -> bool:
        """Whether the group has two neighbours: with one, all changes at once, and there is nothing to be had
        twice."""
        key = nest.root.name, group.name
        if key not in self.parted:
            own = [p for p in self.problem.pieces_of(nest)
                   if not nest.coupled(p.factors) and nest.owner(p.factors) is group]
            self.parted[key] = len(self._parts(nest, group, own)[0]) > 1
        return self.parted[key]

    def _parts(self, nest: Nest, group: Group, pieces: Sequence[Piece]):
        """The pieces by neighbours, and those that are not worth it."""
        parts: dict[tuple[str, ...], list[Piece]] = {}
        for piece in pieces:
            parts.setdefault(self.problem.roots_in(piece), []).append(piece)
        size = nest.size(nest.chain(group)) * nest.size(nest.extras(group))
        thin = {near for near, part in parts.items() if sum(p.target.numel() for p in part) < WORTH * size}
        return ({near: part for near, part in parts.items() if near not in thin},
                [piece for near, part in parts.items() if near in thin for piece in part])

    def _share(self, nest: Nest, group: Group, near: tuple[str, ...], part: list[Piece]) -> torch.Tensor:
        key = nest.root.name, group.name, near, tuple(id(piece) for piece in part)
        if key in self.shares:
            if key in self.order:
                order = self.order.pop(key).to(self.shares[key].device)
                self.shares[key] = self.shares[key].index_select(2, order)
            return self.shares[key]
        share = similarity(nest, group, part)
        if share.nbytes + sum(s.nbytes for s in self.shares.values()) <= self.room:
            self.shares[key] = share
            self.held[key] = {f for piece in part for f in piece.factors}
        return share

    def _moved(self, moves: Mapping[str, np.ndarray], move: Alignment) -> None:
        """After a move: drops what neighbours had a part in, permutes the nest's own shares."""
        roots = {root for root, nest in self.problem.nests.items() if any(g.name in moves for g in nest.groups)}
        for key in list(self.shares):
            root, name, near, _ = key
            nest, group = self.problem.nests[root], self.problem.spec.groups[name]
            beside = {f for g in nest.groups if g.name in moves and g not in nest.chains[name]
                      for f in g.members}
            if roots & set(near) - {root} or beside & self.held[key] or root in roots and nest.extras(group):
                self._drop(key)
            elif root in roots:  # carried out when the share is asked for, which may be never
                order = flat_sources(move, nest.chain(group))
                self.order[key] = self.order[key][order] if key in self.order else order

    def _drop(self, key: tuple) -> None:
        for store in (self.shares, self.order, self.held):
            store.pop(key, None)
