"""Exact steps: the best move of one group and all groups within it, everything else held.

With heads h and units u within them: first the best assignment of units for every pair of heads, then the
best assignment of heads, whose scores are the values of those inner assignments. Any depth of nesting works
the same way. Groups side by side in one tensor are solved together (see `coupled`). The step is exact but for a
large hub of such groups, and where a tensor holds groups that its scores leave out (`Nest.held`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...spec import Group
from ..objective.nest import Nest
from ..objective.piece import Piece
from ..objective.similarity import similarity
from .assignment import assign, assign_many
from .coupled import Star
from .heap import give_back

STARS = 4  # so many pairs are tried for each element, at most, where inner solutions are dear


@dataclass
class Solution:
    """Best assignments of a group for some pairs of the elements above it: columns (P, n), values (P,), and
    below, for each child and index of its extras, the solution for the pairs of elements of this group.
    `rows` maps the number of a pair to its row, where not all pairs were solved."""

    columns: np.ndarray
    values: np.ndarray
    inner: list[tuple[Group, int, "Solution"]]
    rows: dict[int, int] | None = None

    @classmethod
    def empty(cls, n: int) -> "Solution":
        return cls(np.empty((0, n), dtype=np.int64), np.empty(0), [], {})

    def row(self, pair: int) -> int:
        return pair if self.rows is None else self.rows[pair]

    def put(self, pairs: np.ndarray, fresh: "Solution") -> None:
        """Adds solutions for further pairs."""
        start = len(self.columns)
        self.rows.update((int(pair), start + k) for k, pair in enumerate(pairs))
        self.columns = np.concatenate([self.columns, fresh.columns])
        self.values = np.concatenate([self.values, fresh.values])
        self.inner = fresh.inner

    def take(self, pairs: np.ndarray) -> "Solution":
        return Solution(self.columns[pairs], self.values[pairs], self.inner)


@dataclass
class Part:
    """What is solved for pairs of elements of a group: children, each with the index of its extras; what
    every pair is worth at most; and a function from pairs to a solution for each child, whose values add
    up."""

    children: list[tuple[Group, int]]
    bounds: np.ndarray
    solve: Callable[[np.ndarray], list[Solution]]


class Step:
    """The best move of one nest given some pieces as evidence: `moves` group -> permutations, what is `gained`,
    and what the pieces have in common `here`, before the move."""

    def __init__(self, nest: Nest, pieces: Sequence[Piece], extra: dict[str, np.ndarray] | None = None,
                 scores: Callable[[Nest, Group, Sequence[Piece]], torch.Tensor] = similarity):
        self.nest = nest
        owned: dict[str, list[Piece]] = {g.name: [] for g in nest.groups}
        shared: dict[str, list[tuple[Group, Piece]]] = {}
        for piece in pieces:
            pair = nest.coupled(piece.factors)
            if pair:
                shared.setdefault(pair[0].name, []).append((pair[1], piece))
            else:
                owned[nest.owner(piece.factors).name].append(piece)
        self.scores = {g.name: scores(nest, g, owned[g.name]).cpu().numpy() for g in nest.groups}
        for name, more in (extra or {}).items():
            self.scores[name] = self.scores[name] + more
        self.stars = [Star(nest, nest.spec.groups[hub], held) for hub, held in shared.items()]
        self.moves = {g.name: np.empty(nest.spec.frame(g) + (g.size,), dtype=np.int64) for g in nest.groups}
        worth = [self._solve(nest.root, e, frame) for e, frame in enumerate(nest.indices(nest.extras(nest.root)))]
        self.here = sum(here for here, _ in worth)
        self.gained = sum(best - here for here, best in worth)
        del self.scores, worth  # nobody asks for them again
        give_back()

    def _solve(self, root: Group, e: int, frame: dict[str, int]) -> tuple[float, float]:
        """Writes the best moves; what is in common as things stand, and with them."""
        best = self._best_root(e, frame)
        here = sum(star.here(e) for star in self.stars) + sum(
            float(np.trace(self.scores[g.name][k], dtype=np.float64))
            for g in self.nest.groups for k in self._matching(g, frame))
        self._write(root, best, 0, 0, frame)
        return here, float(best.values[0])

    def _matching(self, group: Group, frame: dict[str, int]) -> list[int]:
        """Positions along the leading axis of a group's scores that agree with the frame."""
        return [e for e, at in enumerate(self.nest.indices(self.nest.extras(group)))
                if all(frame.get(f, k) == k for f, k in at.items())]

    # ----------------------------------------------------------------------------------------------- the root

    def _best_root(self, e: int, frame) -> Solution:
        """Solves inner problems only for pairs that could be in the best outer assignment.

        An inner assignment is worth at most the sum of its row maxima, and of its column maxima. An outer
        assignment that is best under upper bounds, and whose own pairs are all solved, is best. With stars,
        the search is cut short at a number of pairs; the pairs that stay as they are have been tried by then,
        so that nothing is lost.
        """
        root = self.nest.root
        n, own = root.size, self.scores[root.name][e]
        parts = self._parts(root, e, frame)
        if not parts:
            found = assign(own)
            return Solution(found.columns[None], np.array([found.value]), [])
        own = own.astype(np.float64)
        values = own + sum(part.bounds for part in parts).reshape(n, n)
        inner = [(child, k, Solution.empty(child.size)) for part in parts for child, k in part.children]
        solved = np.zeros((n, n), dtype=bool)
        chosen = np.arange(n) * (n + 1) if self.stars else np.empty(0, dtype=np.int64)  # the diagonal
        while True:
            if chosen.size:
                fresh = [solution for part in parts for solution in part.solve(chosen)]
                for (_, _, known), solution in zip(inner, fresh):
                    known.put(chosen, solution)
                values.reshape(-1)[chosen] = own.reshape(-1)[chosen] + sum(s.values for s in fresh)
                solved.reshape(-1)[chosen] = True
            if self.stars and solved.sum() > max(64, STARS * n):
                values[~solved] = -1 - 2 * n * np.abs(values).max()
            found = assign(values)
            rows = np.flatnonzero(~solved[np.arange(n), found.columns])
            if not rows.size:
                return Solution(found.columns[None], np.array([found.value]), inner)
            chosen = rows * n + found.columns[rows]

    def _parts(self, group: Group, e: int, frame) -> list[Part]:
        """What is to be solved for pairs of elements of the root: its children, those of a star together."""
        together = {g.name for star in self.stars for g in (star.hub, *star.partners)}
        apart = [child for child in self.nest.children[group.name] if child.name not in together]
        parts = [self._part(child, k, frame) for child in apart for k in self._matching(child, frame)]
        return parts + [self._star_part(star, e) for star in self.stars]

    def _part(self, child: Group, e: int, frame) -> Part:
        lower = self._split(self.scores[child.name][e], child)

        def solve(pairs: np.ndarray) -> list[Solution]:
            if self.nest.children[child.name]:  # a third level: its scores are laid out for all pairs
                return [self._best(child, lower, frame).take(pairs)]
            return [Solution(*assign_many(lower[pairs].astype(np.float64)), [])]

        return Part([(child, e)], self._bounds(child, lower, frame), solve)

    def _star_part(self, star: Star, e: int) -> Part:
        groups = [star.hub, *star.partners]
        own, *others = [self._split(self.scores[g.name][e], g).astype(np.float64) for g in groups]

        def solve(pairs: np.ndarray) -> list[Solution]:
            hub, partners, values = star.solve(e, pairs, own[pairs], [scores[pairs] for scores in others])
            nothing = np.zeros(len(pairs))
            return [Solution(hub, values, []), *(Solution(columns, nothing, []) for columns in partners)]

        return Part([(g, e) for g in groups], star.bounds(e) + sum(map(bound, (own, *others))), solve)

    # ----------------------------------------------------------------------------------------- below the root

    def _best(self, group: Group, scores: np.ndarray, frame) -> Solution:
        """Solves the group for every one of P pairs of elements of the groups above it. scores: (P, n, n)."""
        pairs, n, _ = scores.shape
        inner = []
        for child in self.nest.children[group.name]:
            for e in self._matching(child, frame):
                solution = self._best(child, self._split(self.scores[child.name][e], child), frame)
                scores = scores + solution.values.reshape(pairs, n, n)
                inner.append((child, e, solution))
        return Solution(*assign_many(np.asarray(scores, dtype=np.float64)), inner)

    def _bounds(self, child: Group, lower: np.ndarray, frame) -> np.ndarray:
        """At least the value of the best assignment of each of (P, m, m) scores, with all that is below."""
        for below in self.nest.children[child.name]:
            for e in self._matching(below, frame):
                further = self._split(self.scores[below.name][e], below)
                lower = lower + self._bounds(below, further, frame).reshape(lower.shape)
        return bound(lower)

    def _split(self, scores: np.ndarray, child: Group) -> np.ndarray:
        """(N, N) scores over a chain -> one (m, m) problem for every pair of elements above the child, the
        pairs of the outermost group first, then those of the next, and so on."""
        sizes = [g.size for g in self.nest.chains[child.name]]
        k = len(sizes)
        array = scores.reshape(*sizes, *sizes)
        order = [x for i in range(k) for x in (i, i + k)]
        return np.ascontiguousarray(array.transpose(order)).reshape(-1, sizes[-1], sizes[-1])

    def _write(self, group: Group, solution: Solution, at: int, pair: int, frame: dict) -> None:
        """Records the assignment chosen for one pair (row `at` of the solution), and below it those of the
        pairs that it makes."""
        columns = solution.columns[at]
        self.moves[group.name][tuple(frame[f] for f in group.within)] = columns
        elements = self.nest.indices(group.members) if solution.inner else []
        for child, e, below in solution.inner:
            extra = self.nest.indices(self.nest.extras(child))[e]
            for i, j in enumerate(columns):
                index = (pair * group.size + i) * group.size + int(j)
                self._write(child, below, below.row(index), index, {**frame, **extra, **elements[i]})


def bound(scores: np.ndarray) -> np.ndarray:
    """At least the value of the best assignment of each of (P, m, m) scores."""
    return np.minimum(scores.max(-1).sum(-1, dtype=np.float64), scores.max(-2).sum(-1, dtype=np.float64))
