"""Where a descent begins decides where it ends. Two starts that need no guess.

masked  From what cannot move outwards: a nest is solved from the pieces whose other groups are solved
        already, first of all those that touch inputs, outputs, biases and norms.
sorted  For a network without anchors: rows sorted along what is unknown are the same however it is permuted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...spec import Group
from ..objective.nest import Nest
from ..objective.piece import Piece
from ..objective.problem import Problem
from ..objective.similarity import flattened
from .descent import Clock, linearised
from .step import Step


def masked(problem: Problem, clock: Clock, anchors: bool = True) -> set[str]:
    """Moves the source to the alignment that grows outwards from all that is pinned (or, without `anchors`,
    from one nest placed by its sorted rows). Returns the nests that have not been solved with everything
    around them in place.

    A group counts as known once a step has seen evidence of it. A nest is solved again when there is evidence
    of a group in it that was not known before.
    """
    known: set[str] = set()  # names of groups
    placed: set[str] = set()
    dirty: set[str] = set()
    waiting = list(problem.roots)
    evidence: dict[str, list[Piece]] = {}
    while waiting and not clock.over():
        for root in waiting:
            if root not in evidence:
                evidence[root] = _evidence(problem, problem.nests[root], known)
        root = max(waiting, key=lambda r: (*_merit(problem.nests[r], evidence[r], known), r not in placed,
                                           _strength(problem.nests[r], problem.pieces_of(problem.nests[r]))))
        nest, pieces = problem.nests[root], evidence[root]
        if not anchors and not placed:
            pieces = []
        shown = _shown(nest, pieces) - known
        extra = None
        if not shown:  # nothing tells: sorted rows have to do for what is left
            left = [g for g in nest.groups if g.name not in known and (g is nest.root or root in placed)]
            extra = {g.name: sorted_scores(problem, nest, g, known) for g in left}
            shown = set(extra)
        step = Step(nest, pieces, extra, problem.similarities)
        problem.move(step.moves)
        known |= shown
        placed.add(root)
        if known.issuperset(g.name for g in nest.groups):
            waiting.remove(root)
        for near in (root, *problem.neighbours[root]):
            evidence.pop(near, None)
        dirty |= problem.neighbours[root] & placed
        if len(pieces) < len(problem.pieces_of(nest)) or linearised(problem, root):
            dirty.add(root)
        else:
            dirty.discard(root)
            if extra is None:
                problem.note(root, step.here + step.gained)
        clock.tell(stage="start", done=len(problem.roots) - len(waiting), of=len(problem.roots))
    return dirty | set(waiting)


def _evidence(problem: Problem, nest: Nest, known: set[str]) -> list[Piece]:
    """The pieces that speak for a nest: all around it is known, and all that their scores take as it
    stands."""
    names = problem.spec.group_of
    return [p for p in problem.pieces_of(nest)
            if all(names[f] in known for f in p.factors if f in names and f not in nest.factors)
            and all(g.name in known for g in nest.held(p.factors))]


def _shown(nest: Nest, pieces: Sequence[Piece]) -> set[str]:
    """The groups that some pieces are evidence of."""
    seen = [nest.coupled(p.factors) or nest.chains[nest.owner(p.factors).name] for p in pieces]
    return {g.name for groups in seen for g in (nest.root, *groups)}


def _merit(nest: Nest, pieces: Sequence[Piece], known: set[str]) -> tuple[bool, float]:
    """Whether there is evidence of anything new, and how strong it is."""
    new = bool(_shown(nest, pieces) - known)
    return new, _strength(nest, pieces) if new else 0.0


def _strength(nest: Nest, pieces: Sequence[Piece]) -> float:
    """How many numbers speak for each element to be placed."""
    return sum(p.target.numel() for p in pieces) / max(1, nest.root.size)


def sorted_scores(problem: Problem, nest: Nest, group: Group, known: set[str]) -> np.ndarray:
    """Scores of a group's elements, for every pair of elements above it, from what no unknown permutation
    changes: their numbers in order of size, along all factors that are not known. Shape (E, N, N)."""
    loose = {f for name, g in problem.spec.groups.items() if name not in known for f in g.members}
    chain, extras = nest.chain(group), nest.extras(group)
    total = None
    for piece in problem.pieces_of(nest):
        if group not in nest.present(piece.factors):
            continue
        own = [piece.factors.index(f) for f in chain]
        lead = [piece.factors.index(f) for f in extras]
        moving = [i for i, f in enumerate(piece.factors) if f in loose and i not in own and i not in lead]
        still = [i for i in range(len(piece.factors)) if i not in own + lead + moving]
        rows = []
        for side in piece.sides():
            array = flattened(side, lead, own, still, moving)
            rows.append(torch.sort(array, dim=-1).values.flatten(2).double())
        part = _matched(rows[0], rows[1])
        total = part if total is None else total + part
    size = nest.size(chain)
    return np.zeros((nest.size(extras), size, size)) if total is None else total.cpu().numpy()


def _matched(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Minus half the squared distance: as an inner product, but rows of equal length do not win by their
    size."""
    return target @ source.transpose(-1, -2) - 0.5 * (target.square().sum(-1)[..., :, None]
                                                      + source.square().sum(-1)[..., None, :])
