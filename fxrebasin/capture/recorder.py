"""The recorder: writes down what a module does with real tensors, where export will not follow it.

The record is a graph of the branch that ran. What Python read from tensors on the way is written into it as a
value, and every tensor that such a value comes from, a *decision*, is one more output: while the decisions
are unchanged, so is the graph.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .node import node_at, nodes_at

aten = torch.ops.aten


class Call(nn.Module):
    """Calls the module of interest, `captured`, with tensors by name. Once it has run: `leaves` (path, whether it is a
    tensor) of what that returned, and `assigned` (path, the tensor that was there before, or None)."""
    captured: nn.Module
    leaves: list[tuple[str, bool]]
    assigned: list[tuple[str, Tensor | None]]


class Replay(nn.Module):
    """A recorded graph as a module over the tensors of the module that it was recorded from.

    leaves     (path, whether it is a tensor) for every leaf of what the recorded module returns
    assigned   (path, the tensor that was there before, or None) for every attribute that it assigns a
               tensor to
    decisions  how many tensors follow the leaves and what is assigned in what the replay returns
    """

    captured: nn.Module

    def __init__(self, call: Call, graph: fx.GraphModule, assigned: Iterable[tuple[str, Tensor | None]],
                 decisions: int):
        super().__init__()
        self.captured = call.captured
        self.leaves, self.decisions = tuple(call.leaves), decisions
        self._assigned = lambda: tuple(assigned)  # out of sight of export
        self._recorded = lambda: graph

    @property
    def assigned(self) -> tuple[tuple[str, Tensor | None], ...]:
        return self._assigned()

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        held = {**dict(self.captured.named_parameters()), **dict(self.captured.named_buffers())}
        with preserve_node_meta():  # keeps the source lines
            return fx.Interpreter(self._recorded()).run(*held.values(), *inputs.values())


def record(call: Call, inputs: dict[str, Tensor]) -> Replay:
    """The operations that `call` runs on these inputs; its tensors are copied, since it may write to them.

    Raises CaptureError if forward differentiates.
    """
    model = call.captured
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def copies() -> list[Tensor]:
        return [tensor.detach().clone() for tensor in (*held.values(), *inputs.values())]

    def run(*tensors: Tensor) -> list[Tensor]:
        state = {f"captured.{name}": tensor for name, tensor in zip(held, tensors)}
        return torch.func.functional_call(call, state, (dict(zip(inputs, tensors[len(held):])),))

    trace = make_fx(run, decomposition_table={}, pre_dispatch=True, record_stack_traces=True,
                    _error_on_data_dependent_ops=False)
    with saved_tensors_hooks(lambda tensor: tensor, _refuse_gradients):
        recorded = trace(*copies())
    recorded.graph.set_codegen(fx.graph.CodeGen())
    assigned = [(path, held.get(path, before)) for path, before in call.assigned]
    decisions = _fix_values(recorded, copies())
    output = recorded.graph.output_node()
    output.args = ([*nodes_at(output, 0), *decisions],)
    recorded.recompile()
    return Replay(call, recorded, assigned, len(decisions))


def _refuse_gradients(saved: Any) -> Tensor:
    """What autograd kept for the way back is unknown to the trace: it would count as a constant."""
    raise CaptureError("forward computes gradients, and a graph of those cannot be recorded")


def _fix_values(recorded: fx.GraphModule, tensors: list[Tensor]) -> list[fx.Node]:
    """Writes values into the graph: what Python read, and results whose size depends on values. Returns the
    decisions, which are what these values come from."""
    graph = recorded.graph
    _masks_to_indices(graph)
    run = _Watched(recorded)
    run.run(*tensors)
    decisions: list[fx.Node] = []
    for node in reversed(graph.nodes):
        if node in run.starts:
            decisions += _decisions(graph, node, [node.args[2]])
            node.target, node.args = aten.narrow.default, (*node.args[:2], run.starts[node], *node.args[3:])
        elif node in run.results or _reads_values(node):
            decisions += _decisions(graph, node, node.all_input_nodes)
            if node in run.results:
                _replace_by_value(recorded, node, run.results[node])
            graph.erase_node(node)
        elif node.target is torch._C._set_grad_enabled:
            graph.erase_node(node)
    return decisions[::-1]


class _Watched(fx.Interpreter):
    """Runs a graph, and keeps what depends on values: `results` of unknown size, `starts` of narrow."""

    def __init__(self, recorded: fx.GraphModule):
        super().__init__(recorded)
        self.results: dict[fx.Node, Any] = {}
        self.starts: dict[fx.Node, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if _sized_by_values(node):
            self.results[node] = pytree.tree_map(torch.clone, result)
        elif node.target is aten.narrow.Tensor:  # the one operation that reads a value within itself
            self.starts[node] = int(self.env[node_at(node, 2)])
        return result


def _reads_values(node: fx.Node) -> bool:
    return torch.Tag.data_dependent_output in getattr(node.target, "tags", ())


def _sized_by_values(node: fx.Node) -> bool:
    if node.target in (aten.index.Tensor, aten._unsafe_index.Tensor):
        return False  # with integers only, once the masks are gone
    composite = node.target in (aten.where.default, aten.nonzero_numpy.default)
    return composite or torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def _masks_to_indices(graph: fx.Graph) -> None:
    """x[mask] becomes x[nonzero(mask)]: its size then depends on nothing but the decision `mask`."""
    for node in list(graph.nodes):
        if node.target not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            continue
        if node.target is not aten.index.Tensor and node.args[2].meta["val"].ndim == 0:
            continue  # x[mask] = number
        with graph.inserting_before(node):
            node.update_arg(1, [part for index in node.args[1] for part in _without_mask(graph, index)])


def _without_mask(graph: fx.Graph, index: fx.Node | None) -> Iterator[fx.Node | None]:
    """An index as it is; for a mask, the integer indices of where it is true, one for each dimension."""
    if index is None or index.meta["val"].dtype not in (torch.bool, torch.uint8):
        yield index
        return
    where = graph.call_function(aten.nonzero.default, (index,))
    for dimension in range(index.meta["val"].ndim):
        yield graph.call_function(aten.select.int, (where, 1, dimension))


def _decisions(graph: fx.Graph, node: fx.Node, tensors: Iterable[fx.Node]) -> list[fx.Node]:
    """Copies of the tensors as they are just before `node`, for they may be written to later."""
    decisions = []
    for tensor in tensors:
        with graph.inserting_before(node):
            decisions.append(graph.call_function(aten.clone.default, (tensor,)))
        decisions[-1].meta = dict(node.meta)
    return decisions


def _replace_by_value(recorded: fx.GraphModule, node: fx.Node, value: Any) -> None:
    """Puts a constant in the place of `node`, or one in the place of each of its results."""
    several = isinstance(value, (list, tuple))
    for i, user in enumerate(list(node.users) if several else [node]):
        name = f"{node.name}_value_{i}"
        recorded.register_buffer(name, value[user.args[1]] if several else value, persistent=False)
        with recorded.graph.inserting_before(user):
            user.replace_all_uses_with(recorded.graph.get_attr(name))
        if several:
            recorded.graph.erase_node(user)
