"""How many scores a mask leaves to choose from, as far as the graph proves it.

A router that is limited to groups masks all but a few groups, which it chose by `topk`, and then takes k experts of the
rest. What was masked is equal, so that is no ranking of different numbers unless at least k are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

LARGEST = 200_000  # numbers whose places are followed one by one
_NOT = ("logical_not.default", "bitwise_not.default", "eq.Scalar")
_SAME = ("ne.Scalar", "gt.Scalar", "_to_copy.default", "to.dtype", "clone.default", "alias.default", "contiguous.default")
_RESHAPES = ("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unsqueeze.default")


def left(mask: fx.Node, wanted: bool, shape: torch.Size, dim: int, constant: Callable[[fx.Node], torch.Tensor | None]) -> int:
    """The least number of places along a dimension of scores of a shape at which a mask is true (or false: `wanted`),
    whatever weights and inputs are; 0 if that is not known.

    constant: the numbers of a node, if they never change
    """
    views: list[fx.Node] = []
    while True:
        content = constant(mask)
        if content is not None and not views:
            kept = (content != 0) == wanted
            return int(kept.expand(shape).sum(dim).min()) if kept.numel() else 0
        op = str(mask.target).removeprefix("aten.")
        if op in _NOT or op in _SAME:
            if op.endswith(".Scalar") and mask.args[1] != 0:
                return 0
            wanted = wanted != (op in _NOT)
        elif op in _RESHAPES or op == "expand.default":
            views.append(mask)
        else:
            chosen = _chosen(mask) if op == "scatter.value" and wanted else None
            return 0 if chosen is None else _least(mask, *chosen, views[::-1], shape, dim)
        mask = mask.args[0]


def _chosen(node: fx.Node) -> tuple[int, int] | None:
    """The dimension along which a `scatter` writes ones at places that `topk` found, and how many: they differ, so all of
    these are written. None for anything else."""
    written, dim, index, value = node.args[:4]
    made = index.args[0] if index.op == "call_function" and "getitem" in str(index.target) and index.args[1] == 1 else None
    if made is None or str(made.target) != "aten.topk.default" or not isinstance(value, (int, float)) or value < 1:
        return None
    whole, part = written.meta["val"].shape, index.meta["val"].shape
    dim, searched = dim % len(whole), (made.args[2] if len(made.args) > 2 else made.kwargs.get("dim", -1)) % len(part)
    fits = len(whole) == len(part) and all(a == b for d, (a, b) in enumerate(zip(whole, part)) if d != dim)
    return (dim, int(part[dim])) if fits and searched == dim else None


def _least(node: fx.Node, along: int, count: int, views: list[fx.Node], shape: torch.Size, dim: int) -> int:
    """The least number of places that hold what was written, wherever along `along` the `count` places were."""
    size = node.meta["val"].shape
    if max(math.prod(shape), math.prod(size)) > LARGEST:
        return 0
    places = torch.arange(math.prod(size)).reshape(size)
    for view in views:
        to = view.meta["val"].shape
        places = places.expand(to) if str(view.target) == "aten.expand.default" else places.reshape(to)
    if places.shape != shape:
        return 0
    rows = places.movedim(dim, -1).reshape(-1, shape[dim])
    inner = math.prod(size[along + 1:])
    line, place = rows // (inner * size[along]) * inner + rows % inner, rows // inner % size[along]
    if not bool((line == line[:, :1]).all()):
        return 0
    times = torch.zeros(len(rows), size[along], dtype=torch.long).scatter_add(1, place, torch.ones_like(place))
    return int(times.sort(1).values[:, :count].sum(1).min()) if len(rows) else 0
