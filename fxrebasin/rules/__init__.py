"""How each ATen op relates the axes of its arguments and results; one file for each family of ops."""

from . import attention, contractions, indexing, norms, pointwise, recurrent, spatial, views  # noqa: F401  (register)
from .rule import RULES, Call, Rule, rearrangement, rule

__all__ = ["RULES", "Call", "Rule", "rearrangement", "rule"]
