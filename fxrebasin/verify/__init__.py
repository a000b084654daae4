"""Verification: does the function stay the same, and are two checkpoints the same up to a permutation?

    evidence     what was measured: Run, Evidence
    module       the module itself, in its own precision
    blame        the group and the site that break a function
    front        `verify`
    equivalence  `find_equivalence`
"""
from .equivalence import find_equivalence
from .evidence import TOLERANCE, Evidence, Run
from .front import verify

__all__ = ["TOLERANCE", "Evidence", "Run", "find_equivalence", "verify"]
