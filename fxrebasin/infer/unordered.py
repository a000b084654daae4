"""Results in no order.

`topk(sorted=False)` may return what it found in any order, and which one depends on the places of what it searched. Such a
dimension is an index set of its own, that no tensor of the state may have: where the network sums over it in the end, all is
well. Where it tells the results apart, what was searched stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..factors import Atom, Factors, Segment, Value
from ..rules import Unordered


def settle(factors: Factors, found: Iterable[Unordered], state: Iterable[Value]) -> None:
    """Pins what was searched without order, unless the order makes no difference to anything."""
    found, kept = list(found), {id(value) for value in state}
    while True:
        changes = factors.changes
        for k, each in enumerate(found):
            others = {atom for other in found[:k] + found[k + 1:] for atom in _atoms(other.order)}
            atoms = _atoms(each.order)
            if not all(_free(atom, each, kept) and atom not in others for atom in atoms):
                factors.pin(atoms, each.reason)
                factors.pin((a for block in each.searched.blocks for a in block.segments[each.dim].atoms), each.reason)
        if changes == factors.changes:
            return


def _atoms(value: Value) -> list[Atom]:
    return [atom for block in value.blocks for atom in block.atoms()]


def _free(atom: Atom, each: Unordered, state: set[int]) -> bool:
    """Whether nothing asks for the order: it is not pinned, not found in the state, and wherever it is, all the rows are that
    have an order of their own."""
    rows = [block.segments[:each.dim] + block.segments[each.dim + 1:] for block in each.searched.blocks]
    named = {row for segments in rows for segment in segments for row in segment.atoms}
    size = min(map(_opaque, rows))
    return not atom.pinned and all(
        id(block.value) not in state and (block.value is each.order or named <= set(block.atoms())
                                          and _opaque(block.segments) >= size)
        for block in atom.blocks)


def _opaque(segments: list[Segment]) -> int:
    """How many positions a box has beside those that its atoms make."""
    atoms = {atom for segment in segments for atom in segment.atoms if not atom.loose}
    return math.prod(segment.positions.size for segment in segments) // math.prod(atom.size for atom in atoms)
