"""Running a program on real tensors."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..errors import CaptureError, StateError

if TYPE_CHECKING:
    from .program import Program, Source


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors made without a dtype get this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Interpreter(fx.Interpreter):
    """Runs the graph of a program on real tensors; `Program.interpret` says how, and what it raises."""

    def __init__(self, program: Program, state: Mapping[str, Tensor],
                 on_node: Callable[[fx.Node, Any], None] | None):
        super().__init__(program.module)
        self.sources, self.on_node = program.sources, on_node
        names = [name for name in program.state if name not in program.ties]
        missing = [name for name in names if name not in state]
        if missing:
            raise StateError(f"the state has no {missing[0]} ({len(missing)} tensors are missing): "
                             "give a state_dict() of the captured module")
        self.state = {name: state[name] for name in names}
        floats = [tensor.dtype for tensor in self.state.values() if tensor.is_floating_point()]
        self.widest = max(floats, key=lambda dtype: torch.finfo(dtype).bits,
                          default=torch.get_default_dtype())
        captured = {source.name: node.meta["val"].dtype for node in program.module.graph.nodes
                    if (source := program.sources.get(node.name)) and source.kind == "state"}
        as_captured = all(self.state[name].dtype == dtype for name, dtype in captured.items())
        self.dtype = None if as_captured else self.widest
        self.device = next((tensor.device for tensor in self.state.values()), torch.device("cpu"))

    def results(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The values of the graph's outputs, for the tensors among the module's inputs by path."""
        self.inputs = inputs
        with torch.no_grad(), default_dtype(self.widest):  # for tensors that the graph makes from nothing
            return self.run(*[None] * len(self.sources), enable_io_processing=False)

    def run_node(self, node: fx.Node) -> Any:
        value = self._source(self.sources[node.name]) if node.name in self.sources else super().run_node(node)
        if self.on_node is not None:
            self.on_node(node, value)
        return value

    def _source(self, source: Source) -> Tensor:
        held = {"state": self.state, "input": self.inputs}.get(source.kind, {source.name: source.value})
        if held.get(source.name) is None:
            raise CaptureError(f"the graph cannot be run: the {source.kind} {source.name} has no value; "
                               "give it, or capture a module that is not on the meta device")
        return self._cast(held[source.name])

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        return super().call_function(target, *pytree.tree_map(self._cast_setting, (args, kwargs)))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _cast_setting(self, value: Any) -> Any:
        """Devices and dtypes that the graph was captured with, as they are for this state."""
        if isinstance(value, torch.device):
            return self.device
        is_float = isinstance(value, torch.dtype) and value.is_floating_point
        return self.dtype if self.dtype and is_float else value
