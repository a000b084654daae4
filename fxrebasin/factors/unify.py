"""Making two segments one: united, bound, refined from both ends, or pinned where they do not align."""

from __future__ import annotations

import math

import numpy as np

from .knowledge import Knowledge
from .values import Atom, Block, Segment, natural


class Unifying(Knowledge):
    """Knowledge that segments move alike."""

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
        if left is None or right is None:  # reordered: perhaps in the same way
            left, right = list(a.atoms), _radix(_relative(b, a))
        if right is None:
            left, right = _radix(_relative(a, b)), list(b.atoms)
        if left is None:
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


def _relative(segment: Segment, other: Segment) -> Segment:
    """A segment with its positions counted as another lays them out."""
    where = np.empty(int(other.positions.max()) + 1, dtype=np.int64)
    where[other.positions] = natural(other.positions.shape)
    return Segment(where[segment.positions], segment.atoms)


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
    ranks: np.ndarray = np.empty(segment.positions.size, dtype=np.int64)
    ranks[np.argsort(segment.positions, axis=None)] = np.arange(ranks.size)
    ranks = ranks.reshape(shape)
    strides = [int(ranks[tuple(int(i == k) for i in range(len(shape)))] - ranks[(0,) * len(shape)])
               for k in range(len(shape))]
    order = sorted(range(len(shape)), key=lambda k: -strides[k])
    if not np.array_equal(ranks.transpose(order).reshape(-1), natural((ranks.size,))):
        return None
    return [segment.atoms[k] for k in order]
