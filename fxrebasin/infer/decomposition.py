"""Whether what torch decomposes an op into does what the op does.

Some decompositions are meant for the arguments that a compiler gives them: that of `_unsafe_masked_index`, say, takes
negative places for zero, where the op counts them from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LARGEST = 1 << 20  # numbers in a tensor, at most, for an op to be run besides
ROUNDING = 1 << 20  # in units of the last place: what the two may differ by, in another order of operations


def faithful(op: Callable, parts: Callable, like: Sequence[Tensor], known: Sequence[Tensor | None]) -> bool:
    """Whether an op and its parts give the same at random numbers; True where they cannot be run.

    like   fake tensors: what the arguments are
    known  the arguments themselves, where they are constants
    """
    if any(each.numel() > LARGEST for each in like):
        return True
    generator = torch.Generator().manual_seed(0)
    given = [_random(each, generator) if held is None else held for each, held in zip(like, known)]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ours = op(*(each.clone() for each in given))
            torch.manual_seed(0)
            theirs = parts(*(each.clone() for each in given))
    except Exception:  # noqa: BLE001 - these numbers do not suit it
        return True
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    if like.dtype == torch.bool:
        return torch.rand(like.shape, generator=generator) > 0.5
    if like.is_floating_point() or like.is_complex():
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)
    return torch.randint(0, 2, like.shape, generator=generator).to(like.dtype)


def _same(one: object, other: object) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is type(other)
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return one.shape == other.shape and torch.equal(one, other)
    rtol = min(1e-3, ROUNDING * torch.finfo(one.dtype).eps)
    return torch.allclose(one, other.to(one.dtype), rtol=rtol, atol=rtol / 10, equal_nan=True)
