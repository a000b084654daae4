"""Running a captured graph on real tensors."""
from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .source import Source


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors made without a dtype get this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


OnNode = Callable[[fx.Node, Any], None]


def run(module: fx.GraphModule, sources: Mapping[str, Source], state: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor], on_node: OnNode | None = None) -> tuple[Tensor, ...]:
    """The values of the graph's outputs; `Program.interpret` says how, and what it raises.

    state: canonical name -> tensor, for all that `sources` names;  inputs: path -> tensor
    """
    floats = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    widest = max(floats, key=lambda dtype: torch.finfo(dtype).bits, default=torch.get_default_dtype())
    dtype = None if _as_captured(module.graph, sources, state) else widest
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    values: dict[fx.Node, Any] = {}
    unneeded = _unneeded_after(module.graph)
    with torch.no_grad(), default_dtype(widest):  # for tensors that the graph makes from nothing
        for node in module.graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "output":
                results = values[node] = args[0]
            elif node.name in sources:
                given = value_of(sources[node.name], state, inputs)
                values[node] = given.to(device, dtype if given.is_floating_point() else None)
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(module)
            else:
                args, kwargs = _settings((args, kwargs), device, dtype)
                values[node] = node.target(*args, **kwargs)
            if on_node is not None:
                on_node(node, values[node])
            for done in unneeded.get(node, ()):
                del values[done]
    return results


def _as_captured(graph: fx.Graph, sources: Mapping[str, Source], state: Mapping[str, Tensor]) -> bool:
    """Whether all dtypes of the state are those that the graph was captured with."""
    held = [(node, sources[node.name].name) for node in graph.nodes
            if node.name in sources and sources[node.name].kind == "state"]
    return all(state[name].dtype == node.meta["val"].dtype for node, name in held)


def value_of(source: Source, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """What a placeholder stands for, in a run on some state and inputs. Raises CaptureError if it has no value."""
    held = {"state": state, "input": inputs}.get(source.kind, {source.name: source.value})
    value = held.get(source.name)
    if value is None:
        raise CaptureError(f"the graph cannot be run: the {source.kind} {source.name} has no value; "
                           "give it, or capture a module that is not on the meta device")
    return value


def _settings(values: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Devices and dtypes that the graph was captured with, as they are for this state."""
    def setting(value: Any) -> Any:
        if isinstance(value, torch.device):
            return device
        is_float = isinstance(value, torch.dtype) and value.is_floating_point
        return dtype if dtype and is_float else value
    return pytree.tree_map(setting, values)


def _unneeded_after(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the values that nothing after it needs."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last.update(dict.fromkeys((node, *node.all_input_nodes), node))
    found: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        found.setdefault(user, []).append(node)
    return found
