"""Two states in factor form: the objective, the similarity of one group's elements, and moving the source.

Every block of a permutable tensor becomes an array with one axis for each factor. The source is kept permuted by the
alignment found so far, so that a step is always a move relative to where things stand: the identity costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..alignment import Alignment
from ..spec import Group, Spec


@dataclass
class Piece:
    """One block of one tensor: its factors, and target and (moved) source with an axis for each factor."""

    tensor: str
    factors: tuple[str, ...]
    target: torch.Tensor
    source: torch.Tensor


class Problem:
    """The search for pi that maximises <target, pi(source)>. `alignment` is the best known pi; `source` is moved by it."""

    def __init__(self, spec: Spec, source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor],
                 dtype: torch.dtype | None = None):
        self.spec = spec
        self.alignment = spec.identity()
        self.watchers: list = []
        self.pieces: list[Piece] = []
        for name in spec.permutable:
            a, b = source[name].detach(), target[name].detach()
            kind = dtype or (torch.float64 if b.dtype == torch.float64 else torch.float32)
            for block in spec.layouts[name]:
                factors = tuple(f for axis in block for f in axis.factors)
                self.pieces.append(Piece(name, factors, _factor_form(b, block).to(kind),
                                         _factor_form(a.to(b.device), block).to(kind)))
        self.weights = list(self.pieces)  # without further evidence: what the objective is reported on
        self.norm = math.sqrt(math.prod(
            sum(float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2 for x in side)
            for side in ([p.target for p in self.pieces], [p.source for p in self.pieces])))

    # --------------------------------------------------------------------------------------------------- the objective

    def inner(self, pieces: Sequence[Piece] | None = None) -> float:
        """<target, pi(source)> over some pieces (all by default), accumulated in float64."""
        return sum(float((p.target * p.source).sum(dtype=torch.float64))
                   for p in (self.pieces if pieces is None else pieces))

    def cosine(self) -> float:
        """Cosine similarity of pi(source) and target over all permutable tensors."""
        return self.inner(self.weights) / self.norm if self.norm > 0 else 0.0

    def add(self, pieces: Sequence[Piece]) -> None:
        """Adds further evidence to the objective, before any step is taken."""
        self.pieces.extend(pieces)

    # ------------------------------------------------------------------------------------------------------ structure

    @cached_property
    def roots(self) -> list[str]:
        """Groups that are within no other group: each is solved together with all that is within it."""
        return [g.name for g in self.spec.groups.values() if not any(f in self.spec.group_of for f in g.within)]

    @cached_property
    def nests(self) -> dict[str, "Nest"]:
        return {name: Nest(self.spec, self.spec.groups[name]) for name in self.roots}

    def pieces_of(self, nest: "Nest") -> list[Piece]:
        return self._by_root[nest.root.name]

    @cached_property
    def _by_root(self) -> dict[str, list[Piece]]:
        return {name: [p for p in self.pieces if nest.root.members[0] in p.factors] for name, nest in self.nests.items()}

    @cached_property
    def neighbours(self) -> dict[str, set[str]]:
        """Root -> roots with which it shares a piece: if none of them moved, solving it again changes nothing."""
        near: dict[str, set[str]] = {name: set() for name in self.roots}
        for piece in self.pieces:
            here = {root for root in self.roots if any(f in self.nests[root].factors for f in piece.factors)}
            for root in here:
                near[root] |= here - {root}
        return near

    # ---------------------------------------------------------------------------------------------------------- moving

    def move(self, step: Mapping[str, np.ndarray]) -> None:
        """Moves the source further by permutations of some groups (all others stay)."""
        move = Alignment(self.spec, {**self._identity.permutations, **step})
        touched = {f for name in step for f in self.spec.groups[name].members}
        for piece in self.pieces:
            if touched.intersection(piece.factors):
                piece.source = _moved(piece.source, piece.factors, move)
        self.alignment = move @ self.alignment
        changed = {name: p for name, p in step.items() if not np.array_equal(p, self._identity.permutations[name])}
        for watcher in self.watchers if changed else ():
            watcher(changed, lambda nest, group: self._flat(move, nest, group))

    def watch(self, watcher) -> None:
        """Calls watcher(moves, flat) after every move that moves anything; flat(nest, group) is where every element of the
        group's chain comes from, or None if that depends on more than the chain."""
        self.watchers.append(watcher)

    def _flat(self, move: Alignment, nest: "Nest", group: Group) -> torch.Tensor | None:
        if nest.extras(group):
            return None
        return flat_sources(move, [f for g in nest.chains[group.name] for f in g.members])

    def roots_in(self, piece: Piece) -> tuple[str, ...]:
        """The nests that a piece holds factors of."""
        return tuple(root for root in self.roots if self.nests[root].root.members[0] in piece.factors)

    def reset(self, alignment: Alignment) -> None:
        """Makes `alignment` the current one."""
        step = alignment @ self.alignment.inverse()
        self.move(step.permutations)
        self.alignment = alignment

    @cached_property
    def similarities(self):
        """Scores that are kept while they are right (see `cache`)."""
        from .cache import Similarities
        return Similarities(self)

    @cached_property
    def _identity(self) -> Alignment:
        return self.spec.identity()


class Nest:
    """A root group and all groups within it, as a tree: each group below the innermost group that it is within."""

    def __init__(self, spec: Spec, root: Group):
        self.spec, self.root = spec, root
        inside = [g for g in spec.groups.values() if set(root.members) <= set(g.within)]
        self.groups = [root, *inside]
        self.factors = {f for g in self.groups for f in g.members}
        self.chains: dict[str, tuple[Group, ...]] = {root.name: (root,)}
        for group in sorted(inside, key=lambda g: len(g.within)):
            above = [c for c in self.chains.values() if all(set(g.members) <= set(group.within) for g in c)]
            self.chains[group.name] = (*max(above, key=len), group)
        self.children: dict[str, list[Group]] = {g.name: [] for g in self.groups}
        for chain in self.chains.values():
            if len(chain) > 1:
                self.children[chain[-2].name].append(chain[-1])

    def extras(self, group: Group) -> tuple[str, ...]:
        """Factors that a group is within besides its chain: it is solved for each of their indices."""
        chain = {f for g in self.chains[group.name] for f in g.members}
        return tuple(f for f in group.within if f not in chain)

    def owner(self, factors: Sequence[str]) -> Group:
        """The innermost group of the nest that is present in a piece: the piece is evidence about it."""
        present = [g for g in self.groups if all(m in factors for m in g.members)]
        return max(present, key=lambda g: len(self.chains[g.name]))


def similarity(nest: Nest, group: Group, pieces: Sequence[Piece], alone: bool = False) -> torch.Tensor:
    """Scores of every pair of elements of a group, for every pair of elements of the groups above it.

    Shape (E, N, N), in the pieces' dtype: E runs over the factors in `extras`, N over the
    product of the group's chain. Entry [e, i, j] is what target element i and source element j have in common. `alone`:
    the groups above are held, E runs over all that the group is within.
    """
    spec = nest.spec
    extras = group.within if alone else nest.extras(group)
    chain = list(group.members) if alone else [f for g in nest.chains[group.name] for f in g.members]
    size = math.prod(spec.sizes[f] for f in chain)
    total: torch.Tensor | None = None
    for piece in pieces:
        for target, source in _views(piece, extras, chain):
            if total is None:
                total = torch.bmm(target, source.transpose(-1, -2))
            else:
                total.baddbmm_(target, source.transpose(-1, -2))
    if total is None:
        return torch.zeros(math.prod(spec.sizes[f] for f in extras), size, size)
    return total


def _views(piece: Piece, extras: Sequence[str], chain: Sequence[str]):
    """Target and source as (extras, chain, rest). A factor that stands twice (a square weight) gives one view for each
    place, the other held as it is; that is a linearisation."""
    twice = max(piece.factors.count(f) for f in chain)
    for k in range(twice):
        own = []
        for f in chain:
            places = [i for i, x in enumerate(piece.factors) if x == f]
            own.append(places[min(k, len(places) - 1)])
        lead = [piece.factors.index(f) for f in extras]
        rest = [i for i in range(len(piece.factors)) if i not in own and i not in lead]
        order = lead + own + rest
        shape = (math.prod(piece.target.shape[i] for i in lead), math.prod(piece.target.shape[i] for i in own), -1)
        if piece.target.numel():
            yield piece.target.permute(order).reshape(shape), piece.source.permute(order).reshape(shape)


def _factor_form(tensor: torch.Tensor, block) -> torch.Tensor:
    """A block of a tensor with one axis for each factor; a view of the tensor where positions are in natural order."""
    shape = []
    for d, axis in enumerate(block):
        flat = axis.positions.reshape(-1)
        if not (flat.size == tensor.shape[d] and np.array_equal(flat, np.arange(flat.size))):
            tensor = tensor.index_select(d, torch.from_numpy(flat.astype(np.int64)).to(tensor.device))
        shape.extend(axis.positions.shape)
    return tensor.reshape(shape)


def flat_sources(move: Alignment, places: Sequence[str]) -> torch.Tensor:
    """Where every element of the product of some factors comes from, as a permutation of that product."""
    sizes = tuple(move.spec.sizes[f] for f in places)
    old = move._sources(places, list(np.ogrid[tuple(slice(n) for n in sizes)]))
    return torch.from_numpy(np.ravel_multi_index(np.broadcast_arrays(*old), sizes).reshape(-1))


def _moved(array: torch.Tensor, factors: Sequence[str], move: Alignment) -> torch.Tensor:
    """An array in factor form, permuted."""
    grid = list(np.ogrid[tuple(slice(n) for n in array.shape)])
    old = move._sources(factors, grid)
    apart = [k for k, x in enumerate(old) if x.size == x.shape[k]]
    joint = [k for k in range(array.ndim) if k not in apart or any(x.shape[k] > 1 for j, x in enumerate(old) if j != k)]
    for k in apart:
        if k not in joint and not np.array_equal(old[k], grid[k]):
            array = array.index_select(k, torch.from_numpy(old[k].reshape(-1)).to(array.device))
    if not joint:
        return array
    if joint != list(range(joint[0], joint[-1] + 1)):
        return array[tuple(torch.from_numpy(np.ascontiguousarray(x if k in joint else grid[k])).to(array.device)
                           for k, x in enumerate(old))]
    shape = array.shape  # neighbouring axes that move together, such as heads and units, are one flat axis
    sizes = shape[joint[0]:joint[-1] + 1]
    flat = np.ravel_multi_index(np.broadcast_arrays(*(old[k] for k in joint)), sizes).reshape(-1)
    array = array.reshape(*shape[:joint[0]], flat.size, *shape[joint[-1] + 1:])
    return array.index_select(joint[0], torch.from_numpy(flat).to(array.device)).reshape(shape)
