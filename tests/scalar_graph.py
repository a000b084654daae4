"""The exact symmetry group of a tiny network, found without any knowledge of axes.

A network is written out as a graph of scalar operations: one node for each number that the network computes,
each number joined to the numbers it is computed from. A permutation of the state's elements that leaves the
function's formula unchanged is an automorphism of that graph which keeps inputs, constants, outputs and the
kinds of the operations where they are. So the order of the symmetry group is a count that a graph-
automorphism library can make (BLISS, through igraph), and an inference that reasons about axes can be held
against it.

    automorphism_order(model, inputs)      the exact number of such permutations of the state
    check_numerically(model, inputs)       largest error of the scalar graph against the module, in float64
    generators(model, inputs)              permutations that generate the group, as {leaf: leaf}

What the count means, and what it leaves out:

- It is the group of the *formula*. Sums and products take their arguments in any order, a matrix product's
  sum is one node, arithmetic with 0, 1 and -inf is carried out, and an expert is computed before it is
  chosen; beyond this nothing is rewritten. A chain of additions is not regrouped, and no scaling or sign
  change is counted.
- A permutation moves elements within one state tensor, never from one to another. Tied tensors are one.
- State elements that no output depends on are not in the graph and add nothing.
- Equal formulas are one node, so an automorphism that fixes every leaf fixes everything: the action on the
  state's elements is faithful, and the count is the number of distinct permutations of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import igraph
import numpy as np
import torch
from torch import nn

COMMUTATIVE = {"sum", "product", "max", "min", "pick"}


class ScalarGraph:
    """Scalar formulas, each kept once. A node is an integer; `nodes[i]` is its (kind, attributes, arguments).

    Arguments come before the node that uses them, so that the order of the list is an order of evaluation.
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[str, tuple, tuple[int, ...]]] = []
        self.values: dict[int, float] = {}  # the constants among the nodes
        self.choices: dict[
            int, tuple[tuple, tuple[int, ...]]
        ] = {}  # pick node -> (which pick, value for each key)
        self._known: dict[tuple, int] = {}

    # -- building -------------------------------------------------------------------------------------------

    def _keep(self, kind: str, attributes: tuple, arguments: tuple[int, ...]) -> int:
        if kind in COMMUTATIVE:
            arguments = tuple(sorted(arguments))
        key = (kind, attributes, arguments)
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(key)
        return self._known[key]

    def leaf(self, kind: str, name: str, position: int) -> int:
        """An element of an input or of a state tensor; `position` counts in row-major order."""
        return self._keep(kind, (name, position), ())

    def const(self, value: float) -> int:
        rounded = float(f"{value:.12e}") + 0.0  # one node for 0.1 + 0.2 and 0.3, and for 0.0 and -0.0
        node = self._keep("const", (str(rounded),), ())
        self.values.setdefault(node, value)
        return node

    def apply(self, kind: str, *arguments: int, attributes: tuple = ()) -> int:
        """The node for one scalar operation, simplified where constants or choices allow it."""
        which = {self.choices[a][0] for a in arguments if a in self.choices}
        if len(which) == 1 and (kind != "sum" or all(a in self.choices for a in arguments)):
            return self._through_choice(kind, arguments, attributes, which.pop())
        if kind == "sum" and which and len(arguments) > len(which):
            return self._sum_of_choices(arguments, which)
        if all(a in self.values for a in arguments):
            return self.const(evaluate(kind, attributes, [self.values[a] for a in arguments]))
        if kind in ("sum", "product", "max"):
            return self._simplified(kind, arguments)
        if kind == "where" and arguments[0] in self.values:
            return arguments[1] if self.values[arguments[0]] else arguments[2]
        return self._keep(kind, attributes, arguments)

    def _simplified(self, kind: str, arguments: tuple[int, ...]) -> int:
        neutral, absorbing = {"sum": (0.0, -math.inf), "product": (1.0, 0.0),
                              "max": (-math.inf, math.inf)}[kind]
        if any(self.values.get(a) == absorbing for a in arguments):
            return self.const(absorbing)
        left = [a for a in arguments if self.values.get(a) != neutral]
        return left[0] if len(left) == 1 else self._keep(kind, (), tuple(left))

    def pick(self, rank: int, keys: tuple[int, ...], values: tuple[int, ...]) -> int:
        """The value that goes with the key of the given rank (0: the largest), as top-k routing takes it."""
        if len(set(values)) == 1:
            return values[0]
        pairs = tuple(self._keep("pair", (), (key, value)) for key, value in zip(keys, values))
        node = self._keep("pick", (rank,), pairs)
        self.choices[node] = ((rank, keys), values)
        return node

    def _through_choice(self, kind: str, arguments: tuple[int, ...], attributes: tuple, which: tuple) -> int:
        """f(pick(a), pick(b), c) = pick(f(a, b, c)): an expert is computed before it is chosen.

        Only in this form can the formula be permuted inside one expert and not in the others.
        """
        rank, keys = which
        choices = [self.choices[a][1] if a in self.choices else (a,) * len(keys) for a in arguments]
        return self.pick(rank, keys,
                         tuple(self.apply(kind, *row, attributes=attributes) for row in zip(*choices)))

    def _sum_of_choices(self, arguments: tuple[int, ...], which: set[tuple]) -> int:
        """A sum over several choices: first what comes from the same choice, then over the choices."""
        parts = [a for a in arguments if a not in self.choices]
        for choice in sorted(which):
            same = tuple(a for a in arguments if a in self.choices and self.choices[a][0] == choice)
            parts.append(self._through_choice("sum", same, (), choice) if len(same) > 1 else same[0])
        return self._simplified("sum", tuple(parts))

    def lookup(self, index: int, table: list[int]) -> int:
        """table[index], where the index is a number that the network was given or chose."""
        if index in self.values:
            return table[int(self.values[index])]
        if index in self.choices:
            (rank, keys), values = self.choices[index]
            return self.pick(rank, keys, tuple(self.lookup(value, table) for value in values))
        return self._keep("lookup", (), (index, *table))

    # -- reading --------------------------------------------------------------------------------------------

    def evaluated(self, leaves: dict[int, float]) -> list[float]:
        """The value of every node, given those of the input and state leaves."""
        values: list[float] = []
        for node, (kind, attributes, arguments) in enumerate(self.nodes):
            if kind in ("input", "state"):
                values.append(leaves[node])
            elif kind == "const":
                values.append(self.values[node])
            elif kind == "pair":
                values.append((values[arguments[0]], values[arguments[1]]))
            else:
                values.append(evaluate(kind, attributes, [values[a] for a in arguments]))
        return values

    def below(self, roots: list[int]) -> list[int]:
        """All nodes that the roots depend on, in order of evaluation."""
        seen, waiting = set(roots), list(roots)
        while waiting:
            for argument in self.nodes[waiting.pop()][2]:
                if argument not in seen:
                    seen.add(argument)
                    waiting.append(argument)
        return sorted(seen)


BINARY = {"sub": operator.sub, "div": operator.truediv, "pow": operator.pow, "lt": operator.lt,
          "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne}


def evaluate(kind: str, attributes: tuple, arguments: list) -> float:
    """One scalar operation in float64. A kind that is not named here is an ATen op of one argument."""
    if kind == "sum":
        return math.fsum(arguments)
    if kind == "product":
        return math.prod(arguments)
    if kind in ("max", "min"):
        return (max if kind == "max" else min)(arguments)
    if kind in BINARY:
        return float(BINARY[kind](*arguments))
    if kind == "where":
        return arguments[1] if arguments[0] else arguments[2]
    if kind == "lookup":
        return arguments[1 + int(arguments[0])]
    if kind == "pick":
        return sorted(arguments, key=lambda pair: -pair[0])[attributes[0]][1]
    operation = getattr(torch.ops.aten, kind)
    more, named = attributes or ((), ())
    return operation(torch.tensor(arguments[0], dtype=torch.float64), *more, **dict(named)).item()


class Coloured:
    """A graph under construction: the colours of its vertices, and its edges."""

    def __init__(self) -> None:
        self.colours: list[tuple] = []
        self.edges: list[tuple[int, int]] = []

    def add(self, colour: tuple, ends: list[int]) -> int:
        """A new vertex joined to the given ones."""
        vertex = len(self.colours)
        self.colours.append(colour)
        self.edges.extend((vertex, end) for end in ends)
        return vertex

    def finished(self) -> tuple[igraph.Graph, list[int]]:
        numbers = {colour: i for i, colour in enumerate(sorted(set(self.colours), key=repr))}
        return igraph.Graph(len(self.colours), self.edges), [numbers[c] for c in self.colours]


class Expansion:
    """A module written out: the scalar graph, the leaves, and the ids of the elements of every output.

    Attributes:
        graph: the scalar formulas.
        state: state tensor name -> int64 ids of its elements, in the tensor's shape.
        inputs: input name -> int64 ids.
        outputs: int64 ids of the elements of each output tensor, in the order in which the module gives them.
    """

    def __init__(self, model: nn.Module, inputs) -> None:
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (_tuple(inputs), {})
        with torch.no_grad():
            exported = torch.export.export(model.eval(), args, kwargs, strict=False)
        try:
            self._expand(exported)
        except NotImplementedError:  # such as a write in place, which the slower functional form has not
            self._expand(exported.run_decompositions({}))

    def _expand(self, exported: torch.export.ExportedProgram) -> None:
        from scalar_ops import expand

        self.graph = ScalarGraph()
        self.state, self.inputs, self.outputs = expand(self.graph, exported)

    def error(self, model: nn.Module, inputs) -> float:
        """Largest difference between the scalar graph's value and the module's, over all output elements."""
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (_tuple(inputs), {})
        with torch.no_grad():
            answer = torch.utils._pytree.tree_leaves(model.eval()(*args, **kwargs))
        given = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        tensors = dict(model.named_parameters(remove_duplicate=False))
        tensors.update(model.named_buffers(remove_duplicate=False))
        leaves: dict[int, float] = {}
        for ids, tensor in [*((self.state[k], tensors[k]) for k in self.state),
                            *zip(self.inputs.values(), given)]:
            leaves.update(zip(ids.flatten().tolist(), tensor.detach().double().flatten().tolist()))
        values = self.graph.evaluated(leaves)
        errors = [0.0]
        for ids, tensor in zip(self.outputs, answer, strict=True):
            ours = torch.tensor([values[i] for i in ids.flatten().tolist()], dtype=torch.float64)
            errors.append((ours - tensor.double().flatten()).abs().max().item())
        return max(errors)

    def coloured(self, outputs: str, axes: bool = False) -> tuple[Coloured, dict[int, int]]:
        """The graph for the automorphism library, and node -> vertex.

        A colour holds a node's depth, so that an edge's direction can be read from its ends. Arguments of an
        operation that tells them apart hang on a vertex coloured by their place. With `axes`, every slice of
        a state tensor is a vertex too, joined to its elements: they then move as a whole.
        """
        tags: dict[int, list] = {}  # where a node is an output
        for number, ids in enumerate(self.outputs):
            for place, node in enumerate(ids.flatten().tolist()):
                tags.setdefault(node, []).append((number, place) if outputs == "pinned" else number)
        answer, vertex, depth = Coloured(), {}, {}
        places: dict[tuple, int] = {}
        moves: set[int] = set()  # nodes that depend on the state; the others stay, whatever is below them
        for node in self.graph.below(list(tags)):
            kind, attributes, arguments = self.graph.nodes[node]
            depth[node] = 1 + max((depth[a] for a in arguments), default=0)
            if kind == "state":
                attributes = attributes[:1]  # any element of the tensor may take any place
            elif moves.isdisjoint(arguments):
                kind, attributes, arguments = "fixed", (node,), ()
            if kind != "fixed":
                moves.add(node)
            ends = []
            for argument, place in roles(kind, arguments):
                if place is not None and (argument, place) not in places:
                    colour = ("place", place, depth[argument])
                    places[argument, place] = answer.add(colour, [vertex[argument]])
                ends.append(vertex[argument] if place is None else places[argument, place])
            vertex[node] = answer.add((kind, attributes, depth[node], tuple(tags.get(node, ()))), ends)
        for name, ids in self.state.items() if axes else ():
            for axis in range(ids.ndim):
                for part in ids.unbind(axis):
                    elements = [vertex[n] for n in part.flatten().tolist() if n in vertex]
                    if elements:
                        answer.add(("slice", name, axis), elements)
        return answer, vertex

    def order(self, outputs: str = "pinned", axes: bool = False) -> int:
        """See automorphism_order."""
        graph, colours = self.coloured(outputs, axes)[0].finished()
        return int(graph.count_automorphisms(color=colours))

    def generators(self, outputs: str = "pinned") -> list[dict[str, np.ndarray]]:
        """See the function of the same name."""
        coloured, vertex = self.coloured(outputs)
        graph, colours = coloured.finished()
        node_of = {v: node for node, v in vertex.items()}
        answer = []
        for image in graph.automorphism_group(color=colours):
            moved = {}
            for name, ids in self.state.items():
                flat = ids.flatten().tolist()
                place = {node: i for i, node in enumerate(flat)}
                p = np.array([place[node_of[image[vertex[n]]] if n in vertex else n] for n in flat])
                if (p != np.arange(len(p))).any():
                    moved[name] = p
            answer.append(moved)
        return answer


def roles(kind: str, arguments: tuple[int, ...]) -> Iterator[tuple[int, object]]:
    """(argument, place) pairs; the place is None where the operation does not tell its arguments apart."""
    if len(arguments) < 2:
        yield from ((a, None) for a in arguments)
    elif kind in COMMUTATIVE:
        for argument in dict.fromkeys(arguments):
            times = arguments.count(argument)
            yield argument, None if times == 1 else ("times", times)
    else:
        yield from ((argument, (kind, place)) for place, argument in enumerate(arguments))


def _tuple(inputs) -> tuple:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def automorphism_order(model: nn.Module, inputs, outputs: str = "pinned", axes: bool = False) -> int:
    """The exact number of permutations of the state's elements that leave the network's formula as it is.

    Args:
        model: any module that torch.export captures and whose ops scalar_ops.py knows; keep it tiny.
        inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        outputs: "pinned": every output element stays in its place; "free": the elements of one output tensor
            may change places with one another.
        axes: count only those that permute every axis of every state tensor as a whole, independently of its
            other axes: new[i, j] = old[p[i], q[j]].

    Raises:
        NotImplementedError: an op that scalar_ops.py does not know (the message names it).
    """
    return Expansion(model, inputs).order(outputs, axes)


def check_numerically(model: nn.Module, inputs) -> float:
    """Largest difference between the scalar graph and the module in float64: is the expansion right?"""
    return Expansion(model, inputs).error(model, inputs)


def generators(model: nn.Module, inputs, outputs: str = "pinned") -> list[dict[str, np.ndarray]]:
    """Permutations that generate the group: for each, state name -> p with new.flatten() = old.flatten()[p].

    Tensors that a generator leaves alone are not listed.
    """
    return Expansion(model, inputs).generators(outputs)
