"""What is known of the numbers that an op makes, beside how it relates axes.

Where a network chooses by score, two scores that are equal are told apart by their places, and no permutation of places
leaves the choice as it is. So a ranked axis is free only if nothing on the way makes equal numbers. A rule says what its op
does; what it does not say is taken for the worst, and `fxrebasin.check` tries every fact on the op itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Distinctness = Literal[False, True, "injective", "increasing"]


@dataclass(frozen=True)
class Facts:
    """What an op does to numbers. The defaults are the worst that an op may do.

    distinct   False         it may make equal numbers of a whole region of arguments (clamp, round, a comparison)
               True          a result changes wherever one argument changes and the others stay (square, sin)
               "injective"   and numbers that differ stay different, the other arguments being the same (add, neg)
               "increasing"  and in the same order (sigmoid; softmax, within what it sums over)
               or a function of the arguments that says which: {"self": None, "other": 2.0, "alpha": 1}, tensors as None.
               That holds while other arguments are not zero, unless they are added to this one (see `scales`).
    through    the arguments of which `distinct` speaks, by name ("bias"); "" means all tensors
    saturates  `distinct` ends where arguments are large: tanh(50) is tanh(60)
    positive   True: every result is above zero, whatever the arguments (NaN aside). "kept": if all arguments are.
    scales     arguments such that the result is multiplied by t > 0 if they are: "self | other" (a product: each by
               itself), "self other" (a sum: both at once)
    moves      True: the results hold the numbers of the first argument, at other places. "chosen": the first result does,
               none of them twice, and which ones depends on the numbers. "joined": those of all arguments, once.
    """

    distinct: Distinctness | Callable[[Mapping[str, Any]], Distinctness] = False
    through: str = ""
    saturates: bool = False
    positive: Literal[False, True, "kept"] = False
    scales: str = ""
    moves: Literal[False, True, "chosen", "joined"] = False

    def distinct_for(self, arguments: Mapping[str, Any]) -> Distinctness:
        """`distinct`, for a call with these arguments by name, tensors as None."""
        return self.distinct(arguments) if callable(self.distinct) else self.distinct

    def together(self) -> list[list[str]]:
        """The groups of `scales`: names of arguments that are multiplied at once."""
        return [group.split() for group in self.scales.split("|")] if self.scales else []
