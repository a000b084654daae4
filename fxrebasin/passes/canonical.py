"""All passes, one after the other: the same function in a gauge that does not depend on how training got there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..capture import Program
from ..errors import FxrebasinError
from ..spec import Rewrite, Spec
from ..spec.dtypes import wide
from ..spec.fitting import fitted, undone
from . import bias, centre, gain, shift
from .graph import Maps

PASSES: dict[str, Callable[[Rewrite, dict[str, Tensor]], str]] = {
    "shift": shift.done, "gain": gain.done, "key bias": bias.done, "value bias": bias.done, "centre": centre.done}
SAID = {"shift": "shifts into the biases behind them", "gain": "gains into the matrices behind them",
        "key bias": "biases of keys dropped", "value bias": "biases of values behind the output map",
        "centre": "writers of a stream centred"}


@dataclass(frozen=True)
class Step:
    """What one pass did with one entry; `reason` says why nothing, "" if it was done."""

    kind: str
    entry: str
    into: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        into = f" -> {', '.join(self.into)}" if self.into and not self.reason else ""
        return f"{self.entry}{into}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Canonical:
    """A state after the passes, and the record of them, which prints."""

    state: dict[str, Any]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return f"Canonical({sum(not step.reason for step in self.steps)} of {len(self.steps)} steps done)"

    def _lines(self) -> Iterator[str]:
        count = Counter(step.kind for step in self.steps if not step.reason)
        for kind in PASSES:
            steps = [step for step in self.steps if step.kind == kind]
            if steps:
                yield f"{SAID[kind]}: {count[kind]} of {len(steps)}"
                yield from (f"  {'not ' if step.reason else ''}{step}" for step in steps)


def rewrites(program: Program, values: Mapping[fx.Node, Any], spec: Spec, known: bias.Known) -> tuple[Rewrite, ...]:
    """What the passes may do to the states of a program, in the order in which they do it.

    values, known  of the nodes, as the analysis left them: what they are made of, and numbers that nothing can change
    """
    maps = Maps(program, values)
    found = (*shift.found(maps), *gain.found(maps, spec.folds), *bias.found(maps, known), *centre.found(maps))
    return tuple(each for each in found if each.entry in spec.layouts)


def canonicalize(spec: Spec, state: Mapping[str, Tensor], passes: Collection[str] = tuple(PASSES)) -> Canonical:
    """The same function in a canonical gauge: `.state`, of the same names, shapes and dtypes; printed, the record of what
    was done, what not, and why.

    passes  the kinds of steps to take, of "shift", "gain", "key bias", "value bias" and "centre"; always in this order

    Numbers are computed in float64. A second time changes nothing more. Raises StateError if the state does not fit.
    """
    if unknown := sorted(set(passes) - set(PASSES)):
        raise FxrebasinError(f"{unknown[0]!r} is no pass: choose among {', '.join(PASSES)}")
    own, fit = fitted(spec, state, "the state")
    spec.check(own)
    before = spec.stacked(own)
    exact = {name: tensor.detach().to(wide(tensor.dtype, torch.float64)) if _is_float(tensor) else tensor
             for name, tensor in before.items()}
    steps = []
    work = dict(exact)
    for rewrite in spec.rewrites:
        if rewrite.kind in passes:
            reason = rewrite.reason or PASSES[rewrite.kind](rewrite, work)
            steps.append(Step(rewrite.kind, rewrite.entry, tuple(reader[0] for reader in rewrite.readers), reason))
    for name in before:
        if work[name] is exact[name]:
            work[name] = before[name].clone() if isinstance(before[name], Tensor) else before[name]
    made = spec.unstacked({alias: work[spec.ties.get(alias, alias)] for alias in work})
    result = {name: made[name].to(tensor.dtype) if isinstance(tensor, Tensor) else made[name] for name, tensor in own.items()}
    return Canonical(result if fit is None else undone(fit, result, state), tuple(steps))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
