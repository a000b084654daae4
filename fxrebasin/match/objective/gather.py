"""An array in factor form as an alignment has it, gathered as a whole or in part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ...alignment import Alignment


def gathered(array: torch.Tensor, factors: Sequence[str], move: Alignment | None,
             cut: tuple[int, int, int] | None = None, still: Sequence[int] = ()) -> torch.Tensor:
    """`array`, with an axis for each factor, permuted by `move`; of the result only what lies from `start` to
    `stop` along one axis, cut = (axis, start, stop). Axes in `still`, on which no other may depend, stay. A
    view where nothing moves."""
    whole = [slice(n) for n in array.shape]
    if cut is not None:
        whole[cut[0]] = slice(cut[1], cut[2])
    grid = list(np.ogrid[tuple(whole)])
    old = grid if move is None else move.sources(factors, grid)
    order = sorted(_together(old), key=lambda axes: cut is None or cut[0] not in axes)  # what makes it smaller
    for axes in order:
        if not set(axes) <= set(still) and any(not np.array_equal(old[k], grid[k]) for k in axes):
            array = _selected(array, axes, old)
        elif cut is not None and cut[0] in axes:
            array = array.narrow(cut[0], cut[1], cut[2] - cut[1])
    return array


def flat_sources(move: Alignment, places: Sequence[str]) -> torch.Tensor:
    """Where every element of the product of some factors comes from, as a permutation of that product."""
    sizes = tuple(move.spec.sizes[f] for f in places)
    old = move.sources(places, list(np.ogrid[tuple(slice(n) for n in sizes)]))
    return torch.from_numpy(np.ravel_multi_index(np.broadcast_arrays(*old), sizes).reshape(-1))


def _together(old: Sequence[np.ndarray]) -> list[list[int]]:
    """Axes that move together (the units of a head go where the head says), and those that move alone, one by
    one."""
    parts: list[set[int]] = []
    for k, index in enumerate(old):
        near = {k} | {d for d, n in enumerate(index.shape) if n > 1}
        parts = [p for p in parts if not p & near] + [near.union(*(p for p in parts if p & near))]
    return [sorted(part) for part in parts]


def _selected(array: torch.Tensor, axes: Sequence[int], old: Sequence[np.ndarray]) -> torch.Tensor:
    """The array with the elements at `old` along some axes; several are one flat axis for the while."""
    index = np.broadcast_arrays(*(old[k] for k in axes))
    shape = [index[0].shape[k] for k in axes]
    sizes = [array.shape[k] for k in axes]
    flat = torch.from_numpy(np.ravel_multi_index(index, sizes).reshape(-1)).to(array.device)
    first = axes[0]
    if len(axes) == 1:
        return array.index_select(first, flat)
    beside = list(range(first, first + len(axes)))
    if list(axes) != beside:
        array = array.movedim(tuple(axes), tuple(beside))
    array = array.reshape(*array.shape[:first], math.prod(sizes), *array.shape[first + len(axes):])
    array = array.index_select(first, flat).unflatten(first, shape)
    return array if list(axes) == beside else array.movedim(tuple(beside), tuple(axes))
