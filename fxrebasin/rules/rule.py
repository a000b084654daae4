"""What a rule is: how an ATen op relates the axes of its arguments and results.

Most rules are a text, and the text is the rule:

    rule("aten.linear.default", "*b i, o i, o -> *b o", sample=lambda T: (T(2, 3, 4), T(5, 4), T(5)))

Operands stand left of the arrow, one for each tensor argument in the order of the op's schema (an argument that is None
drops out); results stand right of it. In each, a token stands for a dimension:

    i        a letter. Shared between operands: the same index set. Absent from the results: summed over.
             Only in a result: positions that the op makes, pinned.
    i!       pinned: the op tells its positions apart (kernel taps, vocabulary entries, causal order)
    *b       any number of dimensions, aligned at their right ends and broadcast
    (g c)    one dimension that is a product; all sizes but one are known from elsewhere or given: `g="groups"` reads the
             op's argument of that name

A dimension of size 1 broadcasts. Results beyond those of the op are its *intermediates*: softmax is
`*b d -> *b d, *b` because its sums hold b without d, which decides what d may depend on.

The rest are functions of a `Call`, for ops that rearrange values (views, slices, concatenations).

An index remembers which axis its numbers point into (`value.points`); a rule that looks it up asks `call.points`.

Every rule carries a sample of arguments; `fxrebasin.check` permutes them as the rule claims and runs the op.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import torch

from ..factors import Atom, Choice, Factors, Segment, Value, natural

Sample = Callable[..., tuple]


@dataclass
class Call:
    """One op applied to values: all that a rule may look at."""

    factors: Factors
    op: str  # "aten.linear.default"
    args: dict[str, Any]  # by schema name, defaults filled in; tensors are Values (or lists of them)
    shapes: list[tuple[int, ...]]  # of the results that are tensors
    why: str = ""  # where in the user's code
    used: Callable[[int], bool] = lambda k: True  # whether result k is used at all
    content: Callable[[str], np.ndarray | None] = lambda name: None  # an argument's numbers, if they never change
    ties: Callable[[str], str | None] = lambda name: None  # why an argument's numbers may be equal to each other
    looked_up: list[Value] = field(default_factory=list)  # the indices that the rule has looked up

    def tensors(self) -> list[Value]:
        """All tensor arguments in schema order, lists flattened."""
        found = []
        for arg in self.args.values():
            found.extend(x for x in (arg if isinstance(arg, (list, tuple)) else [arg]) if isinstance(x, Value))
        return found

    def pin(self, value: Value, dims=None, because: str | None = None) -> None:
        """Pins dimensions of a value (all by default)."""
        reason = f"{because or self.op.removeprefix('aten.').split('.')[0] + ' tells its positions apart'} ({self.why})"
        for block in value.blocks:
            for d in range(len(value.shape)) if dims is None else dims:
                self.factors.pin(block.segments[d].atoms, reason)
                if not block.segments[d].atoms:
                    block.segments[d] = Segment.plain(block.segments[d].positions, block.segments[d].reason or reason)

    def fresh(self, shape) -> Value:
        """A value whose positions the op makes: pinned."""
        return self.factors.value(shape, f"positions made by {self.op} ({self.why})")

    def dim(self, value: Value, name: str = "dim") -> int:
        return self.args[name] % max(len(value.shape), 1)

    def dims(self, value: Value, name: str = "dim") -> list[int]:
        """The dimensions that an argument names: None or an empty list means all of them."""
        given = self.args.get(name)
        if given is None or given == []:
            return list(range(len(value.shape)))
        return sorted({d % len(value.shape) for d in ([given] if isinstance(given, int) else given)})

    def points(self, index: Value, size: int) -> Value | None:
        """The axis of the given size that an index points into; None if its numbers come from elsewhere."""
        if index.points is None or index.points.shape != (size,):
            return None
        self.looked_up.append(index)
        return index.points

    def table(self, index: Value, size: int) -> Value | None:
        """The axis of the given size that is looked up with an index: what it points into, or one that is pinned."""
        if index.points is not None:
            return self.points(index, size)
        if index.table is None:
            reason = f"looked up by numbers that do not follow it ({self.why})"
            index.table = self.factors.build((size,), [[Segment(natural((size,)), [Atom(size, reason)])]])
        if index.table.shape != (size,):
            return None
        self.looked_up.append(index)
        return index.table

    def relate(self, text: str, values: list[Value] | None = None, **sizes: int) -> list[Value]:
        return relate(self, text, [v for v in self.tensors()] if values is None else values, sizes)


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


# ----------------------------------------------------------------------------------------- interpreting a rule's text

_TOKEN = re.compile(r"\([^)]*\)|\S+")


def relate(call: Call, text: str, values: list[Value], sizes: dict[str, int]) -> list[Value]:
    """Applies a rule's text to values; returns a value for each result, intermediates included."""
    left, right = text.split("->")
    patterns = [_TOKEN.findall(operand) for operand in left.split(",")][: len(values)]
    dims = [_align(tokens, value) for tokens, value in zip(patterns, values)]
    sizes = _sizes(dims, values, dict(sizes))
    operands = []
    for tokens, value in zip(dims, values):
        parts = [_letters(token, size, sizes) for token, size in zip(tokens, value.shape)]
        letters = [letter for part in parts for letter in part]
        if any(len(part) != 1 for part in parts):
            value = call.factors.reshape(value, [sizes[x.rstrip("!")] if x else 1 for x in letters], call.why)
        call_dims = [d for d, x in enumerate(letters) if x and x.endswith("!")]
        if call_dims:
            call.pin(value, call_dims)
        if any(x and size not in (1, sizes[x.rstrip("!")]) for x, size in zip(letters, value.shape)):
            raise ValueError(f"sizes {value.shape} do not fit {text!r}")
        operands.append((value, [x.rstrip("!") if x and sizes[x.rstrip("!")] == value.shape[d] else None
                                 for d, x in enumerate(letters)]))
    runs = _runs(dims)
    outputs = [[letter for token in _TOKEN.findall(result)
                for letter in (runs.get(token[1:], []) if token.startswith("*") else [token])]
               for result in right.split(",")]
    return _results(call, operands, outputs, sizes)


def _align(tokens: list[str], value: Value) -> list[str]:
    """One token for each dimension: `*b` becomes b.1, b.2, ... counted from the right."""
    star = next((k for k, token in enumerate(tokens) if token.startswith("*")), None)
    if star is None:
        return tokens
    count = len(value.shape) - (len(tokens) - 1)
    name = tokens[star][1:]
    bang = "!" * name.endswith("!")
    named = [f"{name.rstrip('!')}.{k}{bang}" for k in range(count, 0, -1)]
    return tokens[:star] + named + tokens[star + 1:]


def _runs(dims: list[list[str]]) -> dict[str, list[str]]:
    """What each `*b` stands for in a result: the longest run that any operand has."""
    longest: dict[str, int] = {}
    for token in (token for tokens in dims for token in tokens if not token.startswith("(")):
        name, dot, k = token.rstrip("!").partition(".")
        if dot:
            longest[name] = max(longest.get(name, 0), int(k))
    return {name: [f"{name}.{k}" for k in range(count, 0, -1)] for name, count in longest.items()}


def _sizes(dims, values, sizes: dict[str, int]) -> dict[str, int]:
    """The size of every letter: given, read off a dimension, or what is left of a product."""
    for tokens, value in zip(dims, values):
        for token, size in zip(tokens, value.shape):
            if not token.startswith("("):
                letter = token.rstrip("!")
                sizes[letter] = max(sizes.get(letter, 1), size)
    for tokens, value in zip(dims, values):
        for token, size in zip(tokens, value.shape):
            if token.startswith("(") and size != 1:
                inner = [x.rstrip("!") for x in token[1:-1].split()]
                unknown = [x for x in inner if x not in sizes]
                known = int(np.prod([sizes[x] for x in inner if x in sizes]))
                for x in unknown:
                    sizes[x] = size // known
    return sizes


def _letters(token: str, size: int, sizes: dict[str, int]) -> list[str | None]:
    """The letters of one dimension; letters of size 1 within a product drop out."""
    if not token.startswith("("):
        return [token]
    if size == 1:
        return [None]
    inner = [x for x in token[1:-1].split() if sizes[x.rstrip("!")] != 1]
    return inner or [None]


def _results(call: Call, operands, outputs: list[list[str]], sizes) -> list[Value]:
    """Relates the operands, adds the positions that the op makes, merges products."""
    known = {letter for _, letters in operands for letter in letters if letter}
    flat = [[x.rstrip("!") for token in output for x in token.strip("()").split()] for output in outputs]
    values = call.factors.relate(operands, [[x for x in letters if x in known] for letters in flat], call.why)
    results = []
    for k, (value, letters, output) in enumerate(zip(values, flat, outputs)):
        shape = call.shapes[k] if k < len(call.shapes) else None
        if any(x not in known for x in letters):
            value = _insert(call, value, letters, known, output, shape, sizes)
        if any(token.startswith("(") for token in output):
            value = call.factors.reshape(value, shape, call.why)
        results.append(value)
    return results


def _insert(call: Call, value: Value, letters, known, output, shape, sizes) -> Value:
    """Adds pinned dimensions for letters that no operand has. Their sizes: read off the result, or what is left of it."""
    found = dict(sizes)
    for token, size in zip(output, shape or ()):
        inner = token.strip("()").split()
        unknown = [x for x in inner if x not in found or x not in known and not token.startswith("(")]
        rest = int(np.prod([found[x] for x in inner if x not in unknown]))
        for x in unknown:
            found[x] = size // rest
    fresh = {x: Factors.atom_segment(found.get(x, 1), f"positions made by {call.op} ({call.why})")
             for x in letters if x not in known}
    blocks = []
    for block in value.blocks:
        old = iter(block.segments)
        blocks.append([fresh[x] if x in fresh else next(old) for x in letters])
    return call.factors.build([found.get(x, 1) for x in letters], blocks)


__all__ = ["Atom", "Call", "Choice", "Factors", "RULES", "Rule", "Segment", "Value", "natural", "rearrangement", "relate", "rule"]
