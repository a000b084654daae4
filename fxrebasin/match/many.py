"""Several models at once: alignments to one shared reference, so that every cycle composes to the identity.

Source: "MergeMany", Git Re-Basin (Ainsworth et al. 2023), algorithm 3: each model in turn is aligned to the
mean of the others, until nothing improves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..alignment import Alignment
from ..errors import FxrebasinError, StateError
from ..spec import Spec
from ..spec.dtypes import leaves_range, plain, stored_as, wide, wider
from ..spec.fit import finite
from ..spec.fitting import fitted
from ..spec.roles import agree
from ..statistics import measured, pooled

State = Mapping[str, torch.Tensor]


def match_many(spec: Spec, states: Sequence[State], *, rounds: int = 10, **options) -> list[Alignment]:
    """Aligns every state to one shared reference: result[i].apply(states[i]) are close to each other.

    The first state stays where it is. The alignment of state i onto state j is result[j].inverse() @
    result[i]; around any cycle these compose to the identity. `options` are those of `match`.
    """
    from . import match
    if len(states) < 2:
        raise FxrebasinError(f"match_many needs at least two states, got {len(states)}")
    found = [spec.identity()] + [match(spec, state, states[0], **options) for state in states[1:]]
    moved = [a.apply(s) for a, s in zip(found, states)]
    for _ in range(rounds if len(states) > 2 else 0):
        improved = False
        for i in range(1, len(states)):
            others = merge([m for k, m in enumerate(moved) if k != i], spec=spec)
            step = match(spec, moved[i], others, **options)
            before = match(spec, moved[i], others, method="identity").objective
            if step.objective is not None and before is not None and step.objective > before + 1e-7:
                found[i], moved[i], improved = step @ found[i], step.apply(moved[i]), True
        if not improved:
            break
    return found


def merge(states: Sequence[State], weights: Sequence[float] | None = None, *, spec: Spec | None = None, model=None,
          inputs: Iterable | None = None, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The weighted mean of aligned states, formed in float32 at least; integers are those of the first.

    dtype  of the floating-point tensors that come out; by default each has the first's

    What is the same in all states, such as a fixed buffer, is taken as it is. Running variances are pooled: the mean
    of theirs, and the variance between the means. `spec` says which entries these are (without it, their names do);
    with `model` and `inputs` (batches, each as for `infer`) the statistics are measured again instead.
    Raises StateError if states differ in what they hold, or something leaves the range of its dtype.
    """
    weights = [1 / len(states)] * len(states) if weights is None else [w / sum(weights) for w in weights]
    if spec is not None:
        states = [fitted(spec, state, f"state {k}")[0] for k, state in enumerate(states)]
    told = pooled(spec, list(states), weights, dtype)
    result = {name: _merged(name, states, weights, told.get(name), dtype) for name in states[0]}
    if model is not None and inputs is not None:
        result |= {name: _stored(name, [tensor], tensor.to(result[name].device), result[name].dtype)
                   for name, tensor in measured(model, result, inputs).items()}
    return result


def _merged(name: str, states: Sequence[State], weights: Sequence[float], told: torch.Tensor | None,
            dtype: torch.dtype | None) -> Any:
    """An entry of the mean. `told`: what it is, for a statistic that is pooled."""
    first = states[0][name]
    if not isinstance(first, torch.Tensor):  # extra state
        return copy.deepcopy(first)
    every, to = [_entry(state, name, first).detach() for state in states], stored_as(first.dtype, dtype)
    numbers = first.is_floating_point() or first.is_complex()
    if not numbers or all(agree(first, other) for other in every[1:]):
        return every[0].clone() if to == first.dtype else _stored(name, every, plain(first), to)
    if told is None:
        kind = wide(to, *(tensor.dtype for tensor in every))
        told = sum((w * x.to(first.device, kind) for w, x in zip(weights, every)),
                   torch.zeros((), dtype=kind, device=first.device))
    return _stored(name, every, told, to)


def _stored(name: str, given: Sequence[torch.Tensor], exact: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    """Numbers in the dtype that they are stored in. Raises StateError if they leave its range: if they become infinite,
    and what they were made of is not."""
    lost = exact.device.type != "meta" and (
        leaves_range(exact, to) or not finite(exact) and all(finite(tensor) for tensor in given))
    if lost:
        raise StateError(f"{name!r}: merged, it leaves the range of {to}: give dtype=torch.{wider(to)}")
    return exact.to(to)


def _entry(state: State, name: str, first: torch.Tensor) -> torch.Tensor:
    if name not in state or state[name].shape != first.shape:
        found = "is not there" if name not in state else f"has shape {tuple(state[name].shape)}"
        raise StateError(f"{name!r} has shape {tuple(first.shape)} in the first state, and {found} in another: merge "
                         "states of one model")
    return state[name]
