"""Where a descent begins decides where it ends. Two starts that need no guess.

masked  From what cannot move outwards: a nest is solved from the pieces whose other groups are solved already, first
        of all those that touch inputs, outputs, biases and norms.
sorted  For a network without anchors: rows sorted along what is unknown are the same however it is permuted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .descent import Clock, Step, linearised
from .problem import Nest, Piece, Problem


def masked(problem: Problem, clock: Clock, anchors: bool = True) -> set[str]:
    """Moves the source to the alignment that grows outwards from all that is pinned (or, without `anchors`, from one nest
    placed by its sorted rows). Returns the nests that have not been solved with everything around them in place."""
    unknown, dirty = set(problem.roots), set()
    while unknown and not clock.over():
        evidence = {root: _known_pieces(problem, problem.nests[root], unknown) for root in unknown}
        root = max((r for r in problem.roots if r in unknown), key=lambda r: (
            _strength(problem.nests[r], evidence[r]), _strength(problem.nests[r], problem.pieces_of(problem.nests[r]))))
        nest, pieces = problem.nests[root], evidence[root]
        if not anchors and len(unknown) == len(problem.roots):
            pieces = []
        extra = None if pieces else {root: sorted_scores(problem, nest, unknown)}
        problem.move(Step(nest, pieces, extra, problem.similarities).moves)
        unknown.discard(root)
        dirty |= problem.neighbours[root] - unknown
        if len(pieces) < len(problem.pieces_of(nest)) or linearised(problem, root):
            dirty.add(root)
        clock.tell(stage="start", done=len(problem.roots) - len(unknown), of=len(problem.roots))
    return dirty | unknown


def _known_pieces(problem: Problem, nest: Nest, unknown: set[str]) -> list[Piece]:
    others = {f for root in unknown if root != nest.root.name for f in problem.nests[root].factors}
    return [p for p in problem.pieces_of(nest) if not others.intersection(p.factors)
            and sum(f in nest.root.members for f in p.factors) == len(nest.root.members)]


def _strength(nest: Nest, pieces: Sequence[Piece]) -> float:
    """How many numbers speak for each element to be placed."""
    return sum(p.target.numel() for p in pieces) / max(1, nest.root.size)


def sorted_scores(problem: Problem, nest: Nest, unknown: set[str]) -> np.ndarray:
    """Scores of the root's elements from what no unknown permutation changes: their numbers in order of size, along all
    factors that are not known. Shape (E, n, n)."""
    spec, root = problem.spec, nest.root
    loose = {f for name in unknown for f in problem.nests[name].factors}
    extras = nest.extras(root)
    total = None
    for piece in problem.pieces_of(nest):
        own = [next(i for i, f in enumerate(piece.factors) if f == m) for m in root.members]
        lead = [piece.factors.index(f) for f in extras]
        moving = [i for i, f in enumerate(piece.factors) if f in loose and i not in own and i not in lead]
        still = [i for i in range(len(piece.factors)) if i not in own + lead + moving]
        shapes = [[piece.target.shape[i] for i in part] for part in (lead, own, still, moving)]
        shape = [int(np.prod(s)) for s in shapes]
        rows = []
        for side in (piece.target, piece.source):
            array = side.permute(lead + own + still + moving).reshape(shape)
            rows.append(torch.sort(array, dim=-1).values.reshape(shape[0], shape[1], -1).double())
        part = _matched(rows[0], rows[1])
        total = part if total is None else total + part
    size = int(np.prod([spec.sizes[f] for f in extras], dtype=int))
    return np.zeros((size, root.size, root.size)) if total is None else total.cpu().numpy()


def _matched(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Minus half the squared distance: as an inner product, but rows of equal length do not win by their size."""
    return target @ source.transpose(-1, -2) - 0.5 * (target.square().sum(-1)[..., :, None]
                                                      + source.square().sum(-1)[..., None, :])
