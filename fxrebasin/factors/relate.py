"""Relating whole values, as an einsum does: blocks are made to agree, then segments are unified cell by cell."""

from __future__ import annotations

import itertools
import math
from typing import Any, Iterator, Sequence

import numpy as np

from .unify import Unifying
from .values import Block, Choice, Segment, Value, natural

MOST_CELLS = 200  # operands whose pieces overlap in more ways than this are looked at more coarsely
MOST_TURNS = 100  # and so are those that still cut each other after so many turns (an axis shifted and added to itself)


class Relating(Unifying):
    """Knowledge that values share dimensions."""

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
        for value, _ in operands:
            self.use(value)
        asked = len(outputs)
        outputs = [*outputs, letters] if len(operands) > 1 and not any(set(letters) <= set(o) for o in outputs) else outputs
        turn = 0
        while True:
            if turn == MOST_TURNS or _too_many(operands):
                operands = [(self._coarse(value, why), own) for value, own in operands]
            changes = self.changes
            cells = [{}] if all(len(v.blocks) == 1 for v, _ in operands) else self._cells(operands, outputs)
            results = None if cells is None else self._merge_cells(operands, outputs, cells, why, asked)
            if changes == self.changes and results is not None:
                return [self.build(shape, blocks, _chosen(operands, letters))
                        for (shape, blocks), letters in zip(results, outputs)][:asked]
            turn += 1

    def _coarse(self, value: Value, why: str) -> Value:
        """The same value in one piece; the dimensions along which the pieces lie are pinned. (A table of relative
        positions, shifted from row to row, is in as many pieces as it has rows, and the sum of two in the square of that.)"""
        whole, reason = [], f"too fragmented to follow (more than {MOST_CELLS} pieces or {MOST_TURNS} cuts at {why})"
        for d, size in enumerate(value.shape):
            segments = [block.segments[d] for block in value.blocks]
            kinds = {(s.atoms, s.positions.tobytes()) if s.atoms else s.reason for s in segments}
            if any(s.positions.size < size for s in segments) or len(kinds - {None}) > 1:
                self.pin((atom for s in segments for atom in s.atoms), reason)
                segments = [Segment.plain(natural((size,)), reason)]
            whole.append(next((s for s in segments if s.atoms or s.reason), segments[0]))
        return self.build(value.shape, [whole], value.chosen)

    def _cells(self, operands, outputs) -> list[dict[str, Any]] | None:
        """The common refinement of all operands' blocks in the space of all letters, as boxes {letter: set of classes,
        a bit mask}; None after cutting a block that is coarser than it must be."""
        masks = _LetterMasks(operands)
        cells: list[dict[str, Any]] = list(masks.refine(operands, outputs))
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


def _too_many(operands) -> bool:
    """Whether the pieces of the operands overlap in more ways than can be looked at one by one."""
    return math.prod(len(value.blocks) for value, _ in operands) > MOST_CELLS and (
        _LetterMasks(operands).overlaps(operands, MOST_CELLS) is None)


def _chosen(operands, output: Sequence[str]) -> Iterator[Choice]:
    """The choices behind operands that are still told apart in an output: it has all dimensions of the index."""
    for value, letters in operands:
        for choice in value.chosen:
            along = [None if d is None else letters[d] for d in choice.dims]
            if all(letter is None or letter in output for letter in along):
                yield Choice(choice.index, tuple(None if letter is None else list(output).index(letter) for letter in along))


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

    def overlaps(self, operands, most: float = math.inf) -> list[dict[str, int]] | None:
        """The boxes in which blocks of all operands meet; None if there are more than `most`, at any time."""
        cells: list[dict[str, int]] = [{}]
        for value, letters in operands:
            boxes = [self.box(block, letters) for block in value.blocks]
            cells = [merged for cell in cells for box in boxes
                     if all((merged := {**cell, **{x: cell.get(x, -1) & m for x, m in box.items()}}).values())]
            if len(cells) > most:
                return None
        return cells

    def refine(self, operands, outputs) -> list[dict[str, int]]:
        cells = self.overlaps(operands) or []
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
