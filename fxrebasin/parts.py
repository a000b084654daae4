"""An alignment cut into parts: the tensors of a state that must be at hand together, and what moves them.

A state is carried part by part where it is too large to be held (see `checkpoint/`), or where only some of its
tensors are of interest (adapters). A part is one tensor with all its names, or one stack of tensors.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from .alignment import Alignment
from .errors import StateError
from .spec import Axis, Spec

State = Mapping[str, torch.Tensor]


class Parts:
    """The parts of an alignment.

    names    part -> names in the state dict: those of its stack in order, or one; names tied to them at the end
    part_of  name in the state dict -> part; a part has the name under which the spec lays its tensor out
    sizes    part -> sizes of the axes along which its tensors are stacked: () for a tensor of its own
    """

    def __init__(self, alignment: Alignment):
        self._alignment = alignment
        self.spec = spec = alignment.spec
        aliases: dict[str, list[str]] = {}
        for alias, name in spec.ties.items():
            aliases.setdefault(name, []).append(alias)
        self.names: dict[str, tuple[str, ...]] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}
        for part in spec.layouts:
            own, self.sizes[part] = _taken_apart(spec, part)
            self.names[part] = own + tuple(alias for name in own for alias in aliases.get(name, ()))
        self.part_of = {name: part for part, names in self.names.items() for name in names}

    @cached_property
    def _pinned(self) -> Mapping[str, dict[int, str]]:
        """Part -> axis -> reason."""
        result: dict[str, dict[int, str]] = {}
        for (tensor, axis), reason in self.spec.pinned.items():
            result.setdefault(tensor, {})[axis] = reason
        return result

    def alignment(self, *parts: str, passed: Sequence[str] = ()) -> Alignment:
        """The alignment of a state that has the tensors of these parts alone, and some that are passed through."""
        spec, names = self.spec, {name for part in parts for name in (part, *self.names[part])}
        layouts = {part: spec.layouts[part] for part in parts}
        factors = {factor for blocks in layouts.values() for block in blocks for axis in block for factor in axis.factors}
        groups = {}
        for name in dict.fromkeys(spec.group_of[factor] for factor in factors if factor in spec.group_of):
            group = spec.groups[name]
            groups[name] = replace(group, sites=tuple(s for s in group.sites if s.tensor in layouts))
        own = replace(
            spec, groups=groups, layouts=layouts,
            pinned={(part, axis): why for part in parts for axis, why in self._pinned.get(part, {}).items()},
            sizes={name: spec.sizes[name] for name in factors},
            reasons={name: spec.reasons[name] for name in factors if name in spec.reasons},
            shapes={name: spec.shapes[name] for name in names if name in spec.shapes},
            ties={name: spec.ties[name] for name in names if name in spec.ties},
            stacks={stack: inner for part in parts for stack, inner in _below(spec, part).items()},
            roles={name: spec.roles[name] for name in names if name in spec.roles},
            passed=tuple(passed), outputs={}, unruled={}, notes=(), numbers={})
        return Alignment(own, {name: self._alignment.permutations[name] for name in groups})


    def rest(self) -> Alignment:
        """The alignment of the entries that belong to no part: those that are passed through."""
        return Alignment(replace(self.spec, groups={}, layouts={}, pinned={}, sizes={}, reasons={}, shapes={}, ties={},
                                 stacks={}, outputs={}, unruled={}, notes=()), {})

    def take(self, part: str, state: State) -> dict[str, torch.Tensor]:
        """The tensors of a part, from a state that may leave names out that are tied to others."""
        found = {name: state[name] for name in self.names[part] if name in state}
        for name in self.names[part]:
            if name not in found:
                first = self.spec.ties.get(name, name)
                same = next((n for n in found if self.spec.ties.get(n, n) == first), None)
                if same is None:
                    raise StateError(f"a state lacks {name!r}: is it a checkpoint of this model?")
                found[name] = found[same]
        return found


def applied(alignment: Alignment, state: State) -> Iterator[tuple[str, torch.Tensor]]:
    """What `alignment.apply(state)` gives, part by part; of `state` only one part is asked for at a time."""
    parts = Parts(alignment)
    for part in parts.names:
        yield from parts.alignment(part).apply(parts.take(part, state)).items()
    yield from parts.rest().apply({name: state[name] for name in alignment.spec.passed if name in state}).items()


def still(name: str, shape: Sequence[int], role: str | None = None) -> Alignment:
    """The alignment of a state that is one tensor, which moves nothing."""
    places = [f"{name}:{axis}" for axis in range(len(shape))]
    block = tuple(Axis(np.arange(size), (place,)) for size, place in zip(shape, places))
    pinned = {(name, axis): "a part of a tensor that has been moved" for axis in range(len(shape))}
    return Alignment(Spec({}, pinned, dict(zip(places, shape)), dict(zip(places, pinned.values())), {name: (block,)},
                          {name: tuple(shape)}, roles={name: role} if role else {}), {})


def _taken_apart(spec: Spec, tensor: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the state dict that a tensor is stacked from, and the sizes of the axes it is stacked along."""
    names: tuple[str, ...] = (tensor,)
    sizes: tuple[int, ...] = ()
    while names[0] in spec.stacks:
        sizes += (len(spec.stacks[names[0]]),)
        names = tuple(inner for name in names for inner in spec.stacks[name])
    return names, sizes


def _below(spec: Spec, tensor: str) -> dict[str, tuple[str, ...]]:
    """The stacks that a tensor is made of, those within others further up, as a spec has them."""
    if tensor not in spec.stacks:
        return {}
    inner = {stack: parts for name in spec.stacks[tensor] for stack, parts in _below(spec, name).items()}
    return inner | {tensor: spec.stacks[tensor]}


def origin(alignment: Alignment, tensor: str, axes: tuple[int, ...]) -> np.ndarray | None:
    """Where the elements along some axes of a tensor come from, if these axes move without regard to the others.

    tensor  a name under which the spec lays a tensor out
    axes    in rising order

    Returns, for every index along `axes`, the flat old index along them; None if it depends on another axis.
    """
    shape = tuple(alignment.spec.shapes[tensor][axis] for axis in axes)
    result = np.full(shape, -1, dtype=np.int64)
    for block in alignment.spec.layout(tensor):
        target, source = alignment.positions(block)
        ends = np.cumsum([len(axis.factors) for axis in block])
        own = [d for axis in axes for d in range(ends[axis] - len(block[axis].factors), ends[axis])]
        freed = [_freed(source[axis], own, int(ends[-1])) for axis in axes]
        old = [index for index in freed if index is not None]
        new = [index for axis in axes if (index := _freed(target[axis], own, int(ends[-1]))) is not None]
        if len(old) < len(axes) or len(new) < len(axes):
            return None
        where = tuple(np.broadcast_arrays(*new, *old)[:len(axes)])
        flat = np.broadcast_to(np.ravel_multi_index(tuple(np.broadcast_arrays(*old)), shape), where[0].shape)
        if ((result[where] >= 0) & (result[where] != flat)).any():
            return None
        result[where] = flat
    assert (result >= 0).all() or not math.prod(shape)
    return result


def _freed(index: np.ndarray, own: list[int], ndim: int) -> np.ndarray | None:
    """An index without the dimensions besides `own`; None if it varies along one of them."""
    index = index.reshape(index.shape or (1,) * ndim)
    for d in range(ndim):
        if d not in own and index.shape[d] != 1:
            first = index.take([0], axis=d)
            if (index != first).any():
                return None
            index = first
    return index.transpose(own + [d for d in range(ndim) if d not in own]).reshape(
        tuple(index.shape[d] for d in own))
