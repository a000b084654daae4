"""Nothing moves: the task vector as it is. The control that every other method has to beat."""

from __future__ import annotations

from ..objective.problem import Problem
from .method import Search


def run(problem: Problem, search: Search) -> None:
    """Leaves the source where it is."""
