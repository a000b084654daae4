"""What is wrong with a rule."""
from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ..rules import RULES, Rule
from .case import ERRORS, Case
from .claim import Claim, all_used, cut_first, cut_last, factored, first_used, one_tensor, plain
from .default import default_samples
from .freedom import missing_freedoms

SEEDS = 6  # a freedom is missing if it is there for every draw of numbers
FEW = 3  # missing freedoms that are listed for one sample


@dataclass(frozen=True)
class Finding:
    """What is wrong with a rule: kind is "broken", "unsound" or "missing"."""

    op: str
    sample: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.op}, sample {self.sample}: {self.kind}: {self.text}"


def check(op: str) -> list[Finding]:
    """All findings about the rule of one op (`aten.linear.default`), over all its samples; missing freedoms
    also where the rule states a reason for them. Raises KeyError if there is no rule."""
    rule, findings = RULES[op], []
    for k, sample in enumerate(rule.samples or default_samples(op)):
        try:
            cases = [Case(op, sample, seed) for seed in range(SEEDS)]
        except ERRORS as error:
            text = f"the sample does not run ({type(error).__name__}: {error})"
            findings.append(Finding(op, k, "broken", text))
            continue
        findings += [Finding(op, k, kind, text) for kind, text in _findings(cases, rule)]
    return findings


def _findings(cases: list[Case], rule: Rule) -> Iterator[tuple[str, str]]:
    """(kind, text) for one sample, drawn several times."""
    case = cases[0]
    shapes = [(t.shape, t.dtype) for t in case.tensors.values()]
    for vary in (plain, cut_first, cut_last, factored, *[one_tensor] * (len(set(shapes)) < len(shapes))):
        for used in [all_used] + [first_used] * (len(case.before) > 1):
            what = "".join(f", {note}" for note in (vary.__doc__, used.__doc__) if note)
            try:
                claim = Claim(case, rule, vary, used)
            except ERRORS as error:
                yield "broken", f"the rule does not fit ({type(error).__name__}: {error}){what}"
                continue
            unsound = list(itertools.islice(claim.unsound(), 1))
            yield from (("unsound", text + what) for text in unsound)
            if vary is plain and used is all_used and not unsound:
                missing = itertools.islice(missing_freedoms(cases, claim.spec), FEW)
                yield from (("missing", text) for text in missing)
