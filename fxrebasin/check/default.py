"""Samples for ops that act on each element: their arguments are made from the op's schema."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from .case import ERRORS, Case, resolve
from ..rules.sample import Keyword, T


def default_samples(op: str) -> tuple[Callable, ...]:
    """All tensors of one shape, and tensors that broadcast, of numbers that the op is defined on: any, else
    between 0 and 1, else above 1, else integers."""
    def sample(shapes: tuple, numbers: Callable) -> Callable:
        return lambda make: _from_schema(op, lambda k: numbers(make, *shapes[min(k, len(shapes) - 1)]))
    kinds = [T.__call__, T.positive, lambda make, *shape: make.positive(*shape) + 1,
             lambda make, *shape: make.index(3, *shape), T.bool]
    if re.match(r"aten\.(eq|ne|logical_.*)\.", op):
        kinds = kinds[3:] if "logical" not in op else kinds[4:]
    for numbers in kinds:
        samples = (sample(((2, 3, 4),), numbers), sample(((2, 3, 4), (3, 1), (4,)), numbers))
        try:
            if all(bool(torch.isfinite(r).all()) for r in Case(op, samples[0]).before):
                return samples[: 1 + (len(Case(op, samples[0]).tensors) > 1)]
        except ERRORS:
            pass
    return samples[:1]


def _from_schema(op: str, tensor: Callable[[int], torch.Tensor]) -> tuple:
    """Arguments for everything that an op's schema asks for."""
    made = {"Number": 2, "number": 2, "float": 0.5, "int": 2, "bool": False, "List[int]": [2, 3],
            "Device": "cpu", "device": "cpu"}
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    count = 0
    for argument in resolve(op)._schema.arguments:
        kind = str(argument.type)
        if argument.has_default_value():
            continue
        value: Any
        if kind == "Tensor":
            value = tensor(count) > 0 if argument.name in ("condition", "mask") else tensor(count)
            count += 1
        else:
            value = torch.float64 if argument.name == "dtype" else made[kind]
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            arguments.append(value)
    return (*arguments, Keyword(named))
