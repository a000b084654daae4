"""Several runs of one module as one program: what holds for it holds for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .program import Output, Program
from .source import Source


def path_in_run(path: str, run: int) -> str:
    """What an input or output of the second and later runs (0, 1, ...) is called in the joined program."""
    return path if run == 0 else f"{path} (run {run + 1})"


def joined(programs: Sequence[Program]) -> Program:
    """The graphs of several captures of one module side by side, over one state.

    Inputs and outputs are called as `path_in_run` says. Raises CaptureError if the modules are not the same.
    """
    first = programs[0]
    if len(programs) == 1:
        return first
    if any((program.state, program.ties) != (first.state, first.ties) for program in programs):
        raise CaptureError("the example runs are of modules with different tensors: give runs of one module")
    graph = Joined()
    outputs = [output for run, program in enumerate(programs) for output in graph.add(program, run)]
    graph.graph.output(tuple(output.node for output in outputs if output.node is not None))
    module = fx.GraphModule(graph.constants, graph.graph)
    notes = tuple(dict.fromkeys(note for program in programs for note in program.notes))
    agreements = dict.fromkeys(program.agreement for program in programs if program.agreement)
    deciding = sorted(
        {
            path_in_run(name, run) if name not in program.state else name
            for run, program in enumerate(programs)
            for name in program.deciding
        }
    )
    front_end = next((p.front_end for p in programs if p.front_end == "recorded"), first.front_end)
    return replace(
        first,
        module=module,
        sources=graph.sources,
        outputs=tuple(outputs),
        notes=notes,
        agreement="; ".join(agreements),
        deciding=tuple(deciding),
        decided={name: held for program in programs for name, held in program.decided.items()},
        assumed=tuple(dict.fromkeys(text for program in programs for text in program.assumed)),
        front_end=front_end,
    )


class Joined:
    """A graph to which others are added; all fake values are of one mode."""

    def __init__(self):
        self.graph = fx.Graph()
        self.sources: dict[str, Source] = {}
        self.constants: dict[str, Any] = {}
        self._mode = FakeTensorMode()
        self._named: dict[tuple[str, str], fx.Node] = {}  # (kind, name) -> the one placeholder of all runs

    def add(self, program: Program, run: int) -> list[Output]:
        """Adds a program's graph; its outputs, by their nodes here."""
        new: dict[fx.Node, fx.Node] = {}
        for node in program.module.graph.nodes:
            if node.op == "output":
                break
            source = program.sources.get(node.name)
            key = (source.kind, source.name) if source is not None and source.kind == "state" else None
            if key in self._named:
                new[node] = self._named[key]
                continue
            new[node] = self._copied(program, node, new, run)
            if source is not None:
                name = path_in_run(source.name, run) if source.kind == "input" else source.name
                self.sources[new[node].name] = replace(source, name=name)
            if key is not None:
                self._named[key] = new[node]
        return [
            replace(output, path=path_in_run(output.path, run), node=output.node and new[output.node])
            for output in program.outputs
        ]

    def _copied(self, program: Program, node: fx.Node, new: dict[fx.Node, fx.Node], run: int) -> fx.Node:
        copied = self.graph.node_copy(node, new.__getitem__)
        copied.meta = {**node.meta, "val": pytree.tree_map_only(Tensor, self._fake, node.meta.get("val"))}
        if node.op == "placeholder":
            copied.target = copied.name
        elif node.op == "get_attr":
            held: Any = program.module
            for part in str(node.target).split("."):
                held = getattr(held, part)
            copied.target = f"run_{run}_{str(node.target).replace('.', '_')}"
            self.constants[copied.target] = held
        return copied

    def _fake(self, value: Tensor) -> Tensor:
        device = "cpu" if value.is_meta else value.device
        with self._mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
