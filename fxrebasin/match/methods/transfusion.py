"""Heads are paired by their singular values, then the units of paired heads by one assignment for queries, keys
and values together; weight matching elsewhere.

Source: Rinaldi et al., "Update Your Transformer to the Latest Release: Re-Basin of Task Vectors", ICML 2025,
section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..objective.nest import Nest
from ..objective.piece import Piece
from ..objective.problem import Problem
from ..objective.similarity import similarity
from ..solve.assignment import assign
from ..solve.descent import SWEEPS, Clock, descend
from ..solve.step import Step
from .method import Search


def run(problem: Problem, search: Search) -> None:
    transfusion(problem, search.order, search.clock)


def transfusion(problem: Problem, order: Sequence[str], clock: Clock, sweeps: int = SWEEPS) -> None:
    """Weight matching with the paper's step for attention, taken once for every visit."""
    heads = [name for name in order if len(problem.nests[name].groups) > 1]
    descend(problem, [name for name in order if name not in heads], clock, sweeps)
    pair_heads(problem)
    descend(problem, [name for name in order if name not in heads], clock, sweeps)


def pair_heads(problem: Problem) -> None:
    for nest in problem.nests.values():
        if len(nest.groups) > 1:
            problem.move(TransFusionStep(nest, problem.pieces_of(nest)).moves)


class TransFusionStep(Step):
    """A step that treats a nest of depth two as the paper treats heads and their units."""

    def __init__(self, nest: Nest, pieces):
        if len(nest.groups) == 1 or any(len(chain) > 2 for chain in nest.chains.values()):
            super().__init__(nest, pieces)
            return
        self.nest, self.gained = nest, math.inf  # pairing by spectra does not ascend: each nest is paired once
        self.moves = {g.name: np.tile(np.arange(g.size), nest.spec.frame(g) + (1,)) for g in nest.groups}
        root = nest.root
        inner = [p for p in pieces if nest.owner(p.factors) is not root]
        heads = assign(-spectral_distances(nest, inner)).columns
        for frame in nest.indices(nest.extras(root)):
            self.moves[root.name][tuple(frame[f] for f in root.within)] = heads
            self._units(nest, inner, heads, frame)

    def _units(self, nest: Nest, pieces, heads: np.ndarray, frame) -> None:
        """One assignment for all children of one size together."""
        children = nest.children[nest.root.name]
        for size in {child.size for child in children}:
            alike = [child for child in children if child.size == size and not nest.extras(child)]
            scores = []
            for child in alike:
                own = [p for p in pieces if nest.owner(p.factors) is child]
                n = nest.root.size
                scores.append(similarity(nest, child, own).double().cpu().numpy().reshape(n, size, n, size))
            for i, j in enumerate(heads):
                if alike:
                    columns = assign(sum((s[i, :, j, :] for s in scores), np.zeros(()))).columns
                for child in alike:
                    self.moves[child.name][tuple({**frame, nest.root.members[0]: i}[f] for f in child.within)] = columns


def spectral_distances(nest: Nest, pieces: list[Piece]) -> np.ndarray:
    """Distances between heads of target and source: the norm of the difference of their singular values,
    summed over all weights that hold heads and units. Shape (heads, heads). Invariant to everything but the
    pairing (section 3.1)."""
    n = nest.root.size
    total = np.zeros((n, n))
    for piece in pieces:
        child = nest.owner(piece.factors)
        own = [piece.factors.index(m) for m in nest.root.members]
        units = [piece.factors.index(m) for m in child.members]
        rest = [i for i in range(len(piece.factors)) if i not in own + units]
        values = []
        for side in piece.sides():
            matrix = side.permute(own + units + rest).reshape(n, child.size, -1).double()
            gram = matrix @ matrix.transpose(-1, -2)  # eigenvalues of the Gram matrix: squares of the singular values
            values.append(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt())
        total += torch.cdist(values[0], values[1]).cpu().numpy()
    return total
