"""Several models at once: alignments to one shared reference, so that every cycle composes to the identity.

Source: "MergeMany", Git Re-Basin (Ainsworth et al. 2023), algorithm 3: each model in turn is aligned to the
mean of the others, until nothing improves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..alignment import Alignment
from ..errors import FxrebasinError
from ..spec import Spec

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
            others = merge([m for k, m in enumerate(moved) if k != i])
            step = match(spec, moved[i], others, **options)
            if step.objective > match(spec, moved[i], others, method="identity").objective + 1e-7:
                found[i], moved[i], improved = step @ found[i], step.apply(moved[i]), True
        if not improved:
            break
    return found


def merge(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    """The weighted mean of aligned states, formed in float32 at least; dtypes and counters are those of the
    first."""
    weights = [1 / len(states)] * len(states) if weights is None else [w / sum(weights) for w in weights]
    result = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            result[name] = first.detach().clone()
            continue
        wide = torch.promote_types(first.dtype, torch.float32)
        mean = sum(w * s[name].detach().to(first.device, wide) for w, s in zip(weights, states))
        result[name] = mean.to(first.dtype)
    return result
