"""What the objective is made of: blocks of tensors, with an axis for each factor.

Every block of a permutable tensor becomes a piece, an array with one axis for each factor: a view of the
state wherever that is possible. The states are never copied nor moved; a piece gathers its source as pi has
it while it is looked at, part by part.
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
            self.common = math.fsum(dot(*sides) for sides in self.parts(range(self.target.ndim)))
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


def dot(a: torch.Tensor, b: torch.Tensor, block: int = 2 ** 14) -> float:
    """The inner product; sums of float32 are short ones, and added up in float64."""
    a, b = a.reshape(-1), b.reshape(-1)
    return math.fsum(float(torch.dot(x, y)) for x, y in zip(a.split(block), b.split(block)))


def factor_form(tensor: torch.Tensor, block: Block) -> torch.Tensor:
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
