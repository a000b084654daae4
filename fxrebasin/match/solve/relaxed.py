"""Joint Frank-Wolfe: all groups at once, over convex combinations of alignments, from the barycentre.

Source: "C2M3: Cycle-Consistent Multi-Model Merging" (Crisostomi et al., NeurIPS 2024), algorithm 1, for two
models: unlike coordinate ascent, no group is committed before the others. Ours keeps the nested structure:
every vertex is an exact nested step, so that combinations stay within the hull of true alignments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...alignment import Alignment
from ...spec import Group
from ..objective.gather import flat_sources
from ..objective.nest import Nest
from ..objective.piece import Piece
from ..objective.problem import Problem
from .descent import Clock
from .step import Step

STEPS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the line search: the objective is a polynomial on the line


def frank_wolfe(problem: Problem, clock: Clock, rounds: int = 40) -> None:
    """Moves the source to the vertex at which joint Frank-Wolfe from the barycentre ends."""
    sources = [piece.sides()[1] for piece in problem.pieces]
    plans = {name: _barycentre(problem, nest) for name, nest in problem.nests.items()}
    vertex: dict[str, np.ndarray] = {}
    here = _objective(problem, sources, plans)
    for count in range(rounds):
        if clock.over():
            break
        vertex = {}
        for name, nest in problem.nests.items():
            around = [(p, _soft(problem, source, p.factors, plans, without=name))
                      for p, source in zip(problem.pieces, sources) if nest.root.members[0] in p.factors]
            pieces = [Piece.plain(p.tensor, p.factors, p.sides()[0], soft) for p, soft in around]
            vertex |= Step(nest, pieces).moves
        corners = {name: _matrices(problem, nest, vertex) for name, nest in problem.nests.items()}
        scored = [(_objective(problem, sources, mixed), s, mixed) for s in STEPS
                  for mixed in [{n: {g: (1 - s) * plans[n][g] + s * corners[n][g] for g in plans[n]} for n in plans}]]
        best, _, mixed = max(scored, key=lambda item: item[:2])
        clock.tell(stage="frank-wolfe", done=count + 1, of=rounds)
        if best <= here + 1e-9 * problem.norm:
            break
        here, plans = best, mixed
    if vertex:
        problem.move(vertex)


def _places(nest: Nest, group: Group) -> list[str]:
    """The factors that tell an element of a group from all others: what it is within, and its own."""
    return [f for g in nest.chains[group.name] for f in g.members] + list(nest.extras(group))


def _barycentre(problem: Problem, nest: Nest) -> dict[str, torch.Tensor]:
    """The mean of all alignments of a nest, as a matrix for each group over its places; pinned places stay
    put."""
    like = problem.pieces[0].sides()[0]
    plans = {}
    for group in nest.groups:
        matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
        for factor in _places(nest, group):
            n = problem.spec.sizes[factor]
            part = torch.full((n, n), 1 / n) if factor in problem.spec.group_of else torch.eye(n)
            matrix = torch.kron(matrix, part.to(matrix))
        plans[group.name] = matrix
    return plans


def _matrices(problem: Problem, nest: Nest, moves: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The permutation matrices of the moves of a nest, over the places of each group."""
    like = problem.pieces[0].sides()[0]
    move = Alignment(problem.spec, {**problem.identity.permutations, **{g.name: moves[g.name] for g in nest.groups}})
    flat = {group.name: flat_sources(move, _places(nest, group)) for group in nest.groups}
    return {name: torch.eye(order.numel(), dtype=like.dtype, device=like.device)[order] for name, order in flat.items()}


def _soft(problem: Problem, source: torch.Tensor, factors: Sequence[str], plans,
          without: str | None = None) -> torch.Tensor:
    """A source moved by the plans of all nests but one."""
    for name, nest in problem.nests.items():
        if name == without or nest.root.members[0] not in factors:
            continue
        group = nest.owner(factors)
        places = _places(nest, group)
        for k in range(max(factors.count(f) for f in nest.root.members)):
            axes = [[i for i, x in enumerate(factors) if x == f] for f in places]
            at = [a[min(k, len(a) - 1)] for a in axes]
            rest = [i for i in range(source.ndim) if i not in at]
            moved = source.permute(at + rest)
            shape = moved.shape
            moved = (plans[name][group.name] @ moved.reshape(plans[name][group.name].shape[0], -1)).reshape(shape)
            source = moved.permute([int(i) for i in np.argsort(at + rest)])
    return source


def _objective(problem: Problem, sources, plans) -> float:
    return sum(float((p.sides()[0] * _soft(problem, source, p.factors, plans)).sum(dtype=torch.float64))
               for p, source in zip(problem.pieces, sources))
