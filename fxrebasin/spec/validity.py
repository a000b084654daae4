"""Whether a spec is consistent: one that was read from a file may be hostile."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .layout import Block, Fold, Rewrite, foldable

if TYPE_CHECKING:
    from .value import Spec


def validate(spec: Spec) -> None:
    """A spec read from a file may be hostile: raises ValueError unless it is consistent, so that applying it is safe."""
    layouts = {name: (spec.shapes[name], blocks) for name, blocks in spec.layouts.items()} | dict(spec.outputs)
    _validate_stacks(spec)
    if any(spec.ties.get(name, name) not in spec.layouts for name in spec.shapes) or any(
            spec.shapes[alias] != spec.names[name] for alias, name in spec.ties.items() if alias in spec.shapes):
        raise ValueError("names, ties and layouts do not agree")
    if not all(isinstance(text, str) for text in (*spec.notes, *spec.assumptions, *spec.roles.values(),
                                                  *spec.numbers.values(), spec.evidence)):
        raise ValueError("notes, assumptions, roles, numbers and evidence are texts")
    for skip in spec.skips:
        if not isinstance(skip.add, str) or skip.operand not in (0, 1) or type(skip.dim) is not int or skip.dim < 0:
            raise ValueError("a skip that does not exist")
        for blocks in (end for end in (skip.before, skip.behind) if end):
            _validate_layout(spec, skip.name, (skip.size,), blocks)
    for size in (*spec.sizes.values(), *(n for shape in spec.shapes.values() for n in shape)):
        if type(size) is not int or size < 0:
            raise ValueError(f"{size!r} is not a size")
    if loose := set(spec.sizes) - set(spec.group_of) - set(spec.reasons):
        raise ValueError(f"{min(loose)!r} is neither in a group nor pinned")
    for fold in spec.folds:
        _validate_fold(spec, fold)
    for rewrite in spec.rewrites:
        _validate_rewrite(spec, rewrite)
    for name, (shape, blocks) in layouts.items():
        _validate_layout(spec, name, shape, blocks)
    for group in spec.groups.values():
        if group.size != math.prod(spec.sizes[m] for m in group.members) or group.copies != math.prod(spec.frame(group)) or (
                type(group.size) is not int or type(group.copies) is not int):
            raise ValueError(f"group {group.name!r} does not fit its factors")
        for site in group.sites:
            if site.axis not in range(len(spec.shapes[site.tensor])) or site.block not in range(len(spec.layouts[site.tensor])):
                raise ValueError(f"group {group.name!r} has a site that does not exist")
    for _, laid_out in layouts.values():
        for block in laid_out:
            places = [factor for axis in block for factor in axis.factors]
            for group in {spec.groups[spec.group_of[f]] for f in places if f in spec.group_of}:
                apart = group.within + (group.members if len(group.members) > 1 else ())
                if any(places.count(factor) != 1 for factor in apart) or set(group.within) & set(group.members):
                    raise ValueError(f"group {group.name!r} is within a factor that is not beside it")


def _validate_fold(spec: Spec, fold: Fold) -> None:
    """The gain must be a vector, laid out like the axis that it scales."""
    if type(fold.axis) is not int or fold.axis not in range(len(spec.shapes[fold.tensor])) or (
            not isinstance(fold.plus, float) or not math.isfinite(fold.plus)) or not foldable(
                spec.layouts[fold.tensor], fold.axis, spec.layouts[fold.gain]):
        raise ValueError(f"{fold.gain!r} cannot be folded into {fold.tensor!r}")


def _validate_rewrite(spec: Spec, rewrite: Rewrite) -> None:
    """All that it names must be there, and its places within."""
    if not all(isinstance(x, str) for x in (rewrite.kind, rewrite.entry, rewrite.reason, rewrite.beside)) or (
            type(rewrite.axis) is not int or not isinstance(rewrite.plus, (int, float)) or not math.isfinite(rewrite.plus)):
        raise ValueError("a rewrite of the wrong types")
    if rewrite.reason:
        return
    shape = spec.shapes[rewrite.entry]
    taken = [*rewrite.places, *(p for reader in rewrite.readers for p in reader[3])]
    if rewrite.axis not in range(len(shape)) or (taken and len(shape) != 1) or not all(
            type(p) is int and 0 <= p < shape[0] for p in taken) or rewrite.beside and spec.shapes[rewrite.beside] != shape:
        raise ValueError(f"the {rewrite.kind} {rewrite.entry!r} does not fit its tensor")
    for weight, axis, bias, places in rewrite.readers:
        inner = spec.shapes[weight]
        if axis not in range(len(inner)) or len(places or range(shape[0])) != inner[axis] or (
                bias and (len(inner) < 2 or spec.shapes[bias] != (_outputs(inner, axis),))):
            raise ValueError(f"{rewrite.entry!r} cannot be moved into {weight!r}")


def _outputs(shape: tuple[int, ...], axis: int) -> int:
    """The length of a linear map's other axis: the first that is not summed over."""
    return shape[1 if axis == 0 else 0]


def _validate_stacks(spec: Spec) -> None:
    """Every stack must be made of names that occur nowhere else, as many as its axis 0 is long."""
    left = dict(spec.shapes)
    for stack, parts in reversed(list(spec.stacks.items())):
        shape = left.pop(stack)
        if not shape or len(parts) != shape[0] or not all(isinstance(name, str) for name in parts) or (
                stack in spec.ties or len(set(parts)) != len(parts) or any(name in left or name in spec.ties for name in parts)):
            raise ValueError(f"the stack {stack!r} does not fit its tensor")
        left.update(dict.fromkeys(parts, shape[1:]))
    if set(left) & set(spec.passed) or any(name not in left or name in spec.ties for name in spec.ties.values()):
        raise ValueError("names, ties and stacks do not agree")


def _validate_layout(spec: Spec, name: str, shape: tuple[int, ...], blocks: tuple[Block, ...]) -> None:
    """The blocks of a tensor must be boxes that partition it."""
    sets = []
    for block in blocks:
        if len(block) != len(shape) or any(
                axis.positions.shape != tuple(spec.sizes[f] for f in axis.factors) for axis in block):
            raise ValueError(f"a block of {name!r} does not fit its factors")
        sets.append([np.unique(axis.positions) for axis in block])
        if any(s.size != axis.positions.size or s.size and not (0 <= s[0] and s[-1] < n)
               for s, axis, n in zip(sets[-1], block, shape)):
            raise ValueError(f"an axis of {name!r} has positions that repeat or lie outside")
    if sum(math.prod(s.size for s in box) for box in sets) != math.prod(shape) or any(
            all(np.intersect1d(a, b, assume_unique=True).size for a, b in zip(one, other))
            for k, one in enumerate(sets) for other in sets[:k]):
        raise ValueError(f"the blocks of {name!r} do not partition it")
