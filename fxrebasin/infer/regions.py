"""Ops that hold graphs of their own: the branches of a `cond`, the bodies of `map`, `scan` and `while_loop`, what a
`flex_attention` does to its scores.

A body is walked like any graph, over the values that it is given. What comes back to it, or out of either branch, is one
thing with what it comes beside: the two are related as if they were added. A body that runs once for each row of a tensor
sees a row that stands for all of them; the rows themselves stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from ..factors import Value
from ..rules import Call

Walk = Callable[[fx.GraphModule, list[Value]], list[Value] | None]  # a body over values
PASSES = 8  # a loop that has not said all by then is given up


def region(name: str, call: Call, walk: Walk) -> list[Value] | None:
    """The results of an op with bodies; None if nothing is known of it, or of one of its bodies."""
    op = _REGIONS.get(name)
    return None if op is None else op(call, walk)


def _cond(call: Call, walk: Walk) -> list[Value] | None:
    _, one, other, operands = call.args.values()
    return _joined(call, walk(one, list(operands)), walk(other, list(operands)))


def _joined(call: Call, one: list[Value] | None, other: list[Value] | None) -> list[Value] | None:
    """What is either this or that."""
    if one is None or other is None or [a.shape for a in one] != [b.shape for b in other]:
        return None
    for value in (*one, *other):
        _still(call, value)
    return [call.relate("*a, *a -> *a", [a, b])[0] for a, b in zip(one, other)]


def _still(call: Call, value: Value) -> None:
    """An index that goes into or out of a body is not followed: what it points into stays."""
    if value.points is not None:
        call.pin(value.points, because=f"an index into it goes through {call.op}")


def _row(call: Call, value: Value) -> Value:
    """A row that stands for all rows."""
    _still(call, value)
    return call.relate("n! *r -> *r", [value])[0]


def _rows(call: Call, row: Value, count: int) -> Value:
    return call.relate("n, *r -> n *r", [call.fresh((count,)), row])[0]


def _map(call: Call, walk: Walk) -> list[Value] | None:
    body, over, shared = call.args.values()
    made = walk(body, [_row(call, x) for x in over] + list(shared))
    return made and [_rows(call, row, over[0].shape[0]) for row in made]


def _scan(call: Call, walk: Walk) -> list[Value] | None:
    body, start, over, shared = call.args.values()
    rows = [_row(call, x) for x in over]
    looped = _loop(call, list(start), lambda carried: walk(body, [*carried, *rows, *shared]))
    if looped is None:
        return None
    carried, made = looped
    return carried + [_rows(call, row, over[0].shape[0]) for row in made[len(carried):]]


def _while(call: Call, walk: Walk) -> list[Value] | None:
    test, body, start, shared = call.args.values()

    def once(carried):
        return walk(body, [*carried, *shared]) if walk(test, [*carried, *shared]) is not None else None
    looped = _loop(call, list(start), once)
    return looped and looped[0]


def _loop(call: Call, carried: list[Value], body) -> tuple[list[Value], list[Value]] | None:
    """Goes round until what is carried tells nothing new: (what is carried, all results of the body)."""
    for _ in range(PASSES):
        changes, before = call.factors.changes, [_told(value) for value in carried]
        made = body(carried)
        if made is None or (joined := _joined(call, carried, made[:len(carried)])) is None:
            return None
        carried = joined
        if call.factors.changes == changes and [_told(value) for value in carried] == before:
            return carried, made
    return None


def _told(value: Value) -> list:
    """All that a value says."""
    return sorted([(s.positions.tobytes(), tuple(map(id, s.atoms)), s.reason is not None) for s in block.segments]
                  for block in value.blocks)


def _flex_attention(call: Call, walk: Walk) -> list[Value] | None:
    """Attention whose scores go through a function of the score and its place, and through a mask of places. Dimensions
    of which either reads the place stay; tensors that they look up stay altogether."""
    query, key, value, score, blocks, _, _, *looked_up = call.args.values()
    mask = blocks[-1]
    for tensor in (x for group in looked_up for x in group if isinstance(x, Value)):
        call.pin(tensor)
    read = _read(score, 1) | _read(mask, 0)
    if any(isinstance(x, Value) and max(x.shape[:2], default=1) > 1 for x in blocks):
        read |= {0, 1}  # a mask of its own for each sample or head
    if blocks[-3] < query.shape[2] or blocks[-2] < key.shape[2]:
        read |= {2, 3}  # whole blocks of places are left out
    b, h, l, s = (letter + "!" * (k in read) for k, letter in enumerate("bhls"))
    shared = "h"
    if query.shape[1] != key.shape[1]:
        h, shared = f"({'k!' if 1 in read else 'k'} {'g!' if 1 in read else 'g'})", "k"
    inside = h.strip("()").replace("!", "")
    return call.relate(f"{b} {h} {l} d, {b} {shared} {s} d, {b} {shared} {s} e -> "
                       f"b {h.replace('!', '')} l e, b {h.replace('!', '')} l, b {h.replace('!', '')} l, b {inside} l s",
                       [query, key, value])[:3]


def _read(body: fx.GraphModule, first: int) -> set[int]:
    """Which of batch, head, query and key place a function reads."""
    places = [node for node in body.graph.nodes if node.op == "placeholder"]
    return {k for k, place in enumerate(places[first:first + 4]) if place.users}


_REGIONS: dict[str, Callable[[Call, Walk], Any]] = {
    "cond": _cond, "map_impl": _map, "scan": _scan, "while_loop": _while, "flex_attention": _flex_attention}
