"""Where the numbers of a result come from: which dimensions of it tell apart what dimensions of the arguments did."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def kept(sources: torch.Tensor, shapes: Sequence[Sequence[int]], dims: Sequence[frozenset[int]]) -> frozenset[int]:
    """The dimensions of a result along which numbers come from different places, which differ along `dims` of a part alone.

    sources: for each number of the result, its place, counted through all parts; shapes: of the parts; dims: for each part
    """
    lines, part_of, start = [], [], 0
    for k, (shape, free) in enumerate(zip(shapes, dims)):
        places = torch.arange(start, start + math.prod(shape)).reshape(shape)
        for d in free:
            places = places.narrow(d, 0, 1).expand(shape) if shape[d] else places
        lines.append(places.reshape(-1))
        part_of.append(torch.full((math.prod(shape),), k))
        start += math.prod(shape)
    line, owner = torch.cat(lines)[sources], torch.cat(part_of)[sources]

    def together(d: int) -> bool:
        far = start + 1
        return all(bool(((torch.where(owner == k, line, -1).amax(d) <= torch.where(owner == k, line, far).amin(d))).all())
                   for k in range(len(shapes)))

    found = [d for d in range(sources.dim()) if sources.shape[d] > 1 and together(d) and not _repeats(sources, [d])]
    return frozenset() if _repeats(sources, found) else frozenset(found)


def _repeats(places: torch.Tensor, dims: list[int]) -> bool:
    """Whether some place stands twice along these dimensions."""
    rows = places.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims)) if dims else places[..., None]
    rows = rows.sort(-1).values
    return bool((rows[..., 1:] == rows[..., :-1]).any())
