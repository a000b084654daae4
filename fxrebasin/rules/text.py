"""How the text of a rule is read.

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
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factors, Value

if TYPE_CHECKING:
    from .call import Call

_TOKEN = re.compile(r"\([^)]*\)|\S+")


def relate(call: Call, text: str, values: list[Value], sizes: dict[str, int]) -> list[Value]:
    """Applies a rule's text to values; returns a value for each result, intermediates included."""
    left, right = text.split("->")
    patterns = [_TOKEN.findall(operand) for operand in left.split(",")][: len(values)]
    if len(patterns) < len(values):
        raise ValueError(f"{len(values)} tensors, but {text!r} speaks of {len(patterns)}")
    dims = [_align(tokens, len(value.shape)) for tokens, value in zip(patterns, values)]
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


def letters(text: str, shapes: list[tuple[int, ...]]) -> tuple[list[list[frozenset[str]]], list[list[frozenset[str]]]]:
    """The letters of every dimension, of each operand and of each result (intermediates included). A dimension of size 1
    is broadcast and has none."""
    left, right = text.split("->")
    patterns = [_TOKEN.findall(operand) for operand in left.split(",")]
    dims = [_align(tokens, len(shape)) for tokens, shape in zip(patterns, shapes)]
    runs = _runs(dims)
    made = [[x for token in _TOKEN.findall(result) for x in (runs.get(token[1:], []) if token[0] == "*" else [token])]
            for result in right.split(",")]
    inside = [[_names(token) if size != 1 else frozenset() for token, size in zip(tokens, shape)]
              for tokens, shape in zip(dims, shapes)]
    return inside, [[_names(token) for token in tokens] for tokens in made]


def _names(token: str) -> frozenset[str]:
    return frozenset(x.rstrip("!") for x in token.strip("()").split())


def _align(tokens: list[str], rank: int) -> list[str]:
    """One token for each dimension: `*b` becomes b.1, b.2, ... counted from the right."""
    star = next((k for k, token in enumerate(tokens) if token.startswith("*")), None)
    if star is None:
        return tokens
    count = rank - (len(tokens) - 1)
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
    inner: list[str | None] = [x for x in token[1:-1].split() if sizes[x.rstrip("!")] != 1]
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
            if shape is None:
                raise ValueError("an intermediate has no product of dimensions: give each a letter of its own")
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
