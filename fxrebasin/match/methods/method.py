"""What a method of matching is: a search that moves a problem's source, under the name that users type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...alignment import Alignment
from ..objective.problem import Problem
from ..solve.descent import Clock

EFFORTS = {"fast": 2, "balanced": 20, "best": 100}  # sweeps at most


@dataclass(frozen=True)
class Search:
    """What a method is given besides the problem.

    order    the roots in an order that the seed decides
    clock    the budget of time, and who wants to hear of progress
    effort   a key of EFFORTS;  seed: decides every random choice
    earlier  an alignment to go on from, or None
    """

    order: list[str]
    clock: Clock
    effort: str
    seed: int
    earlier: Alignment | None = None

    @property
    def sweeps(self) -> int:
        return EFFORTS[self.effort]


@dataclass(frozen=True)
class Method:
    """run     moves the problem's source
    flat    blind to heads: it works on a coarser spec, and its alignments may change the function
    inputs  takes activations as evidence, and goes on from a checkpoint
    objective  what it maximises, a key of OBJECTIVES; published methods, the weights as they are
    """

    run: Callable[[Problem, Search], None]
    flat: bool = False
    inputs: bool = False
    objective: str = "scaled"
