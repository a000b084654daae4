"""Inference: walks the captured graph (`analysis`), applies the rules, and reads the spec off the factors (`reader`)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..capture import Program, capture
from ..errors import FxrebasinError
from ..factors import Value
from ..reroll import rerolled
from ..spec import Axis, Block, Spec
from .analysis import Analysis, numbers_of
from .reader import Reader
from .roles import note_on, roles_of

GAIN = 0.25  # two experts that change places double the order: 0.3 in log10


def infer(model, example_inputs=None, *, outputs: str = "pinned") -> Spec:
    """Infers all permutation symmetries of a module.

    model           an nn.Module (on any device, meta included), an ExportedProgram, or a captured Program
    example_inputs  a tensor, a tuple of positional arguments, or a dict of keyword arguments; only shapes and dtypes
                    matter. Every dimension should be at least 2: one of size 1 hides how the network treats it.
    outputs         "pinned": the function must stay exactly the same. "free": output axes move with the network (a
                    backbone whose features are only compared with each other); spec.outputs says how.

    Raises CaptureError if the module cannot be captured.
    """
    if outputs not in ("pinned", "free"):
        raise FxrebasinError(f"outputs must be 'pinned' or 'free', not {outputs!r}")
    program = model if isinstance(model, Program) else capture(model, example_inputs)
    spec, roles = _largest(program, outputs), roles_of(program)
    return replace(spec, roles=roles, notes=(*spec.notes, *note_on(roles)))


def _largest(program: Program, outputs: str) -> Spec:
    """The spec of the graph as it is, or of the one in which submodules that are alike are one."""
    plain = Analysis(program).spec(outputs)
    spec = _stacked(program, outputs, plain)
    if not spec.idle:
        return spec
    fewer = _stacked(program, outputs, plain, leave=spec.idle)
    return fewer if fewer.log10_order > spec.log10_order - GAIN else spec


def _stacked(program: Program, outputs: str, spec: Spec, leave: frozenset[str] = frozenset()) -> Spec:
    """The largest spec, of the one given and of those in which submodules that are alike are one."""
    for rolled in rerolled(program, leave):
        stacked = replace(Analysis(rolled.program).spec(outputs), stacks=rolled.stacks, numbers=numbers_of(program))
        if stacked.log10_order > spec.log10_order + GAIN:
            spec = stacked
    return spec


def observed(program: Program, spec: Spec, most: int) -> dict[str, Block]:
    """Intermediates at which groups can be watched: node name -> how its dimensions are made of the spec's factors
    (dimensions of samples without factors). At most `most` nodes for each set of groups, spread over the network."""
    analysis = Analysis(program)
    reader = Reader(analysis.state, {})
    reader.spec(program, {})
    found: dict[frozenset, dict[str, Block]] = {}
    for node, value in analysis.values.items():
        kind = node.meta.get("val")
        if (node.op != "call_function" or not isinstance(value, Value) or len(value.blocks) != 1 or value.chosen
                or not isinstance(kind, torch.Tensor) or not kind.is_floating_point()):
            continue
        segments = value.blocks[0].segments
        atoms = [atom for segment in segments for atom in segment.atoms]
        names = [reader.names.get(atom) for atom in atoms]
        if len(set(names)) == len(names) and names and all(name in spec.sizes for name in names) and any(
                not segment.atoms and segment.reason for segment in segments):
            axes = tuple(Axis(s.positions, tuple(reader.names[a] for a in s.atoms)) for s in segments)
            found.setdefault(frozenset(names), {})[node.name] = axes
    chosen = {}
    for nodes in found.values():
        every = max(1, -(-len(nodes) // most))
        chosen.update(list(nodes.items())[every // 2::every])
    return chosen


__all__ = ["Analysis", "Reader", "infer", "observed"]
