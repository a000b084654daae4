"""Soft couplings of flat axes by entropic transport, one axis after another with the couplings found so far,
rounded to permutations at the end.

Source: Singh and Jaggi, "Model Fusion via Optimal Transport", NeurIPS 2020.
"""

from __future__ import annotations

import torch

from ..objective.piece import Piece
from ..objective.problem import Problem
from ..objective.similarity import similarity
from ..solve.assignment import assign
from .method import Search


def run(problem: Problem, search: Search) -> None:
    soft_transport(problem, problem.roots)


def soft_transport(problem: Problem, order: list[str], temperature: float = 0.02, sweeps: int = 3) -> None:
    """Couples each axis softly, all others coupled as far as is known; then rounds. The problem's spec is
    flat."""
    plans: dict[str, torch.Tensor] = {}
    for _ in range(sweeps):
        for name in order:
            nest = problem.nests[name]
            others = {n: plan for n, plan in plans.items() if n != name}
            scores = torch.zeros(nest.root.size, nest.root.size, dtype=torch.float64)
            for p in problem.pieces_of(nest):
                target, source = p.sides()
                soft = Piece.plain(p.tensor, p.factors, target, _coupled(source, p.factors, others))
                scores += similarity(nest, nest.root, [soft])[0].cpu()
            plans[name] = _sinkhorn(scores, temperature)
    problem.move({name: assign(plan.cpu().numpy()).columns for name, plan in plans.items()})


def _coupled(source: torch.Tensor, factors, plans: dict[str, torch.Tensor]) -> torch.Tensor:
    for k, factor in enumerate(factors):
        if factor in plans:
            source = torch.movedim(torch.tensordot(plans[factor].to(source), source, dims=([1], [k])), 0, k)
    return source


def _sinkhorn(scores: torch.Tensor, temperature: float, rounds: int = 100,
              tolerance: float = 1e-3) -> torch.Tensor:
    """The doubly stochastic matrix exp(scores / t) up to scaling of rows and columns; t relative to the
    spread of the scores' best entries. Float64; done when every row adds up to 1 within the tolerance
    (columns do so exactly)."""
    spread = float(scores.max() - scores.mean()) or 1.0
    kernel = torch.exp((scores - scores.max(1, keepdim=True).values) / (temperature * spread))
    columns = torch.ones(len(scores), dtype=scores.dtype)
    for _ in range(rounds):
        rows = 1 / (kernel @ columns).clamp_min(1e-300)
        columns = 1 / (kernel.T @ rows).clamp_min(1e-300)
        if float((rows * (kernel @ columns) - 1).abs().max()) < tolerance:
            break
    return rows[:, None] * kernel * columns
