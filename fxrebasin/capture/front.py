"""`capture`: export a module, or record it where export refuses."""
from __future__ import annotations

import contextlib
import copy
import inspect
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .agreement import compared
from .exported import Aside, functional, program_of
from .leaves import arguments, inputs_of, leaves_of, signature_of
from .names import Names
from .program import Program
from .reads import Reads, note_read, refuse_read
from .recorder import Call, Replay, record
from .refusal import explanation, line_of, place_of
from .tracing_copy import check_initialised, held_by, quiet, stand_ins_for, tracing_copy_of


def capture(model: nn.Module | ExportedProgram, example_inputs: Any = None) -> Program:
    """Capture `model`, in eval mode, as it runs on `example_inputs`.

    example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; only shapes and
    dtypes matter, unless the module branches on values. One tensor given twice is one input. None will do for
    an `ExportedProgram`, or a `GraphModule` whose placeholders hold example values. The module is left as it
    was and no gradient is computed; parameters may be on the meta device. Raises `CaptureError` if the inputs
    do not fit the module, or no graph can be had.
    """
    with quiet():
        if isinstance(model, ExportedProgram):
            return _from_exported(model)
        if not isinstance(model, nn.Module):
            raise CaptureError(f"a {type(model).__name__} cannot be captured: give an nn.Module or "
                               "an ExportedProgram")
        if example_inputs is None:
            example_inputs = _placeholder_values(model)
        return _from_module(model, *arguments(example_inputs))


def _from_module(model: nn.Module, args: tuple, kwargs: dict[str, Any], alone: bool = False) -> Program:
    """`alone`: without a comparison of graph and module at other numbers."""
    signature = signature_of(model)
    given = inputs_of(signature, args, kwargs)
    once = {id(tensor): (path, tensor) for path, tensor in reversed(given.items())}  # under its first path
    inputs = dict(reversed(once.values()))
    check_initialised(model)
    held = {id(tensor): tensor for tensor in (*held_by(model), *inputs.values())}
    stand_ins = stand_ins_for(held.values())
    originals = {id(stand_in): held[key] for key, stand_in in stand_ins.items()}
    names = Names(model.state_dict(keep_vars=True), originals)

    def accepted(program: Program) -> Program:
        return program if alone else compared(program, model, args, kwargs, inputs, again)

    def again(other: nn.Module) -> Program:
        return _from_module(other, args, kwargs, alone=True)

    fakes = {path: stand_ins.get(id(tensor), tensor) for path, tensor in inputs.items()}
    with tracing_copy_of(model, stand_ins) as traced:
        call = _Call(traced, args, kwargs, inputs, refuse_read)
        try:
            exported = _export(call, fakes)
            aside = Aside(call.assigned)
            return accepted(program_of(exported, names, list(inputs), call.leaves, "export", signature, aside))
        except Exception as error:  # noqa: BLE001 - the tracer and the user's code can raise anything
            refusal = error
    with tracing_copy_of(model, stand_ins, share=False) as traced:
        call = _Call(traced, args, kwargs, inputs, note_read)
        names.add_copy(traced.state_dict(keep_vars=True))
        try:
            replay = record(call, fakes)
            remark = _remark(replay, refusal)
            aside = Aside(replay.assigned, replay.decisions, (remark,), tuple(held_by(traced)))
            exported = _export(replay, fakes)
            return accepted(program_of(exported, names, list(inputs), replay.leaves, "recorded", signature, aside))
        except Exception as error:  # noqa: BLE001
            raise CaptureError(explanation(call, fakes, refusal, error)) from refusal


def _export(module: nn.Module, inputs: dict[str, Tensor]) -> ExportedProgram:
    with contextlib.redirect_stderr(io.StringIO()):  # where export prints the graph so far when it gives up
        return functional(torch.export.export(module, (inputs,), strict=False))


def _remark(replay: Replay, refusal: Exception) -> str:
    """What the user should know of a record."""
    why = f"export refuses the module: {line_of(refusal)}"
    if replay.decisions:
        return (f"recorded{place_of(refusal)}: only the branch that the example inputs take was seen, "
                f"since {why}")
    return f"recorded{place_of(refusal)}: {why}; no branch depends on values, so nothing was left out"


class _Leaves(list):
    """(path, whether it is a tensor). Export would undo changes to a plain list, but not to this."""


class _SwitchesUnseen(TorchFunctionMode):
    """Switching gradients on and off takes effect, but leaves no region behind in the graph: such regions say
    nothing about the function, and export cannot make all of them functional."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        hidden = function is torch._C._set_grad_enabled
        with torch._C.DisableTorchFunction() if hidden else contextlib.nullcontext():
            return function(*args, **(kwargs or {}))


class _Call(Call):
    """Calls a module as the user would, but takes its tensors by name and returns a flat list of tensors:
    those that the module returns, then those that it assigned to attributes."""

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], inputs: dict[str, Tensor],
                 on_read: Callable[[Tensor], Any]):
        super().__init__()
        self.captured = model
        self.leaves = _Leaves()  # of what the module returned
        self.assigned = _Leaves()  # (path, the tensor that was there before, or None) for what it assigned
        self._given = lambda: (args, kwargs, inputs, on_read)  # out of sight of export

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        args, kwargs, given, on_read = self._given()
        memo: dict[int, Any] = {id(old): inputs[path] for path, old in given.items()}
        args, kwargs = copy.deepcopy((args, kwargs), memo)
        before, old = _attributes(self.captured), {id(tensor) for tensor in held_by(self.captured)}
        with _SwitchesUnseen() if torch.compiler.is_exporting() else contextlib.nullcontext(), Reads(on_read):
            leaves = list(leaves_of(self.captured(*args, **kwargs)))
        after = _attributes(self.captured)
        new = [(path, tensor) for path, tensor in after.items() if before.get(path) is not tensor]
        old.update(map(id, after.values()))
        new += [("a container", tensor) for tensor in held_by(self.captured) if id(tensor) not in old]
        self.leaves[:] = [(path, isinstance(leaf, Tensor)) for path, leaf in leaves]
        self.assigned[:] = [(path, before.get(path)) for path, _ in new]
        return [leaf for _, leaf in leaves if isinstance(leaf, Tensor)] + [tensor for _, tensor in new]


def _attributes(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a module and its children hold directly, by path."""
    return {f"{name}.{key}".removeprefix("."): value for name, module in model.named_modules()
            for holder in (module._parameters, module._buffers, vars(module))
            for key, value in holder.items() if isinstance(value, Tensor)}


def _from_exported(exported: ExportedProgram) -> Program:
    """An ExportedProgram as it is; its arguments are named after its placeholders."""
    specs = exported.graph_signature.input_specs
    user = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    args, kwargs = pytree.tree_unflatten(user, exported.call_spec.in_spec)
    positional = [arg if isinstance(arg, str) else f"args_{i}" for i, arg in enumerate(args)]
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                                   for name in (*positional, *kwargs)])
    found = dict(leaves_of({**dict(zip(positional, args)), **kwargs}))
    paths = sorted(found, key=lambda path: user.index(found[path]))
    results = [None if isinstance(spec.arg, ConstantArgument) else spec.arg.name
               for spec in exported.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    returned = pytree.tree_unflatten(results, exported.call_spec.out_spec)
    leaves = [(path, leaf is not None) for path, leaf in leaves_of(returned)]
    return program_of(functional(exported), Names(exported.state_dict), paths, leaves, "given", signature)


def _placeholder_values(model: nn.Module) -> tuple:
    """Example inputs from the placeholders of a GraphModule that keeps them there."""
    nodes = model.graph.nodes if isinstance(model, fx.GraphModule) else ()
    values = [node.meta.get("val") for node in nodes if node.op == "placeholder"]
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise CaptureError(f"{type(model).__name__} cannot be captured without shapes: give example inputs "
                           "(a tensor, a tuple, or a dict of keyword arguments)")
    return tuple(torch.empty(tuple(value.shape), dtype=value.dtype, device="meta") for value in values)
