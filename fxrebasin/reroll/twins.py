"""Twins: parts of a graph that no structure tells apart.

Colour refinement: a node's colour is made of its op, its settings, the colours of its operands and those of its users,
until nothing changes. Nodes that share their colour with others hang together in components, the *slots*; slots of
equal colours are a family. Colours only propose: `slots` compares the slots node by node.

Sums and products are flattened, so that the order of their terms tells nothing; what is taken away in a sum keeps its sign.
The place in a concatenation, the index at which a
tensor is cut, and the number that an index is compared with are left out: they are what tells slots apart.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from ..capture import Program, node_at, tensor_of

aten = torch.ops.aten
TOTALS = {aten.add.Tensor: "sum", aten.sub.Tensor: "sum", aten.mul.Tensor: "product", aten.maximum.default: "maximum",
          aten.minimum.default: "minimum"}  # ops of two terms whose order does not matter
MINUS = -2  # the place of a term that is taken away; None is that of the others
JOINS = (aten.cat.default, aten.stack.default)
CUTS = {aten.select.int: (2,), aten.slice.Tensor: (2, 3), aten.narrow.default: (2,)}  # op -> arguments that say where
PARTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
COMPARISONS = (aten.eq.Scalar, aten.ne.Scalar)
LARGE = 10_000  # constants with more elements are not compared


@dataclass
class Wiring:
    """A graph with flattened sums and products: `operands` of each node as (place, node), the place None where it tells
    nothing; `users` the other way; `within`: an addition -> the sum that it is a part of; `live`: what descends from the
    state."""

    program: Program
    operands: dict[fx.Node, list[tuple[Any, fx.Node]]] = field(default_factory=dict)
    users: dict[fx.Node, list[tuple[Any, fx.Node]]] = field(default_factory=lambda: defaultdict(list))
    within: dict[fx.Node, fx.Node] = field(default_factory=dict)
    live: set[fx.Node] = field(default_factory=set)

    def __post_init__(self):
        nodes = list(self.program.module.graph.nodes)
        for node in reversed(nodes):
            user: fx.Node | None = next(iter(node.users), None)
            kind = total(node)
            if user and kind and len(node.users) == 1 and total(user) == kind and user.args.count(node) == 1:
                self.within[node] = self.within.get(user, user)
        self.position = {node: k for k, node in enumerate(nodes)}
        for node in nodes:
            if self.is_state(node) or any(operand in self.live for operand in node.all_input_nodes):
                self.live.add(node)
        for node in nodes:
            if node not in self.within:
                self.operands[node] = list(self._operands(node))
                for place, operand in self.operands[node]:
                    self.users[operand].append((place, node))

    def _operands(self, node: fx.Node) -> Iterator[tuple[Any, fx.Node]]:
        if total(node):
            waiting = _terms(node, None)
            while waiting:
                sign, term = waiting.pop()
                if self.within.get(term) is node if isinstance(term, fx.Node) else False:
                    waiting.extend(_terms(term, sign))
                elif isinstance(term, fx.Node):
                    yield sign, term
            return
        for place, leaf in enumerate(_leaves((*node.args, *node.kwargs.values()))):
            if isinstance(leaf, fx.Node):
                yield (None if node.target in JOINS else place), leaf

    def colours(self, apart: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, int]:
        """The coarsest colouring that is stable, from sweeps in the order of the graph and against it. Nodes that are
        `apart` start in different colours."""
        numbers: dict[Any, int] = {}
        colours = {node: numbers.setdefault((_kind(node, self.program), apart.get(node)), len(numbers))
                   for node in self.operands}
        count = 0
        while count < len(set(colours.values())):
            count = len(set(colours.values()))
            for neighbours, order in ((self.operands, list(self.operands)), (self.users, list(self.operands)[::-1])):
                numbers = {}
                fresh: dict[fx.Node, int] = {}
                for node in order:
                    around = sorted((-1 if place is None else place, fresh[other])
                                    for place, other in neighbours.get(node, ()))
                    fresh[node] = numbers.setdefault((colours[node], tuple(around)), len(numbers))
                colours = fresh
        return colours

    def families(self, apart: Mapping[fx.Node, tuple[int, ...]]) -> list[list[list[fx.Node]]]:
        """Families of at least two slots of equal colours, nodes and slots in the order of the graph. Every slot holds
        tensors of the state, or parts of one."""
        colours = self.colours(apart)
        sizes = Counter(colours.values())
        shared = [node for node in self.operands if sizes[colours[node]] > 1]
        above = {node: node for node in shared}

        def top(node):
            while above[node] is not node:
                above[node] = node = above[above[node]]
            return node

        for node in shared:
            for _, operand in self.operands[node]:
                if operand in above:
                    above[top(node)] = top(operand)
        slots = defaultdict(list)
        for node in shared:
            slots[top(node)].append(node)
        families = defaultdict(list)
        for slot in slots.values():
            if any(self.is_state(node) or self._is_part_of_state(node) for node in slot) or self._are_parts(slot):
                families[tuple(sorted(colours[node] for node in slot))].append(
                    sorted(slot, key=lambda node: (colours[node], self.position[node])))
        return [family for family in families.values() if len(family) > 1]

    def is_state(self, node: fx.Node) -> bool:
        source = self.program.sources.get(node.name)
        return node.op == "placeholder" and source is not None and source.kind == "state"

    def _are_parts(self, slot: list[fx.Node]) -> bool:
        """Whether a slot is made of a part of what is computed from the state (one half of p * q) and goes to a total."""
        return any(bool(where_cut(node)) and node.target not in COMPARISONS and cut_of(node)[0] in self.live for node in slot) and any(
            total(user) for node in slot for _, user in self.users[node] if user not in slot)

    def _is_part_of_state(self, node: fx.Node) -> bool:
        return bool(where_cut(node)) and node.target not in COMPARISONS and self.is_state(cut_of(node)[0])


def _leaves(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from _leaves(argument)
        else:
            yield argument


def total(node: fx.Node) -> str | None:
    """"sum", "product", "maximum" or "minimum" if a node makes one of two tensors of one floating-point type. A sum with
    nothing counts too (Python's `sum` starts at 0)."""
    kind = TOTALS.get(node.target) if isinstance(node.target, OpOverload) else None
    if kind is None or node.kwargs or len(node.args) != 2:
        return None
    own = node.meta["val"].dtype
    nothing = node.target is aten.add.Tensor
    fits = (own.is_floating_point or own.is_complex) and all(
        x.meta["val"].dtype == own if isinstance(x, fx.Node) else nothing and x == 0 for x in node.args)
    return kind if fits else None


def _terms(node: fx.Node, sign: int | None) -> list[tuple[int | None, Any]]:
    """The two terms of a total, last first, with their signs within one that has `sign` itself."""
    other = sign if node.target is not aten.sub.Tensor else MINUS if sign is None else None
    return [(other, node.args[1]), (sign, node.args[0])]


def where_cut(node: fx.Node) -> tuple[int, ...]:
    """Places, among a node's arguments, that tell slots apart; they are not part of its colour."""
    if node.target is operator.getitem and node_at(node, 0).target in PARTS or node.target in COMPARISONS:
        return (1,)
    return CUTS.get(node.target, ()) if isinstance(node.target, OpOverload) else ()


def cut_of(node: fx.Node) -> tuple[fx.Node, int]:
    """The tensor that a node takes a part of, and the dimension."""
    cut = node_at(node, 0) if node.target is operator.getitem else node
    whole = node_at(cut, 0)
    place = 2 if cut.target in PARTS[:3] else 1
    dim: Any = cut.args[place] if len(cut.args) > place else cut.kwargs.get("dim", 0)
    return whole, dim % tensor_of(whole).ndim


def settings(node: fx.Node) -> str:
    """All arguments that are no tensors, but for those that tell slots apart."""
    if total(node):
        return ""
    left_out = where_cut(node)
    args: tuple[Any, ...] = tuple("?" if k in left_out else a for k, a in enumerate(node.args))
    if node.target in JOINS:
        args = (len(args[0]), *args[1:])
    return f"{_text(args)} {list(node.kwargs)} {_text(node.kwargs.values())}"


def _text(arguments: Iterable[Any]) -> str:
    return " ".join("tensor" if isinstance(x, fx.Node) else f"({_text(x)})" if isinstance(x, (list, tuple)) else repr(x)
                    for x in arguments)


def _kind(node: fx.Node, program: Program) -> tuple:
    """What can be seen of a node by itself."""
    values = pytree.tree_leaves(node.meta.get("val"))
    tensors = str([(tuple(value.shape), value.dtype) for value in values if isinstance(value, torch.Tensor)])
    source = program.sources.get(node.name)
    if node.op == "call_function":
        return node.target, settings(node), tensors
    if source is not None and source.kind == "state" and node.op == "placeholder":
        return "state", tensors
    if source is not None and source.kind == "constant" and source.content is not None and source.content.numel() < LARGE:
        return "constant", tensors, str(_dense(source.content).flatten().tolist())
    return ("only one", node.name)


def _dense(value: torch.Tensor) -> torch.Tensor:
    return value if value.layout == torch.strided else value.to_dense()


def same_constant(one: fx.Node, other: fx.Node, program: Program) -> bool:
    """Whether two nodes are constants of equal content."""
    values = [source.content for node in (one, other) if (source := program.sources.get(node.name)) is not None
              and source.kind == "constant" and source.content is not None]
    return len(values) == 2 and values[0].dtype == values[1].dtype and torch.equal(*map(_dense, values))
