"""How each ATen op relates the axes of its arguments and results; one file for each family of ops."""

from . import (attention, choosing, contractions, draws, indexing, linear_algebra, norms, pointwise,  # noqa: F401  (register)
               recurrent, sparse, spatial, views)
from .call import Call, Unordered
from .facts import Distinctness, Facts
from .rule import RULES, Rule, Uncovered, rearrangement, rule
from .text import letters

__all__ = ["RULES", "Call", "Distinctness", "Facts", "Rule", "Uncovered", "Unordered", "letters", "rearrangement", "rule"]
