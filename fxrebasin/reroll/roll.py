"""The graph with every family of slots run as one, over stacked parameters."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import int_at, node_at, nodes_at, tensor_of
from .batch import Hole, traced
from .slots import Refused, Row, Slots
from .twins import COMPARISONS, Wiring, cut_of, total
from .writer import Writer

aten = torch.ops.aten
OVER_SLOTS = {"sum": (aten.sum.dim_IntList, [0]), "product": (aten.prod.dim_int, 0), "maximum": (aten.amax.default, [0]),
              "minimum": (aten.amin.default, [0])}  # kind of total -> the op that makes one of a whole dimension, and its place
PAIRS = {"sum": aten.add.Tensor, "product": aten.mul.Tensor, "maximum": aten.maximum.default, "minimum": aten.minimum.default}


@dataclasses.dataclass(frozen=True)
class Held:
    """A node of the new graph; `slots`: whether its first dimension runs over the slots."""

    node: fx.Node
    slots: bool = False


class Roll:
    """One rewriting of one graph. `program` is the result, `stacks`: the names along axis 0 of each new tensor.

    Nodes are taken in the order of the graph, a row of slots when its last node is reached: twins are equally deep, so
    whatever the row needs has been reached before.
    """

    def __init__(self, wiring: Wiring, families: list[Slots], known: dict[tuple, fx.Graph]):
        self.wiring, self.old, self.known = wiring, wiring.program, known
        self.new = Writer(self.old.module)
        self.held: dict[fx.Node, Any] = {}  # old node -> Held, or several for several results
        self.stacks: dict[str, tuple[str, ...]] = {}
        rows = [row for slots in families for row in slots.rows]
        self.row_of = {node: row for row in rows for node in row.nodes}
        last = {max(row.nodes, key=wiring.position.__getitem__): row for row in rows}
        for node in self.old.module.graph.nodes:
            if node in last:
                row = last[node]
                self.held.update(dict.fromkeys(row.nodes, self._row(row)))
            elif node not in self.row_of and not self._is_part_of_total(node):
                self.held[node] = self._outside(node)
        outputs = tuple(dataclasses.replace(output, node=output.node and self.held[output.node].node)
                        for output in self.old.outputs)
        kinds = {stack: self.old.kinds[names[0]] for stack, names in self.stacks.items() if names[0] in self.old.kinds}
        self.program = dataclasses.replace(self.old, module=self.new.finished(), sources=self.new.sources,
                                           outputs=outputs, state=self._state(), kinds={**self.old.kinds, **kinds})

    # ------------------------------------------------------------------------------------- what is not in a slot

    def _outside(self, node: fx.Node) -> Held:
        if self._joins_slots(node):
            result = self._total(node) if total(node) else self._joined(node)
            self._check_shapes(node, result, ())
            return Held(result)
        operands = {operand: self.held[operand].node for operand in node.all_input_nodes}
        return Held(self.new.copy(node, operands, self.old.sources.get(node.name)))

    @staticmethod
    def _check_shapes(node: fx.Node, results, slots: Sequence[int]) -> None:
        """Raises Refused unless the results have the shapes of the node's, with the slots in front."""
        for old, new in zip(pytree.tree_leaves(node.meta["val"]), pytree.tree_leaves(results), strict=True):
            if new.meta["val"].shape != (*slots, *old.shape) and old.numel():
                raise Refused(node)

    def _joins_slots(self, node: fx.Node) -> bool:
        return any(operand in self.row_of for _, operand in self.wiring.operands.get(node, ()))

    def _is_part_of_total(self, node: fx.Node) -> bool:
        """Whether it is an addition within a sum that is written anew."""
        whole = self.wiring.within.get(node)
        return whole is not None and (whole in self.row_of or self._joins_slots(whole))

    def _total(self, node: fx.Node) -> fx.Node:
        """A total of which some terms are those of all slots."""
        kind, done = total(node) or "", set()
        whole: fx.Node | None = None
        for sign, term in self.wiring.operands[node]:
            if term not in self.row_of:
                value = self.held[term].node
            elif self.row_of[term].nodes in done:
                continue
            else:
                done.add(self.row_of[term].nodes)
                op, place = OVER_SLOTS[kind]
                value = self.new.call(node, op, self._spread(term), place)
            if whole is None:
                whole = value if sign is None else self.new.call(node, aten.neg.default, value)
            else:
                whole = self.new.call(node, PAIRS[kind] if sign is None else aten.sub.Tensor, whole, value)
        if whole is None:
            raise Refused(node)  # nothing is added up
        return whole

    def _joined(self, node: fx.Node) -> fx.Node:
        """A concatenation or a stack of which neighbouring pieces are those of all slots."""
        stacked = node.target is aten.stack.default
        dim = (int_at(node, 1) if len(node.args) > 1 else 0) % tensor_of(node).ndim
        pieces, items = [], nodes_at(node, 0)
        while items:
            if items[0] in self.row_of:
                row = self.row_of[items[0]]
                run, items = items[:len(row.nodes)], items[len(row.nodes):]
                pieces.append(self._run(node, row, run, dim, stacked))
            else:
                piece = self.held[items.pop(0)].node
                pieces.append(self.new.call(node, aten.unsqueeze.default, piece, dim) if stacked else piece)
        return pieces[0] if len(pieces) == 1 else self.new.call(node, aten.cat.default, pieces, dim)

    def _run(self, node: fx.Node, row: Row, run: list[fx.Node], dim: int, stacked: bool) -> fx.Node:
        """The results of all slots side by side along a dimension, in the order of `run`."""
        piece = self.new.take(node, self._spread(run[0]), 0, [row.nodes.index(item) for item in run])
        rank = piece.meta["val"].ndim
        order = [*range(1, dim + 1), 0, *range(dim + 1, rank)]
        piece = self.new.call(node, aten.permute.default, piece, order)
        if stacked:
            return piece
        shape = list(piece.meta["val"].shape)
        shape[dim:dim + 2] = [shape[dim] * shape[dim + 1]]
        return self.new.call(node, aten.reshape.default, piece, shape)

    def _spread(self, term: fx.Node) -> fx.Node:
        """What the slots give, slots first, though it may be the same for all."""
        nodes = self.row_of[term].nodes
        held = self.held[nodes[0]]
        if held.slots:
            return held.node
        one = self.new.call(term, aten.unsqueeze.default, held.node, 0)
        return self.new.call(term, aten.expand.default, one, [len(nodes), *one.meta["val"].shape[1:]])

    # ----------------------------------------------------------------------------------------- what is in a slot

    def _row(self, row: Row) -> Held | Sequence[Held]:
        """One node of all slots."""
        first = row.nodes[0]
        if self.wiring.is_state(first):
            return self._stacked(row)
        if first.op != "call_function":
            return Held(self.new.copy(first, {}, self.old.sources[first.name]))  # a constant
        if row.cut is not None:
            if self.held[node_at(first, 0)].slots:  # each slot cuts a tensor of its own, elsewhere than the others
                raise Refused(first)
            return (self._compared if first.target in COMPARISONS else self._cut)(first, row.cut)
        if first.target is operator.getitem:
            whole = self.held[node_at(first, 0)]
            return Held(self.new.call(first, operator.getitem, whole.node, first.args[1])) if isinstance(
                whole, Held) else whole[first.args[1]]
        if kind := total(first):
            (sign, term), *others = self.wiring.operands[first]
            whole = self.held[term] if sign is None else self._op(first, aten.neg.default, (self.held[term],), {})
            for sign, term in others:
                whole = self._op(first, PAIRS[kind] if sign is None else aten.sub.Tensor, (whole, self.held[term]), {})
            return whole
        return self._op(first, first.target, first.args, first.kwargs)

    def _stacked(self, row: Row) -> Held:
        """One placeholder for the state tensors of all slots."""
        names = tuple(self.old.sources[node.name].name for node in row.nodes)
        name = _common(names)
        while name in self.old.state or name in self.stacks:
            name += "*"
        self.stacks[name] = names
        return Held(self.new.state(row.nodes[0], name, (len(names), *self.old.state[names[0]])), True)

    def _state(self) -> dict[str, tuple[int, ...]]:
        """The state with each stack in the place of the first of its tensors."""
        stack_of = {name: stack for stack, names in self.stacks.items() for name in names}
        state: dict[str, tuple[int, ...]] = {}
        for name, shape in self.old.state.items():
            stack = stack_of.get(self.old.ties.get(name, name))
            if stack is None:
                state[name] = shape
            else:
                state.setdefault(stack, (len(self.stacks[stack]), *shape))
        return state

    def _cut(self, node: fx.Node, cuts: tuple[tuple[int, ...], ...]) -> Held:
        """The parts that the slots take of a shared tensor, slots first."""
        whole, dim = cut_of(node)
        positions = [position for cut in cuts for position in cut]
        parts = self.new.take(node, self.held[whole].node, dim, positions)
        shape = list(parts.meta["val"].shape)
        is_single = node.meta["val"].ndim < len(shape)  # a `select`, which drops the dimension
        shape[dim:dim + 1] = [len(cuts)] if is_single else [len(cuts), len(cuts[0])]
        parts = self.new.call(node, aten.reshape.default, parts, shape)
        order = [dim, *(d for d in range(len(shape)) if d != dim)]
        return Held(self.new.call(node, aten.permute.default, parts, order), True)

    def _compared(self, node: fx.Node, cuts: tuple[tuple[int, ...], ...]) -> Held:
        """A shared tensor, compared with a number that each slot has of its own."""
        numbers, shared = [cut[0] for cut in cuts], node_at(node, 0)
        if numbers == list(range(len(numbers))):
            line = self.new.call(node, aten.arange.default, len(numbers))
        else:
            line = self.new.constant(torch.tensor(numbers))
        shape = [len(numbers)] + [1] * tensor_of(shared).ndim
        line = self.new.call(node, aten.reshape.default, line, shape)
        target = aten.eq.Tensor if node.target is aten.eq.Scalar else aten.ne.Tensor
        return Held(self.new.call(node, target, self.held[shared].node, line), True)

    def _op(self, node: fx.Node, target, args: tuple, kwargs: Mapping[str, Any]) -> Held | Sequence[Held]:
        """An op of a slot, for all slots at once."""
        operands: list[Held] = []

        def hole(x):
            x = self.held[x] if isinstance(x, fx.Node) else x
            if not isinstance(x, Held):
                return x
            operands.append(x)
            return Hole(len(operands) - 1)

        given: tuple[tuple, dict[str, Any]] = pytree.tree_map(hole, (tuple(args), dict(kwargs)))
        if not any(operand.slots for operand in operands):
            args, kwargs = pytree.tree_map_only(Hole, lambda x: operands[x.k].node, given)
            return Held(self.new.call(node, target, *args, **kwargs))
        values = [self.new.fresh(operand.node.meta["val"]) for operand in operands]
        slots = [operand.slots for operand in operands]
        seen = [(tuple(value.shape), value.stride(), value.dtype, value.device) for value in values]
        key = str(target), str(given), str((seen, slots))
        try:
            if key not in self.known:
                with self.new.mode:
                    self.known[key] = traced(target, *given, values, slots)
            results = self.new.insert(node, self.known[key], [operand.node for operand in operands])
            self._check_shapes(node, results, next(o.node for o in operands if o.slots).meta["val"].shape[:1])
        except Exception as error:  # whatever vmap raises: the op cannot be run for all slots at once
            raise Refused(node) from error
        return pytree.tree_map_only(fx.Node, lambda result: Held(result, True), results)


def _common(names: tuple[str, ...]) -> str:
    """What the names have in common, a star for the one part in which they differ; else the first name and a star."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) == 1:
        columns = [set(column) for column in zip(*parts)]
        if sum(len(column) > 1 for column in columns) == 1:
            return ".".join("*" if len(column) > 1 else part for column, part in zip(columns, parts[0]))
    return names[0] + "*"
