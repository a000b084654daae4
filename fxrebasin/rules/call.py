"""What a rule sees: one op applied to values, and what it may do with them.

An index remembers which axis its numbers point into (`value.points`); a rule that looks it up asks `call.points`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Mapping

import numpy as np

from ..factors import Atom, Factors, Segment, Value, natural
from .text import relate


class Arguments(dict):
    """A call's arguments by schema name; notes which ones are read."""

    def __init__(self, given: Mapping[str, Any]):
        super().__init__(given)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def unread(self) -> dict[str, Any]:
        return {name: dict.__getitem__(self, name) for name in self if name not in self.read}


@dataclass(frozen=True)
class Unordered:
    """A dimension of a result whose order depends on the places of what was searched: `order`; `searched` along `dim`."""

    order: Value
    searched: Value
    dim: int
    reason: str


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
    distinct: Callable[[str, int, int], tuple[str | None, frozenset[str]]] = lambda name, dim, largest: (None, frozenset())
    # why an argument's numbers may be equal along a dimension, or None, and what that rests on; last: so many of the
    # largest are chosen, or 0
    unordered: list[Unordered] = field(default_factory=list)  # dimensions of results that are in no order
    assumed: list[tuple[Value, str]] = field(default_factory=list)  # what is taken for granted, and the axis that is free for it
    masks: Callable[[str], bool] = lambda name: False  # whether a tensor argument, or one of a list, holds booleans
    looked_up: list[Value] = field(default_factory=list)  # the indices that the rule has looked up
    related: list[Value] = field(default_factory=list)  # the values that the rule has related or pinned

    def __post_init__(self):
        self.args = self.args if isinstance(self.args, Arguments) else Arguments(self.args)

    def tensors(self) -> list[Value]:
        """All tensor arguments in schema order, lists flattened."""
        return [x for arg in dict.values(self.args) for x in values_in(arg)]

    def unseen(self) -> dict[str, Any]:
        """The arguments at which the rule has not looked: neither read by name, nor related, pinned or looked up."""
        seen = {id(value) for value in (*self.related, *self.looked_up)}
        return {name: arg for name, arg in self.args.unread().items()
                if not values_in(arg) or any(id(value) not in seen for value in values_in(arg))}

    def pin(self, value: Value, dims=None, because: str | None = None) -> None:
        """Pins dimensions of a value (all by default)."""
        self.related.append(value)
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
        values = self.tensors() if values is None else values
        self.related += values
        return relate(self, text, values, sizes)


def values_in(argument: Any) -> list[Value]:
    """The tensors of an argument: itself, or the elements of a list."""
    return [x for x in (argument if isinstance(argument, (list, tuple)) else [argument]) if isinstance(x, Value)]
