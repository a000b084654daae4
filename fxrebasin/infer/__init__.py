"""Inference: walks the captured graph (`analysis`), applies the rules, and reads the spec off the factors (`reader`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ..capture import Program
from ..errors import FxrebasinError
from ..factors import Value
from ..reroll import rerolled
from ..spec import Axis, Block, Spec
from .analysis import Analysis, numbers_of
from .falsify import falsified
from .reader import Reader
from .roles import note_on, roles_of
from .runs import captured, inputs_in, on_captured
from .segments import segmented_spec

GAIN = 0.25  # two experts that change places double the order: 0.3 in log10


def infer(model, example_inputs=None, *, outputs: str = "pinned", falsify: bool = True,
          residual: str | Sequence[str] = "shared") -> Spec:
    """Infers all permutation symmetries of a module.

    model           an nn.Module (on any device, meta included), an ExportedProgram, or a captured Program
    example_inputs  a tensor, a tuple of positional arguments, or a dict of keyword arguments: one example run. A list
                    of these is several runs, for all of which the spec holds. Only shapes and dtypes matter, unless the
                    module branches on values. A dimension of size 1 is tried at 2 as well; where the module does not
                    take that, a UserWarning names it.
    outputs         "pinned": the function must stay exactly the same. "free": output axes move with the network (a
                    backbone whose features are only compared with each other); spec.outputs says how.
    falsify         try what is claimed at random weights and inputs, and pin what changes the function; spec.evidence
                    says what was tried
    residual        "shared": one permutation for a residual stream, which a plain checkpoint can hold. "segmented": one
                    for each stretch between two residual adds; `spec.skips` says where a map has to stand, and
                    `alignment.to_module` puts it there. Or the names of the adds that may have one.

    Raises CaptureError if the module cannot be captured.
    """
    if outputs not in ("pinned", "free"):
        raise FxrebasinError(f"outputs must be 'pinned' or 'free', not {outputs!r}")
    if isinstance(model, Program):
        program, given = model, inputs_in(model)
        remarks = on_captured(given)
    else:
        program, given, remarks = captured(model, example_inputs)
    for remark in remarks:
        warnings.warn(remark, UserWarning, stacklevel=2)
    spec, roles = _claimed(program, outputs, residual), roles_of(program)
    spec = replace(spec, roles=roles, notes=(*spec.notes, *remarks, *note_on(roles)))
    if falsify:
        like = model.state_dict() if isinstance(model, nn.Module) else getattr(model, "state_dict", None)
        spec = falsified(program, spec, given, like)
    return replace(spec, evidence="; ".join(filter(None, (program.agreement, spec.evidence))))


def _claimed(program: Program, outputs: str, residual: str | Sequence[str]) -> Spec:
    if residual == "shared":
        return _largest(program, outputs)
    if outputs != "pinned" or (isinstance(residual, str) and residual != "segmented"):
        raise FxrebasinError(f"residual={residual!r} with outputs={outputs!r}: residual is 'shared', 'segmented' or names "
                             "of residual adds, and segments need outputs='pinned'")
    return segmented_spec(program, None if residual == "segmented" else residual)


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
