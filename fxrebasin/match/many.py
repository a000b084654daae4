"""Several models at once: alignments to one shared reference, so that every cycle composes to the identity.

Source: "MergeMany", Git Re-Basin (Ainsworth et al. 2023), algorithm 3: each model in turn is aligned to the
mean of the others, until nothing improves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch

from ..alignment import Alignment
from ..errors import FxrebasinError, StateError
from ..spec import Spec
from ..spec.dtypes import wide
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
            if step.objective > match(spec, moved[i], others, method="identity").objective + 1e-7:
                found[i], moved[i], improved = step @ found[i], step.apply(moved[i]), True
        if not improved:
            break
    return found


def merge(states: Sequence[State], weights: Sequence[float] | None = None, *, spec: Spec | None = None, model=None,
          inputs: Iterable | None = None) -> dict[str, torch.Tensor]:
    """The weighted mean of aligned states, formed in float32 at least; dtypes and integers are those of the first.

    What is the same in all states, such as a fixed buffer, is taken as it is. Running variances are pooled: the mean
    of theirs, and the variance between the means. `spec` says which entries these are (without it, their names do);
    with `model` and `inputs` (batches, each as for `infer`) the statistics are measured again instead.
    Raises StateError if states differ in what they hold.
    """
    weights = [1 / len(states)] * len(states) if weights is None else [w / sum(weights) for w in weights]
    if spec is not None:
        states = [fitted(spec, state, f"state {k}")[0] for k, state in enumerate(states)]
    told = pooled(spec, states, weights)
    result = {}
    for name, first in states[0].items():
        if not isinstance(first, torch.Tensor):  # extra state
            result[name] = copy.deepcopy(first)
            continue
        every = [_entry(state, name, first) for state in states]
        if not (first.is_floating_point() or first.is_complex()) or all(agree(first, other) for other in every[1:]):
            result[name] = first.detach().clone()
        elif name in told:
            result[name] = told[name].to(first.dtype)
        else:
            kind = wide(*(tensor.dtype for tensor in every))
            result[name] = sum(w * x.detach().to(first.device, kind) for w, x in zip(weights, every)).to(first.dtype)
    if model is not None and inputs is not None:
        result |= {name: tensor.to(result[name]) for name, tensor in measured(model, result, inputs).items()}
    return result


def _entry(state: State, name: str, first: torch.Tensor) -> torch.Tensor:
    if name not in state or state[name].shape != first.shape:
        found = "is not there" if name not in state else f"has shape {tuple(state[name].shape)}"
        raise StateError(f"{name!r} has shape {tuple(first.shape)} in the first state, and {found} in another: merge "
                         "states of one model")
    return state[name]
