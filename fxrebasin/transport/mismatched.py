"""Tensors whose shape the fine-tuning changed: a new head, a vocabulary of another size.

What is new has no task vector. A new head is carried whole, permuted along the axes that it shares with the
base; a resized table gets its task vector on the rows that both have, and its new rows whole. Which of the
two it is, the numbers tell: the common part of a resized table is like the base's, that of a new head is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch

from ..alignment import Alignment
from ..errors import FxrebasinError, StateError
from ..spec import Axis, Block, Spec
from ..spec.dtypes import wide

State = Mapping[str, torch.Tensor]
WAYS = ("error", "finetuned", "target")
ALIKE = 0.5  # cosine of the common parts from which on a tensor is resized, and not new


def mismatched_names(spec: Spec, base: State, finetuned: State, how: str) -> tuple[str, ...]:
    """The tensors whose shape differs between base and fine-tuned state (shapes are looked at alone).

    Raises FxrebasinError if `how` is none of WAYS, StateError if there are any and it is "error", or if an
    axis that differs is one that the symmetries move.
    """
    if how not in WAYS:
        raise FxrebasinError(f"mismatched must be one of {', '.join(map(repr, WAYS))}, not {how!r}")
    names = tuple(name for name in spec.names if name in base and name in finetuned
                  and tuple(base[name].shape) == spec.names[name] != tuple(finetuned[name].shape))
    for name in names:
        text = (f"the fine-tuned state: {name!r} has shape {tuple(finetuned[name].shape)}, and {spec.names[name]} in "
                "its base")
        if how == "error":
            raise StateError(f'{text}: give mismatched="finetuned" (--mismatched finetuned) to carry it as it is there, '
                             'or "target" to keep the target\'s')
        if (axis := _moved_axis(spec, name, tuple(finetuned[name].shape))) is not None:
            raise StateError(f"{text}: axis {axis} is one that the alignment moves: it is a fine-tuning of another base")
    return names


def _moved_axis(spec: Spec, name: str, shape: tuple[int, ...]) -> int | None:
    """An axis of another size that no tensor of another shape can have; 0 where the ranks differ."""
    name = spec.ties.get(name, name)
    if name not in spec.layouts or len(shape) != len(spec.shapes[name]):
        return 0
    frames = {factor for group in spec.groups.values() for factor in group.within}
    for axis, (size, own) in enumerate(zip(shape, spec.shapes[name])):
        factors = {factor for block in spec.layouts[name] for factor in block[axis].factors}
        if size != own and not factors.isdisjoint({*spec.group_of, *frames}):
            return axis
    return None


def modules_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by the module that they belong to: what is new is new as a whole."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def resized_names(base: State, finetuned: State, names: Iterable[str]) -> set[str]:
    """Of tensors whose shape differs, those of modules that the fine-tuning resized: the largest tensor of
    the module is like the base's, as far as both go."""
    found: set[str] = set()
    for own in modules_of(names).values():
        largest = max(own, key=lambda name: base[name].numel())
        common = _common(base[largest], finetuned[largest])
        if _cosine(base[largest][common], finetuned[largest][common]) >= ALIKE:
            found.update(own)
    return found


def _common(one: torch.Tensor, other: torch.Tensor) -> tuple[slice, ...]:
    return tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape))


def carried_whole(
    alignment: Alignment,
    name: str,
    base: torch.Tensor,
    finetuned: torch.Tensor,
    target: torch.Tensor,
    alpha: float,
    resized: bool,
) -> torch.Tensor:
    """A tensor of the shape that the fine-tuning gave it, for the target."""
    kind = wide(base.dtype, finetuned.dtype, target.dtype)
    device = target.device
    result = moved(alignment, name, finetuned).to(device, kind)
    if resized:
        common = _common(base, finetuned)
        tau = result[common] - moved(alignment, name, base).to(device, kind)[common]
        result[common] = target.detach().to(kind)[common] + alpha * tau
    return result


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = (tensor.detach().to(torch.float64).reshape(-1) for tensor in (one, other.to(one.device)))
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size > 0 else 0.0


def moved(alignment: Alignment, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor permuted along the axes that it shares with the one of the spec; along the others nothing
    moves."""
    spec = alignment.spec
    name = spec.ties.get(name, name)
    sizes = {f"{name}:{axis} resized": size for axis, size in enumerate(tensor.shape) if size != spec.shapes[name][axis]}
    blocks: dict[tuple, Block] = {}
    for block in spec.layouts[name]:
        own = tuple(Axis(np.arange(size), (f"{name}:{axis} resized",)) if f"{name}:{axis} resized" in sizes else block[axis]
                    for axis, size in enumerate(tensor.shape))
        blocks[tuple((axis.factors, axis.positions.tobytes()) for axis in own)] = own
    wider = Alignment(replace(spec, sizes={**spec.sizes, **sizes}), alignment.permutations)
    return wider.move(tensor, tuple(blocks.values()))
