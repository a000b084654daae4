"""Exact steps: the best move of one group and all groups within it, everything else held; and descents made of them.

With heads h and units u within them: first the best assignment of units for every pair of heads, then the best
assignment of heads, whose scores are the values of those inner assignments. Any depth of nesting works the same way.
The step is exact unless a tensor holds two groups within the same element of a third (query groups and value units in the
output projection of grouped queries): such a pair is taken one at a time, in alternation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..spec import Group
from .assignment import assign, assign_many
from .problem import Nest, Piece, Problem, similarity

KEEP_EVERY = 5.0  # seconds between two saves of the best alignment so far
TOLERANCE = 1e-7  # relative to the norm of the states: smaller gains are rounding


@dataclass
class Solution:
    """Best assignments of a group for some pairs of the elements above it: columns (P, n), values (P,), and below, for
    each child and index of its extras, the solution for the pairs of elements of this group. `rows` maps the number of a
    pair to its row, where not all pairs were solved."""

    columns: np.ndarray
    values: np.ndarray
    inner: list[tuple[Group, int, "Solution"]]
    rows: dict[int, int] | None = None

    @classmethod
    def empty(cls, pairs: int, n: int) -> "Solution":
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


def _bound(scores: np.ndarray) -> np.ndarray:
    """At least the value of the best assignment of each of (P, m, m) scores."""
    return np.minimum(scores.max(-1).sum(-1, dtype=np.float64), scores.max(-2).sum(-1, dtype=np.float64))


class Step:
    """The best move of one nest given some pieces as evidence: `moves` group -> permutations, and what is `gained`."""

    def __init__(self, nest: Nest, pieces: Sequence[Piece], extra: dict[str, np.ndarray] | None = None,
                 scores: Callable[[Nest, Group, Sequence[Piece]], torch.Tensor] = similarity):
        self.nest = nest
        owned: dict[str, list[Piece]] = {g.name: [] for g in nest.groups}
        for piece in pieces:
            owned[nest.owner(piece.factors).name].append(piece)
        self.scores = {g.name: scores(nest, g, owned[g.name]).cpu().numpy() for g in nest.groups}
        for name, more in (extra or {}).items():
            self.scores[name] = self.scores[name] + more
        self.moves = {g.name: np.empty(nest.spec.frame(g) + (g.size,), dtype=np.int64) for g in nest.groups}
        root = nest.root
        self.gained = 0.0
        for e, frame in enumerate(_indices(nest, nest.extras(root))):
            self.gained += self._solve(root, e, frame)

    def _solve(self, root: Group, e: int, frame: dict[str, int]) -> float:
        best = self._best(root, self.scores[root.name][e][None], frame)
        here = sum(float(np.trace(self.scores[g.name][k], dtype=np.float64))
                   for g in self.nest.groups for k in self._matching(g, frame))
        self._write(root, best, 0, 0, frame)
        return float(best.values[0]) - here

    def _matching(self, group: Group, frame: dict[str, int]) -> list[int]:
        """Positions along the leading axis of a group's scores that agree with the frame."""
        return [e for e, at in enumerate(_indices(self.nest, self.nest.extras(group)))
                if all(frame.get(f, k) == k for f, k in at.items())]

    def _best(self, group: Group, scores: np.ndarray, frame) -> "Solution":
        """Solves the group for every one of P pairs of elements of the groups above it. scores: (P, n, n)."""
        pairs, n, _ = scores.shape
        parts = [(child, e, self._split(self.scores[child.name][e], child))
                 for child in self.nest.children[group.name] for e in self._matching(child, frame)]
        if pairs == 1 and parts:
            return self._best_lazily(scores[0].astype(np.float64), parts, frame)
        inner = []
        for child, e, lower in parts:
            solution = self._best(child, lower, frame)
            scores = scores + solution.values.reshape(pairs, n, n)
            inner.append((child, e, solution))
        if pairs == 1:
            found = assign(scores[0])
            return Solution(found.columns[None], np.array([found.value]), inner)
        return Solution(*assign_many(np.asarray(scores, dtype=np.float64)), inner)

    def _bounds(self, child: Group, lower: np.ndarray, frame) -> np.ndarray:
        """At least the value of the best assignment of each of (P, m, m) scores, with all that is below."""
        for below in self.nest.children[child.name]:
            for e in self._matching(below, frame):
                further = self._split(self.scores[below.name][e], below)
                lower = lower + self._bounds(below, further, frame).reshape(lower.shape)
        return _bound(lower)

    def _best_lazily(self, own: np.ndarray, parts, frame) -> "Solution":
        """Solves inner problems only for pairs that could be in the best outer assignment.

        An inner assignment is worth at most the sum of its row maxima, and of its column maxima. An outer assignment
        that is best under upper bounds, and whose own pairs are all solved, is best.
        """
        n = own.shape[0]
        values = own + sum(self._bounds(child, lower, frame) for child, _, lower in parts).reshape(n, n)
        inner = [(child, e, Solution.empty(n * n, child.size)) for child, e, _ in parts]
        solved = np.zeros((n, n), dtype=bool)
        while True:
            found = assign(values)
            rows = np.flatnonzero(~solved[np.arange(n), found.columns])
            if not rows.size:
                return Solution(found.columns[None], np.array([found.value]), inner)
            chosen = rows * n + found.columns[rows]
            values[rows, found.columns[rows]] = own[rows, found.columns[rows]]
            for (child, _, lower), (_, _, known) in zip(parts, inner):
                fresh = self._best_many(child, lower, chosen, frame)
                known.put(chosen, fresh)
                values.reshape(-1)[chosen] += fresh.values
            solved[rows, found.columns[rows]] = True

    def _best_many(self, child: Group, lower: np.ndarray, chosen: np.ndarray, frame) -> "Solution":
        if self.nest.children[child.name]:  # a third level: its scores are laid out for all pairs
            return self._best(child, lower, frame).take(chosen)
        return Solution(*assign_many(lower[chosen].astype(np.float64)), [])

    def _split(self, scores: np.ndarray, child: Group) -> np.ndarray:
        """(N, N) scores over a chain -> one (m, m) problem for every pair of elements above the child, the pairs of the
        outermost group first, then those of the next, and so on."""
        sizes = [g.size for g in self.nest.chains[child.name]]
        k = len(sizes)
        array = scores.reshape(*sizes, *sizes)
        order = [x for i in range(k) for x in (i, i + k)]
        return np.ascontiguousarray(array.transpose(order)).reshape(-1, sizes[-1], sizes[-1])

    def _write(self, group: Group, solution: "Solution", at: int, pair: int, frame: dict) -> None:
        """Records the assignment chosen for one pair (row `at` of the solution), and below it those of the pairs that
        it makes."""
        columns = solution.columns[at]
        self.moves[group.name][self._frame_index(group, frame)] = columns
        n = group.size
        for child, e, below in solution.inner:
            extra = _indices(self.nest, self.nest.extras(child))[e]
            for i, j in enumerate(columns):
                index = (pair * n + i) * n + int(j)
                self._write(child, below, below.row(index), index, {**frame, **extra, **self._element(group, i)})

    def _element(self, group: Group, i: int) -> dict[str, int]:
        sizes = tuple(self.nest.spec.sizes[m] for m in group.members)
        return dict(zip(group.members, (int(x) for x in np.unravel_index(i, sizes))))

    def _frame_index(self, group: Group, frame: dict[str, int]) -> tuple:
        return tuple(frame[f] for f in group.within)


def _indices(nest: Nest, factors: Sequence[str]):
    """Every index of a product of factors, as {factor: index}."""
    sizes = tuple(nest.spec.sizes[f] for f in factors)
    return [dict(zip(factors, map(int, index))) for index in np.ndindex(*sizes)]


class Clock:
    """A budget of time, whoever wants to hear of progress, and what keeps the best result so far."""

    def __init__(self, seconds: float | None = None, progress: Callable[[dict], None] | None = None,
                 objective: Callable[[], float] | None = None, save: Callable[[], None] | None = None):
        self.end = None if seconds is None else time.monotonic() + seconds
        self.progress, self.objective, self.save = progress, objective, save
        self.saved = time.monotonic()

    def over(self) -> bool:
        return self.end is not None and time.monotonic() > self.end

    def tell(self, **news) -> None:
        if self.progress is not None:
            self.progress({**news, "objective": self.objective() if self.objective else None})
        if time.monotonic() - self.saved > KEEP_EVERY:
            self.keep()

    def keep(self) -> None:
        """Saves the best so far, where a place for it was given."""
        if self.save is not None:
            self.save()
        self.saved = time.monotonic()


def descend(problem: Problem, order: Sequence[str], clock: Clock, sweeps: int, dirty: set[str] | None = None) -> None:
    """Solves one nest after another until none improves: coordinate ascent on the objective (Git Re-Basin, Ainsworth et
    al. 2023, section 3.2), with exact nested steps. `dirty` names the nests that may not be at their best (all by
    default); one whose neighbours did not move since it was solved is skipped."""
    dirty = set(order) if dirty is None else dirty
    for sweep in range(sweeps):
        for count, name in enumerate(order):
            if name not in dirty or clock.over():
                continue
            dirty.discard(name)
            moved = try_step(problem, Step(problem.nests[name], problem.pieces_of(problem.nests[name]),
                                           scores=problem.similarities))
            if alternate(problem, problem.nests[name]) or moved:
                dirty |= problem.neighbours[name] | ({name} if linearised(problem, name) else set())
            clock.tell(stage="descent", sweep=sweep, done=count + 1, of=len(order))
        dirty &= set(order)
        if not dirty or clock.over():
            return


def try_step(problem: Problem, step: Step) -> bool:
    """Takes a step if it gains anything."""
    least = TOLERANCE * problem.norm
    if step.gained <= least:
        return False
    if not linearised(problem, step.nest.root.name):
        problem.move(step.moves)
        return True
    pieces = problem.pieces_of(step.nest)
    before, alignment = problem.inner(pieces), problem.alignment
    problem.move(step.moves)
    if problem.inner(pieces) <= before + least:
        problem.reset(alignment)
        return False
    return True


def alternate(problem: Problem, nest: Nest) -> bool:
    """Solves the innermost groups of a nest one after another, everything else held, where they are coupled."""
    leaves = [g for g in nest.groups if g is not nest.root and not nest.children[g.name]]
    ever, improved = False, len(leaves) > 1 and linearised(problem, nest.root.name)
    while improved:
        improved = any([_leaf_step(problem, nest, leaf) for leaf in leaves])
        ever = ever or improved
    return ever


def _leaf_step(problem: Problem, nest: Nest, leaf: Group) -> bool:
    """The best move of one innermost group. Exact where every piece holds it once; else left alone."""
    pieces = [p for p in problem.pieces_of(nest) if leaf.members[0] in p.factors]
    if any(p.factors.count(f) > 1 for p in pieces for f in (*leaf.members, *leaf.within)):
        return False
    scores = similarity(nest, leaf, pieces, alone=True).double().cpu().numpy()
    columns, values = assign_many(scores)
    if values.sum() - np.trace(scores, axis1=1, axis2=2).sum() <= TOLERANCE * problem.norm:
        return False
    problem.move({leaf.name: columns.reshape(problem.spec.frame(leaf) + (leaf.size,))})
    return True


def linearised(problem: Problem, root: str) -> bool:
    """Whether some piece holds two factors of the nest that its scores treat as if they did not move."""
    nest = problem.nests[root]
    for piece in problem.pieces_of(nest):
        chain = {f for g in nest.chains[nest.owner(piece.factors).name] for f in g.members}
        inside = [f for f in piece.factors if f in nest.factors]
        if len(inside) != len(set(inside)) or set(inside) - chain:
            return True
    return False
