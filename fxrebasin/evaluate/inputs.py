"""Random inputs of the kind of given ones: the same shapes and dtypes, other numbers."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..capture import Program
from ..capture.leaves import arguments, inputs_of
from .ops import base_name

KINDS = ("ordinary", "zeros", "duplicates", "large")
LARGE = 1e3


def given_inputs(program: Program, example_inputs: Any) -> dict[str, Tensor]:
    """The tensors among example inputs (a tensor, a tuple, a dict of keyword arguments) by path."""
    return inputs_of(program.signature, *arguments(example_inputs))


def draw_inputs(program: Program, examples: Sequence[Mapping[str, Tensor]], seed: int,
                kind: str = "ordinary") -> dict[str, Tensor]:
    """Inputs by path, for `evaluate`.

    examples  one or several sets of inputs by path; tensors without numbers (on the meta device) have shapes
              only
    kind      of the floating-point ones: "ordinary", "zeros", "duplicates" (rows and places that are equal),
              "large"

    Whole numbers are drawn from those that a table has entries for, if they look something up in one, else
    from the range of the examples; masks (truth values, or nothing but 0 and 1) are all true for even seeds,
    and mixed for odd ones; masks that are added (nothing but 0 and one large negative number) likewise. With
    "zeros", whole numbers are the least ones, with "duplicates" places are equal.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of inputs {kind!r}: one of {', '.join(KINDS)}")
    generator = torch.Generator().manual_seed(seed)
    tables = _tables(program)
    drawn = {}
    for path, tensor in examples[0].items():
        if tensor.layout != torch.strided:  # a sparse one keeps its places
            drawn[path] = tensor if kind == "ordinary" else tensor * (0.0 if kind == "zeros" else 1.5)
            continue
        seen = [example[path].detach().cpu().reshape(-1) for example in examples
                if path in example and example[path].device.type != "meta"]
        numbers = torch.cat(seen) if seen else torch.empty(0, dtype=tensor.dtype)
        drawn[path] = _draw(tuple(tensor.shape), tensor.dtype, numbers, tables.get(path), seed, kind, generator)
    return drawn


def _draw(shape: tuple[int, ...], dtype: torch.dtype, seen: Tensor, table: int | None, seed: int, kind: str,
          generator: torch.Generator) -> Tensor:
    values = torch.unique(seen.real if seen.is_complex() else seen) if seen.numel() else seen
    if dtype == torch.bool or (table is None and _is_mask(values)):
        return _mask(shape, dtype, values, seed, generator)
    if dtype.is_floating_point or dtype.is_complex:
        numbers = _floats(shape, dtype, seen, kind, generator)
    else:
        numbers = _whole(shape, values, table, kind, generator).to(dtype)
    return _duplicated(numbers, generator) if kind == "duplicates" else numbers


def _is_mask(values: Tensor) -> bool:
    """Whether different numbers are 0 and 1, or 0 and one that pushes scores down; for floating-point ones
    both must be there."""
    if len(values) == 2 and values.is_floating_point() and float(values[1]) == 0 and float(values[0]) <= -1e4:
        return True
    both = len(values) == 2 if values.is_floating_point() else len(values) > 0
    return both and bool(((values == 0) | (values == 1)).all())


def _mask(shape, dtype: torch.dtype, values: Tensor, seed: int, generator: torch.Generator) -> Tensor:
    """All true, or mostly true, and true at the first place of each row."""
    mask = torch.rand(shape, generator=generator) < (2.0 if seed % 2 == 0 else 0.7)
    if mask.ndim and mask.shape[-1]:
        mask[..., 0] = True
    if dtype != torch.bool and len(values) and float(values[0]) < 0:
        return torch.where(mask, torch.zeros((), dtype=dtype), values[0].to(dtype))
    return mask.to(dtype)


def _floats(shape, dtype: torch.dtype, seen: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    if kind == "zeros":
        return torch.zeros(shape, dtype=wide)
    numbers = torch.randn(shape, generator=generator, dtype=wide)
    finite = seen[torch.isfinite(seen)].to(wide) if seen.numel() else seen.to(wide)
    size = float(finite.std()) if len(finite) > 1 else 0.0
    if not dtype.is_complex and size > 0 and float(finite.min()) >= 0:  # probabilities, times, pixels
        numbers = torch.rand(shape, generator=generator, dtype=wide) * float(finite.max())
        return numbers * (LARGE if kind == "large" else 1)
    return numbers * (size if size > 0 else 1.0) * (LARGE if kind == "large" else 1)


def _whole(shape, values: Tensor, table: int | None, kind: str, generator: torch.Generator) -> Tensor:
    """Whole numbers from a table's entries, from a range, or, where some are negative, from those seen."""
    if len(values) and int(values.min()) < 0:
        return values[torch.randint(len(values), shape, generator=generator)]
    low = int(values.min()) if len(values) and table is None else 0
    high = table if table is not None else int(values.max()) + 1 if len(values) else 1
    if kind == "zeros":
        return torch.full(shape, low)
    return torch.randint(low, max(high, low + 1), shape, generator=generator)


def _duplicated(numbers: Tensor, generator: torch.Generator) -> Tensor:
    """Rows that are equal to other rows, and, along the second dimension, places to other places."""
    for d in range(min(2, numbers.ndim)):
        n = numbers.shape[d]
        places = torch.randint(max(1, (n + 1) // 2), (n,), generator=generator)
        numbers = numbers.index_select(d, places) if n else numbers
    return numbers


def _tables(program: Program) -> dict[str, int]:
    """Path of an input -> the number of rows of the smallest table in which it looks rows up."""
    found: dict[str, int] = {}
    origin: dict[fx.Node, str] = {}
    for node in program.module.graph.nodes:
        source = program.sources.get(node.name)
        if source is not None and source.kind == "input":
            origin[node] = source.name
        elif node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
            if base_name(node) in _UNCHANGED and node.args[0] in origin:
                origin[node] = origin[node.args[0]]
            elif base_name(node) == "embedding" and node.args[1] in origin:
                path, rows = origin[node.args[1]], int(node.args[0].meta["val"].shape[0])
                found[path] = min(rows, found.get(path, rows))
    return found


_UNCHANGED = frozenset(
    "alias clone contiguous detach expand permute reshape select slice squeeze t to _to_copy transpose "
    "unsqueeze view _unsafe_view".split()
)
