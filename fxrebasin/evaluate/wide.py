"""A program in float64: constants, inputs and state widened, casts to fewer bits lifted.

A network that computes its norms in float32 is the same network in float64; what it rounds on the way says
nothing about the function, and would hide small changes of it.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from ..capture import Program, Source, default_dtype, node_at, op_of, tensor_of, value_of
from ..errors import CaptureError, StateError
from .grouped import grouped_product
from .ops import BITWISE, base_name, overload

EPS = torch.finfo(torch.float64).eps
INSTEAD: dict[str, Callable[..., Any]] = {"_grouped_mm.default": grouped_product}
OWN_EPS = {"rms_norm.default": 3, "_fused_rms_norm.default": 3}  # op -> place of an epsilon that goes by the dtype if left out


@dataclass(frozen=True)
class Outcome:
    """What a program gave.

    outputs  the module's tensor outputs by path, floating-point ones in float64
    scores   for an output of places or truth values that was read off numbers (argmax, >): these numbers
    """
    outputs: dict[str, Tensor]
    scores: dict[str, Tensor]


def evaluate(
    program: Program, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], seed: int = 0
) -> Outcome:
    """Runs the program in float64, on copies.

    state   the tensors of a state dict of the module, of any dtypes
    inputs  path -> tensor, as `given_inputs` makes them
    seed    of random numbers that the network draws

    Raises StateError for missing tensors, CaptureError for a constant without a value or if an operation
    fails.
    """
    return Wide(program, state, inputs).outcome(seed)


class Wide(fx.Interpreter):
    """One run of a program; `eps` holds the precision of operations that would not run in float64."""

    def __init__(self, program: Program, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor]):
        super().__init__(program.module)
        self.extra_traceback = False  # messages are one line
        self.program, self.state, self.given = program, state, inputs
        for name in program.state:
            if name not in program.ties and name not in state:
                raise StateError(f"the state has no {name!r}: give a state_dict() of the captured module")
        self.device = _device(state.get(name) for name in program.state)
        self.eps: dict[fx.Node, float] = {}
        self.read_off = _read_off(program)
        self.scores: dict[fx.Node, Tensor] = {}

    def outcome(self, seed: int = 0) -> Outcome:
        """Runs the program."""
        with torch.no_grad(), default_dtype(torch.float64), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            values = self.run(*[None] * len(self.program.sources), enable_io_processing=False)
        tensors = [output for output in self.program.outputs if output.node is not None]
        outputs = {output.path: value for output, value in zip(tensors, values) if not output.decision}
        return Outcome(outputs, {path: self.scores[node] for path, node in self.read_off.items()})

    def run_node(self, node: fx.Node) -> Any:
        source = self.program.sources.get(node.name)
        if source is not None:
            value = widened(self._held(source).to(self.device))
        elif node.op == "call_function":
            value = self._call(node)
        else:
            value = super().run_node(node)
        return self.changed(node, value)

    def changed(self, node: fx.Node, value: Any) -> Any:
        """A node's value, as those who use it see it."""
        return value

    def argument(self, node: fx.Node, value: Any) -> Any:
        """The arguments of a node, as the node sees them."""
        return value

    def _held(self, source: Source) -> Tensor:
        return value_of(source, self.state, self.given).detach()

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self.argument(node, self.fetch_args_kwargs_from_env(node))
        if node.target is operator.getitem:
            return operator.getitem(*args)
        if node in self.read_off.values():
            self.scores[node] = _scores(node, args)
        if overload(node) in BITWISE:
            return self._as_captured(node, args, kwargs)
        function = INSTEAD.get(overload(node)) or op_of(node)
        args, kwargs = _with_epsilon(node, args, kwargs)
        try:
            return function(*map_aggregate(args, self._setting), **map_aggregate(kwargs, self._setting))
        except (RuntimeError, NotImplementedError) as error:
            try:
                return self._as_captured(node, args, kwargs)
            except (RuntimeError, NotImplementedError, IndexError):
                line = str(error).splitlines()[0] if str(error) else type(error).__name__
                place = self.program.where(node) or node.name
                raise CaptureError(f"{overload(node)} does not run ({place}): {line}; do the inputs and the state "
                                   "fit the module?") from error

    def _as_captured(self, node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The results of an operation in the dtypes that it was captured with, widened."""
        kinds = iter([kind.dtype for kind in pytree.tree_leaves([a.meta.get("val") for a in _operands(node)])
                      if isinstance(kind, Tensor)])

        def narrow(value: Any) -> Any:
            return value.to(next(kinds)) if isinstance(value, Tensor) else self._place(value)

        args, kwargs = pytree.tree_map(narrow, (args, kwargs))
        result = op_of(node)(*args, **kwargs)
        floats = [t.dtype for t in pytree.tree_leaves((args, result)) if isinstance(t, Tensor) and _is_float(t.dtype)]
        self.eps[node] = max((torch.finfo(dtype).eps for dtype in floats), default=EPS)
        return pytree.tree_map(lambda t: widened(t) if isinstance(t, Tensor) else t, result)

    def _setting(self, value: Any) -> Any:
        """Devices and dtypes that the graph was captured with, as they are here."""
        return wide(value) if isinstance(value, torch.dtype) else self._place(value)

    def _place(self, value: Any) -> Any:
        return self.device if isinstance(value, torch.device) else value


def _with_epsilon(node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """An epsilon that is left out, as it was when the program was captured: that of the dtype that the operation computes
    in, which is no less than 32 bits wide."""
    place = OWN_EPS.get(overload(node))
    if place is None or kwargs.get("eps", args[place] if len(args) > place else None) is not None:
        return args, kwargs
    dtype = torch.promote_types(tensor_of(node_at(node, 0)).dtype, torch.float32)
    return args[:place], {**kwargs, "eps": torch.finfo(dtype).eps}


def widened(tensor: Tensor) -> Tensor:
    """A tensor of floating-point or complex numbers in 64 bits for each part; others as they are."""
    return tensor.to(wide(tensor.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype


def _is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _device(tensors) -> torch.device:
    """Where the state is, if float64 can be had there."""
    device = next((tensor.device for tensor in tensors if tensor is not None), torch.device("cpu"))
    return torch.device("cpu") if device.type in ("mps", "meta") else device


def _operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments in order, repeated ones included."""
    return [a for a in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(a, fx.Node)]


_TRUTHS = frozenset("eq ge gt le lt ne".split())
_PLACES = frozenset("argmax argmin max median min mode sign sort topk".split())
_MOVING = frozenset(
    "alias clone contiguous detach getitem permute reshape squeeze t to _to_copy transpose unsqueeze view "
    "_unsafe_view".split()
)  # all of the numbers stay: one that is left out may be free to move


def _read_off(program: Program) -> dict[str, fx.Node]:
    """For each output of whole numbers or truth values that is read straight off numbers: the node that
    reads."""
    found = {}
    for output in program.outputs:
        node = output.node
        if node is None or output.decision or _floating(node) is not False:
            continue
        while base_name(node) in _MOVING and node.args and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        numbers = node.args[0] if node.args else None
        if base_name(node) in _TRUTHS | _PLACES and isinstance(numbers, fx.Node) and _floating(numbers):
            found[output.path] = node
    return found


def _scores(node: fx.Node, args: tuple) -> Tensor:
    """The numbers off which a node reads."""
    return args[0] - args[1] if base_name(node) in _TRUTHS else args[0]


def _floating(node: fx.Node) -> bool | None:
    """Whether a node's value is a tensor of floating-point numbers; None if it is no tensor."""
    value = node.meta.get("val")
    return value.is_floating_point() if isinstance(value, Tensor) else None
