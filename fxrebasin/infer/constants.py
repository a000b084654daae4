"""What is known of a graph's numbers without running it: constants, and shapes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import argument
from ..factors import Atom, Factors, Segment, Value, natural

LARGEST = 10_000_000  # elements of a constant that is worked out
SMALL = 100_000  # elements of a constant of which it is worked out where its numbers are equal, if the graph makes it
MOST_KINDS = 16  # different slices along a dimension
MOST_BOXES = 64


class Constants:
    """The numbers of nodes that neither inputs nor state can change."""

    def __init__(self):
        self.given: dict[fx.Node, torch.Tensor | None] = {}
        self.read: set[fx.Node] = set()  # constants whose numbers the analysis relies on
        self.stands_for: dict[fx.Node, fx.Node] = {}  # placeholder of a graph within a node -> what it is given

    def integers(self, node: fx.Node, name: str) -> np.ndarray | None:
        """The numbers of an argument of a call, if they are integers that never change."""
        given = argument(node, name)
        if isinstance(given, (list, tuple)):
            given = next((g for g in given if isinstance(g, fx.Node)), None)
        if not isinstance(given, fx.Node):
            return None
        tensor = self.evaluate(given)
        if tensor is None or tensor.is_floating_point() or tensor.is_complex():
            return None
        self.rely(given)
        return tensor.cpu().numpy()

    def rely(self, node: fx.Node) -> None:
        """The analysis goes by a node's numbers, and so by those of the constants that it is worked out from."""
        waiting, seen = [node], set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.stands_for:
                waiting.append(self.stands_for[node])
            elif node.op == "call_function":
                waiting.extend(node.all_input_nodes)
            else:
                self.read.add(node)

    def evaluate(self, node: fx.Node) -> torch.Tensor | None:
        """A node's value; None if it depends on inputs or state, or cannot be worked out."""
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
    """Whether an op draws random numbers, or leaves what was in memory before."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) or "empty" in str(node.target)


def constant(factors: Factors, content: torch.Tensor | None, shape: tuple[int, ...], reason: str) -> Value:
    """A tensor whose numbers never change, as a value. Along a dimension, positions whose slices are equal may change
    places: they are free where all of them are equal, else one atom for each kind of slice. Where there are too many
    kinds, or nothing is known (`content` is None), the dimension stays as it is, for `reason`."""
    known = content is not None and content.numel() > 0
    kinds = [_kinds(content, d) if known else None for d in range(len(shape))]
    several = [len(members) for members in kinds if members is not None]
    if math.prod(several) > MOST_BOXES:
        kinds = [members if members is None or len(members) == 1 else None for members in kinds]
    segments = [[Segment.plain(natural((size,)), reason)] if members is None
                else [Segment.plain(natural((size,)))] if len(members) == 1
                else [Segment(positions, [Atom(positions.size)]) if positions.size > 1 else Segment.plain(positions)
                      for positions in members] for size, members in zip(shape, kinds)]
    value = factors.build(shape, [list(box) for box in itertools.product(*segments)])
    value.even = True
    return value


def _kinds(content: torch.Tensor, dim: int) -> list[np.ndarray] | None:
    """The positions along a dimension in classes of equal slices; None if there are too many, or no two are equal."""
    dense = content if content.layout == torch.strided else content.to_dense()
    dense = dense.float() if dense.dtype.itemsize < 4 and dense.is_floating_point() else dense  # as numpy knows them
    rest = dense.numel() // max(1, dense.shape[dim])  # of no elements, the rest cannot be worked out
    rows = dense.detach().movedim(dim, 0).reshape(dense.shape[dim], rest).resolve_conj().resolve_neg().cpu().numpy()
    members: dict[bytes, list[int]] = {}
    for position, row in enumerate(rows):
        members.setdefault(row.tobytes(), []).append(position)
        if len(members) > MOST_KINDS:
            return None
    return [np.array(positions) for positions in members.values()] if len(members) < len(rows) or len(rows) == 1 else None


def tensors(given: Any) -> list[torch.Tensor]:
    """The tensors that an argument of a call stands for, as the graph describes them."""
    nodes = given if isinstance(given, (list, tuple)) else [given]
    return [n.meta["val"] for n in nodes if isinstance(n, fx.Node) and isinstance(n.meta.get("val"), torch.Tensor)]


def shapes(val: Any) -> list[tuple[int, ...]]:
    """The shapes of a node's tensors, from its `meta["val"]`."""
    if isinstance(val, torch.Tensor):
        return [tuple(int(s) for s in val.shape)]
    if isinstance(val, (list, tuple)):
        return [shape for v in val for shape in (shapes(v) or [()])]
    return []
