"""The leaves of arguments and results, by names such as `x`, `batch.image` or `hidden.0`."""
from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def arguments(example_inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Example inputs (a tensor, a tuple, or a dict of keyword arguments) as (args, kwargs)."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def signature_of(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def inputs_of(signature: inspect.Signature | None, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among the arguments by path, such as `x` or `batch.image`."""
    named: dict[str, Any] = {**{f"args.{i}": arg for i, arg in enumerate(args)}, **kwargs}
    if signature is None:
        return {path: leaf for path, leaf in leaves_of(named) if isinstance(leaf, Tensor)}
    with contextlib.suppress(TypeError, AttributeError):  # the module itself will complain about a misfit
        bound = signature.bind(*args, **kwargs).arguments
        named = {}
        for name, value in bound.items():
            extra = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            named.update(value if extra else {name: value})
    return {path: leaf for path, leaf in leaves_of(named) if isinstance(leaf, Tensor)}


def leaves_of(value: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested containers with its path; of other objects (such as a cache) the tensors only.

    `above` holds the ids of the containers around `value`, so that one which contains itself is a leaf.
    """
    parts = _parts(value, above) if id(value) not in above else None
    if parts is None:
        yield path or "output", value
        return
    for key, part in parts:
        name = ".".join(piece for piece in (path, str(key)) if piece)
        yield from leaves_of(part, name, (*above, id(value)))


def _parts(value: Any, above: tuple[int, ...]) -> list[tuple[Any, Any]] | None:
    """(key, part) for what can be looked into, None for a leaf."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, (Tensor, nn.Module, type)) or callable(value):
        return None
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    parts = []
    for key, part in getattr(value, "__dict__", {}).items():
        leaves = leaves_of(part, "", (*above, id(value)))
        tensors = {path: leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
        if tensors:
            parts.append((key, tensors.get("output", tensors)))
    if len(parts) == 1:  # an object that only wraps something adds no name
        return [("", parts[0][1])]
    return parts or None
