"""The module itself, at any state, in its own precision: what ties a captured program to it."""
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..capture import Program, arguments, leaves_of, path_in_run
from ..capture.interpreter import run
from ..capture.tracing_copy import quiet, tracing_copy_of
from ..evaluate import Outcome

ALLOWED = 64.0  # units in the last place, of the coarsest type on the way, that each number may be off

UNDERFLOW = 1e3  # of the least normal number of a type: smaller differences are none
MOST = 0.1  # so much at most: a change of the function is larger


class Module:
    """Runs a copy of a module, in eval mode, with copies of the tensors of a state dict and of its inputs.

    own   the state dict that tells which tensors the module holds under which names
    runs  one or several sets of inputs

    Raises RuntimeError or whatever the module raises if it will not run.
    """

    def __init__(self, model: nn.Module, own: Mapping[str, Any], runs: Sequence[Any]):
        self.model, self.own, self.runs = model, own, runs
        names: dict[int, list[str]] = {}
        for name, tensor in _held(model):
            names.setdefault(id(tensor), []).append(name)
        self.names = {entry: names.get(id(tensor), []) for entry, tensor in self.own.items()}

    @classmethod
    @contextmanager
    def of(cls, model: nn.Module, runs: Sequence[Any]) -> Iterator[Module]:
        """`DataParallel` is run as what it wraps, which is what it does itself where there is one device."""
        inner = model.module if isinstance(model, nn.DataParallel) else model
        with quiet():
            yield cls(inner, model.state_dict(keep_vars=True), runs)

    def outputs(self, state: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
        """The tensor outputs of all runs by path; `seed` is that of numbers that the module draws."""
        held = self._held_of(state)
        return {path_in_run(path, k): leaf for k, run in enumerate(self.runs)
                for path, leaf in self._run(held, arguments(run), seed).items()}

    def _run(self, held: Mapping[str, Tensor], given: tuple[tuple, dict], seed: int) -> dict[str, Tensor]:
        tensors = [leaf for _, leaf in leaves_of(given) if isinstance(leaf, Tensor)]
        args, kwargs = copy.deepcopy(given, {id(t): t.detach().clone() for t in tensors})
        copying = tracing_copy_of(self.model, {}, share=False)
        with copying as copied, torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if copied is self.model:  # it cannot be copied, and must not be written to
                kept = {name: tensor.detach().clone() for name, tensor in _held(copied)}
                result = torch.func.functional_call(copied, {**kept, **held}, args, kwargs, tie_weights=False)
            else:
                for name, tensor in _held(copied):  # in place: attributes may lie in a parameter's memory
                    if name in held:
                        tensor.copy_(held[name])
                result = copied(*args, **kwargs)
        return {path: leaf for path, leaf in leaves_of(result) if isinstance(leaf, Tensor)}

    def _held_of(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the module's parameters and buffers hold at a state, by all of their names."""
        held: dict[str, Tensor] = {}
        for entry, names in self.names.items():
            if not names and isinstance(self.own[entry], Tensor):
                raise RuntimeError(f"{entry!r} of its state is no parameter or buffer of it")
            value = state.get(entry)
            if names and value is not None:
                value = value.detach().to(self.own[entry].device, self.own[entry].dtype, copy=True)
                held.update(dict.fromkeys(names, value))
        return held


def _held(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under all their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def rounding_of(program: Program) -> float:
    """The relative error that the coarsest floating-point type in a program makes, and a little more."""
    kinds = {value.dtype for node in program.module.graph.nodes if node.users or node.op == "output"
             for value in [node.meta.get("val")] if isinstance(value, Tensor) and value.is_floating_point()}
    return min(MOST, ALLOWED * max((torch.finfo(dtype).eps for dtype in kinds), default=0.0))


def as_outcome(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> Outcome:
    """Outputs of the module beside those in float64. Left out of the comparison is what in its own precision is
    no longer finite, or too small to be held, and outputs of runs that the module was not given."""
    outputs = {}
    for path, value in exact.items():
        if path not in found:
            continue
        own = found[path].to(value.device, value.dtype)
        if value.is_floating_point() or value.is_complex():
            lost = torch.isfinite(value) & ~torch.isfinite(own)
            least = UNDERFLOW * torch.finfo(found[path].dtype).tiny if found[path].dtype.itemsize > 1 else 0.0
            own = torch.where(lost | ((own - value).abs() <= least), value, own)
        outputs[path] = own
    return Outcome(outputs, {})


def agree_as_they_are(program: Program, state: Mapping[str, Any], inputs: Mapping[str, Tensor],
                      given: Mapping[str, Tensor]) -> bool:
    """Whether a program that is run in the precision of the state gives what the module gave, up to ALLOWED units in the
    last place of an output's largest number."""
    names = [name for name in program.state if name not in program.ties]
    with quiet():
        values = run(program.module, program.sources, {name: state[name] for name in names}, inputs)
    paths = [output.path for output in program.outputs if output.node is not None]
    return all(_close(given[path], value) for path, value in zip(paths, values) if path in given)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()) or not one.numel():
        return torch.equal(one, other)
    slack = ALLOWED * torch.finfo(one.dtype).eps * float(torch.nan_to_num(one.abs()).max())
    return bool(torch.isclose(one, other, rtol=0.0, atol=slack, equal_nan=True).all())
