"""Exact equivalence of two checkpoints."""
from __future__ import annotations

from collections.abc import Mapping

import torch

from ..alignment import Alignment
from ..match import match
from ..spec import Spec


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
