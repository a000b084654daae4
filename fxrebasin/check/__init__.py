"""One validator for all rules: does the op honour what the rule claims, and is that all it honours?

    from fxrebasin.check import check
    check("aten.linear.default")   # [] or a list of findings

A *sample* is a function of T that returns the op's arguments (positional; `T.keyword` for the rest);
`rules/sample.py` says what T makes. Sizes that differ from dimension to dimension make a sample sharp. Three kinds
of findings:

    broken    the sample does not run, or the rule does not fit its own sample
    unsound   a permutation that the rule claims changes the op's numbers, or a fact of the rule is none
    missing   a permutation of whole axes, or of the outer or inner part of axes, changes nothing, and the
              rule forbids it

A missing freedom is no error if the rule states its reason: `missing="..."`.

On the command line: `python -m fxrebasin.check linear.default`.

To be read in this order: `case` (an op with concrete arguments), `default` (samples made from a schema), `claim`
(what the rule says about a case, tried out), `number` (its facts about numbers, tried out), `probe` (a permutation
to try), `freedom` (those that the op honours and the rule omits), `finding` (`check` itself).
"""
from .case import Case, resolve
from .claim import Claim, all_used, cut_first, cut_last, factored, first_used, one_tensor, plain, read
from .finding import Finding, check, samples_of
from .freedom import alignment_of, missing_freedoms
from .number import wrong_facts

__all__ = ["Case", "Claim", "Finding", "alignment_of", "all_used", "check", "cut_first", "cut_last", "factored", "first_used",
           "missing_freedoms", "one_tensor", "plain", "read", "resolve", "samples_of", "wrong_facts"]
