"""Capture: an `nn.Module` becomes a `Program`, a functional FX graph of ATen operations.

The graph comes from `torch.export` (non-strict, on fake tensors: nothing is computed, and no memory is taken
for weights), then `run_decompositions({})`, which only removes in-place writes: composite operations stay as
they are. Where a module branches on the values of its tensors, the branch that the example inputs take is
recorded instead.
"""
from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import io
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.traceback import preserve_node_meta
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .errors import CaptureError, StateError

aten = torch.ops.aten
_RANDOM = ("bernoulli", "dropout", "exponential", "multinomial", "native_dropout", "normal", "poisson",
           "rand", "uniform")
_NOT_THE_USER = (os.path.dirname(torch.__file__) + os.sep, os.path.abspath(__file__), "<")


@dataclass(frozen=True)
class Source:
    """What a placeholder or `get_attr` node stands for; `value`: content of a constant, None if unknown."""
    kind: Literal["state", "constant", "input"]
    name: str
    value: Tensor | None = None


@dataclass(frozen=True)
class Output:
    """One leaf of what the module returns, at `path` (`logits`, `hidden.0`); node None: not a tensor.

    A `decision` is not returned by the module: it is a value that the recorded branch was chosen by. While it
    is unchanged, the recorded graph is what the module computes.
    """
    path: str
    node: fx.Node | None
    decision: bool = False


@dataclass(frozen=True)
class Program:
    """A captured module: the graph, and what its placeholders and outputs mean.

    module     functional graph of ATen operations; `node.meta["val"]`: fake tensor(s) of static shape
    sources    placeholder (or get_attr node) name -> what it is
    outputs    what the module returns, in order
    state      name in `state_dict()` -> shape: parameters, persistent floating-point buffers, all aliases
    ties       alias -> the canonical name of the same tensor, which is the one that the graph uses
    passed     keys of `state_dict()` outside the state: integer buffers, extra state
    front_end  "export", "recorded" (one branch only), or "given" (an ExportedProgram)
    notes      remarks that the user should read
    signature  of the module's forward, to name inputs by
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

    def where(self, node: fx.Node) -> str:
        """The user's source line that made this node, as `net.py:12 in forward: y = f(x)`; "" if unknown."""
        lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
        for i in reversed(range(len(lines))):
            if lines[i].startswith('File "'):
                file, line, function = lines[i].split(", ", 2)
                if not file[6:].startswith(_NOT_THE_USER):
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
        inputs = _inputs(self.signature, *_arguments(example_inputs))
        widest = max((t.dtype for t in state.values() if t.is_floating_point()), key=lambda d: torch.finfo(d).bits,
                     default=torch.get_default_dtype())
        with default_dtype(widest):  # of tensors that the graph makes without naming one
            values = _Interpreter(self, state, on_node).results(inputs)
        tensors = [output for output in self.outputs if output.node is not None]
        return {output.path: value for output, value in zip(tensors, values) if not output.decision}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors made without a dtype get this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def capture(model: nn.Module | ExportedProgram, example_inputs: Any = None) -> Program:
    """Capture `model`, in eval mode, as it runs on `example_inputs`.

    example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; only shapes and
    dtypes matter, unless the module branches on values. One tensor given twice is one input. None will do for
    an `ExportedProgram`, or a `GraphModule` whose placeholders hold example values. The module is left as it
    was and no gradient is computed; parameters may be on the meta device. Raises `CaptureError` if the inputs
    do not fit the module, or no graph can be had.
    """
    with _quiet():
        if isinstance(model, ExportedProgram):
            return _from_exported(model)
        if not isinstance(model, nn.Module):
            raise CaptureError(f"a {type(model).__name__} cannot be captured: give an nn.Module or "
                               "an ExportedProgram")
        if example_inputs is None:
            example_inputs = _placeholder_values(model)
        return _from_module(model, *_arguments(example_inputs))


def _from_module(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Program:
    signature = _signature(model)
    once = {id(tensor): (path, tensor) for path, tensor in reversed(_inputs(signature, args, kwargs).items())}
    inputs = dict(reversed(once.values()))
    _check_initialised(model)
    stand_ins = _stand_ins([*_held(model), *inputs.values()])
    names = _Names(model.state_dict(keep_vars=True), stand_ins)
    with _twin(model, stand_ins) as twin:
        call = _Call(twin, args, kwargs, inputs)
        inputs = {path: stand_ins.get(id(tensor), tensor) for path, tensor in inputs.items()}
        try:
            return _program(_export(call, inputs), names, call.found, list(inputs), "export", signature)
        except Exception as error:
            refusal = error
        try:
            replay = _record(call, inputs)
            names.notes.append(f"recorded{_place(refusal)}: only the branch that the example inputs take was "
                               f"seen, since export refuses the module: {_line(refusal)}")
            return _program(_export(replay, inputs), names, replay.found, list(inputs), "recorded", signature)
        except Exception as error:
            raise CaptureError(_explanation(model, call, inputs, refusal, error)) from refusal


def _export(module: nn.Module, inputs: dict[str, Tensor]) -> ExportedProgram:
    with contextlib.redirect_stderr(io.StringIO()):  # where export prints the graph so far when it gives up
        return _functional(torch.export.export(module, (inputs,), strict=False))


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """Without in-place writes and higher-order regions. A graph that has none is left as it is: removing them costs more
    than the export itself."""
    for node in exported.graph.nodes:
        op = node.target
        if node.op == "call_function" and (isinstance(op, torch._ops.HigherOrderOperator)
                                           or isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable):
            return exported.run_decompositions({})
    return exported


def _from_exported(exported: ExportedProgram) -> Program:
    """An ExportedProgram as it is; its arguments are named after its placeholders."""
    specs = exported.graph_signature.input_specs
    user = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    args, kwargs = pytree.tree_unflatten(user, exported.call_spec.in_spec)
    positional = [arg if isinstance(arg, str) else f"args_{i}" for i, arg in enumerate(args)]
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                                   for name in (*positional, *kwargs)])
    leaves = dict(leaves_of({**dict(zip(positional, args)), **kwargs}))
    paths = sorted(leaves, key=lambda path: user.index(leaves[path]))
    results = [None if isinstance(spec.arg, ConstantArgument) else spec.arg.name
               for spec in exported.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    returned = pytree.tree_unflatten(results, exported.call_spec.out_spec)
    found = {path: leaf is not None for path, leaf in leaves_of(returned)}
    names = _Names(exported.state_dict)
    return _program(_functional(exported), names, found, paths, "given", signature)


def _placeholder_values(model: nn.Module) -> tuple:
    """Example inputs from the placeholders of a GraphModule that keeps them there."""
    nodes = model.graph.nodes if isinstance(model, fx.GraphModule) else ()
    values = [node.meta.get("val") for node in nodes if node.op == "placeholder"]
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise CaptureError(f"{type(model).__name__} cannot be captured without shapes: give example inputs "
                           "(a tensor, a tuple, or a dict of keyword arguments)")
    return tuple(torch.empty(tuple(value.shape), dtype=value.dtype, device="meta") for value in values)


# ---- the module, called by name ----------------------------------------------------------------------------

class _Found(dict):
    """Path -> whether there is a tensor. (Export would undo changes to a plain dict, but not to this.)"""


class _Call(nn.Module):
    """Calls a module as the user would, but takes its tensors by name and returns a flat list of tensors."""

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], inputs: dict[str, Tensor]):
        super().__init__()
        self.captured = model
        self.found = _Found()
        self._given = lambda: (args, kwargs, inputs)  # out of sight of export, which looks into attributes

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        args, kwargs, given = self._given()
        memo: dict[int, Any] = {id(old): inputs[path] for path, old in given.items()}
        args, kwargs = copy.deepcopy((args, kwargs), memo)
        leaves = dict(leaves_of(self.captured(*args, **kwargs)))
        self.found.clear()
        self.found.update({path: isinstance(leaf, Tensor) for path, leaf in leaves.items()})
        return [leaf for leaf in leaves.values() if isinstance(leaf, Tensor)]


def _arguments(example_inputs: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def _inputs(signature: inspect.Signature | None, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among the arguments by path, such as `x` or `batch.image`."""
    named: dict[str, Any] = {**{f"args.{i}": arg for i, arg in enumerate(args)}, **kwargs}
    with contextlib.suppress(TypeError, AttributeError):  # the module itself will complain about a misfit
        bound = signature.bind(*args, **kwargs).arguments
        named = {}
        for name, value in bound.items():
            extra = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            named.update(value if extra else {name: value})
    return {path: leaf for path, leaf in leaves_of(named) if isinstance(leaf, Tensor)}


def leaves_of(value: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested containers with its path; of other objects (such as a cache) the tensors only."""
    parts = _parts(value, above) if id(value) not in above else None
    if parts is None:
        yield path or "output", value
        return
    for key, part in parts:
        yield from leaves_of(part, ".".join(piece for piece in (path, str(key)) if piece), (*above, id(value)))


def _parts(value: Any, above: tuple[int, ...]) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, (Tensor, nn.Module, type)) or callable(value):
        return None
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    parts = []
    for key, part in getattr(value, "__dict__", {}).items():
        leaves = leaves_of(part, "", (*above, id(value)))
        tensors = {path: leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
        if tensors:
            parts.append((key, tensors.get("output", tensors)))
    if len(parts) == 1:  # an object that only wraps something adds no name
        return [("", parts[0][1])]
    return parts or None


# ---- what is around it while it is traced ------------------------------------------------------------------

@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No gradients, no warnings or logs of the tracer, no fused path (an opaque operation) in attention."""
    fast = torch.backends.mha.get_fastpath_enabled()
    level = logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _twin(model: nn.Module, stand_ins: dict[int, Tensor]) -> Iterator[nn.Module]:
    """A copy of the module's objects in eval mode, so that nothing that forward does is seen outside.

    It shares parameters and buffers; tensors without data are replaced by stand-ins. Where copying fails, it
    is the module itself, put back afterwards.
    """
    shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    memo: dict[int, Any] = {id(tensor): tensor if id(tensor) in shared else tensor.detach().clone()
                            for tensor in _held(model) if id(tensor) not in stand_ins} | stand_ins
    before = [(module, dict(vars(module)), dict(module._parameters), dict(module._buffers))
              for module in model.modules()]
    try:
        twin = copy.deepcopy(model, memo)
    except Exception:  # it holds a lock, an open file, a tensor in the middle of a computation
        twin = model
    try:
        twin.eval()
        if hasattr(twin, "set_experts_implementation"):  # transformers: batched products, no loop
            with contextlib.suppress(Exception):
                twin.set_experts_implementation("batched_mm")
        yield twin
    finally:
        for module, attributes, parameters, buffers in before if twin is model else ():
            vars(module).clear()
            vars(module).update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _held(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module or one of its children holds as parameter, buffer or plain attribute."""
    for module in model.modules():
        for holder in (module._parameters, module._buffers, vars(module)):
            yield from (value for value in holder.values() if isinstance(value, Tensor))


def _stand_ins(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Fake CPU tensors for those on the meta device, by id: unlike meta tensors, they mix with real ones."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, export=True, shape_env=ShapeEnv(tracked_fakes=[]))
    found: dict[int, Tensor] = {}
    for tensor in tensors:
        if (tensor.is_meta or isinstance(tensor, FakeTensor)) and id(tensor) not in found:
            with mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                is_parameter = isinstance(tensor, nn.Parameter)
                found[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
    return found


def _check_initialised(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise CaptureError(f"{name} of {type(model).__name__} has no shape yet: run the lazy module once")


# ---- from an exported graph to a Program -------------------------------------------------------------------

class _Names:
    """What the tensors of a module are called in its `state_dict()`; they are known by their memory."""

    def __init__(self, state_dict: Mapping[str, Any], stand_ins: Mapping[int, Tensor] | None = None):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ties: dict[str, str] = {}
        self.passed: list[str] = []
        self.notes: list[str] = []
        self._canonical: dict[Any, str] = {}
        overlapping = _overlapping(state_dict)
        for name, value in state_dict.items():
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
                self.passed.append(name)
            elif name in overlapping:
                self.passed.append(name)
                self.notes.append(f"{name} shares part of its memory with another tensor: it stays as it is")
            else:
                self.shapes[name] = tuple(value.shape)
                first = self._canonical.setdefault(_identity((stand_ins or {}).get(id(value), value)), name)
                if first != name:
                    self.ties[name] = first

    def of(self, value: Tensor | None) -> str | None:
        """The canonical name of a tensor of the state, None for any other."""
        return None if value is None else self._canonical.get(_identity(value))


def _identity(tensor: Tensor) -> Any:
    if not tensor.is_meta and not isinstance(tensor, FakeTensor):
        with contextlib.suppress(Exception):  # a tensor without memory of its own
            if tensor.numel() and tensor.data_ptr():
                return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    return id(tensor)


def _overlapping(state_dict: Mapping[str, Any]) -> set[str]:
    """Names of tensors that share some memory, but are not the same elements in the same order."""
    views: dict[Any, tuple[int, int, list[str]]] = {}
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and isinstance(key := _identity(value), tuple):
            reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
            views.setdefault(key, (key[0], key[0] + (reach + 1) * value.element_size(), []))[2].append(name)
    found: set[str] = set()
    end, last = 0, []
    for start, stop, names in sorted(views.values()):
        if start < end:
            found.update(names, last)
        if stop > end:
            end, last = stop, names
    return found


def _program(exported: ExportedProgram, names: _Names, found: Mapping[str, bool], paths: list[str],
             front_end: str, signature: inspect.Signature | None) -> Program:
    module, graph = exported.graph_module, exported.graph
    _check_static(graph)
    sources = _sources(exported, names, paths)
    results = zip(exported.graph_signature.output_specs, graph.output_node().args[0])
    returned = [node for spec, node in results if spec.kind is OutputKind.USER_OUTPUT]
    tensors = iter([node for node in returned if isinstance(node, fx.Node)])
    if not any(found.values()):
        raise CaptureError("the module returns no tensor: return one, or a container that holds one")
    outputs = tuple(Output(path, next(tensors) if tensor else None, path.startswith(_DECISION))
                    for path, tensor in found.items())
    weighed = _reached(graph, sources)
    outputs = tuple(output for output in outputs if not output.decision or output.node in weighed)
    graph.output_node().args = (tuple(output.node for output in outputs if output.node is not None),)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # guards and asserts go too
    graph.lint()
    module.recompile()
    notes = tuple(dict.fromkeys((*names.notes, *_remarks(exported))))
    return Program(module, sources, outputs, names.shapes, names.ties, tuple(names.passed), front_end, notes,
                   signature)


def _sources(exported: ExportedProgram, names: _Names, paths: list[str]) -> dict[str, Source]:
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


def _remarks(exported: ExportedProgram) -> Iterator[str]:
    changed = {OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION}
    for spec in exported.graph_signature.output_specs:
        if spec.kind in changed:
            name = spec.target.removeprefix("captured.")
            yield f"forward writes to {name}: the change is not part of the program"
    for node in exported.graph.nodes:
        if node.op == "call_function" and node.target.__name__.startswith(_RANDOM):
            yield f"forward draws random numbers ({node.target}): its outputs differ from call to call"


# ---- the recorder, for modules that branch on values -------------------------------------------------------

_DECISION = "decision."


class _Replay(nn.Module):
    """A recorded graph as a module over the tensors of the module that it was recorded from."""

    def __init__(self, model: nn.Module, found: _Found, graph: fx.GraphModule):
        super().__init__()
        self.captured = model
        self.found = found
        self._recorded = lambda: graph

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        held = {**dict(self.captured.named_parameters()), **dict(self.captured.named_buffers())}
        with preserve_node_meta():  # keeps the source lines
            return fx.Interpreter(self._recorded()).run(*held.values(), *inputs.values())


class _Reads(TorchFunctionMode):
    """Makes a read of a tensor that leaves no operation behind visible, as a comparison with itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            torch.equal(args[0], args[0])
        return function(*args, **(kwargs or {}))


def _record(call: _Call, inputs: dict[str, Tensor]) -> _Replay:
    """The operations that `call` runs on these inputs; its tensors are copied, since it may write to them."""
    model = call.captured
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def copies() -> list[Tensor]:
        return [tensor.detach().clone() for tensor in (*held.values(), *inputs.values())]

    def run(*tensors: Tensor) -> list[Tensor]:
        state = {f"captured.{name}": tensor for name, tensor in zip(held, tensors)}
        return torch.func.functional_call(call, state, (dict(zip(inputs, tensors[len(held):])),))

    trace = make_fx(run, decomposition_table={}, pre_dispatch=True, record_stack_traces=True,
                    _error_on_data_dependent_ops=False)
    with _Reads():
        recorded = trace(*copies())
    recorded.graph.set_codegen(fx.graph.CodeGen())
    found = _Found(call.found)
    decisions = _fix_values(recorded, copies())
    found.update({f"{_DECISION}{i}": True for i in range(len(decisions))})
    output = recorded.graph.output_node()
    output.args = ([*output.args[0], *decisions],)
    recorded.recompile()
    return _Replay(model, found, recorded)


def _fix_values(recorded: fx.GraphModule, tensors: list[Tensor]) -> list[fx.Node]:
    """Write values into the graph: what Python read, and results whose size depends on values.

    Returns the decisions, which are what these values come from: while they are unchanged, so is the graph.
    """
    graph = recorded.graph
    _masks_to_indices(graph)
    results: dict[fx.Node, Any] = {}
    starts: dict[fx.Node, int] = {}

    class Run(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if _sized_by_values(node):
                results[node] = pytree.tree_map(torch.clone, result)
            elif node.target is aten.narrow.Tensor:  # the one operation that reads a value within itself
                starts[node] = int(self.env[node.args[2]])
            return result

    Run(recorded).run(*tensors)
    decisions = []
    for node in reversed(graph.nodes):
        if node in starts:
            decisions += _decisions(graph, node, [node.args[2]])
            node.target, node.args = aten.narrow.default, (*node.args[:2], starts[node], *node.args[3:])
        elif node in results or _reads_values(node):
            decisions += _decisions(graph, node, node.all_input_nodes)
            if node in results:
                _replace_by_value(recorded, node, results[node])
            graph.erase_node(node)
        elif node.target is torch._C._set_grad_enabled:
            graph.erase_node(node)
    return decisions[::-1]


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
        indices: list[fx.Node | None] = []
        with graph.inserting_before(node):
            for index in node.args[1]:
                if index is None or index.meta["val"].dtype not in (torch.bool, torch.uint8):
                    indices.append(index)
                    continue
                where = graph.call_function(aten.nonzero.default, (index,))
                indices += [graph.call_function(aten.select.int, (where, 1, i))
                            for i in range(index.meta["val"].ndim)]
        node.update_arg(1, indices)


def _decisions(graph: fx.Graph, node: fx.Node, tensors: Iterable[fx.Node]) -> list[fx.Node]:
    decisions = []
    for tensor in tensors:
        with graph.inserting_before(node):  # a copy, for the tensor may be written to later
            decisions.append(graph.call_function(aten.clone.default, (tensor,)))
        decisions[-1].meta = dict(node.meta)
    return decisions


def _replace_by_value(recorded: fx.GraphModule, node: fx.Node, value: Any) -> None:
    """Put a constant in the place of `node`, or one in the place of each of its results."""
    several = isinstance(value, (list, tuple))
    for i, user in enumerate(list(node.users) if several else [node]):
        name = f"{node.name}_value_{i}"
        recorded.register_buffer(name, value[user.args[1]] if several else value, persistent=False)
        with recorded.graph.inserting_before(user):
            user.replace_all_uses_with(recorded.graph.get_attr(name))
        if several:
            recorded.graph.erase_node(user)


# ---- running a program, and saying why there is none -------------------------------------------------------

class _Interpreter(fx.Interpreter):
    """Runs the graph of a program on real tensors."""

    def __init__(self, program: Program, state: Mapping[str, Tensor],
                 on_node: Callable[[fx.Node, Any], None] | None):
        super().__init__(program.module)
        self.sources, self.on_node = program.sources, on_node
        missing = [name for name in program.state if name not in state and name not in program.ties]
        if missing:
            raise StateError(f"the state has no {missing[0]} ({len(missing)} tensors are missing): "
                             "give a state_dict() of the captured module")
        self.state = {name: state[name] for name in program.state if name not in program.ties}
        captured = {source.name: node.meta["val"].dtype for node in program.module.graph.nodes
                    if (source := program.sources.get(node.name)) and source.kind == "state"}
        self.dtype = None
        if any(self.state[name].dtype != dtype for name, dtype in captured.items()):
            floats = [tensor.dtype for tensor in self.state.values() if tensor.is_floating_point()]
            self.dtype = max(floats, key=lambda dtype: torch.finfo(dtype).bits)
        self.device = next((tensor.device for tensor in self.state.values()), torch.device("cpu"))

    def results(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        self.inputs = inputs
        with torch.no_grad():
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
        if isinstance(value, torch.device):
            return self.device
        is_float = isinstance(value, torch.dtype) and value.is_floating_point
        return self.dtype if self.dtype and is_float else value


def _explanation(model: nn.Module, call: _Call, inputs: dict[str, Tensor], refusal: Exception,
                 recording: Exception) -> str:
    """One line on why there is no graph: the module fails on these inputs, or the tracers refuse it."""
    if isinstance(refusal, CaptureError):
        return _line(refusal)
    name = type(model).__name__
    held = {**dict(call.named_parameters()), **dict(call.named_buffers())}
    try:
        copies = {key: tensor.clone() for key, tensor in held.items()}
        torch.func.functional_call(call, copies, (inputs,))
    except Exception as error:
        if not type(error).__module__.startswith("torch."):
            return (f"{name} does not run on the example inputs{_place(error)}: {type(error).__name__}: "
                    f"{_line(error)}; give inputs that its forward accepts")
    if any(isinstance(tensor, FakeTensor) for tensor in (*held.values(), *inputs.values())):
        advice = "a branch on values can be recorded if the module is on a real device, not on meta"
    else:
        advice = f"recording what the inputs do failed too{_place(recording)}: {_line(recording)}"
    return (f"{name} cannot be captured{_place(refusal)}: {_line(refusal)}; {advice}; or capture the part of "
            "the module without this line")


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".;:")[:300]


def _place(error: Exception) -> str:
    """The last line of the user's code that the error came through, as ` at net.py:12 (y = f(x))`."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [i for i, frame in enumerate(frames) if frame.filename == os.path.abspath(__file__)]
    inner = frames[inside[-1] if inside else 0:]
    user = [frame for frame in inner if not frame.filename.startswith(_NOT_THE_USER)]
    return f" at {os.path.basename(user[-1].filename)}:{user[-1].lineno} ({user[-1].line})" if user else ""
