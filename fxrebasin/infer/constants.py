"""What is known of a graph's numbers without running it: constants, and shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

LARGEST = 10_000_000  # elements of a constant that is worked out


class Constants:
    """The numbers of nodes that neither inputs nor state can change."""

    def __init__(self):
        self.given: dict[fx.Node, torch.Tensor | None] = {}
        self.read: set[fx.Node] = set()  # constants whose numbers the analysis relies on

    def integers(self, node: fx.Node, name: str) -> np.ndarray | None:
        """The numbers of an argument of a call, if they are integers that never change."""
        given = argument(node, name)
        if isinstance(given, (list, tuple)):
            given = next((g for g in given if isinstance(g, fx.Node)), None)
        if not isinstance(given, fx.Node):
            return None
        tensor = self.evaluate(given)
        return None if tensor is None or tensor.is_floating_point() or tensor.is_complex() else tensor.cpu().numpy()

    def evaluate(self, node: fx.Node) -> torch.Tensor | None:
        """A node's value; None if it depends on inputs or state, or cannot be worked out."""
        if node.op != "call_function":
            self.read.add(node)
        if node in self.given or node.op != "call_function":
            return self.given.get(node)
        self.given[node] = None
        sizes = shapes(node.meta.get("val"))
        if sizes and sum(math.prod(s) for s in sizes) < LARGEST and not _draws(node):
            known = {a: self.evaluate(a) for a in node.all_input_nodes}
            if all(isinstance(tensor, torch.Tensor) for tensor in known.values()):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: known[a])
                try:
                    with torch.no_grad():
                        result = node.target(*args, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})})
                    self.given[node] = result if isinstance(result, torch.Tensor) else None
                except (RuntimeError, TypeError, NotImplementedError, IndexError):
                    pass
        return self.given[node]


def _draws(node: fx.Node) -> bool:
    """Whether an op draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def argument(node: fx.Node, name: str) -> Any:
    """An argument of a call by its schema name; None if it was not given."""
    names = [a.name for a in node.target._schema.arguments]
    return node.kwargs.get(name, node.args[names.index(name)] if names.index(name) < len(node.args) else None)


def shapes(val: Any) -> list[tuple[int, ...]]:
    """The shapes of a node's tensors, from its `meta["val"]`."""
    if isinstance(val, torch.Tensor):
        return [tuple(int(s) for s in val.shape)]
    if isinstance(val, (list, tuple)):
        return [shape for v in val for shape in (shapes(v) or [()])]
    return []
