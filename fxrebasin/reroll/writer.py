"""A graph that is being written, with a fake value for every node: nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from ..capture import Source

aten = torch.ops.aten


class Writer:
    """The new graph, what its placeholders and constants are, and the constants made on the way.

    `like` is always the old node that a new one stands for: its source line is the new one's.
    """

    def __init__(self, old: fx.GraphModule):
        self.old = old
        self.graph = fx.Graph()
        self.sources: dict[str, Source] = {}
        self.constants: dict[str, Tensor] = {}
        values = (value for node in old.graph.nodes for value in pytree.tree_leaves(node.meta.get("val")))
        modes = (value.fake_mode for value in values if isinstance(value, FakeTensor))
        self.mode = next(modes, None) or FakeTensorMode()

    def copy(self, node: fx.Node, operands: Mapping[fx.Node, fx.Node], source: Source | None) -> fx.Node:
        """A node of the old graph as it is, over new operands."""
        copy = self.graph.node_copy(node, operands.__getitem__)
        if source is not None:
            self.sources[copy.name] = source
        return copy

    def call(self, like: fx.Node, target, *args, **kwargs) -> fx.Node:
        """One op."""
        values = fx.node.map_arg((args, kwargs), lambda node: self.fake(node.meta["val"]))
        with self.mode, torch.no_grad():
            value = target(*values[0], **values[1])
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {"val": value, "stack_trace": like.meta.get("stack_trace")}
        return node

    def insert(self, like: fx.Node, inner: fx.Graph, operands: list[fx.Node]) -> fx.Node | list[fx.Node]:
        """All ops of a traced graph; its results."""
        inside: dict[fx.Node, fx.Node] = {}
        given = iter(operands)
        for step in inner.nodes:
            if step.op == "placeholder":
                inside[step] = next(given)
            elif step.op == "get_attr":
                raise LookupError(f"{like.target} makes a constant")
            elif step.op == "call_function":
                inside[step] = self.graph.node_copy(step, inside.__getitem__)
                inside[step].meta = {"val": step.meta["val"], "stack_trace": like.meta.get("stack_trace")}
        results: Any = fx.node.map_arg(inner.output_node().args[0], inside.__getitem__)
        return results

    def state(self, like: fx.Node, name: str, shape: tuple[int, ...]) -> fx.Node:
        """A placeholder for a new tensor of the state, of the dtype of `like`."""
        node = self.graph.placeholder(f"{like.target}_stacked")
        value = like.meta["val"]
        with self.mode:
            node.meta["val"] = torch.empty(shape, dtype=value.dtype, device=_device(value))
        self.sources[node.name] = Source("state", name)
        return node

    def constant(self, value: Tensor) -> fx.Node:
        name = f"slots_{len(self.constants)}"
        while hasattr(self.old, name):
            name += "_"
        self.constants[name] = value
        node = self.graph.get_attr(name)
        node.meta["val"] = self.fake(value)
        self.sources[node.name] = Source("constant", name, value)
        return node

    def take(self, like: fx.Node, whole: fx.Node, dim: int, positions: list[int]) -> fx.Node:
        """Positions of a dimension; all of them, in order, are the tensor itself."""
        first, count = positions[0], len(positions)
        if positions != list(range(first, first + count)):
            index = self.constant(torch.tensor(positions))
            return self.call(like, aten.index_select.default, whole, dim, index)
        if count == whole.meta["val"].shape[dim]:
            return whole
        return self.call(like, aten.slice.Tensor, whole, dim, first, first + count)

    def fake(self, value: Any) -> Any:
        """The same without data, if it has any."""
        return pytree.tree_map_only(Tensor, self._fake, value)

    def _fake(self, value: Tensor) -> Tensor:
        return value if isinstance(value, FakeTensor) and value.fake_mode is self.mode else self.fresh(value)

    def fresh(self, value: Tensor) -> Tensor:
        """A fake tensor of its own: tracing tells tensors apart by identity."""
        with self.mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_device(value))

    def finished(self) -> fx.GraphModule:
        """The module of the graph, what nobody uses left out."""
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        names = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"} - set(self.constants)
        return fx.GraphModule({name: _attribute(self.old, name) for name in names} | self.constants, self.graph)


def _device(value: Tensor) -> torch.device:
    return torch.device("cpu") if value.device.type == "meta" else value.device


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module
