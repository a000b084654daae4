"""Scores along a curve of states."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..alignment import Alignment
from ..errors import FxrebasinError
from ..transport import transported
from .path import between

State = Mapping[str, Tensor]
Score = Callable[[dict[str, Tensor]], float]


@dataclass(frozen=True)
class Curve:
    """Scores at places.

    places  alpha, or how far from one state to the other;  scores: as many numbers
    lower   whether lower scores are the better ones
    """

    places: tuple[float, ...]
    scores: tuple[float, ...]
    lower: bool = False

    @property
    def best(self) -> tuple[float, float]:
        """Place and score of the best; of several, the first. Scores that are no numbers are never it."""
        sign = -1 if self.lower else 1
        finite = [(sign * score, -k) for k, score in enumerate(self.scores) if not math.isnan(score)]
        if not finite:
            raise FxrebasinError("no score along the curve is a number")
        k = -max(finite)[1]
        return self.places[k], self.scores[k]

    @property
    def barrier(self) -> float:
        """How much worse than the straight line between the scores of its ends the curve gets, 0 if it does not."""
        first, last, start, end = self.scores[0], self.scores[-1], self.places[0], self.places[-1]
        gaps = [first + (last - first) * (place - start) / (end - start) - score
                for place, score in zip(self.places, self.scores)]
        return max((-gap if self.lower else gap for gap in gaps), default=0.0)


def scored(state: dict[str, Tensor], score: Score) -> float:
    """The score of a state. Raises FxrebasinError if it is no number."""
    found = score(state)
    try:
        return float(found)
    except (TypeError, ValueError):
        raise FxrebasinError(f"the score is a {type(found).__name__}, not a number: return a float") from None


def sweep(base: State, finetuned: State, target: State, alignment: Alignment, score: Score, alphas: Sequence[float],
          lower: bool = False) -> Curve:
    """Scores of target + alpha * pi(finetuned - base). Raises StateError as `transport` does."""
    if not alphas:
        raise FxrebasinError("there are no alphas to try: give at least one")
    scores = [scored(dict(transported(base, finetuned, target, alignment, alpha)), score) for alpha in alphas]
    return Curve(tuple(alphas), tuple(scores), lower)


def barrier(a: State, b: State, score: Score, points: int = 11, way: str = "line", lower: bool = False,
            mend: Callable[[dict[str, Tensor], float], dict[str, Tensor]] | None = None) -> Curve:
    """Scores of states from a to b, both ends among them.

    points  how many, 2 at least;  way: as `between` has it
    mend    what is made of each state, given how far from a it is, before it is scored
    """
    if points < 2:
        raise FxrebasinError(f"{points} points make no curve: give at least 2")
    places = [k / (points - 1) for k in range(points)]
    states = ((t, between(a, b, t, way)) for t in places)
    return Curve(tuple(places), tuple(scored(mend(state, t) if mend else state, score) for t, state in states), lower)
