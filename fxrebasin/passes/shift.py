"""A norm's shift moves into the biases behind it: W (y + s) + b = W y + (W s + b)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from ..capture import argument
from ..spec import Rewrite
from .folds import SCALING
from .graph import Maps
from .trace import along, ends, line


def found(maps: Maps) -> Iterator[Rewrite]:
    """The shifts of all norms of a graph."""
    norms: dict[str, list[fx.Node]] = {}
    for node in maps.program.module.graph.nodes:
        if str(node.target) in SCALING and "rms" not in str(node.target):
            norms.setdefault(maps.name(argument(node, "bias")), []).append(node)
    norms.pop("", None)
    for name, nodes in norms.items():
        yield _of(maps, name, nodes)


def _of(maps: Maps, name: str, nodes: list[fx.Node]) -> Rewrite:
    if maps.uses[name] != set(nodes):
        return Rewrite("shift", name, "it is also read elsewhere")
    readers: dict[fx.Node, tuple] = {}
    for node in nodes:
        axis = node.meta["val"].ndim - 1 if "layer_norm" in str(node.target) and isinstance(
            node.meta["val"], Tensor) and len(node.args[1]) == 1 else None
        index = None if axis is None else along(node, axis)
        if index is None:
            return Rewrite("shift", name, f"{maps.where(node)} is not a norm over one last axis")
        for user, given, inside in ends(node, index):
            reader = maps.by_node.get(user)
            places = line(inside, reader.along) if reader is not None and user.all_input_nodes.count(given) == 1 else None
            if reader is None or places is None:
                return Rewrite("shift", name, f"what it is added to is also read by {maps.where(user)}")
            if not reader.bias or reader.padded:
                return Rewrite("shift", name, f"{reader.weight!r} reads it without a bias" if not reader.bias else
                               f"{reader.weight!r} reads zeros beside it")
            readers[user] = reader.weight, reader.axis, reader.bias, places
    if other := shared(maps, readers):
        return Rewrite("shift", name, f"{other!r} is also read elsewhere")
    if not readers:
        return Rewrite("shift", name, "nothing reads what it is added to")
    return Rewrite("shift", name, readers=tuple(dict.fromkeys(readers.values())))


def shared(maps: Maps, readers: dict[fx.Node, tuple]) -> str | None:
    """A bias of some linear maps that others add, too, so that it cannot take up anything for these alone."""
    return next((bias for _, _, bias, _ in readers.values() if not maps.uses[bias] <= set(readers)
                 or len({reader for reader in readers.values() if reader[2] == bias}) > 1), None)


def done(rewrite: Rewrite, state: dict[str, Tensor]) -> str:
    """Moves the shift; "" or why not."""
    taken(rewrite, state)
    state[rewrite.entry] = torch.zeros_like(state[rewrite.entry])
    return ""


def taken(rewrite: Rewrite, state: dict[str, Tensor]) -> None:
    """Adds what the readers make of `entry` to their biases."""
    for weight, axis, bias, places in rewrite.readers:
        given = state[rewrite.entry][list(places)] if places else state[rewrite.entry]
        made = torch.tensordot(state[weight], given, ([axis], [0]))
        state[bias] = state[bias] + (made.flatten(1).sum(1) if made.ndim > 1 else made)
