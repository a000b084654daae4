"""States between two states."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import StateError

State = Mapping[str, Tensor]
WAYS = ("line", "slerp")
_STRAIGHT = 1e-4  # radians (or pi less so many): no plane in which to turn


def between(a: State, b: State, t: float, way: str = "line") -> dict[str, Tensor]:
    """The state at t, from a (0) to b (1), in float32 at least; what is not of floating-point numbers is b's.

    way  "line": (1 - t) a + t b. "slerp": matrices and kernels are turned about the origin from one to the other, their
         lengths going from one to the other; vectors, statistics among them, lie on the line.

    Raises StateError if the two do not have the same tensors.
    """
    if way not in WAYS:
        raise StateError(f"{way!r} is no way from one state to another: give one of {', '.join(WAYS)}")
    if odd := sorted(set(a) ^ set(b)):
        raise StateError(f"only one of the two states has {odd[0]!r}: are they of one model?")
    return {name: _between(name, a[name].detach(), b[name].detach(), t, way) for name in b}


def _between(name: str, a: Tensor, b: Tensor, t: float, way: str) -> Tensor:
    if a.shape != b.shape:
        raise StateError(f"{name!r} has shape {tuple(a.shape)} in one state and {tuple(b.shape)} in the other: are they of "
                         "one model?")
    if not (a.is_floating_point() and b.is_floating_point()):
        return b.clone()
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(wide), b.to(wide)
    line = (1 - t) * a + t * b
    if way == "line" or a.ndim < 2:
        return line
    one, other = a.double().norm(), b.double().norm()
    if not (one > 0 and other > 0):
        return line
    angle = torch.arccos(((a.double() * b.double()).sum() / (one * other)).clamp(-1, 1))
    if angle < _STRAIGHT or torch.pi - angle < _STRAIGHT:
        return line
    parts = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    length = (1 - t) * one + t * other
    return (length * (parts[0] * a.double() / one + parts[1] * b.double() / other)).to(wide)
