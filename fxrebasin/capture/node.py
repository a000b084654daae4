"""Nodes with the types that they have: fx allows anything as an argument, and a string as a target."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload


def node_at(node: fx.Node, place: int) -> fx.Node:
    """The node that is an argument of another one. Raises TypeError if it is none."""
    argument = node.args[place]
    if not isinstance(argument, fx.Node):
        raise TypeError(f"argument {place} of {node.target} is no node but {argument!r}")
    return argument


def int_at(node: fx.Node, place: int) -> int:
    """A number among the arguments. Raises TypeError if it is none."""
    argument = node.args[place]
    if not isinstance(argument, int):
        raise TypeError(f"argument {place} of {node.target} is no integer but {argument!r}")
    return argument


def nodes_at(node: fx.Node, place: int) -> list[Any]:
    """A list among the arguments: nodes, and what else stands in it. Raises TypeError if it is none."""
    argument = node.args[place]
    if not isinstance(argument, Sequence):
        raise TypeError(f"argument {place} of {node.target} is no list but {argument!r}")
    return list(argument)


def tensor_of(node: fx.Node) -> Tensor:
    """The fake tensor that stands for what a node computes."""
    return node.meta["val"]


def argument(node: fx.Node, name: str) -> Any:
    """An argument of a call by its schema name; None if it was not given."""
    names = [a.name for a in op_of(node)._schema.arguments]
    return node.kwargs.get(name, node.args[names.index(name)] if names.index(name) < len(node.args) else None)


def upstream(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Some nodes and all that they depend on."""
    left, seen = list(nodes), set()
    while left:
        if (node := left.pop()) not in seen:
            seen.add(node)
            left += node.all_input_nodes
    return seen


def op_of(node: fx.Node) -> OpOverload:
    """The op that a node calls. Raises TypeError if it calls something else."""
    if not isinstance(node.target, OpOverload):
        raise TypeError(f"{node.target} is no op of torch")
    return node.target
