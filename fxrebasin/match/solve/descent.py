"""Descents: one exact step after another until none gains, within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ...spec import Group
from ..objective.nest import Nest
from ..objective.problem import Problem
from ..objective.similarity import similarity
from .assignment import assign_many
from .step import Step

SWEEPS = 100  # of a published descent, at most; it ends when nothing improves
KEEP_EVERY = 5.0  # seconds between two saves of the best alignment so far
TOLERANCE = 1e-7  # relative to the norm of the states: smaller gains are rounding


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


def descend(problem: Problem, order: Sequence[str], clock: Clock, sweeps: int,
            dirty: set[str] | None = None) -> None:
    """Solves one nest after another until none improves: coordinate ascent on the objective (Git Re-Basin,
    Ainsworth et al. 2023, section 3.2), with exact nested steps. `dirty` names the nests that may not be at
    their best (all by default); one whose neighbours did not move since it was solved is skipped."""
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
    least, root = TOLERANCE * problem.norm, step.nest.root.name
    exact = not linearised(problem, root)
    if step.gained <= least:
        if exact:
            problem.note(root, step.here)
        return False
    if exact:
        problem.move(step.moves)
        problem.note(root, step.here + step.gained)
        return True
    pieces = problem.pieces_of(step.nest)
    before, alignment = problem.inner(pieces), problem.alignment
    problem.move(step.moves)
    if problem.inner(pieces) <= before + least:
        problem.reset(alignment)
        return False
    return True


def alternate(problem: Problem, nest: Nest) -> bool:
    """Solves the innermost groups of a nest one after another, everything else held, where they are
    coupled."""
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
    """Whether some piece holds groups of the nest that its scores treat as if they did not move."""
    nest = problem.nests[root]
    return any(nest.held(piece.factors) for piece in problem.pieces_of(nest))
