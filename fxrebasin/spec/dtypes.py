"""Dtypes to compute in: some are for storage alone, and torch neither adds nor promotes them."""

from __future__ import annotations

from functools import reduce

import torch

_STORAGE = {torch.complex32: torch.complex64}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def computing(dtype: torch.dtype) -> torch.dtype:
    """The dtype itself, or what holds its numbers where torch cannot compute in it (float8, complex32)."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize == 1 else _STORAGE.get(dtype, dtype)


def wide(*dtypes: torch.dtype) -> torch.dtype:
    """What sums of numbers of some dtypes are formed in: the widest of them, float32 at least."""
    return reduce(torch.promote_types, map(computing, dtypes), torch.float32)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its history, in a dtype that torch computes in."""
    return tensor.detach().to(computing(tensor.dtype))


def stored_as(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of what is to be stored in `dtype` (None: as it is); integers stay, and complex numbers are pairs."""
    if dtype is None or not (own.is_floating_point or own.is_complex):
        return own
    return dtype.to_complex() if own.is_complex else dtype


def wider(dtype: torch.dtype) -> str:
    """The name of a dtype to ask for where numbers leave the range of this one."""
    return "float64" if dtype.to_real() == torch.float32 else "float32"


def leaves_range(exact: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a finite number of `exact` is none in `dtype` (float8 would hold its largest instead)."""
    if not dtype.is_floating_point and not dtype.is_complex or not exact.numel():
        return False
    numbers = torch.view_as_real(exact) if exact.is_complex() else exact
    size = numbers.abs().where(numbers.isfinite(), torch.zeros((), dtype=numbers.dtype, device=numbers.device))
    limits = torch.finfo(dtype)
    return float(size.max()) > limits.max * (1 + limits.eps / 4)  # what is nearer than that is rounded down
