"""The default: starts from what cannot move, and ascends by exact steps on nested groups."""

from __future__ import annotations

from collections.abc import Callable

from ...alignment import Alignment
from ..objective.problem import Problem
from ..solve.descent import descend
from ..solve.relaxed import frank_wolfe
from ..solve.starts import masked
from .method import Search
from .transfusion import pair_heads


def run(problem: Problem, search: Search) -> None:
    """Starts, descents, and the best objective ever seen."""
    if search.earlier is not None:
        problem.reset(search.earlier)
        descend(problem, search.order, search.clock, search.sweeps)
    else:
        descend(problem, search.order, search.clock, search.sweeps, masked(problem, search.clock))
    if search.effort == "best":
        _restarts(problem, search)


def _restarts(problem: Problem, search: Search) -> None:
    """Descents from further starts."""
    best, score, identity, clock = problem.alignment, problem.inner(), problem.spec.identity(), search.clock
    starts: list[tuple[Alignment, Callable[[], object]]] = [
        (identity, lambda: None),  # as published methods start
        (identity, lambda: masked(problem, clock, anchors=False)),  # signed sorted rows
        (identity, lambda: pair_heads(problem)),  # spectral
        (identity, lambda: frank_wolfe(problem, clock)),  # barycentre
        (problem.spec.random(search.seed), lambda: None)]
    for alignment, start in starts:
        if clock.over():
            break
        problem.reset(alignment)
        start()
        descend(problem, search.order, clock, search.sweeps)
        if problem.inner() > score + 1e-9 * problem.norm:
            best, score = problem.alignment, problem.inner()
    problem.reset(best)
