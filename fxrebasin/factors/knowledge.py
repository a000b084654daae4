"""What is known of atoms: the four things that relating values can add, and every value rewritten at once."""

from __future__ import annotations

import itertools
import math
from typing import Iterable, Sequence

import numpy as np

from .values import Atom, Block, Choice, Segment, Value, coalesce, natural

MOST_BLOCKS = 1000  # a value in more pieces is given up: pinned


class Knowledge:
    """All atoms and values of one analysis. Methods that make values never change what a value means, only what is
    known of the atoms that it is made of."""

    def __init__(self):
        self.values: list[Value] = []
        self.changes = 0  # how often atoms were united or bound: segments read before are out of date
        self.cuts = 0  # how often a block was replaced by others: blocks read before are out of date

    # ------------------------------------------------------------------------------------------------ making values

    def value(self, shape: Sequence[int], pinned: str | None = None) -> Value:
        """A tensor of which nothing is known (or all axes pinned)."""
        return self.build(shape, [[self.atom_segment(size, pinned) for size in shape]])

    def constant(self, shape: Sequence[int]) -> Value:
        """A tensor that holds the same number everywhere."""
        return self.build(shape, [[Segment.plain(natural((size,))) for size in shape]])

    @staticmethod
    def atom_segment(size: int, pinned: str | None = None) -> Segment:
        if size == 1 or pinned:
            return Segment.plain(natural((size,)), pinned)
        return Segment(natural((size,)), [Atom(size)])

    def build(self, shape: Sequence[int], blocks: Iterable[Sequence[Segment]], chosen: Iterable[Choice] = ()) -> Value:
        value = Value(shape, chosen)
        boxes = [list(segments) for segments in blocks if all(segment.positions.size for segment in segments)]
        if len(boxes) > MOST_BLOCKS:
            self.pin((atom for box in boxes for segment in box for atom in segment.atoms), "too fragmented to follow")
            boxes = [[Segment.plain(natural((size,)), "too fragmented to follow") for size in shape]]
        if sum(math.prod(s.positions.size for s in box) for box in boxes) != math.prod(shape):
            raise ValueError("the blocks of a value do not cover it")  # a rule that is wrong must not go unnoticed
        for segments in coalesce(boxes) if len(boxes) > 1 else boxes:
            self._add(Block(value, segments))
        self.values.append(value)
        return value

    def _add(self, block: Block) -> None:
        block.value.blocks.append(block)
        for atom in block.atoms():
            atom.blocks.add(block)

    # --------------------------------------------------------------------------------------- what is known of atoms

    def pin(self, atoms: Iterable[Atom], reason: str) -> bool:
        """Pins atoms that are not pinned yet; the first reason stays. True if anything changed."""
        fresh = [atom for atom in atoms if atom.pinned is None]
        for atom in fresh:
            atom.pinned = reason
        return bool(fresh)

    def use(self, value: Value) -> None:
        """An op computes with a value: none of its atoms is idle."""
        for block in value.blocks:
            for segment in block.segments:
                for atom in segment.atoms:
                    atom.used = True

    def union(self, a: Atom, b: Atom) -> None:
        """Atoms a and b are one."""
        self.changes += 1
        if len(a.blocks) < len(b.blocks):
            a, b = b, a
        a.pinned = a.pinned or b.pinned
        a.loose = a.loose and b.loose
        a.turning = a.turning or b.turning
        a.used = a.used or b.used
        for block in b.blocks:
            for d, segment in enumerate(block.segments):
                if b in segment.atoms:
                    block.segments[d] = Segment(segment.positions, [a if x is b else x for x in segment.atoms])
        a.blocks |= b.blocks
        b.blocks = set()

    def bind(self, atom: Atom, pieces: Sequence[tuple[np.ndarray, Sequence[Atom]]]) -> None:
        """The atom is the disjoint union of `pieces`, each a product of atoms: positions[i1, ..., im] is the index in
        the atom of the element (i1, ..., im). The positions of all pieces together are 0 .. size-1, each once."""
        for _, atoms in pieces:
            if atom.pinned:
                self.pin(atoms, atom.pinned)
            for x in atoms:
                x.loose = x.loose or atom.loose and not x.blocks
                x.turning = x.turning or atom.turning
                x.used = x.used or atom.used
        instances = self._instances(atom, len(pieces)) if len(pieces) > 1 else [{}]
        self.changes += 1
        cuts, values = self.cuts, dict.fromkeys(block.value for block in atom.blocks)
        for block in list(atom.blocks):
            places = [(d, segment.atoms.index(atom)) for d, segment in enumerate(block.segments)
                      if atom in segment.atoms]
            if len(pieces) == 1 and len(places) == 1:  # the common case, in place
                self._substitute(block, *places[0], atom, *pieces[0])
                if atom not in block.atoms():
                    continue
            self._replace(block, atom, pieces, instances)
        atom.blocks = set()
        if self.cuts > cuts:
            for value in values:
                self._tidy(value)

    def _instances(self, atom: Atom, count: int) -> list[dict[Atom, Atom]]:
        """For each piece of a cut atom, the atoms that depend on it, and their own copies in that piece."""
        if atom.turning:
            return [{} for _ in range(count)]
        neighbours = {x for block in atom.blocks for x in block.atoms()} - {atom}
        dependent = [x for x in neighbours if not x.pinned and x.blocks <= atom.blocks
                     and all(block.count(atom) == 1 for block in x.blocks)]
        return [{x: x.copy() for x in dependent} for _ in range(count)]

    def _replace(self, block: Block, atom: Atom, pieces, instances) -> None:
        """Replaces a block by one for each choice of a piece at each place where the atom stands."""
        self.cuts += 1
        self._remove(block)
        for choice in itertools.product(range(len(pieces)), repeat=block.atoms().count(atom)):
            part = Block(block.value, block.segments)
            for index in choice:
                d = next(d for d, segment in enumerate(part.segments) if atom in segment.atoms)
                self._substitute(part, d, part.segments[d].atoms.index(atom), atom, *pieces[index])
            copies = instances[choice[0]]
            part.segments = [Segment(s.positions, [copies.get(x, x) for x in s.atoms], s.reason) for s in part.segments]
            self._add(part)

    def _remove(self, block: Block) -> None:
        block.value.blocks.remove(block)
        for atom in block.atoms():
            atom.blocks.discard(block)

    def _tidy(self, value: Value) -> None:
        """Joins what is left of a value that is cut again and again: single positions that nothing moves."""
        if len(value.blocks) < value.tidy_at:
            return
        boxes = coalesce([block.segments for block in value.blocks])
        if len(boxes) < len(value.blocks):
            for block in list(value.blocks):
                self._remove(block)
            for segments in boxes:
                self._add(Block(value, segments))
        # Later each time: what a view cuts with good reason is joined again here, and has to get past this in the end.
        value.tidy_at = max(2 * len(value.blocks), 5 * value.tidy_at // 4)

    @staticmethod
    def _substitute(block: Block, d: int, k: int, atom: Atom, positions: np.ndarray, atoms: Sequence[Atom]) -> None:
        segment = block.segments[d]
        taken = np.take(segment.positions, positions.reshape(-1), axis=k)
        shape = segment.positions.shape
        taken = taken.reshape(shape[:k] + positions.shape + shape[k + 1:])
        block.segments[d] = Segment(taken, segment.atoms[:k] + tuple(atoms) + segment.atoms[k + 1:])
        for x in atoms:
            x.blocks.add(block)

    def split(self, atom: Atom, sizes: Sequence[int]) -> None:
        """The atom is a product, row-major."""
        self.bind(atom, [(natural(tuple(sizes)), [Atom(size) for size in sizes])])

    def cut(self, atoms: Sequence[Atom], labels: np.ndarray) -> None:
        """Cuts atoms until `labels` (an array over their product) is constant in every piece, or closer to it: one
        atom at a time, the caller looks again afterwards."""
        varying = [k for k in range(labels.ndim) if (labels != labels.take([0], axis=k)).any()]
        k = varying[0]
        rows = np.moveaxis(labels, k, 0).reshape(labels.shape[k], -1)
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        pieces = [np.flatnonzero(inverse.reshape(-1) == c) for c in np.argsort(first, kind="stable")]
        self.bind(atoms[k], [self._piece(index) for index in pieces])

    @staticmethod
    def _piece(index: np.ndarray) -> tuple[np.ndarray, list[Atom]]:
        return (index, [Atom(index.size)]) if index.size > 1 else (index.reshape(()), [])

    def _cut_segment(self, block: Block, d: int, labels: np.ndarray) -> None:
        """Cuts so that `labels` (over the positions of segment d) is constant in every block, or closer to it."""
        segment = block.segments[d]
        if segment.atoms:
            self.cut(segment.atoms, labels)
            return
        self.changes += 1  # nothing to cut but the block
        self.cuts += 1
        self._remove(block)
        for label in np.unique(labels):
            part = Segment.plain(segment.positions[labels == label], segment.reason)
            self._add(Block(block.value, block.segments[:d] + [part] + block.segments[d + 1:]))
