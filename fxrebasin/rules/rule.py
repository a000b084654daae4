"""What a rule is: how an ATen op relates the axes of its arguments and results; and the registry of all rules.

Most rules are a text (`text` says how it is read), and the text is the rule:

    rule("aten.linear.default", "*b i, o i, o -> *b o", sample=lambda T: (T(2, 3, 4), T(5, 4), T(5)))

The rest are functions of a `Call`, for ops that rearrange values (views, slices, concatenations).

Every rule carries a sample of arguments; `fxrebasin.check` permutes them as the rule claims and runs the op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import torch

from .call import Call, Value

Sample = Callable[..., tuple]


@dataclass(frozen=True)
class Rule:
    """How one op relates axes: `relation(call)` returns the value (or the list of values) of the results."""

    op: str
    text: str | None
    relation: Callable[[Call], Any]
    samples: tuple[Sample, ...] = ()
    missing: str | None = None  # why the rule leaves out a freedom that the op has
    moves: bool = False  # the results hold the numbers of the first argument, at other places

    def apply(self, call: Call) -> list[Value]:
        """The results as values. An index that is only moved goes on pointing where it did; what an index points into is
        pinned if the op computes with its numbers."""
        given = [value for value in call.tensors() if value.points is not None]
        results = self.relation(call)
        results = list(results) if isinstance(results, (list, tuple)) else [results]
        for value in given:
            if self.moves and value is call.tensors()[0] and call.args.get("dtype") in _INTEGERS:
                for result in results:
                    result.points = result.points or value.points
            elif not any(value is seen for seen in call.looked_up):
                call.pin(value.points, because="an index into it is computed with")
        return results


RULES: dict[str, Rule] = {}
_INTEGERS = (None, torch.int64, torch.int32)  # dtypes in which positions stay what they are


def rule(ops: str, text: str | Callable[[Call], str], *, sample: Sample | tuple[Sample, ...] = (),
         missing: str | None = None, moves: bool = False, **sizes: str) -> None:
    """Registers a rule that is a text (or a text made from the call) for one op or several. `moves`: the numbers of the
    first argument are found again in the results."""

    def apply(call: Call):
        known = {letter: call.args[name] for letter, name in sizes.items()}
        results = call.relate(text if isinstance(text, str) else text(call), **known)
        return results[: max(len(call.shapes), 1)]

    register(ops, apply, text if isinstance(text, str) else None, sample, missing, moves)


def rearrangement(ops: str, *, sample: Sample | tuple[Sample, ...] = (), missing: str | None = None,
                  moves: bool = False):
    """Decorator: registers a function of a Call as the rule for one op or several."""
    return lambda apply: register(ops, apply, None, sample, missing, moves)


def register(ops: str, apply, text, sample, missing, moves=False) -> Callable:
    for op in ops.split():
        name = op if op.count(".") == 2 else f"aten.{op}"
        if name in RULES:
            raise ValueError(f"two rules for {name}")
        RULES[name] = Rule(name, text, apply, sample if isinstance(sample, tuple) else (sample,), missing, moves)
    return apply
