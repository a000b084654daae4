"""Random states: any numbers will do for a claim about all states, but in some of them nothing can be seen.

Units must be on for some inputs and off for others, scores apart, variances positive, and signals neither die
nor grow from layer to layer. What is drawn is of the kind of the tensor at hand where there is one.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..capture import Program
from .ops import base_name
from .wide import widened

GAIN = math.sqrt(2.0)  # what keeps the size of signals through a ReLU (He et al., 2015)
GAINS = (GAIN, 1.0, 2.0, 0.7)  # of one draw after the other: some networks saturate, others fade
_KEPT = 2  # a tensor of so many different numbers, at most, is a mask or a table of signs, and stays


def draw_state(program: Program, seed: int, like: Mapping[str, Any] | None = None,
               keep: Collection[str] = ()) -> dict[str, Any]:
    """A random state in float64 for all names of the program's state, on the CPU; tied tensors are one
    tensor.

    like  a state dict whose tensors tell what each is (positive numbers, a mask); entries that are no part of
          the program's state, and infinite numbers, are taken from it. None: from the operations alone
    keep  names of tensors that stay as `like` has them
    """
    generator = torch.Generator().manual_seed(seed)
    gain = GAINS[seed % len(GAINS)]
    positive, like = _positive(program), dict(like or {})
    drawn: dict[str, Any] = {name: value for name, value in like.items() if name not in program.state}
    for name, shape in program.state.items():
        if name in program.ties:
            continue
        own = _known(program.decided.get(name, like.get(name)))  # the graph is the module's for these numbers alone
        if own is not None and (name in keep or name in program.decided or _is_mask(own)):
            drawn[name] = own.clone()
            continue
        numbers = _draw(shape, own, name in positive, gain, generator)
        if own is not None:
            numbers = torch.where(torch.isfinite(own), numbers.to(own.dtype), own)
        drawn[name] = numbers
    return drawn | {alias: drawn[name] for alias, name in program.ties.items()}


def _known(tensor: Any) -> Tensor | None:
    """The numbers of a tensor, if it has any."""
    is_there = isinstance(tensor, Tensor) and tensor.device.type != "meta"
    return widened(tensor.detach()).cpu() if is_there else None


def _draw(
    shape: tuple[int, ...], own: Tensor | None, positive: bool, gain: float, generator: torch.Generator
) -> Tensor:
    if own is not None and own.is_complex():
        parts = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
        return torch.complex(*(parts * gain / math.sqrt(2 * _fan_in(shape))))
    level = _level(own)
    if positive or level > 0:
        return max(level, 0.1) * (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64))
    size = gain / math.sqrt(_fan_in(shape)) if len(shape) > 1 else 0.3
    return torch.randn(shape, generator=generator, dtype=torch.float64) * size


def _level(own: Tensor | None) -> float:
    """The mean of numbers that are all positive, at most 10; 0 for others, 1 where there are none."""
    if own is None:
        return 0.0
    finite = own[torch.isfinite(own)]
    return min(float(finite.mean()), 10.0) if finite.numel() and bool((finite > 0).all()) else 0.0


def _fan_in(shape: tuple[int, ...]) -> int:
    """How many numbers a sum over a weight's inputs has, about: the layout of a weight is not known. A packed
    weight of experts (experts, units, inputs) must not count as a convolution over its units."""
    inner = shape[1:]
    return max(1, math.prod(inner) if len(shape) != 3 else max(inner)) if inner else 1


def _is_mask(own: Tensor) -> bool:
    """Whether there are several numbers but no more than two different ones."""
    if own.is_complex() or own.numel() <= _KEPT:
        return False
    flat = own.reshape(-1)
    others = flat[flat != flat[0]]
    return bool(others.numel()) and bool((others == others[0]).all())


def _positive(program: Program) -> set[str]:
    """Names of variances and of gains of norms, by the arguments that they are."""
    found: set[str] = set()
    for node in program.module.graph.nodes:
        if node.op == "call_function" and "norm" in base_name(node):
            found.update(program.sources[argument.name].name for word, argument in _named(node)
                         if word in ("running_var", "weight") and argument.name in program.sources)
    return found


def _named(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    """The arguments of an operation that are nodes, by their names in its schema."""
    schema = getattr(node.target, "_schema", None)
    named = list(zip([a.name for a in schema.arguments], node.args)) if schema is not None else []
    yield from ((word, argument) for word, argument in (*named, *node.kwargs.items()) if isinstance(argument, fx.Node))
