"""Stacks: parameters of submodules that are alike (a list of experts), seen as one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .value import Spec


def names_of(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name in the state dict -> shape, aliases of tied tensors included: `shapes` with every stack taken apart."""
    shapes = dict(spec.shapes)
    for stack, parts in reversed(spec.stacks.items()):
        shape = shapes.pop(stack)
        shapes.update(dict.fromkeys(parts, shape[1:]))
    return shapes | {alias: shapes[name] for alias, name in spec.ties.items()}


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
        wide = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        result[stack] = torch.stack([tensor.detach().to(tensors[0].device, wide) for tensor in tensors])
    for alias, name in spec.ties.items():
        if name not in result:
            result.pop(alias, None)
    return result


def unstacked(spec: Spec, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `stacked` undoes: every tensor under its own name again, ties tied."""
    result = dict(state)
    for stack, parts in reversed(spec.stacks.items()):
        result.update(zip(parts, (tensor.clone() for tensor in result.pop(stack))))
    return result | {alias: result[name] for alias, name in spec.ties.items() if alias not in result}
