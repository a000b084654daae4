"""What a rule sees: one op applied to values, and what it may do with them.

An index remembers which axis its numbers point into (`value.points`); a rule that looks it up asks `call.points`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable

import numpy as np

from ..factors import Atom, Factors, Segment, Value, natural
from .text import relate


@dataclass
class Call:
    """One op applied to values: all that a rule may look at."""

    factors: Factors
    op: str  # "aten.linear.default"
    args: dict[str, Any]  # by schema name, defaults filled in; tensors are Values (or lists of them)
    shapes: list[tuple[int, ...]]  # of the results that are tensors
    why: str = ""  # where in the user's code
    used: Callable[[int], bool] = lambda k: True  # whether result k is used at all
    content: Callable[[str], np.ndarray | None] = lambda name: None  # an argument's numbers, if they never change
    ties: Callable[[str], str | None] = lambda name: None  # why an argument's numbers may be equal to each other
    looked_up: list[Value] = field(default_factory=list)  # the indices that the rule has looked up

    def tensors(self) -> list[Value]:
        """All tensor arguments in schema order, lists flattened."""
        found = []
        for arg in self.args.values():
            found.extend(x for x in (arg if isinstance(arg, (list, tuple)) else [arg]) if isinstance(x, Value))
        return found

    def pin(self, value: Value, dims=None, because: str | None = None) -> None:
        """Pins dimensions of a value (all by default)."""
        reason = f"{because or self.op.removeprefix('aten.').split('.')[0] + ' tells its positions apart'} ({self.why})"
        for block in value.blocks:
            for d in range(len(value.shape)) if dims is None else dims:
                self.factors.pin(block.segments[d].atoms, reason)
                if not block.segments[d].atoms:
                    block.segments[d] = Segment.plain(block.segments[d].positions, block.segments[d].reason or reason)

    def fresh(self, shape) -> Value:
        """A value whose positions the op makes: pinned."""
        return self.factors.value(shape, f"positions made by {self.op} ({self.why})")

    def alone(self, k: int) -> "Call":
        """The same call as if result k were the only one: for a text whose first result it is."""
        return replace(self, shapes=self.shapes[k:k + 1])

    def dim(self, value: Value, name: str = "dim") -> int:
        return self.args[name] % max(len(value.shape), 1)

    def dims(self, value: Value, name: str = "dim") -> list[int]:
        """The dimensions that an argument names: None or an empty list means all of them."""
        given = self.args.get(name)
        if given is None or given == []:
            return list(range(len(value.shape)))
        return sorted({d % len(value.shape) for d in ([given] if isinstance(given, int) else given)})

    def points(self, index: Value, size: int) -> Value | None:
        """The axis of the given size that an index points into; None if its numbers come from elsewhere."""
        if index.points is None or index.points.shape != (size,):
            return None
        self.looked_up.append(index)
        return index.points

    def table(self, index: Value, size: int) -> Value | None:
        """The axis of the given size that is looked up with an index: what it points into, or one that is pinned."""
        if index.points is not None:
            return self.points(index, size)
        if index.table is None:
            reason = f"looked up by numbers that do not follow it ({self.why})"
            index.table = self.factors.build((size,), [[Segment(natural((size,)), [Atom(size, reason)])]])
        if index.table.shape != (size,):
            return None
        self.looked_up.append(index)
        return index.table

    def relate(self, text: str, values: list[Value] | None = None, **sizes: int) -> list[Value]:
        return relate(self, text, [v for v in self.tensors()] if values is None else values, sizes)
