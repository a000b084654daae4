"""Where tensors lie in memory, and how a tensor that lies within another is made of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

aten = torch.ops.aten
LARGEST = 10_000_000  # elements of a view that is looked at element by element
MOST_DIMENSIONS = 5  # of a tensor whose dimensions are tried in every order

Step = tuple[Any, tuple]  # an operation, and its arguments after the tensor


@dataclass(frozen=True)
class Place:
    """The elements of a tensor in memory. start: of its first element, in bytes from the beginning of
    `storage` (None: the address space, the storage of all tensors with data)."""

    storage: int | None
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        """The end of the last element, in bytes."""
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        return self.start + (reach + 1) * self.dtype.itemsize

    @property
    def order(self) -> tuple[int, int, int]:
        """By address, the larger of two that begin together first."""
        return self.storage or 0, self.start, -self.stop

    def meets(self, other: Place) -> bool:
        """Whether some byte belongs to both, as far as that is looked at."""
        if self.storage != other.storage or self.start >= other.stop or other.start >= self.stop:
            return False
        width = self.dtype.itemsize
        distance = other.start - self.start
        if (
            width != other.dtype.itemsize
            or distance % width
            or max(np.prod(self.shape), np.prod(other.shape)) > LARGEST
        ):
            return True
        return np.intersect1d(_elements(self, 0), _elements(other, distance // width)).size > 0


def place_of(tensor: Tensor) -> Place | None:
    """None for a tensor without elements, or without memory of its own."""
    if not tensor.numel() or tensor.layout is not torch.strided:
        return None
    try:
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            storage, start = tensor.untyped_storage()._cdata, tensor.storage_offset() * tensor.dtype.itemsize
        else:
            storage, start = None, tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a wrapper around other tensors
        return None
    if storage is None and not start:
        return None
    return Place(storage, int(start), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def steps(base: Place, view: Place) -> list[Step] | None:
    """The operations that make `view` of `base`: slices, permutations, reshapes. None if it is not made
    so."""
    lies_in = base.storage == view.storage and base.start <= view.start and view.stop <= base.stop
    if not lies_in or base.dtype != view.dtype or (view.start - base.start) % base.dtype.itemsize:
        return None
    return _sliced(base, view) or _reshaped(base, view) or _cut_from_flat(base, view)


def _sliced(base: Place, view: Place) -> list[Step] | None:
    """Slices and selections of the base's dimensions, in another order, perhaps expanded."""
    dims = sorted((d for d in range(len(base.shape)) if base.shape[d] > 1), key=lambda d: -base.strides[d])
    rest = (view.start - base.start) // base.dtype.itemsize
    first: dict[int, int] = {}
    step: dict[int, int] = {}
    length: dict[int, int] = {}
    for d in dims:
        first[d], rest = divmod(rest, base.strides[d]) if base.strides[d] else (0, rest)
    source: list[int | None] = []
    for size, stride in zip(view.shape, view.strides):
        fits = (d for d in dims if size > 1 and 0 < base.strides[d] <= stride and not stride % base.strides[d])
        along = next(fits, None)
        if along in step or along is None and size > 1 and stride:
            return None
        source.append(along)
        if along is not None:
            step[along], length[along] = stride // base.strides[along], size
    if rest or any(
        not 0 <= first[d] <= base.shape[d] - 1 - (length.get(d, 1) - 1) * step.get(d, 1) for d in dims
    ):
        return None
    return _slices(
        base.shape,
        {
            d: range(
                first.get(d, 0), first.get(d, 0) + (length.get(d, 1) - 1) * step.get(d, 1) + 1, step.get(d, 1)
            )
            for d in range(len(base.shape))
        },
    ) + _arranged(len(base.shape), source, view.shape)


def _slices(shape: Sequence[int], kept: dict[int, range]) -> list[Step]:
    """Each dimension restricted to a range."""
    return [
        (aten.slice.Tensor, (d, places.start, places.stop, places.step))
        for d, places in kept.items()
        if places != range(shape[d])
    ]


def _arranged(dims: int, source: Sequence[int | None], shape: Sequence[int]) -> list[Step]:
    """Dimensions in the order `source` (None: a new one), all others of size 1; expanded to `shape`."""
    order = [d for d in source if d is not None]
    order += [d for d in range(dims) if d not in order]
    found: list[Step] = [(aten.permute.default, (order,))] if order != list(range(dims)) else []
    kept = [size for d, size in zip(source, shape) if d is not None]
    if len(kept) != dims:
        found.append((aten.view.default, (kept,))) if not found else found.append(
            (aten.reshape.default, (kept,))
        )
    for k, d in enumerate(source):
        if d is None:
            found.append((aten.unsqueeze.default, (k,)))
    if any(d is None and size > 1 for d, size in zip(source, shape)):
        found.append((aten.expand.default, (list(shape),)))
    return found


def _reshaped(base: Place, view: Place) -> list[Step] | None:
    """A reshape of a box of the base, whose dimensions may be permuted before and after."""
    if max(np.prod(base.shape), np.prod(view.shape)) > LARGEST or len(base.shape) > MOST_DIMENSIONS:
        return None
    order = sorted(range(len(view.shape)), key=lambda d: -view.strides[d])
    if order != sorted(order):
        plain = replace(
            view, shape=tuple(view.shape[d] for d in order), strides=tuple(view.strides[d] for d in order)
        )
        found = _reshaped(base, plain)
        return found and [*found, (aten.permute.default, ([order.index(d) for d in range(len(order))],))]
    inside, wanted = _elements(base, 0), _elements(view, (view.start - base.start) // base.dtype.itemsize)
    flat, by_place = inside.reshape(-1), np.argsort(inside, axis=None)
    at = by_place[np.searchsorted(flat[by_place], wanted.reshape(-1)).clip(max=flat.size - 1)]
    if not np.array_equal(flat[at], wanted.reshape(-1)):
        return None
    places = [np.unique(along) for along in np.unravel_index(at, base.shape)]
    kept = {
        d: range(int(p[0]), int(p[-1]) + 1, int(p[1] - p[0]) if p.size > 1 else 1)
        for d, p in enumerate(places)
    }
    box = np.arange(flat.size).reshape(base.shape)[
        tuple(slice(r.start, r.stop, r.step) for r in kept.values())
    ]
    for axes in itertools.permutations(range(box.ndim)) if box.size == at.size else ():
        if np.array_equal(box.transpose(axes).reshape(-1), at):
            moved = [(aten.permute.default, (list(axes),))] if list(axes) != list(range(box.ndim)) else []
            return _slices(base.shape, kept) + moved + [(aten.reshape.default, (list(view.shape),))]
    return None


def _cut_from_flat(base: Place, view: Place) -> list[Step] | None:
    """Slices of the base as one long dimension, if it has no gaps."""
    size = int(np.prod(base.shape))
    flat = replace(base, shape=(size,), strides=(1,))
    whole = _reshaped(base, flat) if base.stop == flat.stop and len(base.shape) > 1 else None
    part = _sliced(flat, view) if whole else None
    return [*whole, *part] if whole and part else part


def _elements(place: Place, first: int) -> np.ndarray:
    """Where each element lies, in elements."""
    grid = np.ogrid[tuple(slice(size) for size in place.shape)] if place.shape else []
    return np.asarray(first + sum(stride * g for stride, g in zip(place.strides, grid)), dtype=np.int64)
