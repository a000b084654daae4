"""Transport of states that are too large to be held: part by part, and large tensors in slabs."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..alignment import Alignment
from ..parts import Parts, still
from ..spec.dtypes import stored_as
from ..spec.roles import note_outside
from ..statistics import statistics_of
from .arithmetic import Alphas
from .mismatched import mismatched_names, modules_of
from .pair import check_pair
from .task_vector import State, transport

LARGE = 1 << 21  # numbers; of larger tensors the sum is formed in slabs of so many, to need no wide copy of the whole


def transported(base: State, finetuned: State, target: State, alignment: Alignment, alpha: float | Alphas = 1.0,
                **options: Any) -> Iterator[tuple[str, Tensor]]:
    """What `transport` gives, entry by entry; of each state only one part is asked for at a time. `alpha` may be one
    for each tensor."""
    alphas = Alphas.given(alpha)
    check_carried(base, finetuned, target, alignment, alphas, options.get("force", False))
    yield from carried_parts(base, finetuned, target, alignment, alphas, **options)


def check_carried(base: State, finetuned: State, target: State, alignment: Alignment, alphas: Alphas,
                  force: bool = False) -> None:
    """What can be said before anything is carried. Raises StateError."""
    alphas.check(list(alignment.spec.names))
    note_outside(alignment.spec, "transport")
    check_pair(alignment, base, finetuned, target, force=force)


def carried_parts(base: State, finetuned: State, target: State, alignment: Alignment, alphas: Alphas,
                  **options: Any) -> Iterator[tuple[str, Tensor]]:
    """`transported` for states and an alignment that have been looked at, which may be a part of a larger one."""
    parts = Parts(alignment)
    sets = _together(parts, base, finetuned, options.get("mismatched", "error"))
    for some in sets:
        states = [{k: t for part in some for k, t in parts.take(part, state).items()}
                  for state in (base, finetuned, target)]
        for alpha in {alphas.of(name) for name in states[0]}:
            moved = transport(*states, parts.alignment(*some), alpha, **options)
            yield from ((name, tensor) for name, tensor in moved.items() if alphas.of(name) == alpha)
    done = {part for some in sets for part in some}
    for part, names in parts.names.items():
        if part in done:
            continue
        own = {**options, "alpha": alphas.of_all(names)}
        if not parts.sizes[part] and len(names) == 1 and torch.Size(alignment.spec.names[part]).numel() > LARGE:
            yield part, _in_slabs(part, parts, base, finetuned, target, own)
        else:
            states = (parts.take(part, state) for state in (base, finetuned, target))
            yield from transport(*states, parts.alignment(part), **own).items()
    rest = ({name: state[name] for name in alignment.spec.passed if name in state}
            for state in (base, finetuned, target))
    yield from transport(*rest, parts.rest(), alphas.default, **options).items()


def _together(parts: Parts, base: State, finetuned: State, mismatched: str) -> list[tuple[str, ...]]:
    """Parts that must be at hand together: means are told in deviations, and a module is new as a whole."""
    spec = parts.spec
    names = [list(statistics_of(spec))]
    if mismatched != "error":
        names += modules_of(mismatched_names(spec, base, finetuned, mismatched)).values()
    sets = [tuple(dict.fromkeys(parts.part_of[name] for name in some)) for some in names]
    return [some for some in sets if some]


def _in_slabs(part: str, parts: Parts, base: State, finetuned: State, target: State, options: dict[str, Any]) -> Tensor:
    """One tensor: moved first, in its own dtype (a difference of moved tensors is the moved difference), then added."""
    alignment = parts.alignment(part)
    old, tuned = (alignment.apply(parts.take(part, state))[part] for state in (base, finetuned))
    own = parts.take(part, target)[part]
    result = torch.empty_like(own, dtype=stored_as(own.dtype, options.get("dtype")))
    rows = max(1, LARGE * len(own) // own.numel())
    for start in range(0, len(own), rows):
        slab = [{part: tensor[start:start + rows]} for tensor in (old, tuned, own)]
        pi = still(part, slab[0][part].shape, parts.spec.roles.get(part))
        result[start:start + rows] = transport(*slab, pi, **options)[part]
    return result
