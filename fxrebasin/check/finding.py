"""What is wrong with a rule."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..rules import RULES, Rule
from ..rules.rule import HARMLESS
from .case import ERRORS, Case
from .claim import Claim, all_used, cut_first, cut_last, factored, first_used, one_tensor, plain
from .default import default_samples
from .freedom import missing_freedoms
from .number import wrong_facts

SEEDS = 6  # a freedom is missing if it is there for every draw of numbers
FEW = 3  # missing freedoms that are listed for one sample


@dataclass(frozen=True)
class Finding:
    """What is wrong with a rule: kind is "broken", "unsound" or "missing"."""

    op: str
    sample: int
    kind: str
    text: str
    how: str = ""  # Python that shows it, with `case` and `rule` at hand

    def __str__(self) -> str:
        return f"{self.op}, sample {self.sample}: {self.kind}: {self.text}"

    def reproducer(self) -> str:
        """Lines of Python that show the finding."""
        made = "import torch\nfrom fxrebasin.check import *\nfrom fxrebasin.rules import RULES\n\n"
        return (f"{made}rule = RULES[{self.op!r}]\ncase = Case({self.op!r}, samples_of({self.op!r})[{self.sample}])\n"
                f"print(case.args, case.kwargs, case.before, sep='\\n')\n{self.how}")


def check(op: str) -> list[Finding]:
    """All findings about the rule of one op (`aten.linear.default`), over all its samples; missing freedoms
    also where the rule states a reason for them. Raises KeyError if there is no rule."""
    rule, findings = RULES[op], []
    for k, sample in enumerate(samples_of(op)):
        try:
            cases = [Case(op, sample, seed) for seed in range(SEEDS)]
        except ERRORS as error:
            text = f"the sample does not run ({type(error).__name__}: {error})"
            findings.append(Finding(op, k, "broken", text))
            continue
        findings += [Finding(op, k, kind, text, how) for kind, text, how in _findings(cases, rule)]
        findings += [Finding(op, k, "unsound", text, "print(*wrong_facts(case, rule), sep='\\n')")
                     for text in _first(wrong_facts(cases[0], rule))]
        findings += [Finding(op, k, "unsound", text, how) for text, how in itertools.islice(_heeded(cases[0], rule), 1)]
    return findings


def samples_of(op: str) -> tuple[Callable, ...]:
    """The samples of an op's rule, or those made from its schema."""
    return RULES[op].samples or default_samples(op)


def _heeded(case: Case, rule: Rule) -> Iterator[tuple[str, str]]:
    """What breaks the claim although the rule declares that it changes nothing (`whatever`)."""
    for name, value in case.plain().items():
        if value is None or isinstance(value, str) or name in HARMLESS or not rule.whatever & {name, "*"}:
            continue  # (a dtype is a number here, and most numbers are none)
        for other in _others(value):
            try:
                varied = case.with_argument(name, other)
                claim = Claim(varied, rule)
            except ERRORS:
                continue
            how = f"claim = Claim(case.with_argument({name!r}, {other!r}), rule)\nprint(next(claim.unsound()))"
            yield from ((f"{text}, with {name}={other!r}", how) for text in claim.unsound())


def _others(value: Any) -> list:
    """Other values of an argument's kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value - 1, 0, -value]
    return [[x + step for x in value] for step in (1, -1)] if isinstance(value, (list, tuple)) and all(
        isinstance(x, int) for x in value) else []


def _first(texts: Iterator[str]) -> list[str]:
    return list(itertools.islice(texts, 1))


def _findings(cases: list[Case], rule: Rule) -> Iterator[tuple[str, str, str]]:
    """(kind, text, Python that shows it) for one sample, drawn several times."""
    case = cases[0]
    shapes = [(t.shape, t.dtype) for t in case.tensors.values()]
    for vary in (plain, cut_first, cut_last, factored, *[one_tensor] * (len(set(shapes)) < len(shapes))):
        for used in [all_used] + [first_used] * (len(case.before) > 1):
            what = "".join(f", {note}" for note in (vary.__doc__, used.__doc__) if note)
            how = f"claim = Claim(case, rule, {vary.__name__}, {used.__name__})\nprint(claim.spec)\n"
            try:
                claim = Claim(case, rule, vary, used)
            except ERRORS as error:
                yield "broken", f"the rule does not fit ({type(error).__name__}: {error}){what}", how
                continue
            unsound = list(itertools.islice(claim.unsound(), 1))
            yield from (("unsound", text + what, how + "print(next(claim.unsound()))") for text in unsound)
            if vary is plain and used is all_used and not unsound:
                missing = itertools.islice(missing_freedoms(cases, claim.spec), FEW)
                shown = "print(*missing_freedoms([case], claim.spec), sep='\\n')"
                yield from (("missing", text, how + shown) for text in missing)
