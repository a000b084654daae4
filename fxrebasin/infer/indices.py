"""Views of an index, told apart by what they hold."""

from __future__ import annotations

import math

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..factors import Value


class Indices:
    """Views of indices that hold the same numbers at the same places are one value: what is looked up with either
    belongs together."""

    def __init__(self):
        self._views: dict[Value, tuple[Value, torch.Tensor]] = {}  # view -> the index, and where it is read
        self._known: dict[tuple, Value] = {}  # the same the other way round

    def unique(self, node: fx.Node, index: Value, results: list[Value]) -> list[Value]:
        """The results of an op that moves the numbers of an index, each replaced by an earlier one that is the same."""
        if index not in self._views:
            places = torch.arange(math.prod(index.shape)).reshape(index.shape)
            self._views[index], self._known[index, index.shape, places.numpy().tobytes()] = (index, places), index
        root, places = self._views[index]
        options = {name: option for name, option in node.kwargs.items() if name != "device"}
        moved = pytree.tree_leaves(node.target(places, *node.args[1:], **options))
        for k, part in enumerate(moved):
            results[k] = self._known.setdefault((root, results[k].shape, part.contiguous().numpy().tobytes()), results[k])
            self._views[results[k]] = root, part
        return results
