"""A captured module: the graph, and what its placeholders and outputs mean."""
from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from ..errors import StateError
from .interpreter import run
from .leaves import arguments, inputs_of
from .source import Source

NOT_THE_USER = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.abspath(__file__)) + os.sep,
                contextlib.__file__, "<")  # what the names of files begin with that the user did not write


@dataclass(frozen=True)
class Output:
    """A value that matters: one leaf of what the module returns, at `path` (`logits`, `hidden.0`); node
    None: not a tensor. Other kinds are not returned by the module:

    decision  what the recorded branch was chosen by. While it is unchanged, the graph is what the module
              computes
    tied      a difference whose two sides are ordered alike: of a buffer and what forward writes to it, of
              two tensors that lie in each other's memory
    pinned    a value that stays as it is; `path` says why
    kept      what forward assigns to the attribute `path`, and did not read before
    """
    path: str
    node: fx.Node | None
    kind: Literal["returned", "decision", "tied", "pinned", "kept"] = "returned"

    @property
    def decision(self) -> bool:
        """Whether the module does not return it."""
        return self.kind != "returned"


@dataclass(frozen=True)
class Program:
    """A captured module: the graph, and what its placeholders and outputs mean.

    module     functional graph of ATen operations; `node.meta["val"]`: fake tensor(s) of static shape
    sources    placeholder (or get_attr node) name -> what it is
    outputs    what the module returns, in order; what else matters last
    state      name in `state_dict()` -> shape: parameters, persistent floating-point buffers, all aliases
    ties       alias -> the canonical name of the same tensor, which is the one that the graph uses
    passed     keys of `state_dict()` outside the state: integer buffers, extra state
    front_end  "export", "recorded" (what the example inputs do), or "given" (an ExportedProgram)
    notes      remarks that the user should read
    signature  of the module's forward, to name inputs by
    kinds      name in `state_dict()` -> what the module registered it as: "parameter", "buffer", "integer"
               (booleans too), "extra"; empty if there was no module to ask
    deciding   names of the entries and inputs that a recorded branch was chosen by
    decided    entries of the state by whose numbers, without any input, a recorded branch was chosen, where
               other numbers may choose another -> their numbers: the graph is that of the module for these alone
    assumed    what the graph takes for granted of states, in sentences
    agreement  how graph and module were compared at other numbers, in a sentence; "" if they were not
    """
    module: fx.GraphModule
    sources: dict[str, Source]
    outputs: tuple[Output, ...]
    state: dict[str, tuple[int, ...]]
    ties: dict[str, str]
    passed: tuple[str, ...]
    front_end: str
    notes: tuple[str, ...] = ()
    signature: inspect.Signature | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    deciding: tuple[str, ...] = ()
    decided: Mapping[str, Tensor] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    agreement: str = ""

    def where(self, node: fx.Node) -> str:
        """The user's source line that made this node, as `net.py:12 in forward: y = f(x)`; "" if unknown."""
        lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
        for i in reversed(range(len(lines))):
            if lines[i].startswith('File "'):
                file, line, function = lines[i].split(", ", 2)
                if not file[6:].startswith(NOT_THE_USER):
                    code = lines[i + 1] if i + 1 < len(lines) else ""
                    return f"{os.path.basename(file[6:-1])}:{line[5:]} {function}: {code}"
        return ""

    def interpret(self, state: Mapping[str, Tensor], example_inputs: Any,
                  on_node: Callable[[fx.Node, Any], None] | None = None) -> dict[str, Tensor]:
        """Run the graph with the tensors of `state`, and return the module's tensor outputs by path.

        `on_node(node, value)` is called for every node, in order. If the dtypes of the state are not those
        captured, everything floating-point is computed in the widest dtype of the state (float64, say).
        Raises `StateError` for missing tensors, `CaptureError` for constants and inputs without a value.
        """
        names = [name for name in self.state if name not in self.ties]
        missing = [name for name in names if name not in state]
        if missing:
            raise StateError(f"the state has no {missing[0]} ({len(missing)} tensors are missing): "
                             "give a state_dict() of the captured module")
        inputs = inputs_of(self.signature, *arguments(example_inputs))
        held = {name: state[name] for name in names}
        values = run(self.module, self.sources, held, inputs, on_node)
        tensors = [output for output in self.outputs if output.node is not None]
        return {output.path: value for output, value in zip(tensors, values) if output.kind == "returned"}
