"""What the objective is made of: blocks of tensors, with an axis for each factor.

Every block of a tensor that counts becomes a piece, an array with one axis for each factor: a view of the
state wherever that is possible. The states are never copied nor moved; a piece gathers its source as pi has
it while it is looked at, part by part, and brings both sides to a size at which nothing under- or overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...alignment import Alignment
from ...spec import Block
from .gather import gathered

Sides = tuple[torch.Tensor, torch.Tensor]  # target and source
Cut = tuple[int, int, int]  # an axis, and where a part of it starts and stops
PART = 2 ** 20  # numbers that are looked at together, at least: fewer would make the matrix products slow


@dataclass
class Side:
    """One state's block: an array with an axis for each factor, as given, and what it is multiplied by.

    gain   None, or a vector that is folded into it: an axis for each factor of the axis that it lies on
    shift  a power of two that brings the numbers near 1, where they are so large or small that products of
           them would leave the range of the dtype; else 1
    scale  what brings (shifted) numbers to the size at which they count
    square  the sum of the squares of all numbers at that size
    """

    array: torch.Tensor
    gain: torch.Tensor | None = None
    shift: float = 1.0
    scale: float = 1.0
    square: float = 0.0

    def prepared(self, part: torch.Tensor, gain: torch.Tensor | None, dtype: torch.dtype,
                 scaled: bool) -> torch.Tensor:
        """A part of the array as numbers to compute with; `gain`: of that part, and in its shape."""
        if self.shift != 1:  # before anything is narrowed: it may not be there to be multiplied afterwards
            part = part.to(torch.promote_types(part.dtype, dtype)) * self.shift
        part = part.to(dtype)
        if gain is not None:
            part = part * gain.to(part.device, dtype)
        return part * self.scale if scaled and self.scale != 1 else part


@dataclass
class Piece:
    """One block of one tensor: its factors, and target and source with an axis for each factor.

    dtype of all that is computed; `block`: how its axes lie in the tensor; `folded`: which axes the sides' gains
    lie on; `alignment`: how the source stands, if it was moved; `part`: the most numbers that are gathered
    together.
    """

    tensor: str
    factors: tuple[str, ...]
    new: Side
    old: Side
    dtype: torch.dtype
    block: Block = ()
    folded: tuple[int, ...] = ()
    alignment: Alignment | None = None
    part: int = PART
    common: float | None = None  # <target, moved source>, where it is known

    @classmethod
    def plain(cls, tensor: str, factors: tuple[str, ...], target: torch.Tensor, source: torch.Tensor,
              **more) -> Piece:
        """A piece that counts as it is."""
        return cls(tensor, factors, Side(target), Side(source), target.dtype, **more)

    @property
    def target(self) -> torch.Tensor:
        return self.new.array

    @property
    def source(self) -> torch.Tensor:
        return self.old.array

    @property
    def weight(self) -> float:
        """What products of sides that are not scaled count."""
        return self.new.scale * self.old.scale

    def inner(self) -> float:
        """<target, moved source>, accumulated in float64; computed again only after a move."""
        if self.common is None:
            whole = range(self.target.ndim)
            self.common = self.weight * math.fsum(dot(*sides) for sides in self.parts(whole))
        return self.common

    def sides(self, cut: Cut | None = None, still: Sequence[int] = (), scaled: bool = True) -> Sides:
        """Target and moved source, or what they hold from `start` to `stop` along one axis: cut = (axis,
        start, stop). The source is not moved along the axes in `still`. Without `scaled`, their products are
        still to be multiplied by `weight`."""
        target = self.target if cut is None else self.target.narrow(cut[0], cut[1], cut[2] - cut[1])
        source = gathered(self.source, self.factors, self.alignment, cut, still)
        gains = self._gains(cut, still) if self.folded else (None, None)
        return (self.new.prepared(target, gains[0], self.dtype, scaled),
                self.old.prepared(source.to(self.target.device), gains[1], self.dtype, scaled))

    def _gains(self, cut: Cut | None, still: Sequence[int]) -> Sides:
        """The gains of target and moved source, to be multiplied with what `sides` takes."""
        names = [self.factors[k] for k in self.folded]
        held = [k for k, axis in enumerate(self.folded) if axis in still]
        own = None if cut is None or cut[0] not in self.folded else (self.folded.index(cut[0]), *cut[1:])
        assert self.new.gain is not None and self.old.gain is not None  # what is folded has gains
        new = self.new.gain if own is None else self.new.gain.narrow(own[0], own[1], own[2] - own[1])
        old = gathered(self.old.gain, names, self.alignment, own, held)
        shape = [1] * self.target.ndim
        for k, axis in enumerate(self.folded):
            shape[axis] = new.shape[k]
        return new.reshape(shape), old.reshape(shape)

    def parts(self, axes: Sequence[int], still: Sequence[int] = ()) -> Iterator[Sides]:
        """Both sides, not scaled, cut along one of some axes into parts that are not too large."""
        shape = self.target.shape
        axis = max(axes, key=lambda k: shape[k], default=None)
        if axis is None or self.target.numel() <= self.part:
            yield self.sides(None, still, scaled=False)
            return
        step = max(1, self.part * shape[axis] // self.target.numel())
        for start in range(0, shape[axis], step):
            yield self.sides((axis, start, min(start + step, shape[axis])), still, scaled=False)


def dot(a: torch.Tensor, b: torch.Tensor, block: int = 2 ** 14) -> float:
    """The inner product; sums of float32 are short ones, and added up in float64."""
    a, b = a.reshape(-1), b.reshape(-1)
    return math.fsum(float(torch.dot(x, y)) for x, y in zip(a.split(block), b.split(block)))


def factor_form(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """A block of a tensor with one axis for each factor; a view of the tensor where positions are evenly
    spaced."""
    spacings: list[tuple[int, list[int]]] = []
    for d, axis in enumerate(block):
        spacing = _spacing(axis.positions)
        if spacing is None:
            flat = np.ascontiguousarray(axis.positions.reshape(-1), dtype=np.int64)
            tensor = tensor.index_select(d, torch.from_numpy(flat).to(tensor.device))
            sizes = axis.positions.shape
            spacing = 0, [math.prod(sizes[k + 1:]) if n > 1 else 0 for k, n in enumerate(sizes)]
        spacings.append(spacing)
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
