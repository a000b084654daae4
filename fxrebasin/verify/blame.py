"""What breaks the function: a tensor that is not permuted as the groups say, or a group that is none."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..alignment import Alignment
from ..evaluate import Trial
from ..evaluate.trial import Move
from ..spec import Spec

Sites = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Blame:
    """Groups and sites that break the function, each alone; both empty if only several together do."""
    groups: tuple[str, ...]
    sites: Sites


def blame(trial: Trial, alignment: Alignment, moved: Mapping[str, Tensor], move: Move | None) -> Blame:
    """Traces a break at a trial's state.

    moved  what the alignment made of that state; where it is not what the alignment's permutations say (its
           `apply` does more, or was tampered with), the tensors that differ are tried one by one. Then the
           groups are.
    """
    plain = Alignment(alignment.spec, alignment.permutations)
    expected = plain.apply(trial.state)
    odd = [name for name in expected if name not in alignment.spec.ties and not _same(expected[name], moved[name])]
    guilty = [name for name in odd if trial.compare(expected | {name: moved[name]}, move).breaks]
    sites: list[tuple[str, int | None]] = [(name, _axis(expected[name], moved[name])) for name in guilty or odd]
    groups = [group.name for group in alignment.spec.groups.values() if _holds(alignment.spec, group, sites)]
    if trial.compare(expected, move).breaks:
        found = _breaking(trial, plain, [name for name, n in plain.moved.items() if n], move)
        groups += found
        sites += [site for name in found for site in _sites(trial, plain, name, move)]
    return Blame(tuple(dict.fromkeys(groups)), tuple(dict.fromkeys(sites)))


def _breaking(trial: Trial, alignment: Alignment, names: list[str], move: Move | None) -> list[str]:
    """The groups among some that break the function alone: by halves, since most do not."""
    if not names or not trial.compare(only(alignment, names).apply(trial.state), move).breaks:
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return [name for part in (names[:half], names[half:]) for name in _breaking(trial, alignment, part, move)]


def _sites(trial: Trial, alignment: Alignment, name: str, move: Move | None) -> Sites:
    """The sites of a group that is none: those without which it keeps the function, or all of them."""
    group, alone = alignment.spec.groups[name], only(alignment, [name])
    moved = alignment.spec.stacked(alone.apply(trial.state))
    still = alignment.spec.stacked(trial.state)
    tensors = list(dict.fromkeys(site.tensor for site in group.sites))
    wrong = [tensor for tensor in tensors if len(tensors) > 1 and not trial.compare(
        alignment.spec.unstacked(moved | {tensor: still[tensor]}), move).breaks]
    return tuple(dict.fromkeys((site.tensor, site.axis) for site in group.sites if site.tensor in (wrong or tensors)))


def only(alignment: Alignment, names: list[str]) -> Alignment:
    """The alignment with some groups moved and all others left."""
    still = alignment.spec.identity().permutations
    return Alignment(alignment.spec, {**still, **{name: alignment.permutations[name] for name in names}})


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(
        ((one == other) | (torch.isnan(one) & torch.isnan(other))).all())


def _axis(expected: Tensor, moved: Tensor) -> int | None:
    """The axis along which one tensor is the other one in another order, None if there is none."""
    if expected.shape != moved.shape:
        return None
    for axis in range(expected.ndim):
        rows = [tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1) for tensor in (expected, moved)]
        rows = [torch.view_as_real(r).flatten(1) if r.is_complex() else r for r in rows]
        if rows[0].numel() and torch.equal(*(torch.unique(r, dim=0, sorted=True) for r in rows)):
            return axis
    return None


def _holds(spec: Spec, group, sites: list[tuple[str, int | None]]) -> bool:
    """Whether a group acts at one of some sites, which name whole tensors of the state dict."""
    own = {(site.tensor, site.axis) for site in group.sites}
    stack = {part: (name, 1) for name, parts in spec.stacks.items() for part in parts}
    for tensor, axis in sites:
        while (tensor, axis) not in own and tensor in stack:
            tensor, more = stack[tensor]
            axis = None if axis is None else axis + more
        if (tensor, axis) in own:
            return True
    return False
