"""Two states in factor form: the objective, and pi so far.

The states are never copied nor moved: pieces gather their sources as pi has them while they are looked at. So
a step is always a move relative to where things stand, and the identity costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from ...alignment import Alignment
from ...spec import Spec
from .evidence import pieces_of
from .nest import Nest
from .piece import Piece


class Problem:
    """The search for pi that maximises <target, pi(source)>. `alignment` is where it stands.

    objective  what counts and how much, a key of OBJECTIVES (see `evidence`)
    """

    def __init__(self, spec: Spec, source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor],
                 dtype: torch.dtype | None = None, objective: str = "scaled"):
        self.spec, self.dtype, self.objective = spec, dtype, objective
        self.alignment = self.identity = spec.identity()
        self.watchers: list = []
        self._values: dict[str, float] = {}  # root -> <target, pi(source)> over its pieces, where it is known
        self.pieces = pieces_of(spec, source, target, dtype, objective)
        self.weights = list(self.pieces)  # without further evidence: what the objective is reported on

    # ------------------------------------------------------------------------------------------ the objective

    def inner(self, pieces: Sequence[Piece] | None = None) -> float:
        """<target, pi(source)> over some pieces (all by default), accumulated in float64."""
        left = {id(p): p for p in (self.pieces if pieces is None else pieces)}
        total = []
        for root in sorted(self._values, key=lambda r: -len(self._by_root[r])):
            own = self._by_root[root]
            if all(id(p) in left for p in own):
                total.append(self._values[root])
                left = {k: p for k, p in left.items() if not any(p is q for q in own)}
        return math.fsum((*total, *(p.inner() for p in left.values())))

    def note(self, root: str, value: float) -> None:
        """What the pieces of a nest are known to have in common as they stand: saves looking at them again."""
        self._values[root] = value

    def cosine(self) -> float:
        """Cosine similarity of pi(source) and target over all that counts, at the size at which it does."""
        cosine = self.inner(self.weights) / self.norm if self.norm > 0 else 0.0
        return max(-1.0, min(1.0, cosine))  # sums of float32 are rounded

    @cached_property
    def norm(self) -> float:
        """The product of the norms of both states, over all that counts."""
        return math.sqrt(math.fsum(p.new.square for p in self.weights)) * math.sqrt(
            math.fsum(p.old.square for p in self.weights))

    def add(self, pieces: Sequence[Piece]) -> None:
        """Adds further evidence to the objective, before any step is taken."""
        self.pieces.extend(pieces)

    # ---------------------------------------------------------------------------------------------- structure

    @cached_property
    def roots(self) -> list[str]:
        """Groups that are within no other group: each is solved together with all that is within it."""
        free = self.spec.group_of
        return [g.name for g in self.spec.groups.values() if not any(f in free for f in g.within)]

    @cached_property
    def nests(self) -> dict[str, Nest]:
        return {name: Nest(self.spec, self.spec.groups[name]) for name in self.roots}

    def roots_in(self, piece: Piece) -> tuple[str, ...]:
        """The nests that a piece holds factors of."""
        return tuple(root for root in self.roots if self.nests[root].root.members[0] in piece.factors)

    def pieces_of(self, nest: Nest) -> list[Piece]:
        return self._by_root[nest.root.name]

    @cached_property
    def _by_root(self) -> dict[str, list[Piece]]:
        found: dict[str, list[Piece]] = {name: [] for name in self.roots}
        for piece in self.pieces:
            for root in self.roots_in(piece):
                found[root].append(piece)
        return found

    @cached_property
    def neighbours(self) -> dict[str, set[str]]:
        """Root -> roots with which it shares a piece: if none of them moved, solving it again changes
        nothing."""
        near: dict[str, set[str]] = {name: set() for name in self.roots}
        for piece in self.pieces:
            here = set(self.roots_in(piece))
            for root in here:
                near[root] |= here - {root}
        return near

    # ------------------------------------------------------------------------------------------------- moving

    def move(self, step: Mapping[str, np.ndarray]) -> None:
        """Moves the source further by permutations of some groups (all others stay)."""
        still = self.identity.permutations
        changed = {name: p for name, p in step.items() if not np.array_equal(p, still[name])}
        if not changed:
            return
        move = Alignment.known(self.spec, {**still, **{name: np.array(p) for name, p in changed.items()}})
        self.alignment = move @ self.alignment
        touched = {f for name in changed for f in self.spec.groups[name].members}
        for piece in self.pieces:
            if touched.intersection(piece.factors):
                piece.alignment, piece.common = self.alignment, None
        moved = {root for root, nest in self.nests.items() if touched & nest.factors}
        for root in moved.union(*(self.neighbours[root] for root in moved)):
            self._values.pop(root, None)
        for watcher in self.watchers:
            watcher(changed, move)

    def watch(self, watcher) -> None:
        """Calls watcher(changed groups, move) after every move that moves anything."""
        self.watchers.append(watcher)

    def reset(self, alignment: Alignment) -> None:
        """Makes `alignment` the current one."""
        self.move((alignment @ self.alignment.inverse()).permutations)

    @cached_property
    def similarities(self):
        """Scores that are kept while they are right (see `kept`)."""
        from .kept import Similarities
        return Similarities(self)
