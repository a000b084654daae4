"""Graph and module beside each other at other numbers: what was read out of a tensor as the module was
captured is found.

A number that Python read, in a way that no tracer sees, is baked into the graph. At a second random state
and other inputs of the same shapes, graph and module then differ.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .effort import multiplications
from .interpreter import default_dtype, run
from .leaves import leaves_of
from .node import nodes_at, upstream
from .program import Output, Program
from .tracing_copy import tracing_copy_of

# Multiplications of a network that is run, at most; and for each operation, as a tracer takes its time.
LARGEST = 200_000_000
FOR_EACH = 10_000_000
# Of an output's largest number. Both sides run the same kernels (but constants may be of fewer bits), and
# what was baked in is off by the size of the output.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
COARSE = 0.05  # of 16 bits
# Of other states, where a branch was chosen by the state; the first is any other comparison's.
SCALES = (1, -1, 3, -0.3)


class Unknown(Exception):
    """Why graph and module cannot be compared."""


def compared(
    program: Program,
    model: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    inputs: Mapping[str, Tensor],
    again: Callable[[nn.Module], Program],
) -> Program:
    """The program, with what graph and module do not agree on pinned, and `agreement` that says what was
    compared.

    again  captures a copy of the module with other numbers, without comparing
    Raises CaptureError if they differ, and it is not clear by what.
    """
    try:
        _check_reach(program, [*model.parameters(), *model.buffers(), *inputs.values()])
        pair = Pair(program, model, args, kwargs, inputs)
        return _held_to_state(_accepted(program, pair), model, pair, again)
    except Unknown as unknown:
        said = replace(program, agreement=f"graph and module were not compared at other numbers: {unknown}")
        return _held_to_state(said, model, None, again)


def _held_to_state(
    program: Program, model: nn.Module, pair: Pair | None, again: Callable[[nn.Module], Program]
) -> Program:
    """The program, for the numbers alone that a recorded branch was chosen by: of states, without any input.
    Where several other states are seen to lead to the same graph, that all do is assumed."""
    names = _chosen_by(program)
    if not names:
        return program
    draws = range(len(SCALES))
    if pair is not None and all(_chosen_alike(program, pair, names, draw, again) for draw in draws):
        text = f"forward reads numbers of {_listed(names)}, and goes the same way for those of any state"
        return replace(program, assumed=(*program.assumed, text))
    entries = model.state_dict()
    note = (
        f"forward chooses its way by the numbers of {_listed(names)}: what is found holds for states with the "
        "same ones alone; choose by what a module is made of, or compute with the tensor itself"
    )
    decided = {name: entries[name].detach().clone() for name in names}
    return replace(program, decided=decided, notes=(*program.notes, note))


def _chosen_alike(
    program: Program, pair: Pair, names: Sequence[str], draw: int, again: Callable[[nn.Module], Program]
) -> bool:
    """Whether other numbers of the state lead to the same graph, but for the numbers read."""
    if pair.agree([*pair.names, *names], draw):
        return True
    with pair.others(frozenset(names), torch.Generator().manual_seed(draw), draw) as module:
        try:
            return _text(again(module)) == _text(program)
        except Exception:  # noqa: BLE001 - the user's code can raise anything
            return False


def _text(program: Program) -> list[str]:
    """A graph without its floating-point numbers."""
    lines = []
    for node in program.module.graph.nodes:
        given = pytree.tree_map_only(float, lambda _: 0.0, (node.args, node.kwargs))
        lines.append(f"{node.op} {node.target if node.op == 'call_function' else ''} {given}")
    return lines


def _chosen_by(program: Program) -> list[str]:
    """The entries of the state that recorded decisions depend on, of those that depend on no input."""
    names: dict[str, None] = {}
    for output in program.outputs:
        if output.kind == "decision" and output.node is not None:
            found = [program.sources[node.name] for node in upstream([output.node]) if node.name in program.sources]
            if all(source.kind != "input" for source in found):
                names.update(dict.fromkeys(source.name for source in found if source.name in program.state))
    return list(names)


def _check_reach(program: Program, tensors: Sequence[Tensor]) -> None:
    """Raises Unknown if nothing can be run, or only at great cost."""
    unknown = any(source.kind == "constant" and source.value is None for source in program.sources.values())
    if unknown or any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors):
        raise Unknown("the module is on the meta device")
    if any(note.startswith("forward draws random numbers") for note in program.notes):
        raise Unknown("forward draws random numbers")
    limit = max(LARGEST, FOR_EACH * len(program.module.graph.nodes))
    if max(multiplications(program), sum(tensor.numel() for tensor in tensors)) > limit:
        raise Unknown("the module is too large to be run besides")


def _accepted(program: Program, pair: Pair) -> Program:
    """What `compared` returns, once both can be run."""
    first, second = pair.agreements(pair.names, calls=2)
    if first:
        return _without_kept(program, pair, second)
    if not pair.repeats():
        raise CaptureError(
            f"forward of {type(pair.model).__name__} does not give the same twice: it keeps numbers where "
            "the module does not show them, or draws some outside torch: keep them in a buffer, or capture "
            "the part of the module without them"
        )
    if not pair.agree([]):
        raise CaptureError(
            f"the graph of {type(pair.model).__name__} does not compute what the module does: its forward "
            "does something that no tracer sees, such as a read of numbers outside the graph; "
            "compute with tensors alone, or capture the part of the module without it"
        )
    read = culprits(pair.names, pair.agree)
    if not pair.agree([name for name in pair.names if name not in read]):
        raise CaptureError(
            f"the graph of {type(pair.model).__name__} does not compute what the module does when "
            f"{_listed(read)} has other numbers: forward reads them outside the graph; "
            "compute with the tensor itself"
        )
    return _pinned(program, read)


def _without_kept(program: Program, pair: Pair, second: bool) -> Program:
    """What forward assigns to attributes matters if the second call differs by it."""
    said = replace(program, agreement="graph and module agree at a second random state and other inputs")
    if any(source.valid == "first call" for source in program.sources.values()):
        return said  # the second call is another function
    if second:
        return replace(said, outputs=tuple(output for output in program.outputs if output.kind != "kept"))
    if any(output.kind == "kept" for output in program.outputs):
        return said
    raise CaptureError(
        f"forward of {type(pair.model).__name__} keeps numbers from one call to the next where the module "
        "does not show them: keep them in a buffer, or capture the part of the module without them"
    )


def _pinned(program: Program, read: Sequence[str]) -> Program:
    """The program for one content of some tensors, which stay as they are; constants may have been made of
    it."""
    nodes = {
        source.name: node
        for node in program.module.graph.nodes
        if (source := program.sources.get(node.name)) and source.kind == "state"
    }
    why = "its numbers were read outside the graph as the module was captured"
    outputs = tuple(Output(why, nodes[name], "pinned") for name in read if name in nodes)
    end = program.module.graph.output_node()
    end.args = ((*nodes_at(end, 0), *(output.node for output in outputs)),)
    program.module.recompile()
    sources = {
        key: replace(source, valid="this state") if source.kind == "constant" else source
        for key, source in program.sources.items()
    }
    note = (
        f"forward reads the numbers of {_listed(read)} outside the graph, which holds while they are as they "
        "were: compute with the tensor itself"
    )
    return replace(
        program,
        outputs=(*program.outputs, *outputs),
        sources=sources,
        notes=(*program.notes, note),
        agreement=f"graph and module agree at other numbers, but for those of {_listed(read)}",
    )


def culprits(names: Sequence[str], agree: Callable[[Sequence[str]], bool]) -> list[str]:
    """Those of the names with which things do not agree; all of them, where several together make the
    difference."""
    if agree(names):
        return []
    half = len(names) // 2
    return half and [*culprits(names[:half], agree), *culprits(names[half:], agree)] or list(names)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Pair:
    """A program and copies of its module, to run beside each other.

    names  of the tensors whose numbers may be others: entries of the state, inputs (as `input x`); not
           those that a recorded branch was chosen by
    """

    def __init__(
        self,
        program: Program,
        model: nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        inputs: Mapping[str, Tensor],
    ):
        self.program, self.model, self.args, self.kwargs, self.inputs = program, model, args, kwargs, inputs
        floats = [
            t.dtype for t in model.state_dict().values() if isinstance(t, Tensor) and t.is_floating_point()
        ]
        self.widest = max(
            floats, key=lambda dtype: torch.finfo(dtype).bits, default=torch.get_default_dtype()
        )
        chosen_by = set(program.deciding)
        self.names = [name for name in program.state if name not in chosen_by and name not in program.ties]
        self.names += [f"input {path}" for path in inputs if path not in chosen_by]

    def agree(self, names: Iterable[str], draw: int = 0) -> bool:
        """Whether both give the same, with other numbers in the tensors of these names."""
        return self.agreements(names, 1, draw)[0]

    def agreements(self, names: Iterable[str], calls: int, draw: int = 0) -> list[bool]:
        """The same for each of some calls, one after the other, with other inputs each time."""
        return [
            len(ours) == len(theirs) and all(map(_same, ours, theirs))
            for ours, theirs in self._both(frozenset(names), calls, draw)
        ]

    def repeats(self) -> bool:
        """Whether the module gives the same twice."""
        (_, first), (_, second) = (self._both(frozenset(self.names), 1)[0] for _ in range(2))
        return all(map(_same, first, second))

    def _both(
        self, names: frozenset[str], calls: int, draw: int = 0
    ) -> list[tuple[list[Tensor], list[Tensor]]]:
        """The outputs of the graph, and of a copy of the module, for each call."""
        generator = torch.Generator().manual_seed(draw)
        results = []
        with self.others(names, generator, draw) as module, torch.random.fork_rng(devices=[]):
            for _ in range(calls):
                inputs = {
                    path: _other(tensor, generator) if f"input {path}" in names else tensor.clone()
                    for path, tensor in self.inputs.items()
                }
                held = {
                    name: tensor for name, tensor in module.state_dict().items() if name in self.program.state
                }
                ours = self._graph(held, inputs)  # first: forward may write to what it holds
                results.append((ours, self._module(module, inputs)))
        return results

    @contextlib.contextmanager
    def others(self, names: frozenset[str], generator: torch.Generator, draw: int) -> Iterator[nn.Module]:
        """A copy of the module with other numbers in the entries of these names."""
        with tracing_copy_of(self.model, {}, share=False) as module:
            if module is self.model:
                raise Unknown("the module cannot be copied")
            for name, tensor in module.state_dict(keep_vars=True).items():
                if name in names:
                    _change(tensor.detach(), generator, SCALES[draw])
            yield module

    def _module(self, module: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        memo: dict[int, Any] = {id(old): inputs[path].clone() for path, old in self.inputs.items()}
        args, kwargs = copy.deepcopy((self.args, self.kwargs), memo)
        torch.manual_seed(0)
        try:
            with default_dtype(self.widest):  # as the graph is run
                leaves = [leaf for _, leaf in leaves_of(module(*args, **kwargs)) if isinstance(leaf, Tensor)]
        except Exception as error:  # noqa: BLE001 - the user's code can raise anything
            raise Unknown(f"forward does not run on other numbers ({type(error).__name__})") from error
        return [leaf.detach().clone() for leaf in leaves]

    def _graph(self, held: dict[str, Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
        torch.manual_seed(0)
        try:
            values = run(self.program.module, self.program.sources, held, inputs)
        except Exception as error:  # noqa: BLE001
            raise Unknown(f"the graph does not run on other numbers ({type(error).__name__})") from error
        tensors = [output for output in self.program.outputs if output.node is not None]
        return [value for output, value in zip(tensors, values) if output.kind == "returned"]


def _change(tensor: Tensor, generator: torch.Generator, scale: float = 1) -> None:
    """Other numbers in the same memory."""
    try:
        other = _other(tensor, generator)
        tensor.copy_(scale * other if other.is_floating_point() or other.is_complex() else other)
    except (RuntimeError, NotImplementedError) as error:  # quantised, sparse, expanded
        raise Unknown(f"a tensor cannot be given other numbers ({type(error).__name__})") from error


def _other(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Other numbers of the same kind: the same ones at other places, and if they are no whole ones,
    slightly different; positive where all are. Those of a sparse tensor stay at their places."""
    if tensor.layout != torch.strided:
        return tensor * 1.5 if tensor.is_floating_point() or tensor.is_complex() else tensor.clone()
    moved = tensor.reshape(-1).roll(1 + tensor.numel() // 3).reshape(tensor.shape)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return moved
    off = torch.rand(tensor.shape, generator=generator).to(tensor.device)
    if not tensor.is_complex() and bool((tensor >= 0).all()):
        return (moved * (0.5 + off) + 0.2 * off).to(tensor.dtype)
    return (moved * (0.5 + off) + 0.2 * (off - 0.5)).to(tensor.dtype)


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding, NaN and infinities in the same places."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = (x if x.layout == torch.strided else x.to_dense() for x in (one, other))
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    finite = torch.isfinite(one)
    if not torch.equal(finite, torch.isfinite(other)) or not finite.any():
        return torch.equal(finite, torch.isfinite(other))
    one, other = one[finite], other[finite]
    real = one.real.dtype if one.is_complex() else one.dtype
    return float((one - other).abs().max()) <= TOLERANCE.get(real, COARSE) * float(one.abs().max())
