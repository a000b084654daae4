"""Arithmetic on task vectors: several with weights, and an alpha for each tensor by its name.

Source: "Editing Models with Task Arithmetic", ICLR 2023.
"""
from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import StateError
from .task_vector import State


class WeightedSum(Mapping[str, Tensor]):
    """A base with several task vectors added, each times a weight: a fine-tuned state like any other.

    base     the state that all of them are fine-tunings of
    tuned    the fine-tuned states;  weights: one for each, finite, negative ones too

    A tensor is made when it is asked for, in float64, so that the difference from the base is that of the sums. Raises
    StateError if a state lacks a tensor of the base or has it in another shape.
    """

    def __init__(self, base: State, tuned: Sequence[State], weights: Sequence[float]):
        if len(tuned) != len(weights) or not tuned:
            raise StateError(f"there are {len(tuned)} task vectors and {len(weights)} weights: give one for each")
        for weight in weights:
            if not math.isfinite(weight):
                raise StateError(f"a weight of a task vector is {weight}: give a finite number")
        self._base, self._tuned, self._weights = base, tuned, weights

    def __getitem__(self, name: str) -> Tensor:
        base = self._base[name].detach()
        if not (base.is_floating_point() or base.is_complex()):
            return base
        wide = torch.complex128 if base.is_complex() else torch.float64
        total = base.to(wide, copy=True)
        for k, (state, weight) in enumerate(zip(self._tuned, self._weights)):
            if name not in state:
                raise StateError(f"the fine-tuned state {k + 1} lacks {name!r}: it is not a fine-tuning of this base")
            tuned = state[name].detach().to(base.device)
            if tuned.shape != base.shape:
                raise StateError(f"{name!r} has shape {tuple(tuned.shape)} in the fine-tuned state {k + 1} and "
                                 f"{tuple(base.shape)} in its base: it is not a fine-tuning of this base")
            total += weight * torch.where(tuned == base, torch.zeros_like(total), tuned.to(wide) - base.to(wide))
        return total

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


@dataclass(frozen=True)
class Alphas:
    """How much of a task vector is added to each tensor.

    default   where no pattern fits
    patterns  pattern -> alpha; `*` stands for anything, dots included, and a pattern fits all that lies below a module
              it names: `blocks.*.mlp` fits `blocks.0.mlp.fc1.weight`. The last one that fits counts.
    """

    default: float = 1.0
    patterns: tuple[tuple[str, float], ...] = ()

    @classmethod
    def given(cls, alpha: "float | Alphas") -> "Alphas":
        """What an argument stands for: one number is the same for all."""
        return alpha if isinstance(alpha, cls) else cls(alpha)

    def __str__(self) -> str:
        return ", ".join([f"{self.default:g}", *(f"{pattern}={alpha:g}" for pattern, alpha in self.patterns)])

    def of(self, name: str) -> float:
        """Alpha for a tensor, by its name in the state dict."""
        fitting = [alpha for pattern, alpha in self.patterns
                   if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")]
        return fitting[-1] if fitting else self.default

    def of_all(self, names: Sequence[str]) -> float:
        """Alpha for tensors that are carried together. Raises StateError if it is not the same for all."""
        found = {self.of(name): name for name in names}
        if len(found) > 1:
            one, other = list(found.values())[:2]
            raise StateError(f"{one!r} and {other!r} can change places or are one tensor, and have different alphas: "
                             "give patterns that fit both")
        return next(iter(found), self.default)

    def check(self, names: Sequence[str]) -> None:
        """Raises StateError for an alpha that is not finite, and for a pattern that fits none of these names."""
        for alpha in (self.default, *(alpha for _, alpha in self.patterns)):
            if not math.isfinite(alpha):
                raise StateError(f"alpha is {alpha}: give a finite number")
        for pattern, _ in self.patterns:
            one = Alphas(0.0, ((pattern, 1.0),))
            if not any(one.of(name) for name in names):
                raise StateError(f"the pattern {pattern!r} fits no tensor of the model, such as {next(iter(names), '')!r}")
