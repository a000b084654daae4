"""Exact equivalence of two checkpoints: is one the other, permuted, number for number?

The search matches *which numbers are equal*, not how large they are: every number is replaced by a
pseudo-random one that depends on it alone. So a state at any scale is a planted permutation of Gaussian-like
weights, which matching finds best, and gains near 1 or large statistics count no more than other numbers.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..alignment import Alignment
from ..match import match
from ..spec import Spec
from ..spec.fitting import fitted

_EFFORTS = ("fast", "best")  # of the search: the first finds most that there is to find
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # of SplitMix64 (Steele, Lea and Flood, 2014)


def find_equivalence(spec: Spec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Alignment | None:
    """The alignment that makes state `a` exactly equal to state `b`, or None if none was found.

    Numbers are compared as numbers, whatever the types that hold them: float16 and float32 states can be
    equal, and 0.0 and -0.0 are one number. What no alignment moves (whole numbers, truth values, parameters
    that overlap others, extra state) must be equal as it is.

    An alignment that is returned is a proof: applied to `a` it gives `b`, number for number. None is a proof
    where the numbers of some tensor are not those of the other state in another order, or an entry that does
    not move differs. Else it is not, though where the numbers of a layer are all different nothing is missed.
    Raises StateError if a state does not fit the spec.
    """
    a, b = fitted(spec, a, "the first state")[0], fitted(spec, b, "the second state")[0]
    spec.check(a, "the first state")
    spec.check(b, "the second state")
    if any(not _equal(a.get(name), b.get(name)) for name in spec.passed):
        return None
    codes = [{name: _codes(state[name]) for name in spec.names} for state in (a, b)]
    if _sums(spec, codes[0]) != _sums(spec, codes[1]):
        return None
    features = [
        {
            **{name: state[name] for name in spec.passed if name in state},
            **{name: _features(code) for name, code in found.items()},
        }
        for state, found in zip((a, b), codes)
    ]
    for effort in _EFFORTS:
        alignment = match(spec, *features, effort=effort, objective="all")
        moved = alignment.apply(a)
        if all(_equal(moved[name], b[name]) for name in spec.names):
            return Alignment(spec, alignment.permutations)
    return None


def _codes(tensor: Tensor) -> Tensor:
    """A 64-bit code for each number: equal for equal numbers of any floating-point types, zeros of both signs
    included, and otherwise as good as random."""
    if tensor.is_complex():
        real, imaginary = (_codes(part) for part in torch.view_as_real(tensor.detach().resolve_conj()).unbind(-1))
        return _mixed(real * 3 + imaginary)
    return _mixed((tensor.detach().double() + 0.0).view(torch.int64))


def _mixed(bits: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _FACTORS):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _sums(spec: Spec, codes: Mapping[str, Tensor]) -> dict[str, int]:
    """For each tensor, stacked ones as one, a sum that does not depend on the order of its numbers."""
    sums = {name: int(code.sum()) for name, code in codes.items() if name not in spec.ties}
    for stack, parts in spec.stacks.items():
        sums[stack] = sum(sums.pop(name) for name in parts) % (1 << 64)
    return {name: total % (1 << 64) for name, total in sums.items()}


def _features(codes: Tensor) -> Tensor:
    """Numbers between -1 and 1 in float32, from the upper bits of codes."""
    return (codes >> 40).float() / (1 << 23)


def _equal(one: Any, other: Any) -> bool:
    """Whether two entries are the same: tensors by their numbers, whatever the types, other things by ==."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return _same(one, other)
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
        one, other = one.to(wide), other.to(wide)
    return torch.equal(one.detach(), other.detach().to(one.device))


def _same(one: Any, other: Any) -> bool:
    leaves, shape = pytree.tree_flatten(one)
    others, other_shape = pytree.tree_flatten(other)
    if shape != other_shape:
        return False
    return all(_equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else bool(x == y)
               for x, y in zip(leaves, others))
