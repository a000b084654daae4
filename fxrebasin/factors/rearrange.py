"""Rearranging values: permute, expand, take, concatenate, reshape."""

from __future__ import annotations

import math
from typing import Mapping, Sequence

import numpy as np

from .relate import Relating
from .values import Atom, Block, Choice, Segment, Value, natural


class Factors(Relating):
    """All atoms and values of one analysis. Methods that make values never change what a value means, only what is
    known of the atoms that it is made of."""

    def permute(self, value: Value, dims: Sequence[int | None]) -> Value:
        """Dimensions in a new order; None makes a new one of size 1; dimensions of size 1 may be left out."""
        one = Segment(natural(()))
        return self.build([1 if d is None else value.shape[d] for d in dims],
                          [[one if d is None else block.segments[d] for d in dims] for block in value.blocks],
                          _still_chosen(value, {d: k for k, d in enumerate(dims) if d is not None}))

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """Broadcasts: new leading dimensions, and dimensions of size 1, hold the same numbers at every position."""
        lead = len(shape) - len(value.shape)
        def segment(block, d):
            if d >= lead and value.shape[d - lead] == shape[d]:
                return block.segments[d - lead]
            return Segment.plain(natural((shape[d],)))
        return self.build(shape, [[segment(block, d) for d in range(len(shape))] for block in value.blocks],
                          _still_chosen(value, {d: d + lead for d in range(len(value.shape))}))

    def take(self, value: Value, dim: int, index: np.ndarray) -> Value:
        """index_select with a constant index; an index may come more than once. Where index is -1 the result holds a
        constant; other numbers than positions raise ValueError."""
        index = np.asarray(index, dtype=np.int64)
        if index.size and not -1 <= index.min() <= index.max() < value.shape[dim]:
            raise ValueError(f"positions {index.min()} to {index.max()} of an axis of {value.shape[dim]}")
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
        return self.build(shape, blocks, _still_chosen(value, {d: d for d in range(len(shape)) if d != dim}))

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
        value = self.build(value.shape, [block.segments for block in value.blocks], value.chosen)  # its own to change
        while True:
            changes = self.changes
            blocks = self._reshape_blocks(value, shape, runs, why)
            if blocks is not None and changes == self.changes:
                if sum(math.prod(s.positions.size for s in block) for block in blocks) != math.prod(shape):
                    return self._given_up(value, shape, why)  # a part of the value is no box in the new shape
                return self.build(shape, blocks, _still_chosen(value, _kept(value.shape, shape, runs)))

    def _given_up(self, value: Value, shape: Sequence[int], why: str) -> Value:
        reason = f"parts of {'x'.join(map(str, value.shape))} do not align with a view as {'x'.join(map(str, shape))} at {why}"
        for block in value.blocks:
            self.pin(block.atoms(), reason)
        return self.value(shape, reason)

    def _reshape_blocks(self, value: Value, shape: Sequence[int], runs, why: str) -> list[list[Segment]] | None:
        blocks: list[list[Segment]] = []
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


def _still_chosen(value: Value, places: Mapping[int, int]) -> list[Choice]:
    """The choices behind a value after its dimensions went to new places; those of an index that lost one are gone."""
    moved = []
    for choice in value.chosen:
        along = [d for d in choice.dims if d is not None and value.shape[d] > 1]
        if all(d in places for d in along):
            moved.append(Choice(choice.index, tuple(places[d] if d in along else None for d in choice.dims)))
    return moved


def _kept(old: Sequence[int], new: Sequence[int], runs) -> dict[int, int]:
    """The dimensions that a reshape leaves as they are, and where they go."""
    places = {}
    for ins, outs in runs:
        ins, outs = ([d for d in dims if shape[d] > 1] for dims, shape in ((ins, old), (outs, new)))
        if len(ins) == len(outs) == 1:
            places[ins[0]] = outs[0]
    return places


def _opaque_again(segment: Segment) -> Segment:
    """A segment that only stand-ins for opaque dimensions make up is opaque."""
    if segment.atoms and all(atom.loose for atom in segment.atoms):
        return Segment.plain(np.sort(segment.positions, axis=None), segment.atoms[0].pinned)
    return segment


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pairs up the shortest runs of dimensions of equal total size; dimensions of size 1 join a neighbouring run."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        ins: list[int] = []
        outs: list[int] = []
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
    flat: np.ndarray = np.zeros((), dtype=np.int64)
    atoms: list[Atom] = []
    for segment, size in zip(segments, sizes):
        tail = segment.positions.reshape((1,) * flat.ndim + segment.positions.shape)
        flat = flat.reshape(flat.shape + (1,) * segment.positions.ndim) * size + tail
        atoms.extend(segment.atoms)
    return flat, atoms


def _along(coordinate: np.ndarray, axes: list[int], atoms: list[Atom]) -> Segment:
    index = tuple(slice(None) if k in axes else 0 for k in range(coordinate.ndim))
    return Segment(np.asarray(coordinate[index]), [atoms[k] for k in axes])
