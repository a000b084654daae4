"""Gains that only linear maps read: a norm's weight and the matrix behind it are one thing to the function.

From every vector of the state that scales an activation along an axis, the graph is followed through whatever
moves that axis as a whole. If all ways end where a linear map sums over it, with a tensor of the state that
reads nothing else, the gain belongs to these tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..capture import Program
from ..capture import argument
from ..factors import Atom, Segment, Value
from ..spec import Fold, Spec
from ..spec.layout import foldable

SCALING = {f"aten.{op}.default": "weight" for op in (
    "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "native_group_norm", "batch_norm",
    "_native_batch_norm_legit_no_training")}
# Ops that neither mix nor scale what lies along an axis, as long as the axis is still there afterwards.
MOVING = {f"aten.{op}" for op in (
    "_to_copy.default", "to.dtype", "to.dtype_layout", "clone.default", "contiguous.default", "alias.default",
    "detach.default", "dropout.default", "view.default", "_unsafe_view.default", "reshape.default",
    "flatten.using_ints", "unflatten.int", "unsqueeze.default", "squeeze.dim", "squeeze.default", "squeeze.dims",
    "permute.default", "transpose.int", "t.default", "expand.default", "slice.Tensor", "select.int", "roll.default",
    "constant_pad_nd.default")}
# Linear map -> where its input and its tensor stand, and along which of their axes it sums.
READING = {"aten.linear.default": ((0, -1), (1, 1)), "aten.addmm.default": ((1, 1), (2, 0)),
           "aten.mm.default": ((0, 1), (1, 0)), "aten.matmul.default": ((0, -1), (1, -2)),
           "aten.bmm.default": ((0, 2), (1, 1)),
           **{f"aten.conv{k}d.default": ((0, 1), (1, 1)) for k in (1, 2, 3)},
           "aten.convolution.default": ((0, 1), (1, 1))}
PLUS = ("aten.add.Tensor", "aten.add.Scalar")
Place = tuple[fx.Node, int]  # an activation, and the axis that a gain scales


def folds(program: Program, values: Mapping[fx.Node, Any], spec: Spec) -> tuple[Fold, ...]:
    """The gains of a graph that can be folded, in the order of the tensors that they are folded into.

    values  of the nodes, as the analysis left them
    """
    graph = Gains(program, values)
    found: dict[str, list[Fold]] = {}
    for gain in (node for node in program.module.graph.nodes if graph.is_vector(node)):
        name = program.sources[gain.name].name
        found.setdefault(name, []).extend(graph.readers(gain))
    read: dict[str, set[tuple]] = {}
    for fold in (fold for own in found.values() for fold in own):
        read.setdefault(fold.tensor, set()).add((fold.axis, fold.gain, fold.plus))
    good = {name: own for name, own in found.items() if own and name in spec.layouts and all(
        len(read[fold.tensor]) == 1 and foldable(spec.layouts[fold.tensor], fold.axis, spec.layouts[name])
        for fold in own)}
    return tuple(dict.fromkeys(fold for name in spec.layouts for own in good.values() for fold in own
                               if fold.tensor == name))


class Gains:
    """A graph, and what its nodes are made of."""

    def __init__(self, program: Program, values: Mapping[fx.Node, Any]):
        self.program, self.values = program, values

    def is_state(self, node: Any) -> bool:
        source = self.program.sources.get(node.name) if isinstance(node, fx.Node) else None
        return source is not None and source.kind == "state"

    def is_vector(self, node: fx.Node) -> bool:
        kind = node.meta.get("val")
        return self.is_state(node) and isinstance(kind, torch.Tensor) and kind.ndim == 1 and bool(node.users)

    def readers(self, gain: fx.Node) -> list[Fold]:
        """The linear maps that read what a gain scales; none if anything else does, or if it is used otherwise."""
        found = self._readers(gain)
        return [] if isinstance(found, str) else found

    def why_not(self, name: str) -> str:
        """Why a gain, by its name in the state, cannot be folded."""
        found = [self._readers(node) for node in self.program.module.graph.nodes
                 if self.is_state(node) and self.program.sources[node.name].name == name]
        return next((each for each in found if isinstance(each, str)),
                    "what reads it is scaled by another gain, too, or laid out differently")

    def _readers(self, gain: fx.Node) -> list[Fold] | str:
        """The linear maps that read what a gain scales; or what else does."""
        scaled = list(self._scaled(gain, gain, 0.0))
        if not scaled or any(place is None for place, _ in scaled) or len({plus for _, plus in scaled}) > 1:
            return "it does more than scale the units of an activation"
        name = self.program.sources[gain.name].name
        result: list[Fold] = []
        for (place, plus) in scaled:
            for reader in self._followed(gain, place):
                if isinstance(reader, str):
                    return reader
                result.append(Fold(*reader, name, plus))
        other = next((f.tensor for f in result if not self._reads_alone(f.tensor, result)), None)
        return result if other is None else f"{other!r} reads what it scales, and has another use"

    def _scaled(self, gain: fx.Node, node: fx.Node, plus: float) -> Iterator[tuple[Place | None, float]]:
        """Every activation that a gain (as it is at a node) scales; None for another use."""
        for user in node.users:
            op = str(user.target)
            if op in MOVING:
                yield from self._scaled(gain, user, plus)
            elif op in PLUS and user.args[0] is node and isinstance(user.args[1], (int, float)) and not user.kwargs:
                yield from self._scaled(gain, user, plus + float(user.args[1]))
            elif op in SCALING and argument(user, SCALING[op]) is node:
                first = user if isinstance(user.meta["val"], torch.Tensor) else self._first(user)
                yield self._place(gain, first), plus
            elif op == "aten.mul.Tensor" and sum(a is node for a in user.args) == 1:
                yield self._place(gain, user), plus
            else:
                yield None, plus

    def scales(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Every op that a vector scales in, and as which node it stands there."""
        for user in node.users:
            op = str(user.target)
            if op in MOVING or op in PLUS and not isinstance(user.args[1], fx.Node):
                yield from self.scales(user)
            elif op == "aten.mul.Tensor" or op in SCALING and argument(user, SCALING[op]) is node:
                yield user, node

    def _first(self, node: fx.Node) -> fx.Node | None:
        """The first of several results, if no other is used."""
        parts = {user.args[1]: user for user in node.users}
        return parts[0] if set(parts) == {0} and len(parts) == len(node.users) else None

    def _place(self, gain: fx.Node, node: fx.Node | None) -> Place | None:
        """The axis of an activation that is made of what the gain is made of, if there is one such."""
        value, own = (self.values.get(n) for n in (node, gain)) if node is not None else (None, None)
        if not (isinstance(value, Value) and isinstance(own, Value)) or len(own.blocks) != 1:
            return None
        atoms = own.blocks[0].segments[0].atoms
        axes = {_axis_of(block.segments, atoms) for block in value.blocks}
        return (node, axes.pop()) if len(axes) == 1 and None not in axes else None

    def _followed(self, gain: fx.Node, place: Place | None) -> Iterator[tuple[str, int] | str]:
        """(tensor, axis) of every linear map that reads along the axis; a reason for any other use."""
        if place is None:
            yield "the units that it scales cannot be followed"
            return
        node, axis = place
        for user in node.users:
            op = str(user.target)
            if op in READING:
                yield self._read(user, node, axis) or f"{op} reads what it scales, along another axis or with no tensor alone"
            elif op in MOVING and user.args[0] is node:
                yield from self._followed(gain, self._place(gain, user))
            else:
                yield f"what it scales is also read by {op if user.op != 'output' else 'the network output'}"

    def _read(self, user: fx.Node, node: fx.Node, axis: int) -> tuple[str, int] | None:
        """The tensor of the state with which a linear map sums over the axis."""
        (at, along), (place, summed) = READING[str(user.target)]
        if len(user.args) <= max(at, place) or user.args[at] is not node or sum(a is node for a in user.args) > 1 or not self._ungrouped(user):
            return None
        if along % node.meta["val"].ndim != axis:
            return None
        tensor = user.args[place]
        dimension = summed % tensor.meta["val"].ndim
        while not self.is_state(tensor):
            if not isinstance(tensor, fx.Node) or len(tensor.users) > 1 or str(tensor.target) not in MOVING:
                return None
            dimension, tensor = self._before(tensor, dimension), tensor.args[0]
            if dimension is None:
                return None
        return self.program.sources[tensor.name].name, dimension

    def _ungrouped(self, user: fx.Node) -> bool:
        if "conv" not in str(user.target):
            return True
        turned = "convolution" in str(user.target) and argument(user, "transposed")
        return argument(user, "groups") in (None, 1) and not turned

    def _before(self, node: fx.Node, axis: int) -> int | None:
        """The axis of a tensor that became this axis of what an op made of it; None if that is hard to say."""
        op, count = str(node.target), node.meta["val"].ndim
        if op in ("aten._to_copy.default", "aten.to.dtype", "aten.clone.default", "aten.contiguous.default",
                  "aten.alias.default", "aten.detach.default"):
            return axis
        if op == "aten.t.default":
            return count - 1 - axis
        if op == "aten.permute.default":
            return node.args[1][axis] % count
        if op == "aten.transpose.int":
            pair = [d % count for d in node.args[1:3]]
            return pair[1 - pair.index(axis)] if axis in pair else axis
        return None

    def _reads_alone(self, tensor: str, found: list[Fold]) -> bool:
        """Whether a tensor has no use but by the linear maps that were found to read it."""
        nodes = [n for n in self.program.module.graph.nodes
                 if self.is_state(n) and self.program.sources[n.name].name == tensor]
        return sum(len(n.users) for n in nodes) == sum(fold.tensor == tensor for fold in found)


def _axis_of(segments: Sequence[Segment], atoms: tuple[Atom, ...]) -> int | None:
    """The one dimension that is made of some atoms, if no other holds any of them."""
    axes = [d for d, segment in enumerate(segments) if set(segment.atoms) & set(atoms)]
    return axes[0] if len(axes) == 1 and segments[axes[0]].atoms == atoms else None
