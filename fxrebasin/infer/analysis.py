"""One walk over a captured graph: every op's rule is applied to the values of its arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch._decomp import core_aten_decompositions
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ..capture import Program, Source
from ..factors import Factors, Value
from ..passes import rewrites
from ..passes.folds import folds
from ..rules import RULES, Call, Uncovered
from ..spec import Spec
from ..spec.fit import digest_of
from .constants import SMALL, Constants, argument, constant, shapes, tensors
from .decomposition import faithful
from .distinct import Distinct
from .indices import Indices
from .reader import Reader
from .regions import region
from .unordered import settle

_INPUT = "follows an input of the network"
_REASONS = {"returned": "network output {!r}", "decision": "decides a branch ({})", "pinned": "{}",
            "kept": "kept for later calls as {!r}"}  # why an output stays as it is


class Analysis:
    """One walk over one graph."""

    def __init__(self, program: Program):
        self.program = program
        self.factors = Factors()
        self.values: dict[fx.Node, Any] = {}  # node -> Value, or a list of them for several results
        self.state: dict[str, Value] = {}
        self.marks: dict[str, Value] = {}  # further values that the spec shall have the layout of
        self.live: set[fx.Node] = set()  # descends from the state
        self.constants = Constants()
        self.unruled: dict[str, str] = {}
        self.indices = Indices()
        self.origin: dict[fx.Node, fx.Node] = {}  # node of a decomposition or a body -> the node that it is within
        self.decomposed: dict[fx.Node, fx.Node] = {}  # node of a decomposition -> the node that was decomposed
        self.calls: dict[fx.Node, Call] = {}  # the last one of a body that is walked many times
        self.made: list[Call] = []
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
        sizes = shapes(node.meta.get("val"))
        if source is None or not sizes:
            return
        if source.kind == "state":
            if source.name not in self.state:
                self.state[source.name] = self.factors.value(sizes[0])
            self.values[node] = self.state[source.name]
            self.live.add(node)
        elif source.kind == "constant":
            self.constants.given[node] = source.content
            value = self._constant(source, sizes[0])
            self.values[node] = value
            if _tells(value) or source.valid == "first call":
                self.constants.rely(node)
        else:
            self.values[node] = self.factors.value(sizes[0], _INPUT)

    def _constant(self, source: Source, shape: tuple[int, ...]) -> Value:
        """A tensor of the graph that is not in the state. Where forward writes to it, equal numbers are the start of
        others, which are ordered as what is written."""
        reason = f"the constant {source.name!r} varies along it"
        if source.valid != "first call" or source.value is None:
            return constant(self.factors, source.content, shape, reason)
        even = [bool((source.value == source.value.narrow(d, 0, 1)).all()) for d in range(len(shape))]
        return self.factors.build(shape, [[self.factors.atom_segment(size, None if same else reason)
                                           for size, same in zip(shape, even)]])

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
        sizes = shapes(node.meta.get("val"))
        if not sizes:
            return
        if isinstance(node.meta["val"], torch.Tensor) and (value := self._worked_out(node, sizes[0])) is not None:
            self.values[node] = value
            return
        results = self._apply_rule(node, sizes)
        if (index := self._moved_index(node, results)) is not None:
            results = self.indices.unique(node, index, results)
        self.values[node] = results if isinstance(node.meta["val"], (tuple, list)) else results[0]

    def _worked_out(self, node: fx.Node, shape: tuple[int, ...]) -> Value | None:
        """What the graph makes of constants alone, by its numbers; None if these tell no more than a rule."""
        content = self.constants.evaluate(node) if 1 < math.prod(shape) <= SMALL else None
        value = None if content is None else constant(self.factors, content, shape, "a constant of the graph varies along it")
        if value is None or not _tells(value):
            return None
        self.constants.rely(node)
        return value

    def _moved_index(self, node: fx.Node, results: list[Value]) -> Value | None:
        """The index whose numbers an op moves, if it does nothing else."""
        first = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        points = first.points if isinstance(first, Value) else None
        alone = points is not None and node.all_input_nodes == [node.args[0]]
        return first if alone and all(result.points is points for result in results) else None

    def _apply_rule(self, node: fx.Node, sizes: list[tuple[int, ...]]) -> list[Value]:
        op = str(node.target)
        where = self.program.where(self.origin.get(node, node))
        call = Call(self.factors, op, self._arguments(node), sizes, where or op,
                    used=lambda k: _used(node, k),
                    content=lambda name: self.constants.integers(node, name),
                    masks=lambda name: any(v.dtype == torch.bool for v in tensors(argument(node, name))),
                    distinct=lambda name, *how: self._distinct.along(argument(node, name), *how))
        self.calls[node] = call
        self.made.append(call)
        rule = RULES.get(op)
        reason = f"{op} has no rule"
        if rule is not None:
            try:
                results = rule.apply(call)
                if [r.shape for r in results[:len(sizes)]] == sizes:
                    return results
                reason = f"the rule for {op} does not fit these arguments"
            except Uncovered as error:
                reason = str(error)
            except (KeyError, IndexError, ValueError, TypeError, StopIteration, AssertionError, ZeroDivisionError) as error:
                reason = f"the rule for {op} does not fit these arguments ({type(error).__name__}: {error})"
        elif isinstance(node.target, HigherOrderOperator):
            try:
                results = self._region(node, call)
                if results is not None and [r.shape for r in results] == sizes:
                    return results
            except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
                reason = f"{op} does not fit its bodies ({type(error).__name__}: {error})"
        elif node not in self.decomposed and any(block.atoms() for value in call.tensors() for block in value.blocks) and (
                results := self._decomposed(node)):
            return results
        captured = self.decomposed.get(node)
        if captured is not None:
            reason = f"{captured.target} has no rule, and of its parts {reason}"
        if node in self.live:
            self.unruled[op if captured is None else str(captured.target)] = where or node.name
        for value in call.tensors():
            self._pin(value, f"{reason} ({where})")
        return [self.factors.value(shape, f"{reason} ({where})") for shape in sizes]

    def _pin(self, value: Value, reason: str) -> None:
        """Pins a value wholly, and the axis into which its numbers point."""
        for block in value.blocks:
            self.factors.pin(block.atoms(), reason)
        if value.points is not None:
            self._pin(value.points, reason)

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
                parts = make_fx(run, decomposition_table=core_aten_decompositions())(*values)
        except Exception:  # whatever a decomposition raises: there is none for these arguments
            return None
        inner, contents = parts.graph, [self.constants.evaluate(place) for place in places]
        if any(inside.target is node.target for inside in inner.nodes) or not faithful(run, parts, values, contents):
            return None
        self.decomposed.update(dict.fromkeys(inner.nodes, node))
        self.constants.stands_for.update(zip((n for n in inner.nodes if n.op == "placeholder"), places))
        return self._inside(inner, node, [self.values.get(place) for place in places], contents,
                            [place in self.live for place in places])

    def _inside(self, graph: fx.Graph, node: fx.Node, values: list[Value | None], contents: list[torch.Tensor | None],
                live: list[bool]) -> list[Value] | None:
        """Walks a graph within a node, over what its placeholders stand for; the values of its results."""
        outer = iter(zip(values, contents, live))
        for inside in graph.nodes:
            self.origin[inside] = self.origin.get(node, node)
            if inside.op == "placeholder":
                self.values[inside], self.constants.given[inside], lives = next(outer)
                if lives:
                    self.live.add(inside)
            elif inside.op == "get_attr":
                content = getattr(graph.owning_module, inside.target, None)
                if isinstance(content, torch.Tensor):
                    self.constants.given[inside] = content
                    self.values[inside] = constant(self.factors, content, tuple(content.shape), f"a constant of {node.target}")
            elif inside.op == "call_function":
                self.constants.given.pop(inside, None)  # a body may be walked again, over other values
                self._call(inside)
            elif inside.op == "output":
                results = [self.values.get(a) for a in pytree.tree_leaves(inside.args[0])]
                return results if all(isinstance(r, Value) for r in results) else None
        return None

    def _region(self, node: fx.Node, call: Call) -> list[Value] | None:
        """What an op with bodies of its own makes."""
        lives = node in self.live

        def walk(body: fx.GraphModule, values: list[Value]) -> list[Value] | None:
            return self._inside(body.graph, node, values, [None] * len(values), [lives] * len(values))
        return region(call.op, call, walk)

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments by schema name, defaults filled in, tensors as values."""
        def value(argument):
            if isinstance(argument, fx.Node):
                known = self.values.get(argument)
                if known is None and argument.op == "get_attr" and "val" not in argument.meta:
                    return getattr(argument.graph.owning_module, argument.target)  # a body
                if known is None and isinstance(argument.meta.get("val"), torch.Tensor):
                    return self.factors.value(shapes(argument.meta["val"])[0], "it is not known how it is made")
                return argument.meta.get("val") if known is None else known
            return [value(a) for a in argument] if isinstance(argument, (list, tuple)) else argument
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return {**{str(i): value(a) for i, a in enumerate(node.args)}, **{k: value(a) for k, a in node.kwargs.items()}}
        named = {a.name: a.default_value for a in schema.arguments}
        named.update({a.name: value(given) for a, given in zip(schema.arguments, node.args)})
        named.update({k: value(given) for k, given in node.kwargs.items()})
        return named

    @cached_property
    def _distinct(self) -> Distinct:
        return Distinct(self.program, self.calls, self.constants)

    def _assumptions(self) -> tuple[str, ...]:
        """What was taken for granted of axes that are free in the end."""
        relied = (text for call in self.made for axis, text in call.assumed
                  if any(not atom.pinned for block in axis.blocks for atom in block.atoms()))
        return tuple(dict.fromkeys((*self.program.assumed, *relied)))

    # ----------------------------------------------------------------------------------------------- reading the spec

    def spec(self, outputs: str) -> Spec:
        program, free_outputs = self.program, dict(self.marks)
        for output in program.outputs:
            value = self.values.get(output.node) if output.node is not None else None
            if not isinstance(value, Value):
                continue
            if output.kind == "tied":
                self.factors.use(value)
                continue
            if outputs == "free" and output.kind == "returned":
                # what is chosen moves as its choice says, which no permutation of the output's own axes can
                self.factors.use(value)
                free_outputs[output.path] = self.factors.build(value.shape, [b.segments for b in value.blocks])
                if value.points is not None:
                    self._pin(value.points, f"network output {output.path!r}")
                continue
            self._pin(value, _REASONS[output.kind].format(output.path))
        settle(self.factors, [each for call in self.made for each in call.unordered], self.state.values())
        for name in program.decided:
            if name in self.state:
                self._pin(self.state[name], f"forward chooses its way by the numbers of {name}")
        self._unused()
        spec = Reader(self.state, free_outputs).spec(program, self.unruled)
        spec = replace(spec, folds=folds(program, self.values, spec))
        return replace(spec, numbers=numbers_of(program, self.constants.read), assumptions=self._assumptions(),
                       rewrites=rewrites(program, self.values, spec, self.constants.evaluate))

    def _unused(self) -> None:
        """What the forward pass does not use could be permuted at will; that says nothing about the function."""
        used = {self.program.sources[node.name].name for node in self.program.module.graph.nodes
                if node.users and node.name in self.program.sources}
        for name, shape in self.program.state.items():
            if name in self.program.ties:
                continue
            if name not in self.state:
                self.state[name] = self.factors.value(shape)
            for block in self.state[name].blocks:
                idle = block.atoms() if name not in used else [atom for atom in block.atoms() if not atom.used]
                self.factors.pin(idle, "not used by the forward pass")


def _tells(value: Value) -> bool:
    """Whether a constant is known to hold equal numbers anywhere."""
    return any(segment.positions.size > 1 and not segment.reason for block in value.blocks for segment in block.segments)


def numbers_of(program: Program, read: Iterable[fx.Node] | None = None) -> dict[str, str]:
    """Entry of integers or booleans -> a hash of its numbers, for those that some nodes (all by default) stand for; and
    those by which forward chose its way."""
    nodes = program.module.graph.nodes if read is None else read
    sources = [program.sources[node.name] for node in nodes if node.name in program.sources]
    held = {source.name: source.value for source in sources if source.name in program.passed} | dict(program.decided)
    return {name: digest for name in (*program.passed, *program.decided) if (digest := digest_of(held.get(name)))}


def _used(node: fx.Node, k: int) -> bool:
    """Whether anything uses result k of a node. (A decomposition takes all results apart, used or not.)"""
    return any(user.target is not operator.getitem or user.args[1] == k and user.users for user in node.users)
