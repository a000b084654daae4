"""An `ExportedProgram` becomes a `Program`: a placeholder for each tensor, by its name, and no dead code."""
from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .names import Names
from .program import Output, Program
from .source import Source

Leaves = Sequence[tuple[str, bool]]  # (path, whether it is a tensor) for every leaf of what a module returns


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Without in-place writes and higher-order regions. A graph that has none is left as it is: removing them
    costs more than the export itself."""
    def is_functional(op: Any) -> bool:
        writes = isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable
        return not writes and not isinstance(op, torch._ops.HigherOrderOperator)

    calls = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    return exported if all(map(is_functional, calls)) else exported.run_decompositions({})


def program_of(exported: ExportedProgram, names: Names, paths: Sequence[str], leaves: Leaves, front_end: str,
               signature: inspect.Signature | None, decisions: int = 0, notes: Sequence[str] = ()) -> Program:
    """The Program of a functional export.

    paths      of the inputs, in the order of their placeholders
    leaves     of what the module returns
    decisions  how many of the last outputs are what a recorded branch was chosen by, and not leaves

    Raises CaptureError if a size is not static, or no tensor is returned.
    """
    module, graph = exported.graph_module, exported.graph
    _check_static(graph)
    if not any(is_tensor for _, is_tensor in leaves):
        raise CaptureError("the module returns no tensor: return one, or a container that holds one")
    sources = _sources(exported, names, paths)
    results = zip(exported.graph_signature.output_specs, graph.output_node().args[0])
    returned = [node for spec, node in results if spec.kind is OutputKind.USER_OUTPUT]
    tensors = iter([node for node in returned if isinstance(node, fx.Node)])
    outputs = [Output(path, next(tensors) if is_tensor else None) for path, is_tensor in leaves]
    reached = _reached(graph, sources)  # a decision by inputs alone is the same for every state
    outputs += [Output(f"decision.{i}", node, True)
                for i, node in zip(range(decisions), tensors) if node in reached]
    graph.output_node().args = (tuple(output.node for output in outputs if output.node is not None),)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # guards and asserts go too
    graph.lint()
    module.recompile()
    remarks = tuple(dict.fromkeys((*names.notes, *notes, *_remarks(exported))))
    return Program(module, sources, tuple(outputs), names.shapes, names.ties, tuple(names.passed), front_end,
                   remarks, signature, names.kinds)


def _sources(exported: ExportedProgram, names: Names, paths: Sequence[str]) -> dict[str, Source]:
    """What each placeholder and get_attr node is; the placeholders of a tied tensor become one."""
    graph, tensors = exported.graph, {**exported.constants, **exported.state_dict}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    sources: dict[str, Source] = {}
    first: dict[str, fx.Node] = {}
    inputs = iter(paths)
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = getattr(exported.graph_module, str(node.target), None)
            if isinstance(value, Tensor):
                sources[node.name] = _constant(str(node.target), value)
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            sources[node.name] = Source("input", next(inputs))
            continue
        value = tensors.get(spec.target)
        name = names.of(value)
        if name is None:
            sources[node.name] = _constant(spec.target, None if _is_trained(spec, value) else value)
        elif name in first:
            node.replace_all_uses_with(first[name])
            graph.erase_node(node)
        else:
            first[name] = node
            sources[node.name] = Source("state", name)
    return sources


def _reached(graph: fx.Graph, sources: Mapping[str, Source]) -> set[fx.Node]:
    """The nodes that a tensor of the state has a part in."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_state = node.name in sources and sources[node.name].kind == "state"
        if is_state or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_trained(spec: InputSpec, value: Tensor | None) -> bool:
    """Whether a checkpoint may hold another value for a tensor that is not part of the state."""
    if spec.kind is InputKind.BUFFER:
        return bool(spec.persistent) and value is not None and value.is_floating_point()
    return spec.kind is InputKind.PARAMETER


def _constant(target: str, value: Any) -> Source:
    known = isinstance(value, Tensor) and not value.is_meta and not isinstance(value, FakeTensor)
    return Source("constant", target.removeprefix("captured."), value.detach() if known else None)


def _check_static(graph: fx.Graph) -> None:
    for node in graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            sizes = value.shape if isinstance(value, Tensor) else (value,)
            if any(isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) for size in sizes):
                raise CaptureError(f"{node.name} has a symbolic size, {tuple(sizes)}: shapes must be static; "
                                   "export without dynamic shapes")


_RANDOM = ("bernoulli", "dropout", "exponential", "multinomial", "native_dropout", "normal", "poisson",
           "rand", "uniform")


def _remarks(exported: ExportedProgram) -> Iterator[str]:
    """What the graph does not say about the module: writes to its tensors, and random numbers."""
    changed = {OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION}
    for spec in exported.graph_signature.output_specs:
        if spec.kind in changed:
            name = spec.target.removeprefix("captured.")
            yield f"forward writes to {name}: the change is not part of the program"
    for node in exported.graph.nodes:
        if node.op == "call_function" and node.target.__name__.startswith(_RANDOM):
            yield f"forward draws random numbers ({node.target}): its outputs differ from call to call"
