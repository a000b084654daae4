"""What a rule is: how an ATen op relates the axes of its arguments and results; and the registry of all rules.

Most rules are a text (`text` says how it is read), and the text is the rule:

    rule("aten.linear.default", "*b i, o i, o -> *b o", sample=lambda T: (T(2, 3, 4), T(5, 4), T(5)))

The rest are functions of a `Call`, for ops that rearrange values (views, slices, concatenations).

Every rule carries a sample of arguments; `fxrebasin.check` permutes them as the rule claims and runs the op.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, Hashable

import torch

from ..factors import Value
from .call import Call, values_in
from .facts import Facts
from .sample import Keyword, T

Sample = Callable[..., tuple]
Text = str | Callable[[Call], str]


@dataclass(frozen=True)
class Rule:
    """How one op relates axes: `relation(call)` returns the value (or the list of values) of the results."""

    op: str
    text: Text | None  # None: the relation is not a text
    relation: Callable[[Call], Any]
    samples: tuple[Sample, ...] = ()
    missing: str | None = None  # why the rule leaves out a freedom that the op has
    facts: Facts = Facts()
    whatever: frozenset[str] = frozenset()  # arguments that are no tensors and change nothing; "*": all of them

    def apply(self, call: Call) -> list[Value]:
        """The results as values. An index that is only moved goes on pointing where it did; what an index points into is
        pinned if the op computes with its numbers."""
        given = [value for value in call.tensors() if value.points is not None]
        results = self.relation(call)
        results = list(results) if isinstance(results, (list, tuple)) else [results]
        self._covered(call)
        for value in given:
            if self.facts.moves in (True, "same") and value is call.tensors()[0] and dict.get(call.args, "dtype") in _INTEGERS:
                for result in results:
                    result.points = result.points or value.points
            elif value.points is not None and not any(value is seen for seen in call.looked_up):
                call.pin(value.points, because="an index into it is computed with")
        return results

    def _covered(self, call: Call) -> None:
        """Raises Uncovered for an argument at which the relation has not looked, unless it has its default value, is
        declared to change nothing, or is like one in a sample."""
        unseen = call.unseen()
        schema = {a.name: a for a in resolve(self.op)._schema.arguments} if unseen else {}
        for name, value in unseen.items():
            harmless = name in HARMLESS or isinstance(value, _FORM) or not values_in(value) and (
                self.whatever & {name, "*"}) or name not in schema
            default = name in schema and schema[name].has_default_value() and _same(value, schema[name].default_value)
            if not (harmless or default or kind_of(value) in self._sampled.get(name, ())):
                raise Uncovered(f"{name}={_shown(value)} of {self.op} is not covered by its rule")

    @cached_property
    def _sampled(self) -> dict[str, set]:
        """The kinds of argument values that the samples hold, by name."""
        found: dict[str, set] = {}
        names = [a.name for a in resolve(self.op)._schema.arguments]
        for sample in self.samples:
            given = sample(T(self.op))
            known = dict(zip(names, (x for x in given if not isinstance(x, Keyword))))
            for x in (x for x in given if isinstance(x, Keyword)):
                known |= x
            for name, value in known.items():
                found.setdefault(name, set()).add(kind_of(value))
        return found


class Uncovered(ValueError):
    """An argument that no rule has looked at."""


HARMLESS = {"dtype", "out_dtype", "non_blocking", "pin_memory", "copy", "implicit", "generator"}  # change no axis
_FORM = (torch.dtype, torch.layout, torch.memory_format, torch.device, torch.Generator)


def kind_of(value: Any) -> Any:
    """What two values of an argument must have in common so that one stands for the other: of floats the sign, of tensors
    that they are ones, of all else the value."""
    if isinstance(value, (list, tuple)):
        return tuple(kind_of(x) for x in value)
    if isinstance(value, (torch.Tensor, Value)):
        return "tensor"
    if isinstance(value, float):
        return "float", math.isfinite(value), (value > 0) - (value < 0)
    return type(value), value if isinstance(value, Hashable) else repr(value)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return len(value) == len(default) and all(map(_same, value, default))
    return not values_in(value) and type(value) is type(default) and value == default


def _shown(value: Any) -> str:
    return f"tensor of shape {value.shape}" if isinstance(value, Value) else repr(value)


def resolve(op: str) -> torch._ops.OpOverload:
    """The op of a name such as "aten.linear.default". Raises AttributeError if there is none."""
    namespace, name, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


RULES: dict[str, Rule] = {}
_INTEGERS = (None, torch.int64, torch.int32)  # dtypes in which positions stay what they are


def rule(ops: str, text: Text, *, sample: Sample | tuple[Sample, ...] = (), missing: str | None = None, whatever: str = "",
         **more) -> None:
    """Registers a rule that is a text (or a text made from the call) for one op or several. `whatever`: names of arguments
    that are no tensors and change nothing. `more`: facts by name (see `Facts`), and sizes that are arguments of the op by
    letter: `g="groups"`."""
    facts = Facts(**{name: more.pop(name) for name in Facts.__dataclass_fields__ if name in more})

    def apply(call: Call):
        known = {letter: call.args[name] for letter, name in more.items()}
        results = call.relate(text if isinstance(text, str) else text(call), **known)
        return results[: max(len(call.shapes), 1)]

    register(ops, apply, text, sample, missing, whatever, facts)


def rearrangement(ops: str, *, sample: Sample | tuple[Sample, ...] = (), missing: str | None = None,
                  whatever: str = "", text: Text | None = None, **facts):
    """Decorator: registers a function of a Call as the rule for one op or several, with facts by name (see `Facts`).
    `text`: what the function comes to in the plainest case; some facts are read with it."""
    return lambda apply: register(ops, apply, text, sample, missing, whatever, Facts(**facts))


def register(ops: str, apply, text, sample, missing, whatever: str, facts: Facts) -> Callable:
    for op in ops.split():
        name = op if op.count(".") == 2 else f"aten.{op}"
        if name in RULES:
            raise ValueError(f"two rules for {name}")
        samples = sample if isinstance(sample, tuple) else (sample,)
        RULES[name] = Rule(name, text, apply, samples, missing, facts, frozenset(whatever.split()))
    return apply
