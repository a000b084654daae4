"""Whether an op does to numbers what the facts of its rule say (`rules/facts.py`), tried on numbers of all sizes."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..rules import Rule, letters
from .case import ERRORS, EXACT, Case, difference

SIZES = (1.0, 1e-3, 1e3)  # by which the numbers of a sample are multiplied
NUDGE = 1e-6  # a relative change that no rounding or clipping lets through


def wrong_facts(case: Case, rule: Rule) -> Iterator[str]:
    """What the op does otherwise than the facts of its rule say, in words."""
    facts = rule.facts
    checks: list[Callable] = [_moves] * bool(facts.moves) + [_positive] * bool(facts.positive) + [_scales] * bool(facts.scales)
    for check in (*checks, *[_distinct] * bool(facts.distinct)):
        yield from check(case, rule)


def _floats(case: Case) -> list[str]:
    return [name for name, tensor in case.tensors.items() if tensor.is_floating_point()]


def _moves(case: Case, rule: Rule) -> Iterator[str]:
    names = list(case.tensors) if rule.facts.moves == "joined" else list(case.tensors)[:1]
    given = torch.cat([case.tensors[name].reshape(-1) for name in names])
    if rule.facts.moves == "chosen":
        found = case.before[0].reshape(-1)
        if not torch.isin(found, given).all() or len(found.unique()) < found.numel():
            yield "moves: the first result does not hold numbers of the first argument, each once"
        return
    places, start = {}, 0
    for name in names:
        shape = case.tensors[name].shape
        places[name] = torch.arange(start, start + shape.numel(), dtype=torch.float64).reshape(shape)
        start += shape.numel()
    if any(not case.tensors[name].is_floating_point() for name in names):
        return
    for k, (result, source) in enumerate(zip(case.before, case.run(places))):
        known = (source >= 0) & (source < start) & (source == source.floor())
        if rule.facts.moves == "same" and not torch.equal(source, places[names[0]]):
            yield f"moves: result {k} does not hold the numbers of the first argument where they were"
        if not known.all() or difference(given[source.long().clamp(0, start - 1)], result) > EXACT:
            yield f"moves: result {k} does not hold the numbers of {' and '.join(names)} at other places"


def _positive(case: Case, rule: Rule) -> Iterator[str]:
    kept = rule.facts.positive == "kept"
    for size in (1.0, 0.0, 30.0) if rule.facts.saturates else (*SIZES, 0.0):
        result = case.run({name: case.tensors[name].abs() + 0.1 if kept else case.tensors[name] * size
                           for name in _floats(case)})[0]
        if bool((result <= 0).any()):
            yield f"positive: a result is not above zero, with numbers of size {size:g}"


def _scales(case: Case, rule: Rule) -> Iterator[str]:
    for names in rule.facts.together():
        given = [case.plain().get(name) for name in names]
        own = [name for name in _floats(case) if name in names]
        if any(isinstance(x, (int, float)) and x for x in given) or not own:
            continue
        for t in (3.0, 0.1):
            after = case.run({name: case.tensors[name] * t for name in own})[0]
            if difference(case.before[0] * t, after) > EXACT:
                yield f"scales: with {' and '.join(own)} times {t:g}, the result is not {t:g} times what it was"


def _distinct(case: Case, rule: Rule) -> Iterator[str]:
    """The fact is tried with each number of the arguments, and with zero in its place."""
    for name in (None, *(n for n, x in case.plain().items() if isinstance(x, (int, float)) and not isinstance(x, bool))):
        try:
            varied = case if name is None else case.with_argument(name, 0)
        except ERRORS:
            continue
        kind = rule.facts.distinct_for(varied.plain())
        through = rule.facts.through.split() or [x.partition("[")[0] for x in _floats(varied)]
        for argument in [x for x in _floats(varied) if x.partition("[")[0] in through] if kind else []:
            words = f"distinct={kind!r} for {argument}" + (f" with {name}=0" if name else "")
            for text in _otherwise(varied, rule, kind, argument):
                yield f"{words}: {text}"


def _otherwise(case: Case, rule: Rule, kind: Any, argument: str) -> Iterator[str]:
    added = {x for names in rule.facts.together() if argument in names for x in names} - {argument}
    generator = torch.Generator().manual_seed(case.seed)
    for size in SIZES[:1] if rule.facts.saturates else SIZES:
        for others in ({}, {name: case.tensors[name] * 0 for name in _floats(case) if name in added}):
            given = case.tensors[argument] * size
            noise = torch.rand(given.shape, generator=generator, dtype=torch.float64) + 0.5
            before = case.run({**others, argument: given})[0]
            after = case.run({**others, argument: given * (1 + NUDGE * noise)})[0]
            if bool((before == after).any()):
                yield f"a result stays as it is when all numbers of size {size:g} change a little" + " beside zeros" * bool(others)
    names, call = case.call()
    text = rule.text(call) if callable(rule.text) else rule.text
    if text is None:
        yield "the rule has no text to read it with"
        return
    inside, outside = letters(text, [value.shape for value in call.tensors()])
    own = inside[names.index(argument)]
    yield from _elsewhere(case, argument, own, outside)
    if kind in ("injective", "increasing"):
        yield from _alike(case, kind, argument, own, outside)


def _mixed(inside, outside) -> frozenset[str]:
    """The letters that meet each other on the way, as in softmax."""
    own, shared = frozenset().union(*inside), frozenset().union(*outside[0])
    return frozenset(x for x in own & shared if any(x not in frozenset().union(*dims) for dims in outside[1:]))


def _elsewhere(case: Case, argument: str, own, outside) -> Iterator[str]:
    """A change at one place of a dimension must not be seen at others."""
    result = outside[0]
    for d, letter in enumerate(own):
        places = [k for k, dims in enumerate(result) if dims == letter]
        if len(letter) != 1 or len(places) != 1 or letter & _mixed(own, outside):
            continue
        moved = case.tensors[argument].clone()
        moved.select(d, 0).mul_(1.7).add_(0.3)
        after = case.run({argument: moved})[0]
        k = places[0]
        if difference(case.before[0].narrow(k, 1, after.shape[k] - 1), after.narrow(k, 1, after.shape[k] - 1)) > EXACT:
            yield f"what changes at one place of dimension {d} is seen at others"


def _alike(case: Case, kind: str, argument: str, own, outside) -> Iterator[str]:
    """Numbers that differ, opposite ones among them, must stay different (and in order), the other arguments being one number."""
    mixed = _mixed(own, outside)
    along = [d for d, letter in enumerate(own) if letter & mixed] or list(range(len(own)))
    shape = case.tensors[argument].shape
    numbers = torch.linspace(0.1, 2.0, -(-shape.numel() // 2), dtype=torch.float64).repeat_interleave(2)[:shape.numel()]
    numbers[1::2] *= -1
    others = {name: torch.full_like(case.tensors[name], 0.7) for name in _floats(case) if name != argument}
    after = case.run({**others, argument: numbers.reshape(shape)})[0]
    if after.shape != shape:
        return
    given, made = (x.movedim(along, list(range(-len(along), 0))).flatten(-len(along)) if shape else x.reshape(1)
                   for x in (numbers.reshape(shape), after))
    order = given.argsort(-1)
    steps = made.gather(-1, order).diff(dim=-1)
    made = made.sort(-1).values.diff(dim=-1)
    if bool((made == 0).any()) or kind == "increasing" and bool((steps <= 0).any()):
        yield "different numbers become equal" if bool((made == 0).any()) else "numbers change their order"
