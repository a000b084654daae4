"""An element of the group drawn at random: what chance gives. The control for every claim of an alignment."""

from __future__ import annotations

from ..objective.problem import Problem
from .method import Search


def run(problem: Problem, search: Search) -> None:
    problem.reset(problem.spec.random(search.seed))
