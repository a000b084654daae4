"""One flat permutation for an axis, coordinate ascent in random order from the identity. Blind to heads: on
attention its result can change the function, which `verify` shows.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023,
section 3.2.
"""

from __future__ import annotations

from ..objective.problem import Problem
from ..solve.descent import SWEEPS, descend
from .method import Search


def run(problem: Problem, search: Search) -> None:
    descend(problem, search.order, search.clock, SWEEPS)
