"""An `ExportedProgram` becomes a `Program`: a placeholder for each tensor, by its name, and no dead code."""
from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .names import Names
from .node import op_of
from .program import Output, Program
from .sources import Sources

_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION)
Leaves = Sequence[tuple[str, bool]]  # (path, whether it is a tensor) for every leaf of what a module returns


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Without in-place writes and higher-order regions. A graph that has none is left as it is: removing them
    costs more than the export itself."""
    def is_functional(op: Any) -> bool:
        writes = isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable
        return not writes and not isinstance(op, torch._ops.HigherOrderOperator)

    calls = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    return exported if all(map(is_functional, calls)) else exported.run_decompositions({})


@dataclass(frozen=True)
class Aside:
    """What a record says beside what the module returns.

    assigned   (path, the tensor that was there before, or None) of attributes that forward assigns: what it
               assigns to them are the outputs that follow those that are returned
    decisions  how many further outputs are what the branch was chosen by
    notes      for the user
    held       the tensors that the module holds: other constants are made as it runs
    """
    assigned: Sequence[tuple[str, Tensor | None]] = ()
    decisions: int = 0
    notes: Sequence[str] = ()
    held: Sequence[Tensor] = ()


def program_of(exported: ExportedProgram, names: Names, paths: Sequence[str], leaves: Leaves, front_end: str,
               signature: inspect.Signature | None, aside: Aside = Aside()) -> Program:
    """The Program of a functional export.

    paths   of the inputs, in the order of their placeholders
    leaves  of what the module returns
    aside   what else is known, if it was recorded

    Raises CaptureError if a size is not static, or no tensor is returned.
    """
    module, graph = exported.graph_module, exported.graph
    _check_static(graph)
    if not any(is_tensor for _, is_tensor in leaves):
        raise CaptureError("the module returns no tensor: return one, or a container that holds one")
    results = list(zip(exported.graph_signature.output_specs, graph.output_node().args[0]))
    sources = Sources(exported, names, paths)
    returned = [node for spec, node in results if spec.kind is OutputKind.USER_OUTPUT]
    tensors = iter([node for node in returned if isinstance(node, fx.Node)])
    outputs = [Output(path, next(tensors) if is_tensor else None) for path, is_tensor in leaves]
    for path, before in aside.assigned:
        target, value = sources.by_target.get(f"captured.{path}") or sources.node_of(before), next(tensors)
        if target is None and before is not None and before.shape == value.meta["val"].shape:
            continue  # what was there was not read, nor will this be
        outputs += sources.written(path, target, value, assigned=True)
    for spec, node in results:
        if spec.kind in _WRITES:
            path = spec.target.removeprefix("captured.")
            outputs += sources.written(path, sources.by_target.get(spec.target), node)
    chosen_by = list(itertools.islice(tensors, aside.decisions))
    outputs += sources.decisions(chosen_by)
    outputs += sources.overlaps()
    if any(output.kind == "decision" for output in outputs):
        sources.doubt_constants(aside.held)
    graph.output_node().args = (tuple(output.node for output in outputs if output.node is not None),)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # guards and asserts go too
    graph.lint()
    module.recompile()
    found = {node.name: sources.found[node.name] for node in graph.nodes if node.name in sources.found}
    remarks = tuple(dict.fromkeys((*aside.notes, *sources.notes, *_remarks(exported))))
    return Program(module, found, tuple(outputs), names.shapes, names.ties, tuple(names.passed), front_end,
                   remarks, signature, names.kinds, sources.deciding(chosen_by))


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
    """What the graph does not say about the module: random numbers."""
    for node in exported.graph.nodes:
        if node.op == "call_function" and node.target.__name__.startswith(_RANDOM) and not _is_off(node):
            yield f"forward draws random numbers ({node.target}): its outputs differ from call to call"


def _is_off(node: fx.Node) -> bool:
    """Whether a dropout drops nothing."""
    settings = (*node.args[1:], *node.kwargs.values())
    return "dropout" in op_of(node).__name__ and (0 in settings or any(value is False for value in settings))
