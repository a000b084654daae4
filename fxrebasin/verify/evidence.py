"""What was measured, as values that print as a table and as JSON."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..evaluate import Comparison

TOLERANCE = 1e-9  # relative: float64 rounding stays far below, any wrong permutation far above


@dataclass(frozen=True)
class Run:
    """One comparison of the network with its permuted self.

    weights    "own", or "random 3" (a seed)
    inputs     "given", or what kind was drawn
    precision  "float64" (the captured program), or "own" (the module itself, as it is)
    max_abs, max_rel, where   largest errors, as in Evidence
    excess     the largest quotient of an element's error and the rounding noise that counts as none there
    seen       whether some output is a number, and more than rounding
    holds      whether no element differs by more than its noise
    """
    weights: str
    inputs: str
    precision: str
    max_abs: float
    max_rel: float
    where: str
    excess: float
    seen: bool
    holds: bool

    @classmethod
    def of(cls, comparison: Comparison, weights: str, inputs: str, precision: str, seen: bool) -> Run:
        return cls(
            weights,
            inputs,
            precision,
            comparison.absolute,
            comparison.relative,
            comparison.where,
            max((gap.excess for gap in comparison.gaps.values()), default=0.0),
            seen,
            not comparison.breaks,
        )


@dataclass(frozen=True)
class Evidence:
    """What was measured: how far the outputs of the permuted network are from those of the original, in
    float64.

    The figures are those of the run on the state and the inputs given; if that one holds and another does
    not, of the other one.

    max_abs, max_rel  largest absolute error; the same relative to the largest magnitude of that output
    where             path of the output with the largest relative error
    outputs           path -> (absolute, relative) error
    tolerance         the largest relative error allowed on the state and the inputs given, if one was asked
                      for
    offending         groups that change the function when they alone are permuted
    sites             (tensor, axis) at which the function breaks: of an offending group, or of a tensor that
                      the alignment does not permute as its groups say (axis None: no order of any axis
                      explains it)
    noise             how far rounding alone moves the outputs of that run, relative
    runs              every comparison that was made
    notes             what could not be tried, and why
    """
    max_abs: float
    max_rel: float
    where: str
    outputs: Mapping[str, tuple[float, float]]
    tolerance: float = TOLERANCE
    offending: tuple[str, ...] = field(default=())
    sites: tuple[tuple[str, int | None], ...] = ()
    noise: float = 0.0
    runs: tuple[Run, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def equivalent(self) -> bool:
        """Whether every run holds, and one of them shows something."""
        if not self.runs:
            return self.max_rel <= self.tolerance
        return all(run.holds for run in self.runs) and any(run.seen for run in self.runs)

    @property
    def headline(self) -> str:
        """The answer in one line."""
        word = "equivalent" if self.equivalent else "NOT equivalent"
        text = (f"{word}: largest error {self.max_abs:.1e} absolute, {self.max_rel:.1e} relative "
                f"(output {self.where!r}, float64, rounding noise {self.noise:.0e}, {len(self.runs)} runs)")
        places = ", ".join(place(site) for site in self.sites[:3])
        text += f"; changed by {', '.join(self.offending[:5])}" if self.offending else ""
        return text + (f" at {places}" if places else "")

    def _repr_html_(self) -> str:
        from ..show import fragment
        return fragment(str(self))

    def __str__(self) -> str:
        """The headline, a table of the runs, and the notes."""
        rows = [("weights", "inputs", "precision", "absolute", "relative", "of noise allowed", "output", "")]
        rows += [
            (
                run.weights,
                run.inputs,
                run.precision,
                f"{run.max_abs:.1e}",
                f"{run.max_rel:.1e}",
                f"{run.excess:.1e}",
                run.where,
                ("" if run.seen else "shows nothing") if run.holds else "BREAKS",
            )
            for run in self.runs
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([self.headline, *(lines if self.runs else ()), *(f"note: {note}" for note in self.notes)])

    @property
    def data(self) -> dict[str, Any]:
        """The fields, and `equivalent`, as JSON has them: infinities and NaN are strings."""
        return _plain({"equivalent": self.equivalent, **asdict(self)})

    def to_json(self) -> str:
        """`data` as one JSON document."""
        return json.dumps(self.data, allow_nan=False)


def place(site: tuple[str, int | None]) -> str:
    """A site in words."""
    return site[0] if site[1] is None else f"{site[0]} axis {site[1]}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
