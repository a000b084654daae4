"""python -m fxrebasin.check OP ...: tries rules out on the ops themselves.

Prints what is found, and Python that shows it. Exit status: 0 nothing is wrong, 1 something is, 2 the request is wrong.
"""
from __future__ import annotations

import argparse
import difflib
import sys

from ..rules import RULES
from .case import resolve
from .finding import Finding, check


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fxrebasin.check", description="Tries rules out on the ops themselves.")
    parser.add_argument("ops", nargs="+", metavar="OP", help="as a graph prints it: aten.linear.default, or linear.default")
    names = [name if name.count(".") == 2 else f"aten.{name}" for name in parser.parse_args(arguments).ops]
    unknown = [name for name in names if name not in RULES]
    for name in unknown:
        print(f"fxrebasin.check: {_without_rule(name)}", file=sys.stderr)
    if unknown:
        return 2
    return max([_told(name) for name in names])


def _told(name: str) -> int:
    """Prints what there is to say about one rule; 1 if anything is wrong."""
    found = check(name)
    wrong = [finding for finding in found if finding.kind != "missing" or not RULES[name].missing]
    for finding in wrong:
        _show(finding)
    if not wrong:
        left = f"left out on purpose: {RULES[name].missing}" if found else "nothing that holds is left out"
        print(f"{name}: all that the rule claims holds; {left}")
    return int(bool(wrong))


def _show(finding: Finding) -> None:
    print(finding, "", *(f"    {line}" for line in finding.reproducer().splitlines()), "", sep="\n")


def _without_rule(name: str) -> str:
    try:
        resolve(name)
    except (AttributeError, ValueError):
        near = difflib.get_close_matches(name, RULES, 3)
        return f"there is no op {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else
                                             "; a name is NAMESPACE.OP.OVERLOAD, as in aten.linear.default")
    return f"{name} has no rule: it is decomposed first, and pins what is left without one; docs/add_a_rule.md says how to add one"


if __name__ == "__main__":
    sys.exit(main())
