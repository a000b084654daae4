"""Stacks: parameters of submodules that are alike (a list of experts), seen as one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

import torch

from ..errors import StateError
from .dtypes import computing, plain

if TYPE_CHECKING:
    from .value import Spec


def names_of(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name in the state dict -> shape, aliases of tied tensors included: `shapes` with every stack taken apart."""
    shapes = dict(spec.shapes)
    for stack, parts in reversed(list(spec.stacks.items())):
        shape = shapes.pop(stack)
        shapes.update(dict.fromkeys(parts, shape[1:]))
    return shapes | {alias: shapes[name] for alias, name in spec.ties.items()}


def parts_of(spec: Spec, tensor: str) -> tuple[str, ...]:
    """The names of the state dict that a tensor is stacked from, or its own."""
    inner = spec.stacks.get(tensor)
    return (tensor,) if inner is None else tuple(name for part in inner for name in parts_of(spec, part))


def is_whole(spec: Spec, tensor: str, axis: int) -> bool:
    """Whether an axis of a stacked tensor runs over whole tensors of the state dict."""
    return tensor in spec.stacks and (axis == 0 or is_whole(spec, spec.stacks[tensor][0], axis - 1))


def idle(spec: Spec) -> frozenset[str]:
    """Names of the state dict that are stacked in vain: no group moves them as wholes."""
    moved = {site.tensor for group in spec.groups.values() for site in group.sites
             if is_whole(spec, site.tensor, site.axis)}
    names = [name for name in spec.layouts if name in spec.stacks and name not in moved]
    for name in names:  # grows
        names.extend(spec.stacks.get(name, ()))
    return frozenset(names) - set(spec.stacks)


def stacked(spec: Spec, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the tensors of each stack as one, in the widest of their dtypes; all others as they are."""
    result = dict(state)
    for stack, parts in spec.stacks.items():
        tensors = [result.pop(name) for name in parts]
        wide = tensors[0].dtype if len({t.dtype for t in tensors}) == 1 else reduce(
            torch.promote_types, (computing(tensor.dtype) for tensor in tensors))
        result[stack] = torch.stack([tensor.detach().to(tensors[0].device, wide) for tensor in tensors])
    for alias, name in spec.ties.items():
        if name not in result and (tensor := result.pop(alias, None)) is not None and not tied(tensor, state[name]):
            raise StateError(f"{alias!r} is tied to {name!r} in the model, and holds other numbers in this state: "
                             "a tie between parts of submodules that are alike cannot be broken: tie them again")
    return result


def tied(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one, or hold the same numbers, as a file has them that cannot tie."""
    if one is other or "meta" in (one.device.type, other.device.type):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(plain(one), plain(other).to(one.device))


def unstacked(spec: Spec, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `stacked` undoes: every tensor under its own name again, ties tied."""
    result = dict(state)
    for stack, parts in reversed(list(spec.stacks.items())):
        result.update(zip(parts, (tensor.clone() for tensor in result.pop(stack))))
    return result | {alias: result[name] for alias, name in spec.ties.items() if alias not in result}
