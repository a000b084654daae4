"""Inference: walks the captured graph, applies the rules, and reads the spec off the factors."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from .capture import Program, capture
from .errors import FxrebasinError
from .factors import Atom, Factors, Segment, Value, natural
from .rules import RULES, Call
from .spec import Axis, Block, Group, Site, Spec

_INPUT = "follows an input of the network"


def infer(model, example_inputs=None, *, outputs: str = "pinned") -> Spec:
    """Infers all permutation symmetries of a module.

    model           an nn.Module (on any device, meta included), an ExportedProgram, or a captured Program
    example_inputs  a tensor, a tuple of positional arguments, or a dict of keyword arguments; only shapes and dtypes
                    matter. Every dimension should be at least 2: one of size 1 hides how the network treats it.
    outputs         "pinned": the function must stay exactly the same. "free": output axes move with the network (a
                    backbone whose features are only compared with each other); spec.outputs says how.

    Raises CaptureError if the module cannot be captured.
    """
    if outputs not in ("pinned", "free"):
        raise FxrebasinError(f"outputs must be 'pinned' or 'free', not {outputs!r}")
    program = model if isinstance(model, Program) else capture(model, example_inputs)
    return _Analysis(program).spec(outputs)


def observed(program: Program, spec: Spec, most: int) -> dict[str, Block]:
    """Intermediates at which groups can be watched: node name -> how its dimensions are made of the spec's factors
    (dimensions of samples without factors). At most `most` nodes for each set of groups, spread over the network."""
    analysis = _Analysis(program)
    reader = _Reader(analysis.state, {})
    reader.spec(program, {})
    found: dict[frozenset, dict[str, Block]] = {}
    for node, value in analysis.values.items():
        kind = node.meta.get("val")
        if (node.op != "call_function" or not isinstance(value, Value) or len(value.blocks) != 1
                or not isinstance(kind, torch.Tensor) or not kind.is_floating_point()):
            continue
        segments = value.blocks[0].segments
        atoms = [atom for segment in segments for atom in segment.atoms]
        names = [reader.names.get(atom) for atom in atoms]
        if len(set(names)) == len(names) and names and all(name in spec.sizes for name in names) and any(
                not segment.atoms and segment.reason for segment in segments):
            axes = tuple(Axis(s.positions, tuple(reader.names[a] for a in s.atoms)) for s in segments)
            found.setdefault(frozenset(names), {})[node.name] = axes
    chosen = {}
    for nodes in found.values():
        every = max(1, -(-len(nodes) // most))
        chosen.update(list(nodes.items())[every // 2::every])
    return chosen


class _Analysis:
    """One walk over one graph."""

    def __init__(self, program: Program):
        self.program = program
        self.factors = Factors()
        self.values: dict[fx.Node, Any] = {}  # node -> Value, or a list of them for several results
        self.state: dict[str, Value] = {}
        self.live: set[fx.Node] = set()  # descends from the state
        self.constants: dict[fx.Node, torch.Tensor | None] = {}
        self.unruled: dict[str, str] = {}
        self.origin: dict[fx.Node, fx.Node] = {}  # node of a decomposition -> the node that was decomposed
        self._run()

    def _run(self) -> None:
        for node in self.program.module.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._leaf(node)
            elif node.op == "call_function":
                self._call(node)

    # --------------------------------------------------------------------------------------------------------- leaves

    def _leaf(self, node: fx.Node) -> None:
        source = self.program.sources.get(node.name)
        shapes = _shapes(node.meta.get("val"))
        if source is None or not shapes:
            return
        if source.kind == "state":
            if source.name not in self.state:
                self.state[source.name] = self.factors.value(shapes[0])
            self.values[node] = self.state[source.name]
            self.live.add(node)
        elif source.kind == "constant":
            self.constants[node] = source.value
            self.values[node] = self._constant(source, shapes[0])
        else:
            self.values[node] = self.factors.value(shapes[0], _INPUT)

    def _constant(self, source, shape) -> Value:
        """A tensor of the graph that is not in the state: pinned along every axis on which its numbers vary."""
        reason = f"the constant {source.name!r} varies along it"
        content = source.value
        segments = []
        for d, size in enumerate(shape):
            same = content is not None and size > 1 and bool((content == content.narrow(d, 0, 1)).all())
            segments.append(Segment.plain(natural((size,)), None if same else reason))
        return self.factors.build(shape, [segments])

    # ------------------------------------------------------------------------------------------------------------ ops

    def _call(self, node: fx.Node) -> None:
        arguments = node.all_input_nodes
        if any(argument in self.live for argument in arguments):
            self.live.add(node)
        if node.target is operator.getitem:
            whole, index = node.args
            parts = self.values.get(whole)
            self.values[node] = parts[index] if isinstance(parts, list) and index < len(parts) else parts
            return
        shapes = _shapes(node.meta.get("val"))
        if not shapes:
            return
        results = self._apply_rule(node, shapes)
        self.values[node] = results if isinstance(node.meta["val"], (tuple, list)) else results[0]

    def _apply_rule(self, node: fx.Node, shapes: list[tuple[int, ...]]) -> list[Value]:
        op = str(node.target)
        where = self.program.where(self.origin.get(node, node))
        call = Call(self.factors, op, self._arguments(node), shapes, where or op,
                    used=lambda k: any(user.target is not operator.getitem or user.args[1] == k for user in node.users),
                    content=lambda name: self._content(node, name))
        rule = RULES.get(op)
        reason = f"{op} has no rule"
        if rule is not None:
            try:
                results = rule.apply(call)
                results = list(results) if isinstance(results, (list, tuple)) else [results]
                if [r.shape for r in results[:len(shapes)]] == shapes:
                    return results
                reason = f"the rule for {op} does not fit these arguments"
            except (KeyError, IndexError, ValueError, TypeError, StopIteration, AssertionError, ZeroDivisionError) as error:
                reason = f"the rule for {op} does not fit these arguments ({type(error).__name__}: {error})"
        elif node not in self.origin and (results := self._decomposed(node)):
            return results
        if node in self.live:
            self.unruled[op] = where or node.name
        for value in call.tensors():
            for block in value.blocks:
                self.factors.pin(block.atoms(), f"{reason} ({where})")
        return [self.factors.value(shape, f"{reason} ({where})") for shape in shapes]

    def _decomposed(self, node: fx.Node) -> list[Value] | None:
        """Walks what an op without a rule decomposes into; None if it does not."""
        places = list(dict.fromkeys(node.all_input_nodes))
        values = [place.meta.get("val") for place in places]

        def run(*tensors):
            known = dict(zip(places, tensors))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: known[a])
            return pytree.tree_leaves(node.target(*args, **kwargs))

        try:
            mode = next(v.fake_mode for v in values if isinstance(v, FakeTensor))
            with mode, torch.no_grad():
                inner = make_fx(run, decomposition_table=core_aten_decompositions())(*values).graph
        except Exception:  # whatever a decomposition raises: there is none for these arguments
            return None
        if any(inside.target is node.target for inside in inner.nodes):
            return None
        outer = iter(places)
        for inside in inner.nodes:
            self.origin[inside] = node
            if inside.op == "placeholder":
                place = next(outer)
                self.values[inside] = self.values.get(place)
                self.constants[inside] = self._evaluate(place)
                if place in self.live:
                    self.live.add(inside)
            elif inside.op == "call_function":
                self._call(inside)
            elif inside.op == "output":
                results = [self.values.get(a) for a in inside.args[0]]
                return results if all(isinstance(r, Value) for r in results) else None
        return None

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments by schema name, defaults filled in, tensors as values."""
        def value(argument):
            if isinstance(argument, fx.Node):
                known = self.values.get(argument)
                return argument.meta.get("val") if known is None else known
            return [value(a) for a in argument] if isinstance(argument, (list, tuple)) else argument
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return {**{str(i): value(a) for i, a in enumerate(node.args)}, **{k: value(a) for k, a in node.kwargs.items()}}
        named = {a.name: a.default_value for a in schema.arguments}
        named.update({a.name: value(given) for a, given in zip(schema.arguments, node.args)})
        named.update({k: value(given) for k, given in node.kwargs.items()})
        return named

    # ------------------------------------------------------------------------------------------------------ constants

    def _content(self, node: fx.Node, name: str) -> np.ndarray | None:
        """The numbers of an argument, if they are integers that neither inputs nor state can change."""
        names = [a.name for a in node.target._schema.arguments]
        given = node.kwargs.get(name, node.args[names.index(name)] if names.index(name) < len(node.args) else None)
        if isinstance(given, (list, tuple)):
            given = next((g for g in given if isinstance(g, fx.Node)), None)
        if not isinstance(given, fx.Node):
            return None
        tensor = self._evaluate(given)
        return None if tensor is None or tensor.is_floating_point() or tensor.is_complex() else tensor.cpu().numpy()

    def _evaluate(self, node: fx.Node) -> torch.Tensor | None:
        if node in self.constants or node.op != "call_function":
            return self.constants.get(node)
        self.constants[node] = None
        shapes = _shapes(node.meta.get("val"))
        if shapes and sum(math.prod(s) for s in shapes) < 10_000_000 and "rand" not in str(node.target):
            known = {a: self._evaluate(a) for a in node.all_input_nodes}
            if all(isinstance(tensor, torch.Tensor) for tensor in known.values()):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: known[a])
                try:
                    with torch.no_grad():
                        result = node.target(*args, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})})
                    self.constants[node] = result if isinstance(result, torch.Tensor) else None
                except (RuntimeError, TypeError, NotImplementedError, IndexError):
                    pass
        return self.constants[node]

    # ----------------------------------------------------------------------------------------------- reading the spec

    def spec(self, outputs: str) -> Spec:
        program, free_outputs = self.program, {}
        for output in program.outputs:
            value = self.values.get(output.node) if output.node is not None else None
            if not isinstance(value, Value):
                continue
            decision = getattr(output, "decision", False)
            if outputs == "free" and not decision:
                free_outputs[output.path] = value
                continue
            reason = f"decides a branch ({output.path})" if decision else f"network output {output.path!r}"
            for block in value.blocks:
                self.factors.pin(block.atoms(), reason)
        self._unused()
        return _Reader(self.state, free_outputs).spec(program, self.unruled)

    def _unused(self) -> None:
        """What the forward pass does not use could be permuted at will; that says nothing about the function."""
        used = {self.program.sources[node.name].name for node in self.program.module.graph.nodes
                if node.users and node.name in self.program.sources}
        for name, shape in self.program.state.items():
            if name in self.program.ties:
                continue
            if name not in self.state:
                self.state[name] = self.factors.value(shape)
            if name not in used:
                for block in self.state[name].blocks:
                    self.factors.pin(block.atoms(), "not used by the forward pass")


class _Reader:
    """Turns atoms and values into the names and values of a Spec."""

    def __init__(self, state: dict[str, Value], outputs: dict[str, Value]):
        self.state, self.outputs = state, outputs
        self.names: dict[Atom, str] = {}
        self.classes: dict[Atom, tuple[Atom, ...]] = {}

    def spec(self, program: Program, unruled: dict[str, str]) -> Spec:
        order = [name for name in program.state if name not in program.ties]
        blocks = {name: _ordered(self.state[name]) for name in order}
        for name in order:
            self._name(name, blocks[name])
        groups = self._groups(order, blocks)
        layouts = {name: self._layout(blocks[name]) for name in order}
        moved = {atom for group in groups.values() for atom in group[1]}
        pinned = {}
        for name in order:
            for axis in range(len(program.state[name])):
                atoms = [atom for block in blocks[name] for atom in block[axis].atoms]
                if not any(atom in moved for atom in atoms):
                    pinned[name, axis] = next((atom.pinned for atom in atoms if atom.pinned), "a single element")
        outputs = {}
        for path, value in self.outputs.items():
            self._name(f"output {path}", out := _ordered(value))
            outputs[path] = (value.shape, self._layout(out))
        free_outputs = {path: (shape, parts) for path, (shape, parts) in outputs.items()
                        if any(f in {m for g in groups.values() for m in g[0].members} for b in parts for a in b for f in a.factors)}
        kept = {f for parts in list(layouts.values()) + [p for _, p in free_outputs.values()]
                for b in parts for a in b for f in a.factors}
        return Spec(
            {name: group for name, (group, _) in groups.items()}, pinned,
            {name: atom.size for atom, name in self.names.items() if name in kept},
            {name: atom.pinned for atom, name in self.names.items() if atom.pinned and name in kept},
            layouts, dict(program.state), dict(program.ties), tuple(program.passed), free_outputs, dict(unruled),
            tuple(program.notes))

    def _name(self, tensor: str, blocks: list[list[Segment]]) -> None:
        """Names atoms after the first axis they are seen on: `tensor:axis`, numbered if the axis has several."""
        for axis in range(len(blocks[0]) if blocks else 0):
            atoms = list(dict.fromkeys(atom for block in blocks for atom in block[axis].atoms))
            for k, atom in enumerate(atoms):
                self.names.setdefault(atom, f"{tensor}:{axis}" + (f".{k}" if len(atoms) > 1 else ""))

    def _groups(self, order, blocks) -> dict[str, tuple[Group, list[Atom]]]:
        sites: dict[Atom, list[Site]] = {}
        for name in order:
            for b, block in enumerate(blocks[name]):
                for axis, segment in enumerate(block):
                    for atom in segment.atoms:
                        sites.setdefault(atom, []).append(Site(name, axis, b))
        groups: dict[str, tuple[Group, list[Atom]]] = {}
        done: set[Atom] = set()
        for atom in sites:
            if atom.pinned or atom in done:
                continue
            parents = _parents(atom)
            members = [atom] + [p for p in parents if not p.pinned and p.blocks == atom.blocks and atom in _parents(p)]
            members.sort(key=list(self.names).index) if len(members) > 1 else None
            done.update(members)
            within = sorted((p for p in parents if p not in members), key=list(self.names).index) if parents else []
            name = self.names[members[0]]
            group = Group(name, math.prod(m.size for m in members), math.prod(p.size for p in within),
                          tuple(self.names[p] for p in within), tuple(self.names[m] for m in members),
                          tuple(dict.fromkeys(site for m in members for site in sites[m])))
            groups[name] = (group, members)
        return groups

    def _layout(self, blocks: list[list[Segment]]) -> tuple[Block, ...]:
        return tuple(tuple(Axis(segment.positions, tuple(self.names[atom] for atom in segment.atoms))
                           for segment in block) for block in blocks)


def _parents(atom: Atom) -> list[Atom]:
    """The atoms that are present, once, in every block in which this one is."""
    block = next(iter(atom.blocks))
    candidates = [p for p in dict.fromkeys(block.atoms())
                  if p is not atom and not p.turning and atom.blocks <= p.blocks]
    return [p for p in candidates if all(b.atoms().count(p) == 1 for b in atom.blocks)] if candidates else []


def _ordered(value: Value) -> list[list[Segment]]:
    """The blocks by their first positions, each segment with its atoms from the outermost to the innermost: the same
    whatever the order in which the graph was visited."""
    def outermost_first(segment: Segment) -> Segment:
        positions = segment.positions
        step = [abs(int(positions[tuple(int(i == k) for i in range(positions.ndim))]) - int(positions[(0,) * positions.ndim]))
                for k in range(positions.ndim)]
        order = sorted(range(positions.ndim), key=lambda k: -step[k])
        return Segment(positions.transpose(order), [segment.atoms[k] for k in order])
    blocks = [[outermost_first(s) if len(s.atoms) > 1 else s.named() for s in block.segments] for block in value.blocks]
    return sorted(blocks, key=lambda block: [int(s.positions.min()) for s in block])


def _shapes(val: Any) -> list[tuple[int, ...]]:
    if isinstance(val, torch.Tensor):
        return [tuple(int(s) for s in val.shape)]
    if isinstance(val, (list, tuple)):
        return [shape for v in val for shape in (_shapes(v) or [()])]
    return []
