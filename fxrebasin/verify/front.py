"""Does the function stay the same? Measured, in float64; and the search for an exact equivalence of two checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..alignment import Alignment
from ..capture import default_dtype, leaves_of
from ..errors import CaptureError, NotEquivalentError
from ..match import match
from ..spec import Spec

TOLERANCE = 1e-9  # relative: float64 rounding stays far below, any wrong permutation far above


@dataclass(frozen=True)
class Evidence:
    """What was measured: how far the outputs of the permuted network are from those of the original, in float64.

    max_abs, max_rel  largest absolute error; the same relative to the largest magnitude of that output
    where             path of the output with the largest relative error
    outputs           path -> (absolute, relative) error
    offending         groups that change the function when they alone are permuted
    """

    max_abs: float
    max_rel: float
    where: str
    outputs: Mapping[str, tuple[float, float]]
    tolerance: float = TOLERANCE
    offending: tuple[str, ...] = field(default=())

    @property
    def equivalent(self) -> bool:
        return self.max_rel <= self.tolerance

    def __str__(self) -> str:
        word = "equivalent" if self.equivalent else "NOT equivalent"
        text = (f"{word}: largest error {self.max_abs:.1e} absolute, {self.max_rel:.1e} relative "
                f"(output {self.where!r}, float64, tolerance {self.tolerance:.0e})")
        return text + (f"; changed by {', '.join(self.offending[:5])}" if self.offending else "")


def verify(model: nn.Module, example_inputs: Any, alignment: Alignment, *, state: Mapping[str, torch.Tensor] | None = None,
           tolerance: float = TOLERANCE) -> Evidence:
    """Runs the model with its state and with the permuted state, in float64 and eval mode, and compares all outputs.

    example_inputs  as for `infer`; floating-point inputs are converted to float64
    state           to use instead of the model's own

    Returns Evidence. Raises NotEquivalentError, with the groups that break the function and the evidence as `.evidence`,
    if any output changes by more than `tolerance`, relative to its largest magnitude.
    """
    twin = copy.deepcopy(model).eval().double()
    inputs = pytree.tree_map(lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x,
                             example_inputs)
    own = {name: tensor.double() if tensor.is_floating_point() else tensor
           for name, tensor in (twin.state_dict() if state is None else state).items()}
    reference = _outputs(twin, own, inputs)
    evidence = _compare(twin, own, inputs, reference, alignment, tolerance)
    if evidence.equivalent:
        return evidence
    offending = tuple(name for name, moved in alignment.moved.items() if moved and not _compare(
        twin, own, inputs, reference, _alone(alignment, name), tolerance).equivalent)
    evidence = Evidence(evidence.max_abs, evidence.max_rel, evidence.where, evidence.outputs, tolerance, offending)
    blame = f"groups {', '.join(map(repr, offending[:3]))}" if offending else "no single group, only several together"
    more = f" and {len(offending) - 3} more" if len(offending) > 3 else ""
    raise NotEquivalentError(f"the alignment changes the function: output {evidence.where!r} differs by "
                             f"{evidence.max_rel:.1e} relative in float64, caused by {blame}{more}: do not use it for "
                             "transport", evidence)


def _outputs(model: nn.Module, state, inputs) -> dict[str, torch.Tensor]:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    with torch.no_grad(), torch.random.fork_rng(devices=[]), default_dtype(torch.float64):
        torch.manual_seed(0)  # a module that draws numbers draws the same ones each time
        try:
            result = torch.func.functional_call(model, state, args, kwargs, tie_weights=False)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CaptureError(f"{type(model).__name__} does not run on the example inputs in float64: "
                               f"{str(error).splitlines()[0]}") from error
    return {path: leaf for path, leaf in leaves_of(result) if isinstance(leaf, torch.Tensor)}


def _compare(model, state, inputs, reference, alignment: Alignment, tolerance: float) -> Evidence:
    moved = _outputs(model, alignment.apply(state), inputs)
    errors = {}
    for path, before in reference.items():
        before = alignment.apply_to_output(path, before)
        after = moved[path]
        if not before.is_floating_point() and not before.is_complex():
            errors[path] = (0.0, 0.0) if torch.equal(before, after) else (float("inf"), float("inf"))
        elif before.numel():
            gap = float((after - before).abs().max())
            gap = gap if gap == gap else float("inf")
            scale = float(before.abs().max())
            errors[path] = (gap, gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf")))
    where = max(errors, key=lambda path: errors[path][1], default="")
    worst = errors.get(where, (0.0, 0.0))
    return Evidence(max((e[0] for e in errors.values()), default=0.0), worst[1], where, errors, tolerance)


def _alone(alignment: Alignment, name: str) -> Alignment:
    """The alignment with one group moved and all others left."""
    still = alignment.spec.identity().permutations
    return Alignment(alignment.spec, {**still, name: alignment.permutations[name]})


def find_equivalence(spec: Spec, a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> Alignment | None:
    """The alignment that makes state `a` exactly equal to state `b`, or None if none was found.

    An alignment that is returned is a proof: applied to `a` it gives `b`, number for number. None is not one, though
    where the numbers of a layer are all different nothing is missed.
    """
    spec.check(a, "the first state")
    spec.check(b, "the second state")
    one, other = spec.stacked(a), spec.stacked(b)
    if any(not torch.equal(torch.sort(one[n].detach().flatten()).values, torch.sort(other[n].detach().to(one[n]).flatten()).values)
           for n in spec.layouts):
        return None
    alignment = match(spec, a, b, effort="best")
    moved = alignment.apply(a)
    return alignment if all(torch.equal(moved[name], b[name].to(moved[name])) for name in spec.names) else None
