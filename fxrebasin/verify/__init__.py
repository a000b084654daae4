"""Verification: does the function stay the same, and are two checkpoints the same up to a permutation?"""
from .front import TOLERANCE, Evidence, find_equivalence, verify

__all__ = ["TOLERANCE", "Evidence", "find_equivalence", "verify"]
