"""Where the elements of an activation stand behind ops that only move them: the ops themselves are run on indices."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from .folds import MOVING

_STILL = {f"aten.{op}" for op in ("_to_copy.default", "to.dtype", "to.dtype_layout", "clone.default", "contiguous.default",
                                  "alias.default", "detach.default", "dropout.default")}
# Padding is left out: it puts zeros beside what is moved.
CARRYING = (MOVING - {"aten.constant_pad_nd.default"}) | {f"aten.{op}" for op in (
    "split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int", "unsafe_split.Tensor",
    "unsafe_chunk.default", "repeat_interleave.self_int")}
MOST = 20_000_000  # elements of an activation that is followed
End = tuple[fx.Node, fx.Node, Tensor]  # an op that does more than move, what it is given, and the indices there


def along(node: fx.Node, axis: int) -> Tensor | None:
    """For every element of an activation its position on an axis; None if that is too much."""
    shape = node.meta["val"].shape
    if node.meta["val"].numel() > MOST:
        return None
    lengths = [shape[axis] if d == axis % len(shape) else 1 for d in range(len(shape))]
    return torch.arange(shape[axis]).view(lengths).expand(shape)


def moved(node: fx.Node, user: fx.Node, index: Tensor) -> Any:
    """The indices behind an op that moves `node`; None if it does more, or moves something else."""
    op = str(user.target)
    if op not in CARRYING or user.args[0] is not node or user.all_input_nodes != [node]:
        return None
    if op in _STILL:
        return index
    args, kwargs = fx.node.map_arg((user.args, user.kwargs), lambda _: index)
    run = torch.reshape if "view" in op else user.target  # indices are expanded: no view of them need exist
    return run(*args, **{k: v for k, v in kwargs.items() if k != "dtype"})


def ends(node: fx.Node, index: Any) -> Iterator[End]:
    """Every op behind a node that does more than move its elements."""
    for user in node.users:
        if user.target is operator.getitem and isinstance(index, (list, tuple)):
            yield from ends(user, index[user.args[1]])
        elif (behind := moved(node, user, index)) is not None:
            yield from ends(user, behind)
        else:
            yield user, node, index


def line(index: Tensor, axis: int) -> tuple[int, ...] | None:
    """The indices along an axis, if they are the same wherever else one looks."""
    first = index.movedim(axis, 0).reshape(index.shape[axis], -1)
    return tuple(first[:, 0].tolist()) if bool((first == first[:, :1]).all()) else None
