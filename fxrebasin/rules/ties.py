"""Whether numbers may be equal to each other for a whole region of inputs, so that ranking them depends on their order.

A linear map of something that is not zero gives numbers that all differ, for almost all weights and inputs. A ReLU,
rounding, a mask or a copy makes equal numbers of them; and what may be zero everywhere makes a linear map without bias
zero everywhere. What is not known here is taken to hand on what its arguments have.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence

import numpy as np
from torch import fx

_COARSE = set("""
relu relu6 clamp clamp_min clamp_max hardtanh hardsigmoid hardswish hardshrink softshrink threshold round floor ceil trunc
sign sgn floor_divide remainder fmod eq ne lt le gt ge logical_not logical_and logical_or logical_xor one_hot isnan isinf
isfinite maximum minimum scatter scatter_add index_put slice_scatter select_scatter zeros_like full_like new_zeros new_full
zeros full argmax argmin argsort pad constant_pad_nd tril triu bitwise_and bitwise_or bitwise_not bitwise_xor nan_to_num
dropout""".split())  # different numbers become equal, to zero among others
_COPIES = set("""
ones_like new_ones ones max_pool1d max_pool2d max_pool3d amax amin reflection_pad1d reflection_pad2d replication_pad1d
replication_pad2d repeat tile repeat_interleave expand expand_as broadcast_to index_select index gather unfold
upsample_nearest1d upsample_nearest2d""".split())  # one number comes to stand at several places
_MAPS = {"linear": 2, "conv1d": 2, "conv2d": 2, "conv3d": 2, "convolution": 2, "addmm": 0, "baddbmm": 0}  # argument: bias
_PRODUCTS = {"mm", "bmm", "matmul", "mv", "einsum", "scaled_dot_product_attention"}
_NEVER_ZERO = {"softmax", "_softmax", "log_softmax", "_log_softmax", "sigmoid", "softplus", "exp", "cos", "embedding",
               "ones_like", "new_ones", "ones"}
_SAME = {"clone", "alias", "detach", "contiguous", "_to_copy", "to", "view", "_unsafe_view", "reshape", "flatten", "unflatten",
         "squeeze", "unsqueeze", "expand"}  # the same numbers, laid out anew
_POSITIVE = {"softmax", "_softmax", "sigmoid", "softplus", "exp"}
_RANKS = {"topk", "sort", "max", "min", "median", "kthvalue"}  # results: numbers, and their places
LOWEST = -1e4  # a score below this is a mask's


class Ties:
    """What is known of the nodes of a graph, in one walk.

    Masks are no reason: masked scores are equal to each other, but not meant to be chosen. A network that chooses more
    than its masks leave is not considered."""

    def __init__(self, graph: fx.Graph, integers: Callable[[fx.Node, str], np.ndarray | None] = lambda node, name: None):
        self._integers = integers  # an argument's numbers, if they never change
        self.ties: dict[fx.Node, str | None] = {}  # why a node's numbers may be equal to each other
        self.vanishes: dict[fx.Node, bool] = {}  # whether they may all be zero
        self._made: dict[fx.Node, str] = {}  # how the numbers are made: alike for nodes that hold the same
        for node in graph.nodes:
            name = _name(node)
            self._made[node] = self._recipe(node, name)
            self.vanishes[node] = bool(name) and self._vanishes(node, name)
            self.ties[node] = self._tie(node, name) if name else None

    def __call__(self, node) -> str | None:
        """Why numbers of a node's result may be equal, in words; None if almost always they are not."""
        return self.ties.get(node, "it is not known how the numbers are made")

    def _tie(self, node: fx.Node, name: str) -> str | None:
        given = node.all_input_nodes
        if name == "index_select" and (index := self._integers(node, "index")) is not None and len(set(index)) == len(index):
            return self.ties[given[0]]
        if self._cancels(node, name) or name in ("mul", "pow") and node.args[1] == 0:
            return f"{name} makes equal numbers"
        if name in _COARSE | _COPIES or name in ("where", "masked_fill") and not _masks(node, name):
            return f"{name} makes equal numbers"
        if name in ("cat", "stack") and not _all_different(node.args[0]):
            return f"{name} may join equal numbers"
        if name in _MAPS:  # the results are told apart by the weights
            given = given[1:]
        if name in _MAPS or name in _PRODUCTS:
            if self.vanishes[node]:
                return f"{name} maps what may be zero everywhere to equal numbers"
        if name == "embedding":
            return None
        if name == "masked_fill":
            given = given[:1]
        return next((self.ties[a] for a in given if self.ties[a]), None)

    def _recipe(self, node: fx.Node, name: str) -> str:
        given = node.all_input_nodes
        if name in _SAME and given:
            return self._made[given[0]]
        if node.op != "call_function":
            return node.name
        args = fx.node.map_arg((node.args, node.kwargs), lambda a: self._made[a])
        return hashlib.sha256(f"{node.target}{args}".encode()).hexdigest()

    def _cancels(self, node: fx.Node, name: str) -> bool:
        """Whether an op takes a thing from itself, or divides it by itself."""
        pair = [self._made[a] for a in node.args[:2] if isinstance(a, fx.Node)]
        return name in ("sub", "div") and len(pair) == 2 and pair[0] == pair[1]

    def _vanishes(self, node: fx.Node, name: str) -> bool:
        given = [self.vanishes[a] for a in node.all_input_nodes]
        if name in _NEVER_ZERO or name in _MAPS and _argument(node, _MAPS[name]) is not None:
            return False
        if name in _COARSE or name in ("where", "masked_fill") or self._cancels(node, name):
            return True
        if name in ("mul", "pow") and not isinstance(node.args[1], fx.Node) and node.args[1] == 0:
            return True
        if name in ("add", "sub", "cat", "stack"):
            return all(given) and not (name in ("add", "sub") and len(given) < 2)
        places = node.target is operator.getitem and node.args[1] == 1 and _name(node.args[0]) in _RANKS
        return places or any(given)


def _all_different(parts: Sequence[fx.Node]) -> bool:
    """Whether parts to be joined are weights, or maps, of which no two are the same."""
    made = [(part.target, *part.args) if part.op == "call_function" else (part,) for part in parts]
    known = all(part.op == "placeholder" or _name(part) in _MAPS for part in parts)
    return known and len({str(way) for way in made}) == len(made)


def _masks(node: fx.Node, name: str) -> bool:
    """Whether scores are filled in where they shall not be chosen: with a number below all others."""
    value = node.args[2] if name == "masked_fill" else None
    if not isinstance(value, (int, float)):
        return False
    return value <= LOWEST or value == 0 and _name(node.args[0]) in _POSITIVE


def _name(node: fx.Node) -> str:
    """The op of a call, without namespace and overload; "" for what is no call."""
    return str(node.target).removeprefix("aten.").split(".")[0] if node.op == "call_function" else ""


def _argument(node: fx.Node, k: int):
    return node.args[k] if k < len(node.args) else node.kwargs.get("bias")
