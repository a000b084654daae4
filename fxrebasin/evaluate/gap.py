"""Two results beside each other, element by element."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = -1e4  # what is pushed down that far is masked out, and no measure of the other outputs


@dataclass(frozen=True)
class Gap:
    """How far one output is from where it was.

    absolute  largest difference
    relative  largest difference relative to the largest magnitude of the output; masked elements (below
              -10,000) are taken apart, each relative to itself
    excess    largest quotient of a difference and what rounding may make there; above 1, it is no rounding
    elements  how many elements are above 1;  of: how many there are
    place     index of the element with the largest excess
    """
    absolute: float
    relative: float
    excess: float
    elements: int
    of: int
    place: tuple[int, ...] = ()


def gap_between(before: Tensor, after: Tensor, limit: Tensor) -> Gap:
    """The gap of two results of one shape.

    limit  for each element what rounding may make there; infinity where rounding decides all, such as the
           place of the larger one of two equal scores

    NaN and infinities must be where they were; whole numbers and truth values must be equal.
    """
    if not before.numel():
        return Gap(0.0, 0.0, 0.0, 0, 0)
    if before.dtype.is_complex or before.dtype.is_floating_point:
        distance = _distance(before, after)
        scaled = distance / _scales(before)
    else:
        distance = scaled = torch.where(before == after, 0.0, math.inf).to(torch.float64)
    excess = torch.where(distance == 0, 0.0, distance / limit).nan_to_num(0.0, posinf=math.inf)  # inf / inf: left open
    worst = int(excess.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), before.shape)) if before.ndim else ()
    return Gap(float(distance.max()), float(scaled.max()), float(excess.reshape(-1)[worst]), int((excess > 1).sum()),
               before.numel(), place)


def same_kind(before: Tensor, after: Tensor) -> Tensor:
    """Where both are finite, both NaN, or both the same infinity."""
    both = torch.isfinite(before) & torch.isfinite(after)
    return both | (before == after) | (torch.isnan(before) & torch.isnan(after))


def _distance(before: Tensor, after: Tensor) -> Tensor:
    """Zero for the same NaN or infinity, infinity where only one is not finite."""
    finite = torch.isfinite(before) & torch.isfinite(after)
    distance = torch.where(finite, (after - before).abs(), 0.0)
    return torch.where(same_kind(before, after), distance, math.inf)


def _scales(before: Tensor) -> Tensor:
    """What each element's difference is relative to."""
    size = torch.where(torch.isfinite(before), before.abs(), 0.0)
    masked = torch.zeros_like(size, dtype=torch.bool) if before.is_complex() else before < MASKED
    rest = size[~masked]
    largest = float(rest.max()) if rest.numel() else 0.0
    scales = torch.where(masked, size, largest)
    return torch.where(scales > 0, scales, torch.finfo(size.dtype).tiny)
