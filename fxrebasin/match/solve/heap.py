"""Memory that nobody uses, given back.

glibc keeps freed blocks of up to 32 MB in its heap once blocks of that size have been freed. Gathered parts of ever
other sizes leave holes there that the next ones do not fit, so that the process holds several times what a
search uses (measured on ViT-B/16's shapes: all of the excess goes when the heap is trimmed).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`, if it has one (glibc alone)."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def give_back() -> None:
    """Returns what the heap holds free to the system; does nothing where the C library cannot."""
    if (trim := _trim()) is not None:
        trim(0)
