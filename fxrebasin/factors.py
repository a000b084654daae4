"""The factor algebra: index sets, what they are made of, and which of them move together.

An *atom* is an index set on which one unknown permutation acts. Every tensor (of the state or computed) is a
*value*: a partition of its index space into boxes, its *blocks*. In a block, every dimension is a *segment*: the
positions it covers, laid out as a product of atoms. A plain tensor is one block with one atom a dimension; a
concatenation has several blocks; a reshape gives segments of several atoms.

Relating values only ever adds knowledge, in four ways:

    union   two atoms are one
    bind    an atom turns out to be a product, a reordering or a concatenation of other atoms
    pin     an atom must stay as it is, with a reason
    hold    a tensor holds an atom (together with the other atoms of the block)

Dependence is read off at the end: atom d may be permuted differently for each index of h exactly when h is present
in every block in which d is present. Two free atoms that each depend on the other are one atom of their product size:
this is why splitting an axis takes nothing away until some tensor holds one part without the other.

Dimensions that can never be permuted and belong to no state tensor (batch, positions of an input) carry no atoms: they
are *opaque*, and pin whatever is related to them. Dimensions that hold equal numbers (after `expand`) are *free*: they
ask nothing of what is related to them.

When an atom is cut into pieces, whatever depends on it is cut apart with it (the heads of q, k and v in an axis that is
3 x heads x units); if a tensor later holds such parts together, relating them makes them one again.

There is no ATen and no torch in this file.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Iterable, Sequence

import numpy as np

MOST_BLOCKS = 1000  # a value in more pieces is given up: pinned


@lru_cache(maxsize=4096)
def natural(shape: tuple[int, ...]) -> np.ndarray:
    """Positions 0 .. prod(shape)-1 in row-major order; shared, hence read-only."""
    positions = np.arange(math.prod(shape)).reshape(shape)
    positions.flags.writeable = False
    return positions


class Atom:
    """An index set of `size` elements. `pinned` is the reason why it must stay as it is, or None. A `loose` atom stands
    in for an opaque dimension while it is reshaped. `turning`: the graph itself moves its elements among each other, so
    that nothing may depend on which one it is."""

    __slots__ = ("size", "pinned", "loose", "turning", "blocks")

    def __init__(self, size: int, pinned: str | None = None, loose: bool = False):
        self.size = size
        self.pinned = pinned
        self.loose = loose
        self.turning = False
        self.blocks: set[Block] = set()

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
        self._key = None

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


class Value:
    """A tensor as the analysis sees it: its shape, and blocks that partition its index space."""

    __slots__ = ("shape", "blocks")

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)
        self.blocks: list[Block] = []


class Factors:
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

    def build(self, shape: Sequence[int], blocks: Iterable[Sequence[Segment]]) -> Value:
        value = Value(shape)
        boxes = [list(segments) for segments in blocks if all(segment.positions.size for segment in segments)]
        if len(boxes) > MOST_BLOCKS:
            self.pin((atom for box in boxes for segment in box for atom in segment.atoms), "too fragmented to follow")
            boxes = [[Segment.plain(natural((size,)), "too fragmented to follow") for size in shape]]
        if sum(math.prod(s.positions.size for s in box) for box in boxes) != math.prod(shape):
            raise ValueError("the blocks of a value do not cover it")  # a rule that is wrong must not go unnoticed
        for segments in _coalesce(boxes) if len(boxes) > 1 else boxes:
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

    def union(self, a: Atom, b: Atom) -> None:
        """Atoms a and b are one."""
        self.changes += 1
        if len(a.blocks) < len(b.blocks):
            a, b = b, a
        a.pinned = a.pinned or b.pinned
        a.loose = a.loose and b.loose
        a.turning = a.turning or b.turning
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
        instances = self._instances(atom, len(pieces)) if len(pieces) > 1 else [{}]
        self.changes += 1
        for block in list(atom.blocks):
            places = [(d, segment.atoms.index(atom)) for d, segment in enumerate(block.segments)
                      if atom in segment.atoms]
            if len(pieces) == 1 and len(places) == 1:  # the common case, in place
                self._substitute(block, *places[0], atom, *pieces[0])
                if atom not in block.atoms():
                    continue
            self._replace(block, atom, pieces, instances)
        atom.blocks = set()

    def _instances(self, atom: Atom, count: int) -> list[dict[Atom, Atom]]:
        """For each piece of a cut atom, the atoms that depend on it, and their own copies in that piece."""
        if atom.turning:
            return [{} for _ in range(count)]
        neighbours = {x for block in atom.blocks for x in block.atoms()} - {atom}
        dependent = [x for x in neighbours if not x.pinned and x.blocks <= atom.blocks
                     and all(block.atoms().count(atom) == 1 for block in x.blocks)]
        return [{x: Atom(x.size) for x in dependent} for _ in range(count)]

    def _replace(self, block: Block, atom: Atom, pieces, instances) -> None:
        """Replaces a block by one for each choice of a piece at each place where the atom stands."""
        self.cuts += 1
        block.value.blocks.remove(block)
        for x in block.atoms():
            x.blocks.discard(block)
        for choice in itertools.product(range(len(pieces)), repeat=block.atoms().count(atom)):
            part = Block(block.value, block.segments)
            for index in choice:
                d = next(d for d, segment in enumerate(part.segments) if atom in segment.atoms)
                self._substitute(part, d, part.segments[d].atoms.index(atom), atom, *pieces[index])
            copies = instances[choice[0]]
            part.segments = [Segment(s.positions, [copies.get(x, x) for x in s.atoms], s.reason) for s in part.segments]
            self._add(part)

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

    # ------------------------------------------------------------------------------------------ unifying two segments

    def unify(self, one: Block, d: int, other: Block, e: int, why: str) -> None:
        """Segment d of one block and segment e of another cover the same positions and must move alike. Stops early
        when blocks were cut: the caller sees that in `cuts`."""
        cuts = self.cuts
        while cuts == self.cuts and self._unify_step(one.segments[d], other.segments[e], why):
            pass

    def _unify_step(self, a: Segment, b: Segment, why: str) -> bool:
        """One step towards equality; False when there is nothing left to do."""
        if a.atoms == b.atoms and (a.positions is b.positions or np.array_equal(a.positions, b.positions)):
            return False
        if set(a.atoms) == set(b.atoms) and _agree(a, b):
            return False
        if len(a.atoms) == 1 or len(b.atoms) == 1:
            if len(a.atoms) != 1:
                a, b = b, a
            return self._unify_atom(a, b)
        left, right = _radix(a), _radix(b)
        if left is None or right is None:
            return not _agree(a, b) and self.pin(a.atoms + b.atoms, f"reordered in two ways at {why}")
        return self._unify_products(left, right, why)

    def _unify_atom(self, a: Segment, b: Segment) -> bool:
        """Segment a is a single atom."""
        atom = a.atoms[0]
        where = np.empty(int(a.positions.max()) + 1, dtype=np.int64)
        where[a.positions] = np.arange(atom.size)
        index = where[b.positions]  # the index in the atom of each element of b
        if len(b.atoms) > 1:
            self.bind(atom, [(index, b.atoms)])
        elif np.array_equal(index, natural((atom.size,))):
            self.union(atom, b.atoms[0])
        elif atom is b.atoms[0]:
            self._centralise(atom, index)
        else:
            self.bind(atom, [(index, b.atoms)])
        return True

    def _centralise(self, atom: Atom, image: np.ndarray) -> None:
        """The graph moves the atom onto itself by the permutation `image`: only what commutes with it is free. Cycles of
        one length may be exchanged with each other; rotations within a cycle are given up."""
        cycles: dict[int, list[list[int]]] = {}
        seen = np.zeros(atom.size, dtype=bool)
        for start in range(atom.size):
            cycle = []
            while not seen[start]:
                seen[start] = True
                cycle.append(start)
                start = int(image[start])
            if cycle:
                cycles.setdefault(len(cycle), []).append(cycle)
        pieces = []
        for length, members in sorted(cycles.items()):
            index = np.array(members)
            atoms = [Atom(len(members))] * (len(members) > 1)
            if length > 1:
                atoms.append(Atom(length, "a reordering in the graph moves it onto itself"))
                atoms[-1].turning = True
            pieces.append((index.reshape([x.size for x in atoms]), atoms))
        self.bind(atom, pieces)

    def _unify_products(self, a: list[Atom], b: list[Atom], why: str) -> bool:
        """Two row-major products of the same size: match equal atoms from both ends, split where one side is finer."""
        while a and b and a[-1] is b[-1]:
            a, b = a[:-1], b[:-1]
        while a and b and a[0] is b[0]:
            a, b = a[1:], b[1:]
        if not a:
            return False
        for end in (-1, 0):
            x, y = a[end], b[end]
            common = math.gcd(x.size, y.size)
            if x.size == y.size:
                self.union(x, y)
                return True
            if common > 1:
                for atom in (x, y):
                    if atom.size > common:
                        sizes = (atom.size // common, common)
                        self.split(atom, sizes if end else sizes[::-1])
                return True
        return self.pin(a + b, f"factorisations {'x'.join(str(x.size) for x in a)} and "
                               f"{'x'.join(str(x.size) for x in b)} do not align at {why}")

    # --------------------------------------------------------------------------------------------- relating whole values

    def relate(self, operands: Sequence[tuple[Value, Sequence[str | None]]], outputs: Sequence[Sequence[str]],
               why: str = "") -> list[Value]:
        """Relates values dimension by dimension, as an einsum does.

        Each operand comes with a letter for every dimension (None: a dimension that is broadcast). A letter shared by
        operands, or found in an output, makes their segments one. Every output letter is a letter of an operand.
        Returns a value for each output.

        The space of all letters is a value too: in P @ P.T an atom stands under two letters, and what is summed over
        goes with one of them in the first operand and with the other in the second, so that it depends on neither.
        """
        letters = list(dict.fromkeys(letter for _, own in operands for letter in own if letter))
        asked = len(outputs)
        outputs = [*outputs, letters] if len(operands) > 1 and not any(set(letters) <= set(o) for o in outputs) else outputs
        while True:
            changes = self.changes
            cells = [{}] if all(len(v.blocks) == 1 for v, _ in operands) else self._cells(operands, outputs)
            results = None if cells is None else self._merge_cells(operands, outputs, cells, why, asked)
            if changes == self.changes and results is not None:
                return [self.build(shape, blocks) for shape, blocks in results][:asked]

    def _cells(self, operands, outputs) -> list[dict[str, int]] | None:
        """The common refinement of all operands' blocks in the space of all letters, as boxes {letter: set of classes,
        a bit mask}; None after cutting a block that is coarser than it must be."""
        masks = _LetterMasks(operands)
        cells = masks.refine(operands, outputs)
        for value, letters in operands:
            for block in value.blocks:
                box = masks.box(block, letters)
                inside = {_project(cell, letters) for cell in cells if _overlap(cell, box)}
                if len(inside) > 1:
                    self._cut_block(block, letters, masks, inside)
                    return None
        for cell in cells:
            cell["blocks"] = [next(block for block in value.blocks if _overlap(cell, masks.box(block, letters)))
                              for value, letters in operands]
        return cells

    def _cut_block(self, block: Block, letters, masks: "_LetterMasks", inside: set[tuple]) -> None:
        for d, letter in enumerate(letters):
            parts = {dict(box)[letter] for box in inside if letter in dict(box)} if letter else set()
            if len(parts) > 1:
                segment = block.segments[d]
                classes = masks.classes[letter]
                signatures = [tuple(part >> c & 1 for part in sorted(parts)) for c in range(int(classes.max()) + 1)]
                table = np.unique(signatures, axis=0, return_inverse=True)[1].reshape(-1)
                self._cut_segment(block, d, table[classes[segment.positions]])
                return

    def _cut_segment(self, block: Block, d: int, labels: np.ndarray) -> None:
        """Cuts so that `labels` (over the positions of segment d) is constant in every block, or closer to it."""
        segment = block.segments[d]
        if segment.atoms:
            self.cut(segment.atoms, labels)
            return
        self.changes += 1  # nothing to cut but the block
        self.cuts += 1
        block.value.blocks.remove(block)
        for atom in block.atoms():
            atom.blocks.discard(block)
        for label in np.unique(labels):
            part = Segment.plain(segment.positions[labels == label], segment.reason)
            self._add(Block(block.value, block.segments[:d] + [part] + block.segments[d + 1:]))

    def _merge_cells(self, operands, outputs, cells, why, asked: int):
        """Unifies, cell by cell, what shares a letter; then, box by box of each output, what the cells leave there."""
        cuts = self.cuts
        single = len(cells) == 1 and "blocks" not in cells[0]
        columns = []  # per cell: letter -> [(block, dimension)]
        for cell in cells:
            blocks = [value.blocks[0] for value, _ in operands] if single else cell["blocks"]
            column: dict[str, list[tuple[Block, int]]] = {}
            for block, (_, letters) in zip(blocks, operands):
                for d, letter in enumerate(letters):
                    if letter:
                        column.setdefault(letter, []).append((block, d))
            columns.append((cell, column))
            for letter, places in column.items():
                column[letter] = [self._meet(places, why)]
                if cuts != self.cuts:
                    return None
        results: list[dict[tuple, dict[str, tuple[Block, int]]]] = []
        for output in outputs:
            boxes: dict[tuple, dict[str, tuple[Block, int]]] = {}
            for cell, column in columns:
                chosen = boxes.setdefault(_project(cell, output), {})
                for letter in output:
                    known = [chosen[letter]] if letter in chosen else []
                    chosen[letter] = self._meet(known + column[letter], why)
                    if cuts != self.cuts:
                        return None
            results.append(boxes)
        if not self._read_along(cells, outputs[:asked], results, why):
            return None
        sizes = {letter: value.shape[d] for value, letters in operands for d, letter in enumerate(letters) if letter}
        return [([sizes[letter] for letter in output],
                 [[block.segments[d] for block, d in (chosen[letter] for letter in output)] for chosen in boxes.values()])
                for output, boxes in zip(outputs, results)]

    def _read_along(self, cells, outputs, results, why) -> bool:
        """A sum that an op makes on its way (an output with fewer letters) goes into every cell of its wider outputs: a
        softmax over units and padding makes numbers in the padding that differ from row to row. False after a cut."""
        cuts = self.cuts
        for wide, narrow in itertools.permutations(range(len(outputs)), 2):
            if not set(outputs[narrow]) < set(outputs[wide]):
                continue
            for cell in cells:
                into, read = (results[k][_project(cell, outputs[k])] for k in (wide, narrow))
                for letter in outputs[narrow]:
                    into[letter] = self._meet([into[letter], read[letter]], why)
                    if cuts != self.cuts:
                        return False
        return True

    def _meet(self, places: list[tuple[Block, int]], why: str) -> tuple[Block, int]:
        """Makes the segments at these places one, and returns the place that tells most: atoms before opaque before free."""
        segments = [block.segments[d] for block, d in places]
        reason = next((segment.reason for segment in segments if segment.reason), None)
        named = [place for place, segment in zip(places, segments) if segment.atoms]
        if not named:
            return next((place for place, segment in zip(places, segments) if segment.reason), places[0])
        for place in named[1:]:
            cuts = self.cuts
            self.unify(*named[0], *place, why)
            if cuts != self.cuts:
                return named[0]
        if reason:
            self.pin(named[0][0].segments[named[0][1]].atoms, reason)
        return named[0]

    # ------------------------------------------------------------------------------------------------ rearranging values

    def permute(self, value: Value, dims: Sequence[int | None]) -> Value:
        """Dimensions in a new order; None makes a new one of size 1; dimensions of size 1 may be left out."""
        one = Segment(natural(()))
        return self.build([1 if d is None else value.shape[d] for d in dims],
                          [[one if d is None else block.segments[d] for d in dims] for block in value.blocks])

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """Broadcasts: new leading dimensions, and dimensions of size 1, hold the same numbers at every position."""
        lead = len(shape) - len(value.shape)
        def segment(block, d):
            if d >= lead and value.shape[d - lead] == shape[d]:
                return block.segments[d - lead]
            return Segment.plain(natural((shape[d],)))
        return self.build(shape, [[segment(block, d) for d in range(len(shape))] for block in value.blocks])

    def take(self, value: Value, dim: int, index: np.ndarray) -> Value:
        """index_select with a constant index; an index may come more than once. Where index is -1 the result holds a
        constant."""
        index = np.asarray(index, dtype=np.int64)
        count = np.bincount(index[index >= 0], minlength=value.shape[dim])
        while True:
            mixed = next((block for block in value.blocks if block.segments[dim].atoms
                          and np.ptp(count[block.segments[dim].positions]) > 0), None)
            if mixed is None:
                break
            self._cut_segment(mixed, dim, count[mixed.segments[dim].positions])
        order = np.argsort(index, kind="stable")
        order = order[index[order] >= 0]
        first = np.concatenate([[0], np.cumsum(count)[:-1]])
        shape = value.shape[:dim] + (len(index),) + value.shape[dim + 1:]
        blocks = []
        for block in value.blocks:
            segment = block.segments[dim]
            if not segment.atoms:
                taken = np.flatnonzero(np.isin(index, segment.positions))
                blocks.append(block.segments[:dim] + [Segment.plain(taken, segment.reason)] + block.segments[dim + 1:])
                continue
            for copy in range(int(count[segment.positions.reshape(-1)[0]])):
                moved = Segment(order[first[segment.positions] + copy], segment.atoms)
                blocks.append(block.segments[:dim] + [moved] + block.segments[dim + 1:])
        hole = np.flatnonzero(index < 0)
        if hole.size:
            rest = self.constant(shape).blocks[0].segments
            blocks.append(rest[:dim] + [Segment.plain(hole)] + rest[dim + 1:])
        return self.build(shape, blocks)

    def concatenate(self, values: Sequence[Value], dim: int) -> Value:
        shape = list(values[0].shape)
        shape[dim] = sum(value.shape[dim] for value in values)
        offset, blocks = 0, []
        for value in values:
            for block in value.blocks:
                segment = block.segments[dim]
                moved = Segment(segment.positions + offset, segment.atoms, segment.reason)
                blocks.append(block.segments[:dim] + [moved] + block.segments[dim + 1:])
            offset += value.shape[dim]
        return self.build(shape, blocks)

    def reshape(self, value: Value, shape: Sequence[int], why: str = "") -> Value:
        """Row-major reshape. Dimensions are taken in the smallest runs that keep their total size."""
        if 0 in shape:
            return self.build(shape, [])
        runs = _runs(value.shape, tuple(shape))
        while True:
            changes = self.changes
            blocks = self._reshape_blocks(value, shape, runs, why)
            if changes == self.changes:
                return self.build(shape, blocks)

    def _reshape_blocks(self, value: Value, shape: Sequence[int], runs, why: str) -> list[list[Segment]] | None:
        blocks = []
        for block in list(value.blocks):
            blocks.append([])
            for ins, outs in runs:
                if len(ins) == len(outs) == 1:
                    blocks[-1].append(block.segments[ins[0]])
                    continue
                run = self._reshape_run(block, ins, [shape[d] for d in outs], why)
                if run is None:
                    return None
                blocks[-1].extend(run)
        return blocks

    def _reshape_run(self, block: Block, ins: Sequence[int], outs: Sequence[int], why: str) -> list[Segment] | None:
        """The segments of dimensions `ins` of a block, flattened together and viewed as dimensions of sizes `outs`.
        None after a cut."""
        cuts = self.cuts
        segments = [block.segments[d] for d in ins]
        alike = len({s.reason is None for s in segments if s.positions.size > 1}) <= 1  # all opaque, or all free
        if alike and not any(s.atoms for s in segments) and all(
                s.positions.size == block.value.shape[d] for s, d in zip(segments, ins)):
            reason = next((s.reason for s in segments if s.reason), None)
            return [Segment.plain(natural((size,)), reason) for size in outs]
        for d in ins:
            if block.segments[d] is not (named := block.segments[d].named()):
                self.changes += 1
                block.segments[d] = named
                named.atoms[0].blocks.add(block)
        while cuts == self.cuts:
            flat, atoms = _flatten([block.segments[d] for d in ins], [block.value.shape[d] for d in ins])
            coordinates = np.unravel_index(flat, outs) if outs else ()
            touched = [[j for j, c in enumerate(coordinates) if (c != c.take([0], axis=k)).any()]
                       for k in range(len(atoms))]
            tangled = next((k for k, js in enumerate(touched) if len(js) > 1), None)
            if tangled is None:
                return [_opaque_again(_along(c, [k for k, js in enumerate(touched) if j in js], atoms))
                        for j, c in enumerate(coordinates)]
            if not self._untangle(atoms, tangled, coordinates, touched[tangled]):
                self.pin(atoms, f"{'x'.join(str(x.size) for x in atoms)} does not align with a view as "
                                f"{'x'.join(map(str, outs))} at {why}")
                return [Segment.plain(np.unique(c), atoms[0].pinned) for c in coordinates]
        return None

    def _untangle(self, atoms: list[Atom], k: int, coordinates, touched: list[int]) -> bool:
        """Atom k moves several of the new coordinates: splits it into one atom for each, or cuts what is not a box."""
        lines = [coordinates[j][tuple(slice(None) if i == k else 0 for i in range(len(atoms)))] for j in touched]
        sets, ranks = zip(*(np.unique(line, return_inverse=True) for line in lines))
        sizes = tuple(s.size for s in sets)
        if min(sizes) > 1 and math.prod(sizes) == atoms[k].size and atoms.count(atoms[k]) == 1:
            index = np.empty(sizes, dtype=np.int64)
            index[tuple(rank.reshape(-1) for rank in ranks)] = np.arange(atoms[k].size)
            self.bind(atoms[k], [(index, [Atom(size) for size in sizes])])
            return True
        lead = coordinates[touched[0]]
        rest = np.stack([c.reshape(-1) for j, c in enumerate(coordinates) if j != touched[0]])
        values, rank = np.unique(lead, return_inverse=True)
        inside = [rest[:, rank.reshape(-1) == v] for v in range(values.size)]
        fibres = [part[:, np.lexsort(part)].tobytes() for part in inside]
        names = {fibre: i for i, fibre in enumerate(dict.fromkeys(fibres))}
        if len(names) == 1:
            return False
        self.cut(atoms, np.array([names[fibre] for fibre in fibres])[rank.reshape(lead.shape)])
        return True


# ------------------------------------------------------------------------------------------------------------ helpers


def _opaque_again(segment: Segment) -> Segment:
    """A segment that only stand-ins for opaque dimensions make up is opaque."""
    if segment.atoms and all(atom.loose for atom in segment.atoms):
        return Segment.plain(np.sort(segment.positions, axis=None), segment.atoms[0].pinned)
    return segment


def _coalesce(boxes: list[list[Segment]]) -> list[list[Segment]]:
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


def _agree(a: Segment, b: Segment) -> bool:
    """Whether at every position the two segments name the same element of every atom that is free."""
    def coordinates(segment):
        order = np.argsort(segment.positions, axis=None)
        index = np.unravel_index(order, segment.positions.shape) if segment.atoms else ()
        return {(atom, segment.atoms[:k].count(atom)): i
                for k, (atom, i) in enumerate(zip(segment.atoms, index)) if not atom.pinned}
    left, right = coordinates(a), coordinates(b)
    return left.keys() == right.keys() and all(np.array_equal(left[x], right[x]) for x in left)


def _radix(segment: Segment) -> list[Atom] | None:
    """The atoms from the outermost to the innermost if the segment is row-major in some order of its atoms (by rank among
    its positions), else None."""
    shape = segment.positions.shape
    ranks = np.empty(segment.positions.size, dtype=np.int64)
    ranks[np.argsort(segment.positions, axis=None)] = np.arange(ranks.size)
    ranks = ranks.reshape(shape)
    strides = [int(ranks[tuple(int(i == k) for i in range(len(shape)))] - ranks[(0,) * len(shape)])
               for k in range(len(shape))]
    order = sorted(range(len(shape)), key=lambda k: -strides[k])
    if not np.array_equal(ranks.transpose(order).reshape(-1), natural((ranks.size,))):
        return None
    return [segment.atoms[k] for k in order]


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pairs up the shortest runs of dimensions of equal total size; dimensions of size 1 join a neighbouring run."""
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ins, outs = [], []
        a = b = 1
        while not ins and not outs or a != b:
            if (a <= b and i < len(old)) or j == len(new):
                ins.append(i)
                a, i = a * old[i], i + 1
            else:
                outs.append(j)
                b, j = b * new[j], j + 1
        runs.append((ins, outs))
    return runs


def _flatten(segments: Sequence[Segment], sizes: Sequence[int]) -> tuple[np.ndarray, list[Atom]]:
    """The row-major positions of several dimensions together, over all their atoms."""
    flat, atoms = np.zeros((), dtype=np.int64), []
    for segment, size in zip(segments, sizes):
        tail = segment.positions.reshape((1,) * flat.ndim + segment.positions.shape)
        flat = flat.reshape(flat.shape + (1,) * segment.positions.ndim) * size + tail
        atoms.extend(segment.atoms)
    return flat, atoms


def _along(coordinate: np.ndarray, axes: list[int], atoms: list[Atom]) -> Segment:
    index = tuple(slice(None) if k in axes else 0 for k in range(coordinate.ndim))
    return Segment(np.asarray(coordinate[index]), [atoms[k] for k in axes])


def _project(cell: dict, letters: Sequence[str | None]) -> tuple:
    return tuple((letter, cell[letter]) for letter in sorted({x for x in letters if x}) if letter in cell)


def _overlap(cell: dict, box: dict) -> bool:
    return all(cell[letter] & mask for letter, mask in box.items() if letter in cell)


class _LetterMasks:
    """For each letter, the coarsest partition of its positions into classes such that every segment is a set of classes."""

    def __init__(self, operands):
        segments: dict[str, dict[bytes, Segment]] = {}
        sizes: dict[str, int] = {}
        for value, letters in operands:
            for block in value.blocks:
                for segment, letter, size in zip(block.segments, letters, value.shape):
                    if letter:
                        segments.setdefault(letter, {})[segment.key] = segment
                        sizes[letter] = size
        self.classes: dict[str, np.ndarray] = {}
        self.masks: dict[tuple[str, bytes], int] = {}
        for letter, members in segments.items():
            classes = np.zeros(sizes[letter], dtype=np.int64)
            for segment in members.values():
                inside = np.zeros(sizes[letter], dtype=np.int64)
                inside[segment.positions.reshape(-1)] = 1
                classes = np.unique(classes * 2 + inside, return_inverse=True)[1].reshape(-1)
            self.classes[letter] = classes
            for key, segment in members.items():
                self.masks[letter, key] = sum(1 << int(c) for c in np.unique(classes[segment.positions]))

    def box(self, block: Block, letters) -> dict[str, int]:
        box: dict[str, int] = {}
        for segment, letter in zip(block.segments, letters):
            if letter:
                box[letter] = box.get(letter, -1) & self.masks[letter, segment.key]
        return box

    def refine(self, operands, outputs) -> list[dict[str, int]]:
        cells: list[dict[str, int]] = [{}]
        for value, letters in operands:
            boxes = [self.box(block, letters) for block in value.blocks]
            cells = [merged for cell in cells for box in boxes
                     if all((merged := {**cell, **{x: cell.get(x, -1) & m for x, m in box.items()}}).values())]
        tensors = [letters for _, letters in operands] + list(outputs)
        while (clash := self._clash(cells, tensors)) is not None:
            letter, mask = clash
            cells = [{**cell, letter: part} for cell in cells
                     for part in (cell[letter] & mask, cell[letter] & ~mask) if part]
        return cells

    @staticmethod
    def _clash(cells, tensors) -> tuple[str, int] | None:
        """A letter and a set of classes by which to cut, if some tensor sees two cells as boxes that overlap in part."""
        for letters in tensors:
            boxes = list({_project(cell, letters) for cell in cells})
            for one, other in itertools.combinations(boxes, 2):
                if all(a & b for (_, a), (_, b) in zip(one, other)):
                    letter, a, b = next((x, a, b) for (x, a), (_, b) in zip(one, other) if a != b)
                    return letter, a if b & ~a else b
        return None
