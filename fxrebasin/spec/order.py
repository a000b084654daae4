"""The number of alignments: an exact integer that prints at any size."""

from __future__ import annotations

import math

LONGEST = 4300  # digits: Python's own limit for turning an integer into text


class Order(int):
    """An exact integer. As text: its digits, or `about 10^x` where there are more than Python would print; with the
    format `e`, always 10^x."""

    def __str__(self) -> str:
        return int.__repr__(self) if self < 10 ** LONGEST else f"about {self:e}"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        if spec == "e":
            return f"10^{self.log10():.1f}"
        return str(self) if not spec else int.__format__(self, spec)

    def log10(self) -> float:
        """The logarithm to base 10, also of what no float can hold."""
        shift = max(self.bit_length() - 1000, 0)
        return math.log10(int(self) >> shift) + shift * math.log10(2)
