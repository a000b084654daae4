"""Atoms, segments, blocks, values: what a tensor is to the analysis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Iterable, Sequence

import numpy as np

FEW_BLOCKS = 16


@lru_cache(maxsize=4096)
def natural(shape: tuple[int, ...]) -> np.ndarray:
    """Positions 0 .. prod(shape)-1 in row-major order; shared, hence read-only."""
    positions = np.arange(math.prod(shape)).reshape(shape)
    positions.flags.writeable = False
    return positions


class Atom:
    """An index set of `size` elements. `pinned` is the reason why it must stay as it is, or None. A `loose` atom stands
    in for an opaque dimension while it is reshaped. `turning`: nothing may depend on which of its elements it is, because
    the graph itself moves them among each other, or because it stood in for an opaque dimension, which other values
    have without holding the atom. `used`: an op computed with it; what is only rearranged may be dropped."""

    __slots__ = ("size", "pinned", "loose", "turning", "used", "blocks")

    def __init__(self, size: int, pinned: str | None = None, loose: bool = False):
        self.size = size
        self.pinned = pinned
        self.loose = loose
        self.turning = loose
        self.used = False
        self.blocks: set[Block] = set()

    def copy(self) -> "Atom":
        """Another atom, free, of the same size."""
        other = Atom(self.size)
        other.used = self.used
        return other

    def __repr__(self):
        return f"{'!' if self.pinned else ''}{self.size}@{id(self) % 9973}"


class Segment:
    """What one dimension of a block is made of.

    `positions[i1, ..., im]` is the index along the dimension at which the element (i1, ..., im) of
    atoms[0] x ... x atoms[m-1] lies. A segment without atoms is a single position; or opaque, with the `reason` why its
    positions cannot be permuted; or free, several positions that all hold the same number.
    """

    __slots__ = ("positions", "atoms", "reason", "_key")

    def __init__(self, positions: np.ndarray, atoms: Sequence[Atom] = (), reason: str | None = None):
        self.positions = positions
        self.atoms = tuple(atoms)
        self.reason = reason
        self._key: bytes | None = None

    @classmethod
    def plain(cls, positions: np.ndarray, reason: str | None = None) -> "Segment":
        """Without atoms: opaque if there is a reason, else free; one position is neither."""
        return cls(positions.reshape(()) if positions.size == 1 else positions, (), reason if positions.size > 1 else None)

    def named(self) -> "Segment":
        """With an atom in any case, for a segment without atoms that has to be told apart from others."""
        if self.atoms or self.positions.size == 1:
            return self
        return Segment(self.positions.reshape(-1), [Atom(self.positions.size, self.reason, self.reason is not None)])

    @property
    def key(self) -> bytes:
        """Identifies the set of positions, whatever their order."""
        if self._key is None:
            self._key = np.sort(self.positions, axis=None).tobytes()
        return self._key


class Block:
    """A box of a value's index space: one segment for each dimension."""

    __slots__ = ("value", "segments")

    def __init__(self, value: "Value", segments: Iterable[Segment]):
        self.value = value
        self.segments = list(segments)

    def atoms(self) -> list[Atom]:
        return [atom for segment in self.segments for atom in segment.atoms]

    def count(self, atom: Atom) -> int:
        """How often the block holds an atom: in its segments, and through the choices of its value. Through an axis in
        several pieces it may or may not hold it: that counts twice, so that nothing takes it for certain."""
        found = sum(segment.atoms.count(atom) for segment in self.segments)
        for choice in self.value.chosen:
            pieces = choice.index.axis.blocks
            held = sum(piece.atoms().count(atom) for piece in pieces)
            found += held * len(pieces)
        return found


@dataclass(frozen=True)
class Choice:
    """What was looked up with an index holds, at each place, one element of the axis that the index points into: the
    weights of the expert that was chosen there. `dims` are the dimensions of the value along which those of the index
    run (None where the index has size 1)."""

    index: "Value"
    dims: tuple[int | None, ...]


class Value:
    """A tensor as the analysis sees it: its shape, and blocks that partition its index space.

    points   for an index: the axis into which its numbers point, as a value of one dimension. Where that axis is
             permuted, the numbers change accordingly.
    table    for an index whose numbers follow nothing: the axis that is looked up with it, pinned
    chosen   the choices behind a value that was looked up.
    even     whether it holds equal numbers along all its atoms (a mask, in which units of one number are an atom): then
             it says which elements move together, and nothing about what they may depend on
    """

    __slots__ = ("shape", "blocks", "points", "table", "chosen", "even", "tidy_at")

    def __init__(self, shape: Sequence[int], chosen: Iterable[Choice] = ()):
        self.shape = tuple(shape)
        self.blocks: list[Block] = []
        self.points: Value | None = None
        self.table: Value | None = None
        self.even = False
        self.tidy_at = FEW_BLOCKS  # in so many pieces it is looked at: some may be one by now
        self.chosen = tuple(dict.fromkeys(chosen))

    @property
    def axis(self) -> "Value":
        """What an index chooses from. Raises ValueError if the value is no index."""
        axis = self.points or self.table
        if axis is None:
            raise ValueError("numbers that are no index choose from nothing")
        return axis


def coalesce(boxes: list[list[Segment]]) -> list[list[Segment]]:
    """Joins boxes that differ only along a dimension that carries no atoms: the class token and the patches, windows of
    an image, padding."""
    rank = len(boxes[0])
    joined = True
    while joined and len(boxes) > 1:
        joined = False
        for d in range(rank):
            runs: dict[tuple, list[list[Segment]]] = {}
            for box in boxes:
                run = runs.setdefault(tuple(s.key for e, s in enumerate(box) if e != d) + (bool(box[d].atoms),), [])
                partner = None if box[d].atoms else next((other for other in run if _compatible(box, other, d)), None)
                if partner is None:
                    run.append(box)
                    continue
                positions = np.sort(np.concatenate([x[d].positions.reshape(-1) for x in (box, partner)]))
                reason = box[d].reason or partner[d].reason or "positions that differ"
                partner[:] = [Segment.plain(positions, reason) if e == d else _richer(a, b)
                              for e, (a, b) in enumerate(zip(partner, box))]
                joined = True
            boxes = [box for run in runs.values() for box in run]
    return boxes


def _compatible(one: list[Segment], other: list[Segment], d: int) -> bool:
    return all(e == d or not a.atoms or not b.atoms or a.atoms == b.atoms and np.array_equal(a.positions, b.positions)
               for e, (a, b) in enumerate(zip(one, other))) and not any(
        e != d and bool(a.reason or b.reason) and bool(a.atoms or b.atoms) for e, (a, b) in enumerate(zip(one, other)))


def _richer(a: Segment, b: Segment) -> Segment:
    return a if a.atoms or (a.reason and not b.atoms) else b
