"""Slots: twins that were compared node by node, what tells them apart, and where their results go."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..capture import int_at, node_at, nodes_at, op_of
from .twins import COMPARISONS, JOINS, PARTS, Wiring, cut_of, same_constant, settings, total, where_cut


class Refused(Exception):
    """Twins cannot be run as one; the graph stays as it is. `op`: the node that stands in the way."""

    def __init__(self, op: fx.Node | None = None):
        self.op = op


@dataclass(frozen=True)
class Row:
    """One node of every slot, in the order of the slots: the same computation.

    cut   the positions that each slot takes of the shared tensor that its node cuts, or the number that it compares
          an index with: a tuple for each slot. None if nothing tells the nodes apart but their operands.
    """

    nodes: tuple[fx.Node, ...]
    cut: tuple[tuple[int, ...], ...] | None


class Slots:
    """The rows of one family of twins. Raises Refused if they differ in anything that a stack cannot express, or hold
    a tensor of the state named in `leave`."""

    def __init__(self, wiring: Wiring, family: list[list[fx.Node]], leave: AbstractSet[str] = frozenset()):
        self.wiring, self.family = wiring, family
        self.inside = [set(slot) for slot in family]
        self.ranks = [{node: rank for rank, node in enumerate(slot)} for slot in family]
        pairs = [self._compared(k) for k in range(1, len(family))]
        self.rows = [self._row((node, *(pair[node] for pair in pairs))) for node in family[0]]
        self._in_order()
        for row in self.rows:
            self._check_uses(row)
        held = {wiring.program.sources[node.name].name for slot in family for node in slot if wiring.is_state(node)}
        if not held.isdisjoint(leave) or any(draws_numbers(node) for node in family[0]):
            raise Refused
        if not any(node.op == "call_function" for node in family[0]) and not all(
                user.target in JOINS for node in family[0] for _, user in wiring.users[node]):
            raise Refused  # bare tables that are added up: they could exchange anything, not only places

    def has(self, op: fx.Node | None) -> bool:
        """Whether some node of a slot is the op of another node."""
        return op is not None and any(node.op == "call_function" and node.target is op.target and settings(node) == settings(op)
                   for node in self.family[0])

    def _results(self, k: int) -> list[fx.Node]:
        """Nodes that are used outside the slot."""
        return [node for node in self.family[k]
                if any(user not in self.inside[k] for _, user in self.wiring.users[node])]

    def _compared(self, k: int) -> dict[fx.Node, fx.Node]:
        """Slot 0's nodes -> slot k's, found upwards from the results."""
        found: dict[fx.Node, fx.Node] = {}
        waiting = list(zip(self._results(0), self._results(k)))
        while waiting:
            one, other = waiting.pop()
            if one not in self.inside[0] or other not in self.inside[k]:
                if one is not other and not (same_constant(one, other, self.wiring.program)):
                    raise Refused
            elif one in found:
                if found[one] is not other:
                    raise Refused
            else:
                found[one] = other
                waiting.extend(self._operands(one, other, k))
        if len(found) != len(self.family[0]) or set(found.values()) != self.inside[k]:
            raise Refused
        return found

    def _operands(self, one: fx.Node, other: fx.Node, k: int) -> list[tuple[fx.Node, fx.Node]]:
        """Pairs of operands, of a node of slot 0 and of one of slot k, that must be the same computation."""
        if same_constant(one, other, self.wiring.program):
            return []
        if self.wiring.is_state(one) and self.wiring.is_state(other):
            kinds = [(node.meta["val"].shape, node.meta["val"].dtype) for node in (one, other)]
            if kinds[0] == kinds[1]:
                return []
        sides = self._sorted(one, 0), self._sorted(other, k)
        if [place for place, _ in sides[0]] != [place for place, _ in sides[1]]:
            raise Refused
        if one.op != "call_function" or one.target is not other.target or settings(one) != settings(other) or (
                len(sides[0]) != len(sides[1])):
            raise Refused
        return [(a, b) for (_, a), (_, b) in zip(*sides)]

    def _sorted(self, node: fx.Node, k: int) -> list[tuple[int | None, fx.Node]]:
        """The operands of a node of slot k, with their places. Terms of a total stand in any order: those of the slot first,
        by colour."""
        operands = list(self.wiring.operands[node])
        if total(node):
            operands.sort(key=lambda x: (x[0] is not None, x[1] not in self.inside[k], self.ranks[k].get(x[1], 0),
                                         self.wiring.position[x[1]]))
        return operands

    def _row(self, nodes: tuple[fx.Node, ...]) -> Row:
        places = where_cut(nodes[0])
        if not places or len({str([node.args[k] for k in places if k < len(node.args)]) for node in nodes}) == 1:
            return Row(nodes, None)
        return Row(nodes, tuple(_cut(node) for node in nodes))

    def _in_order(self) -> None:
        """Puts the slots in the order in which they cut their first shared tensor."""
        cut = next((row.cut for row in self.rows if row.cut), None)
        if cut is None:
            order = sorted(range(len(self.family)), key=lambda k: min(map(self.wiring.position.__getitem__, self.family[k])))
        else:
            order = sorted(range(len(self.family)), key=lambda k: cut[k])
        self.rows = [Row(tuple(row.nodes[k] for k in order), row.cut and tuple(row.cut[k] for k in order))
                     for row in self.rows]

    def _check_uses(self, row: Row) -> None:
        """Results may go to totals and concatenations alone, the same for all slots, once, with one sign."""
        inside = set().union(*self.inside)
        uses = [Counter((user, place) for place, user in self.wiring.users[node] if user not in inside) for node in row.nodes]
        if any(use != uses[0] for use in uses) or len({user for user, _ in uses[0]}) != len(uses[0]):
            raise Refused
        for (user, _), count in uses[0].items():
            if count > 1 or not (total(user) or user.target in JOINS):
                raise Refused
            if user.target in JOINS:
                places = sorted(nodes_at(user, 0).index(node) for node in row.nodes)
                if places != list(range(places[0], places[0] + len(places))):
                    raise Refused


def _cut(node: fx.Node) -> tuple[int, ...]:
    """The positions that a node takes along the dimension it cuts, or the number that it compares with."""
    if node.target in COMPARISONS:
        if type(node.args[1]) is not int:
            raise Refused
        return (node.args[1],)
    whole, dim = cut_of(node)
    size = whole.meta["val"].shape[dim]
    if node.target is operator.getitem:
        pieces, place = node_at(node, 0), int_at(node, 1)
        if pieces.target is PARTS[-1]:
            return (place % size,)
        widths = [piece.shape[dim] for piece in pieces.meta["val"]]
        start = sum(widths[:place])
        return tuple(range(start, start + widths[place]))
    first = int_at(node, 2) if len(node.args) > 2 else 0
    if "select" in str(node.target):
        return (first % size,)
    if "narrow" in str(node.target):
        return tuple(range(first % size, first % size + int_at(node, 3)))
    bounds: tuple[Any, ...] = node.args[2:5]
    return tuple(range(size)[slice(*bounds)])


def draws_numbers(node: fx.Node) -> bool:
    """Whether an op draws random numbers, which are others in every slot."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema = op_of(node)._schema.arguments
    named = {a.name: a.default_value for a in schema} | dict(zip((a.name for a in schema), node.args)) | node.kwargs
    return named.get("dropout_p", 1) != 0 and bool(named.get("train", True))
