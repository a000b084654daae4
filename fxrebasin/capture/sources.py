"""What the placeholders and constants of an exported graph are, and what forward does to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from .memory import Step, place_of
from .names import Names
from .node import upstream
from .program import Output
from .source import Source

aten = torch.ops.aten


class Sources:
    """`found`: node name -> Source, `by_target`: what the export calls a tensor -> its node. The graph is
    rewritten so that a tied tensor is one placeholder, and a constant that lies within a tensor of the
    state is made of it."""

    def __init__(self, exported: ExportedProgram, names: Names, paths: Sequence[str]):
        self.graph, self.names = exported.graph, names
        self.found: dict[str, Source] = {}
        self.by_target: dict[str, fx.Node] = {}
        self.notes: list[str] = []
        self._named: dict[str, fx.Node] = {}  # canonical name of an entry of the state dict -> its node
        self._views: dict[fx.Node, tuple[str, list[Step]]] = {}
        self._jumbled: dict[str, str] = {}  # name -> the attribute that shares its memory
        self._constants: list[tuple[Tensor, fx.Node]] = []
        tensors = {**exported.constants, **exported.state_dict}
        specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        inputs = iter(paths)
        for node in list(self.graph.nodes):
            if node.op == "get_attr":
                value = getattr(exported.graph_module, str(node.target), None)
                if isinstance(value, Tensor):
                    self._constant(node, str(node.target), value)
            elif node.op == "placeholder" and specs[node.name].kind is InputKind.USER_INPUT:
                self.found[node.name] = Source("input", next(inputs))
                self.by_target[str(specs[node.name].target or node.name)] = node
            elif node.op == "placeholder":
                self._held(node, specs[node.name], tensors.get(specs[node.name].target))
        self._start = next((node for node in self.graph.nodes if node.op != "placeholder"))
        for node, (name, steps) in self._views.items():
            self._make(node, self._named[name], steps)

    # ------------------------------------------------------------------------------------------ what they are

    def _held(self, node: fx.Node, spec: InputSpec, value: Any) -> None:
        name = self.names.of(value)
        target = str(spec.target or node.name)
        if name is None or name not in self.names.shapes:
            self._constant(node, target, None if _is_trained(spec, value) else value, name)
        elif name in self._named:
            node.replace_all_uses_with(self._named[name])
            self.graph.erase_node(node)
            node = self._named[name]
        else:
            self._named[name] = node
            self.found[node.name] = Source("state", name)
        self.by_target[target] = node

    def _constant(self, node: fx.Node, target: str, value: Any, name: str | None = None) -> None:
        """A tensor that is no part of the state; `name`: of an entry of the state dict (integers)."""
        known = isinstance(value, Tensor) and not value.is_meta and not isinstance(value, FakeTensor)
        if isinstance(value, Tensor):
            self._constants.append((value, node))
        if name is not None:
            self._named.setdefault(name, node)
        elif isinstance(value, Tensor) and (found := self.names.view(value)) is not None:
            self._views[node] = found
            return
        elif isinstance(value, Tensor):
            self._jumbled.update(dict.fromkeys(self.names.met(value), _path(target)))
            known = known and not self.names.met(value)
        self.found[node.name] = Source("constant", name or _path(target), value.detach() if known else None)

    def _make(self, node: fx.Node, base: fx.Node, steps: Sequence[Step]) -> None:
        """Puts what is made of `base` in the place of a constant."""
        made = self._made(base, steps, node)
        node.replace_all_uses_with(made)
        if node.op == "get_attr":
            self.graph.erase_node(node)
        self._constants = [(value, made if other is node else other) for value, other in self._constants]
        self.by_target = {
            target: made if other is node else other for target, other in self.by_target.items()
        }

    def _made(self, base: fx.Node, steps: Sequence[Step], like: fx.Node) -> fx.Node:
        with self.graph.inserting_before(self._start):
            for op, args in steps:
                base = self._call(op, (base, *args), like)
        return base

    def _call(self, op: Any, args: tuple, like: fx.Node) -> fx.Node:
        values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
        mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
        node = self.graph.call_function(op, args)
        with mode, torch.no_grad():
            node.meta = {"val": op(*values), "stack_trace": like.meta.get("stack_trace")}
        return node

    # -------------------------------------------------------------------------------------- what forward does

    def node_of(self, value: Tensor | None) -> fx.Node | None:
        """The node of a tensor that the module holds."""
        if value is None:
            return None
        name = self.names.of(value)
        held = next((node for constant, node in self._constants if constant is value), None)
        return held if name is None else self._named.get(name)

    def written(
        self, path: str, target: fx.Node | None, value: fx.Node, assigned: bool = False
    ) -> list[Output]:
        """What becomes of a value that forward writes to a tensor (None: that the graph does not use): both
        are ordered alike, since the next call finds the value there."""
        self.notes.append(
            f"forward {'assigns' if assigned else 'writes to'} {path}: the change is not part of the program"
        )
        if value is target or not isinstance(value, fx.Node):
            return []
        if target is None:
            return [Output(path, value, "kept")]
        source = self.found.get(target.name)
        if source is not None and source.kind == "constant":
            self.found[target.name] = Source(source.kind, source.name, source.value, "first call")
        fits = (
            value.meta["val"].shape == target.meta["val"].shape and value.meta["val"].dtype.is_floating_point
        )
        if source is None or source.kind != "input" and fits:
            return (
                [self._alike(path, target, value)]
                if fits
                else [Output(f"is written to {path}", value, "pinned")]
            )
        ends = [value] if source.kind == "input" else [value, target]
        return [Output(f"is written to {path}", end, "pinned") for end in ends]

    def _alike(self, path: str, one: fx.Node, other: fx.Node) -> Output:
        with self.graph.inserting_before(self.graph.output_node()):
            return Output(path, self._call(aten.sub.Tensor, (one, other), other), "tied")

    def overlaps(self) -> list[Output]:
        """Entries of the state that lie in each other's memory are ordered alike; if it is not clear how,
        not at all."""
        outputs = []
        for name, (base, steps) in self.names.views.items():
            if name in self.names.shapes:
                self.notes.append(
                    f"{name} lies in the memory of {base}: they are one, and are reordered together"
                )
                made = self._made(self._named[base], steps, self._named[base])
                outputs.append(self._alike(name, self._named[name], made))
        for name, other in (self.names.jumbled | self._jumbled).items():
            if name in self.names.shapes:
                self.notes.append(f"{name} shares part of its memory with {other}: it stays as it is")
                node = self._named[self.names.ties.get(name, name)]
                outputs.append(Output(f"shares part of its memory with {other}", node, "pinned"))
        return outputs

    def decisions(self, nodes: Sequence[fx.Node]) -> list[Output]:
        """Those that a tensor of the state has a part in: a decision by inputs alone is the same for every
        state."""
        reached: set[fx.Node] = set()
        for node in self.graph.nodes:
            source = self.found.get(node.name)
            if source is not None and source.kind == "state" or not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        return [Output(f"decision.{i}", node, "decision") for i, node in enumerate(nodes) if node in reached]

    def deciding(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        """The names of what a recorded branch was chosen by: entries of the state dict, inputs."""
        return tuple(sorted({self.found[node.name].name for node in upstream(nodes) if node.name in self.found}))

    def doubt_constants(self, held: Sequence[Tensor]) -> None:
        """Numbers of the state were read: a constant that the module does not hold may have been made of
        them."""
        places = [place for tensor in held if (place := place_of(tensor)) is not None]
        for value, node in self._constants:
            source = self.found.get(node.name)
            place = place_of(value)
            if (
                source is not None
                and source.kind == "constant"
                and not any(place is not None and place.meets(other) for other in places)
            ):
                self.found[node.name] = Source(source.kind, source.name, source.value, "this state")


def _is_trained(spec: InputSpec, value: Tensor | None) -> bool:
    """Whether a checkpoint may hold another value for a tensor that is not part of the state."""
    if spec.kind is InputKind.BUFFER:
        return bool(spec.persistent) and value is not None and value.is_floating_point()
    return spec.kind is InputKind.PARAMETER


def _path(target: str) -> str:
    return target.removeprefix("captured.")
