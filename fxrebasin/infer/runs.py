"""The example runs: what is captured of a module, and which of its dimensions are tried at another size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..capture import Program, capture, joined, path_in_run
from ..capture.leaves import arguments, inputs_of, signature_of
from ..errors import CaptureError

Single = tuple[str, int]  # path of an input, and a dimension of size 1
MOST_TRIES = 6


def captured(model: Any, example_inputs: Any) -> tuple[Program, dict[str, Tensor], list[str]]:
    """One program for all example runs, its example inputs by path, and what is to be said about sizes of 1.

    example_inputs  as for `infer`; a list holds several runs
    """
    if isinstance(example_inputs, list) and not example_inputs:
        raise CaptureError(
            "example_inputs is an empty list: give at least one run, or None for an ExportedProgram"
        )
    runs = list(example_inputs) if isinstance(example_inputs, list) else [example_inputs]
    programs, remarks = [capture(model, run) for run in runs], []
    if isinstance(model, nn.Module):
        for run in list(runs):
            wider, more = _wider(model, run)
            remarks += more
            for other, program in wider:
                runs.append(other)
                programs.append(program)
    given = {
        path_in_run(path, k): tensor
        for k, (run, program) in enumerate(zip(runs, programs))
        for path, tensor in _inputs(program, run).items()
    }
    if not isinstance(model, nn.Module):
        remarks += on_captured(given)
    return joined(programs), given, list(dict.fromkeys(remarks))


def inputs_in(program: Program) -> dict[str, Tensor]:
    """The inputs of a graph by path, without numbers."""
    return {
        program.sources[node.name].name: torch.empty_like(node.meta["val"], device="meta")
        for node in program.module.graph.nodes
        if node.name in program.sources and program.sources[node.name].kind == "input"
    }


def _inputs(program: Program, run: Any) -> dict[str, Tensor]:
    """The tensors of a run by path; those of the graph, if none were given."""
    return inputs_in(program) if run is None else inputs_of(program.signature, *arguments(run))


def on_captured(given: Mapping[str, Tensor]) -> list[str]:
    """What is to be said of the sizes of a graph that cannot be captured again at others."""
    return [
        f"input {path!r} has size 1 along dimension {d}, which hides how the network treats it: "
        "give the module with its inputs, so that size 2 is tried as well"
        for path, tensor in given.items() for d, size in enumerate(tensor.shape) if size == 1
    ]


def _wider(model: nn.Module, run: Any) -> tuple[list[tuple[Any, Program]], list[str]]:
    """The run with sizes of 1 made 2, all together or as many as the module takes; what is left, in words.

    A size of 1 hides how the network treats a dimension: what is summed over it, or taken at its first place.
    """
    if run is None:
        return [], []
    inputs = inputs_of(signature_of(model), *arguments(run))
    left = [(path, d) for path, tensor in inputs.items() for d, size in enumerate(tensor.shape) if size == 1]
    found: list[tuple[Any, Program]] = []
    for tries, group in enumerate(_groups(left)):
        group = [single for single in group if single in left]
        if not group or tries >= MOST_TRIES:
            continue
        other = _doubled(run, inputs, group)
        try:
            found.append((other, capture(model, other)))
        except CaptureError:
            continue
        left = [single for single in left if single not in group]
    return found, [
        f"input {path!r} has size 1 along dimension {d}, which hides how the network treats it, and the "
        "module does not take size 2 there: what is claimed holds for size 1"
        for path, d in left
    ]


def _groups(singles: list[Single]) -> Iterator[list[Single]]:
    """What to make larger together: everything, then the same dimension of all inputs (a batch), then one
    by one."""
    yield singles
    for dimension in sorted({d for _, d in singles}):
        yield [single for single in singles if single[1] == dimension]
    yield from ([single] for single in singles)


def _doubled(run: Any, inputs: Mapping[str, Tensor], group: list[Single]) -> Any:
    """A run whose inputs have size 2 along these dimensions. One tensor given twice stays one."""
    memo: dict[int, Any] = {}
    for path, tensor in inputs.items():
        wide = tensor
        for _, d in [single for single in group if single[0] == path]:
            wide = torch.cat([wide, wide.flip(-1)], d)
        memo.setdefault(id(tensor), wide)
    return copy.deepcopy(run, memo)
