"""The command line.

Exit status: 0 done; 1 the answer is no; 2 the request is wrong, said in one line on stderr; 130 interrupted.
Answers go to stdout, everything else to stderr. Files appear whole or not at all, and never in place of
an input.

To be read in this order: `speech` (what is said, and where), `example` (inputs for a model), `model` (what
MODEL is), `file` (what is read and written), `option` (what commands share), `command`, `entry`.
"""
from .entry import main, run
from .speech import DONE, INTERRUPTED, NO, TERMINATED, WRONG

__all__ = ["DONE", "INTERRUPTED", "NO", "TERMINATED", "WRONG", "main", "run"]
