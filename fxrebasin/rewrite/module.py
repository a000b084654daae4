"""A program and a state as a module of its own: parameters, buffers and a graph, without the user's classes."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from ..capture import Program, capture
from ..errors import CaptureError, SpecError
from .maps import mapped, maps_of

if TYPE_CHECKING:
    from ..alignment import Alignment


def to_module(alignment: Alignment, model: nn.Module, state: Mapping[str, Tensor],
              example_inputs: Any = None) -> fx.GraphModule:
    """The module with `alignment` applied to `state`, and maps on its skips where the alignment needs them.

    It computes what `model` computes with `state`, for inputs of the shapes that the spec was inferred with: the shapes
    are part of the graph, and so is eval mode. Maps are buffers `skips.*`; parameters keep their names, of tied ones the
    first. One tensor is returned as it is, a tuple or list as a tuple, all else as a dict by path.

    example_inputs  needed only if the spec's were nested (lists or dicts of tensors)

    Raises StateError if the state does not fit, SpecError if the module is not the spec's, CaptureError if its graph
    cannot be had.
    """
    program = capture(model, _examples(alignment) if example_inputs is None else example_inputs)
    if any(output.decision for output in program.outputs):
        raise CaptureError(f"{type(model).__name__} branches on values: its graph holds one branch only, and cannot "
                           "stand for the module")
    moved = alignment.apply(state)
    return module_of(mapped(program, alignment.spec), {**moved, **maps_of(alignment)})


def _examples(alignment: Alignment) -> dict[str, Tensor]:
    """Stand-ins for the example inputs of the spec."""
    inputs = alignment.spec.inputs
    if not inputs or any("." in path for path in inputs):
        raise SpecError("the spec does not say what the module is called with: give to_module the example inputs")
    return {path: torch.zeros(shape, dtype=getattr(torch, dtype)) for path, (shape, dtype) in inputs.items()}


def module_of(program: Program, state: Mapping[str, Tensor]) -> fx.GraphModule:
    """A module that holds the state and the program's constants, and runs its graph.

    Raises CaptureError for a constant without a value (of a module on the meta device).
    """
    graph, held, entries = fx.Graph(), {}, {}
    for node in program.module.graph.nodes:
        source = program.sources.get(node.name)
        if source is not None and source.kind != "input":
            name, value = _entry(program, node, state)
            entries[name] = value
            held[node] = graph.get_attr(name)
        elif node.op == "placeholder":
            held[node] = graph.placeholder(source.name.replace(".", "_") if source else node.name)
        elif node.op == "get_attr":
            entries[str(node.target)] = getattr(program.module, str(node.target))
            held[node] = graph.get_attr(str(node.target))
        elif node.op == "output":
            graph.output(_returned(program, held))
            continue
        else:
            held[node] = graph.node_copy(node, held.__getitem__)
        held[node].meta = dict(node.meta)
    module = fx.GraphModule(entries, graph, class_name="Rewritten")
    module.graph.lint()
    return module


def _entry(program: Program, node: fx.Node, state: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """What a placeholder stands for, under a name that a module can hold it by."""
    source = program.sources[node.name]
    value = state.get(source.name) if source.kind == "state" else source.value
    if value is None:
        raise CaptureError(f"the {source.kind} {source.name!r} has no value: give a module that is not on the meta device")
    name = source.name if source.kind == "state" else f"constants.{source.name.replace('.', '_')}"
    trained = program.kinds.get(source.name, "parameter") == "parameter" and value.is_floating_point()
    if source.kind == "state" and trained and source.name in program.kinds:
        return name, nn.Parameter(value.detach().clone())
    return name, value.detach().clone()


def _returned(program: Program, held: Mapping[fx.Node, fx.Node]) -> Any:
    found = {output.path: held[output.node] for output in program.outputs if output.node is not None}
    if list(found) == ["output"]:
        return found["output"]
    if all(path.isdigit() for path in found):
        return tuple(found.values())
    return found
