"""What an entry of the state is, and what follows from it.

A state is more than parameters. Which entry is what comes from the module and its graph (`infer` writes
`Spec.roles`); whether a buffer is *fixed* is seen from the states at hand.

| role | what follows |
|---|---|
| parameter | moves, is matched, is added to |
| buffer | moves; fixed where the states at hand agree on it, bit for bit |
| fixed | stays as it is, and so do the values at their places: no alignment moves one onto another |
| statistic (running mean), (running variance), (running deviation) | moves; decides no match; is transported in its own units |
| index or mask | integers and booleans: their numbers belong to the spec |
| counter | integers that count training steps: taken from the target |
| extra state | whatever a module keeps besides tensors: taken from the target |
| outside the example run: any of these | the example inputs do not reach it: it stays, and this is said |
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..errors import Note
from .dtypes import plain
from .stacks import parts_of

if TYPE_CHECKING:
    from .value import Spec

PARAMETER, BUFFER, FIXED = "parameter", "buffer", "fixed"
MEAN, VARIANCE = "statistic (running mean)", "statistic (running variance)"
DEVIATION = "statistic (running deviation)"  # what is divided by: positive as a rule
SPREADS = (VARIANCE, DEVIATION)
INDEX, COUNTER, EXTRA = "index or mask", "counter", "extra state"
OUTSIDE = "outside the example run"
ROLES = (PARAMETER, BUFFER, MEAN, VARIANCE, DEVIATION, INDEX, COUNTER, EXTRA)

VARIANCES = ("running_var", "running_variance", "moving_var", "moving_variance")  # names, where no op tells
DEVIATIONS = ("running_std", "running_stddev", "running_deviation", "moving_std", "moving_stddev", "moving_deviation")
MEANS = ("running_mean", "moving_mean")


def by_name(name: str) -> str:
    """The role of an entry of floating-point numbers of which the name alone is known."""
    last = name.rpartition(".")[2]
    named = {VARIANCE: VARIANCES, DEVIATION: DEVIATIONS, MEAN: MEANS}
    return next((role for role, names in named.items() if last in names), PARAMETER)


def outside(role: str) -> str:
    """The role of an entry that the example inputs do not reach."""
    return role if is_outside(role) else f"{OUTSIDE}: {role}"


def is_outside(role: str) -> bool:
    return role.startswith(OUTSIDE)


class RoleNote(Note):
    """What the role of an entry means for what is done with it."""


def note_outside(spec: Spec, what: str) -> None:
    """Warns of the entries that the example run does not reach, if there are any beside others that it
    does."""
    names = [name for name, role in spec.roles.items() if is_outside(role)]
    if spec.groups and names and len(names) < len(spec.roles):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        some = ", ".join(map(repr, names[:3])) + more
        warnings.warn(f"{what}: outside the example run, and not moved: {some}", RoleNote, stacklevel=3)


def kind(role: str) -> str:
    """A role without whether the example inputs reach it."""
    return role.removeprefix(f"{OUTSIDE}: ")


def role_of(spec: Spec, name: str) -> str:
    """The role of a tensor, stacked ones and aliases included; what nothing is known of is a parameter."""
    name = parts_of(spec, name)[0]
    return spec.roles.get(name) or spec.roles.get(spec.ties.get(name, name), PARAMETER)


def fixed(spec: Spec, *states: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The buffers that are the same in all of some states (two at least; whole or stacked), as `agree`
    says."""
    first, *others = states
    return tuple(name for name, tensor in first.items() if others and _may_be_fixed(spec, name)
                 and all(name in other and agree(tensor, other[name]) for other in others))


def _may_be_fixed(spec: Spec, name: str) -> bool:
    known = name in spec.layouts or name in spec.names
    return known and kind(role_of(spec, name)) in (BUFFER, DEVIATION)  # a table of divisors is one, too


def agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers, each as exactly as the less precise of the two can say
    them."""
    if one.shape != other.shape or one.is_complex() != other.is_complex():
        return False
    if "meta" in (one.device.type, other.device.type):
        return False
    coarse = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(plain(one.to(coarse)), plain(other.to(one.device, coarse)))
