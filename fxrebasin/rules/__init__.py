"""How each ATen op relates the axes of its arguments and results; one file for each family of ops."""

from . import (attention, choosing, contractions, draws, indexing, norms, pointwise, recurrent,  # noqa: F401  (register)
               spatial, views)
from .call import Call
from .rule import RULES, Rule, rearrangement, rule

__all__ = ["RULES", "Call", "Rule", "rearrangement", "rule"]
