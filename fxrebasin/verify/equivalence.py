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
_CHUNK = 1 << 16  # numbers that are coded at a time: they stay in the cache
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
    coded = [{name: _coded(state[name]) for name in spec.names} for state in (a, b)]
    if _sums(spec, coded[0]) != _sums(spec, coded[1]):
        return None
    fixed = {name: a[name] for name in spec.passed if name in a}
    first, second = (fixed | {name: numbers for name, (numbers, _) in found.items()} for found in coded)
    for effort in _EFFORTS:
        alignment = match(spec, first, second, effort=effort, objective="all")
        moved = alignment.apply(a)
        if all(_equal(moved[name], b[name]) for name in spec.names):
            return Alignment(spec, alignment.permutations)
    return None


def _coded(tensor: Tensor) -> tuple[Tensor, int]:
    """Pseudo-random numbers between -1 and 1 in float32, equal for equal numbers of any floating-point types;
    and the sum of their codes, which does not depend on the order of the numbers."""
    flat, total = tensor.detach().resolve_conj().reshape(-1), 0
    numbers = torch.empty(flat.shape, dtype=torch.float32, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        codes = _codes(flat[start:start + _CHUNK])
        numbers[start:start + _CHUNK] = codes >> 40
        total += int(codes.sum())
    return numbers.div_(1 << 23).reshape(tensor.shape), total % (1 << 64)


def _codes(numbers: Tensor) -> Tensor:
    """A 64-bit code for each number, zeros of both signs alike: as good as random."""
    if numbers.is_complex():
        real, imaginary = (_codes(part) for part in torch.view_as_real(numbers).unbind(-1))
        return _mixed(real * 3 + imaginary)
    return _mixed((numbers.double() + 0.0).view(torch.int64))


def _mixed(bits: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _FACTORS):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _sums(spec: Spec, coded: Mapping[str, tuple[Tensor, int]]) -> dict[str, int]:
    """The sum of each tensor's codes, of stacked ones together."""
    sums = {name: total for name, (_, total) in coded.items() if name not in spec.ties}
    for stack, parts in spec.stacks.items():
        sums[stack] = sum(sums.pop(name) for name in parts) % (1 << 64)
    return sums


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
