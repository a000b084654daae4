"""Linear maps and vectors of the state in a captured graph: what all the passes look for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..capture import Program
from ..capture import argument
from .folds import READING, Gains

BIASES = {"aten.linear.default": "bias", "aten.addmm.default": "self",
          **{f"aten.conv{k}d.default": "bias" for k in (1, 2, 3)}, "aten.convolution.default": "bias"}


@dataclass(frozen=True)
class Map:
    """A linear map of the graph by tensors of the state.

    weight, axis   its tensor, and the axis that it sums over;  out: the axis of its results
    along          the dimension of its input that is summed over;  made: that of its result
    bias           its bias, "" if it has none;  padded: whether zeros of its own stand beside the input
    """

    node: fx.Node
    weight: str
    axis: int
    out: int
    along: int
    made: int
    bias: str
    padded: bool


class Maps(Gains):
    """The linear maps of a program."""

    def __init__(self, program: Program, values):
        super().__init__(program, values)
        found = (self._map(node) for node in program.module.graph.nodes if str(node.target) in READING)
        self.by_node: dict[fx.Node, Map] = {each.node: each for each in found if each is not None}
        self.uses: dict[str, set[fx.Node]] = {}
        for node in program.module.graph.nodes:
            if self.is_state(node):
                self.uses.setdefault(program.sources[node.name].name, set()).update(node.users)

    def name(self, node) -> str:
        """The entry of the state that a node stands for; "" if none."""
        return self.program.sources[node.name].name if self.is_state(node) else ""

    def where(self, node: fx.Node) -> str:
        """An op, and the user's line, for people."""
        place = self.program.where(node)
        return str(node.target).removeprefix("aten.").partition(".")[0] + (f" ({place})" if place else "")

    def _map(self, node: fx.Node) -> Map | None:
        """A map with a matrix of the state, and no bias or one of the state."""
        (at, along), _ = READING[str(node.target)]
        given = node.args[at]
        dims = given.meta["val"].ndim
        read = self._read(node, given, along % dims)
        if read is None or self.is_state(given):
            return None
        weight, axis = read
        held = argument(node, BIASES[str(node.target)]) if str(node.target) in BIASES else None
        bias = self.name(held) if held is not None and held.meta["val"].ndim == 1 else ""
        if held is not None and not bias or any(argument(node, x) not in (None, 1) for x in ("alpha", "beta")
                                                 if "addmm" in str(node.target)):
            return None
        conv = "conv" in str(node.target)
        padding = argument(node, "padding") if conv else 0
        padded = padding == "same" or any(padding) if isinstance(padding, (list, tuple, str)) else bool(padding)
        rank = len(self.program.state[weight])
        if rank != (2 if not conv else dims):
            return None
        return Map(node, weight, axis, 1 - axis if axis in (0, 1) else 0, along % dims, 1 if conv else
                   node.meta["val"].ndim - 1, bias, padded)
