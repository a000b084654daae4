"""One state and one set of inputs: what the network gives there, and whether another state gives the same."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture import Program
from .gap import Gap, gap_between, same_kind
from .shaken import ROUNDING, Shaken
from .wide import EPS, Outcome, evaluate, widened

RUNS = (2, 6, 16)  # shaken runs: as many as a difference needs to be explained, at most the last
SLACK = 8.0  # a few runs find about the largest change: errors may add up in a way that no run tried
_SHOWN = 0.5  # a number that may be off by more than this part of itself shows nothing
FAR = 1e6  # no further run explains a difference so many times larger than what the first ones made
Move = Callable[[str, Tensor], Tensor]  # (path, output) -> the output as it should be


@dataclass(frozen=True)
class Comparison:
    """The gap of each output by path; numbers that an output of places was read off stand as `path
    (scores)`."""
    gaps: Mapping[str, Gap]

    @property
    def breaks(self) -> bool:
        """Whether some output differs by more than rounding."""
        return any(gap.excess > 1 for gap in self.gaps.values())

    @property
    def where(self) -> str:
        """Path of the output with the largest relative error, among those that differ by more than rounding
        if there are any."""
        return max(self.gaps, key=lambda path: (self.gaps[path].excess > 1, self.gaps[path].relative), default="")

    @property
    def relative(self) -> float:
        return max((gap.relative for gap in self.gaps.values()), default=0.0)

    @property
    def absolute(self) -> float:
        return max((gap.absolute for gap in self.gaps.values()), default=0.0)


class Trial:
    """The outputs of a program at one state and one set of inputs, in float64, and the noise of each.

    size    relative error of each number on the way that counts as rounding
    before  what the program gives there, if that is known already

    Raises what `evaluate` raises. State and inputs are left as they are.
    """

    def __init__(self, program: Program, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], seed: int = 0,
                 size: float = ROUNDING, before: Outcome | None = None):
        self.program, self.inputs, self.seed, self.size = program, inputs, seed, size
        names = [name for name in program.state if name not in program.ties]
        self.state = {name: widened(state[name].detach()) if name in names else state[name] for name in state}
        self.before = evaluate(program, self.state, inputs, seed) if before is None else before
        self._limits: dict[str, Tensor] = {}
        self._runs = 0

    def compare(self, state: Mapping[str, Tensor], moved: Move | None = None) -> Comparison:
        """Whether the program gives the same at another state.

        moved  how the outputs should be permuted, where they move with the state; scores are then left out
        """
        return self.beside(evaluate(self.program, state, self.inputs, self.seed), moved)

    def beside(self, after: Outcome, moved: Move | None = None) -> Comparison:
        """The same for a result that is there already. A difference that rounding does not explain at once is
        given more shaken runs."""
        gaps: dict[str, Gap] = {}
        for runs in (0, *RUNS):
            gaps = self._gaps(after, self.limits(runs), moved)
            worst = [gap.excess for gap in gaps.values() if gap.excess > 1]
            if not worst or (runs and FAR < max(worst) < math.inf):
                break
        return Comparison(gaps)

    def limits(self, runs: int = RUNS[0]) -> dict[str, Tensor]:
        """For each element of each result the largest difference that rounding may make, from at least so
        many shaken runs: at least `size` of the element itself; infinity where a run made another kind of
        number."""
        if not self._limits:
            self._limits = {path: _least(value, self.size) for path, value in _results(self.before).items()}
        for seed in range(self._runs, runs):
            shaken = _results(Shaken(self.program, self.state, self.inputs, seed, self.size).outcome(self.seed))
            self._limits = {path: torch.maximum(self._limits[path], SLACK * _moved_by(value, shaken[path]))
                            for path, value in _results(self.before).items()}
        self._runs = max(self._runs, runs)
        return self._limits

    @property
    def shows(self) -> bool:
        """Whether some element of an output is a number, and not rounding alone."""
        limits = self.limits(0)
        return any(bool(_known(value, limits[path]).any()) for path, value in self.before.outputs.items())

    @property
    def noise(self) -> float:
        """How far rounding of 53 bits moves the outputs, relative to the largest magnitude of each: the
        worst."""
        limits = self.limits()
        found = [
            _largest(limits[path]) / max(_largest(value.abs()), torch.finfo(torch.float64).tiny)
            for path, value in self.before.outputs.items()
            if value.is_floating_point() or value.is_complex()
        ]
        return max(found, default=0.0) / SLACK * EPS / self.size

    def _gaps(self, after: Outcome, limits: Mapping[str, Tensor], moved: Move | None) -> dict[str, Gap]:
        if moved is None:
            results = _results(after)
            return {path: gap_between(before, results[path], limits[path])
                    for path, before in _results(self.before).items() if path in results}
        return {path: gap_between(moved(path, before), after.outputs[path], moved(path, limits[path]))
                for path, before in self.before.outputs.items() if path in after.outputs}


def _results(outcome: Outcome) -> dict[str, Tensor]:
    return outcome.outputs | {f"{path} (scores)": value for path, value in outcome.scores.items()}


def _least(value: Tensor, size: float) -> Tensor:
    """What rounding may do to a number at least. Zero stays zero, and so do whole numbers and truth
    values."""
    if value.is_floating_point() or value.is_complex():
        return size * value.abs().to(torch.float64).nan_to_num(0.0, posinf=0.0)
    return torch.zeros(value.shape, dtype=torch.float64, device=value.device)


def _known(value: Tensor, limit: Tensor) -> Tensor:
    """Where a result is a number that is known to about its own size at least."""
    if not value.is_floating_point() and not value.is_complex():
        return torch.isfinite(limit)
    return torch.isfinite(value) & (limit <= _SHOWN * value.abs())


def _moved_by(before: Tensor, shaken: Tensor) -> Tensor:
    if not before.is_floating_point() and not before.is_complex():
        return torch.where(before == shaken, 0.0, math.inf).to(torch.float64)
    finite = torch.isfinite(before) & torch.isfinite(shaken)
    distance = torch.where(finite, (shaken - before).abs(), 0.0).to(torch.float64)
    return torch.where(same_kind(before, shaken), distance, math.inf)


def _largest(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.max()) if finite.numel() else 0.0
