"""Two states in factor form: the objective, and pi so far.

Every block of a permutable tensor becomes a piece, an array with one axis for each factor: a view of the
state wherever that is possible. The states are never copied nor moved; a piece gathers its source as pi has
it while it is looked at, part by part. So a step is always a move relative to where things stand, and the
identity costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ..alignment import Alignment
from ..spec import Block, Spec
from .gather import gathered
from .nest import Nest

Sides = tuple[torch.Tensor, torch.Tensor]  # target and source
PART = 2 ** 20  # numbers that are looked at together, at least: fewer would make the matrix products slow


@dataclass
class Piece:
    """One block of one tensor: its factors, and target and source with an axis for each factor, as given.

    dtype of all that is computed; `alignment`: how the source stands, if it was moved; `part`: the most
    numbers that are gathered together.
    """

    tensor: str
    factors: tuple[str, ...]
    target: torch.Tensor
    source: torch.Tensor
    dtype: torch.dtype
    alignment: Alignment | None = None
    part: int = PART
    common: float | None = None  # <target, moved source>, where it is known

    def inner(self) -> float:
        """<target, moved source>, accumulated in float64; computed again only after a move."""
        if self.common is None:
            self.common = math.fsum(_dot(*sides) for sides in self.parts(range(self.target.ndim)))
        return self.common

    def sides(self, cut: tuple[int, int, int] | None = None, still: Sequence[int] = ()) -> Sides:
        """Target and moved source, or what they hold from `start` to `stop` along one axis: cut = (axis,
        start, stop). The source is not moved along the axes in `still`."""
        target = self.target if cut is None else self.target.narrow(cut[0], cut[1], cut[2] - cut[1])
        source = gathered(self.source, self.factors, self.alignment, cut, still)
        return target.to(self.dtype), source.to(self.target.device, self.dtype)

    def parts(self, axes: Sequence[int], still: Sequence[int] = ()) -> Iterator[Sides]:
        """Both sides, cut along one of some axes into parts that are not too large."""
        shape = self.target.shape
        axis = max(axes, key=lambda k: shape[k], default=None)
        if axis is None or self.target.numel() <= self.part:
            yield self.sides(None, still)
            return
        step = max(1, self.part * shape[axis] // self.target.numel())
        for start in range(0, shape[axis], step):
            yield self.sides((axis, start, min(start + step, shape[axis])), still)


class Problem:
    """The search for pi that maximises <target, pi(source)>. `alignment` is where it stands."""

    def __init__(self, spec: Spec, source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor],
                 dtype: torch.dtype | None = None):
        self.spec = spec
        self.alignment = self.identity = spec.identity()
        self.watchers: list = []
        self.pieces: list[Piece] = []
        part = max(PART, max((g.size for g in spec.groups.values()), default=0) ** 2 // 4)
        for name in spec.permutable:
            a, b = source[name].detach(), target[name].detach()
            kind = dtype or (torch.float64 if b.dtype == torch.float64 else torch.float32)
            for block in spec.layouts[name]:
                factors = tuple(f for axis in block for f in axis.factors)
                new, old = (_factor_form(side, block) for side in (b, a))
                self.pieces.append(Piece(name, factors, new, old, kind, part=part))
        self.weights = list(self.pieces)  # without further evidence: what the objective is reported on

    # ------------------------------------------------------------------------------------------ the objective

    def inner(self, pieces: Sequence[Piece] | None = None) -> float:
        """<target, pi(source)> over some pieces (all by default), accumulated in float64."""
        return math.fsum(p.inner() for p in (self.pieces if pieces is None else pieces))

    def cosine(self) -> float:
        """Cosine similarity of pi(source) and target over all permutable tensors."""
        return self.inner(self.weights) / self.norm if self.norm > 0 else 0.0

    @cached_property
    def norm(self) -> float:
        """The product of the norms of both states, over all permutable tensors."""
        still = [replace(p, alignment=None) for p in self.weights]
        squares = [[_dot(x, x) for x in sides] for p in still for sides in p.parts(range(p.target.ndim))]
        return math.sqrt(math.prod(math.fsum(side) for side in zip(*squares))) if squares else 0.0

    def add(self, pieces: Sequence[Piece]) -> None:
        """Adds further evidence to the objective, before any step is taken."""
        self.pieces.extend(pieces)

    # ---------------------------------------------------------------------------------------------- structure

    @cached_property
    def roots(self) -> list[str]:
        """Groups that are within no other group: each is solved together with all that is within it."""
        free = self.spec.group_of
        return [g.name for g in self.spec.groups.values() if not any(f in free for f in g.within)]

    @cached_property
    def nests(self) -> dict[str, Nest]:
        return {name: Nest(self.spec, self.spec.groups[name]) for name in self.roots}

    def roots_in(self, piece: Piece) -> tuple[str, ...]:
        """The nests that a piece holds factors of."""
        return tuple(root for root in self.roots if self.nests[root].root.members[0] in piece.factors)

    def pieces_of(self, nest: Nest) -> list[Piece]:
        return self._by_root[nest.root.name]

    @cached_property
    def _by_root(self) -> dict[str, list[Piece]]:
        found: dict[str, list[Piece]] = {name: [] for name in self.roots}
        for piece in self.pieces:
            for root in self.roots_in(piece):
                found[root].append(piece)
        return found

    @cached_property
    def neighbours(self) -> dict[str, set[str]]:
        """Root -> roots with which it shares a piece: if none of them moved, solving it again changes
        nothing."""
        near: dict[str, set[str]] = {name: set() for name in self.roots}
        for piece in self.pieces:
            here = set(self.roots_in(piece))
            for root in here:
                near[root] |= here - {root}
        return near

    # ------------------------------------------------------------------------------------------------- moving

    def move(self, step: Mapping[str, np.ndarray]) -> None:
        """Moves the source further by permutations of some groups (all others stay)."""
        still = self.identity.permutations
        changed = {name: p for name, p in step.items() if not np.array_equal(p, still[name])}
        if not changed:
            return
        move = Alignment(self.spec, {**still, **changed})
        self.alignment = move @ self.alignment
        touched = {f for name in changed for f in self.spec.groups[name].members}
        for piece in self.pieces:
            if touched.intersection(piece.factors):
                piece.alignment, piece.common = self.alignment, None
        for watcher in self.watchers:
            watcher(changed, move)

    def watch(self, watcher) -> None:
        """Calls watcher(changed groups, move) after every move that moves anything."""
        self.watchers.append(watcher)

    def reset(self, alignment: Alignment) -> None:
        """Makes `alignment` the current one."""
        self.move((alignment @ self.alignment.inverse()).permutations)

    @cached_property
    def similarities(self):
        """Scores that are kept while they are right (see `cache`)."""
        from .cache import Similarities
        return Similarities(self)


def _dot(a: torch.Tensor, b: torch.Tensor, block: int = 2 ** 14) -> float:
    """The inner product; sums of float32 are short ones, and added up in float64."""
    a, b = a.reshape(-1), b.reshape(-1)
    return math.fsum(float(torch.dot(x, y)) for x, y in zip(a.split(block), b.split(block)))


def _factor_form(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """A block of a tensor with one axis for each factor; a view of the tensor where positions are evenly
    spaced."""
    spacings = [_spacing(axis.positions) for axis in block]
    for d, (axis, spacing) in enumerate(zip(block, spacings)):
        if spacing is None:
            flat = np.ascontiguousarray(axis.positions.reshape(-1), dtype=np.int64)
            tensor = tensor.index_select(d, torch.from_numpy(flat).to(tensor.device))
            spacings[d] = _spacing(np.arange(flat.size).reshape(axis.positions.shape))
    shape = [n for axis in block for n in axis.positions.shape]
    strides = [k * tensor.stride(d) for d, (_, steps) in enumerate(spacings) for k in steps]
    start = sum(first * tensor.stride(d) for d, (first, _) in enumerate(spacings))
    return tensor.as_strided(shape, strides, tensor.storage_offset() + start)


def _spacing(positions: np.ndarray) -> tuple[int, list[int]] | None:
    """The first position and the step along each axis, where these say it all and lead upwards."""
    shape = positions.shape
    if positions.size == 0:
        return 0, [0] * positions.ndim
    first = int(positions[(0,) * positions.ndim])
    steps = [int(positions[tuple(int(i == k) for i in range(positions.ndim))]) - first if n > 1 else 0
             for k, n in enumerate(shape)]
    told = np.full(shape, first)
    for k, step in enumerate(steps):
        told += step * np.arange(shape[k]).reshape([-1 if k == d else 1 for d in range(positions.ndim)])
    return (first, steps) if min(steps, default=0) >= 0 and np.array_equal(told, positions) else None
