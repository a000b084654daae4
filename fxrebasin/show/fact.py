"""What is said beside the groups: the order, ties, roles, missing rules, notes."""
from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

from ..spec import Spec
from ..spec.roles import PARAMETER

_NUMBER = re.compile(r"(?<!\w)\d+(?!\w)")


def facts(spec: Spec) -> list[str]:
    """What is to be said before the tables, a line each."""
    sizes = {name: math.prod(spec.shapes[name]) for name in spec.layouts}
    share = sum(sizes[name] for name in spec.permutable) / max(1, sum(sizes.values()))
    moves = f"{len(spec.permutable)} of {len(spec.layouts)} tensors can be permuted"
    lines = [f"{len(spec.groups)} groups, order {power(spec.log10_order)}",
             f"{moves}: {share:.1%} of {sum(sizes.values()):,} numbers"]
    if spec.stacks:
        lines.append("stacked, for whole tensors change places: " + some(
            [f"{stack} ({len(parts)})" for stack, parts in spec.stacks.items() if stack in spec.layouts]))
    if spec.ties:
        lines.append("tied: " + some([f"{alias} = {name}" for alias, name in spec.ties.items()]))
    if spec.passed:
        lines.append("passed through unchanged: " + alike(spec.passed))
    lines += [f"{role}: {alike(names)}" for role, names in _by_role(spec).items()]
    if spec.outputs:
        lines.append("outputs that move with the network: " + some(list(spec.outputs)))
    lines += [f"no rule for {op} ({where}): {_cost(spec, op)} axes pinned"
              for op, where in spec.unruled.items()]
    lines += [f"taken for granted: {text}" for text in spec.assumptions]
    lines += [f"tried: {text}" for text in filter(None, spec.evidence.split("; "))]
    return lines + [f"note: {note}" for note in spec.notes]


def _by_role(spec: Spec) -> dict[str, list[str]]:
    """What the entries are that are no parameters."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, role in spec.roles.items():
        if role != PARAMETER:
            found[role].append(name)
    return found


def _cost(spec: Spec, op: str) -> int:
    """How many axes are pinned for want of a rule for `op`."""
    starts = f"{op} has no rule", f"the rule for {op} "
    return sum(reason.startswith(starts) for reason in spec.pinned.values())


def power(log10: float) -> str:
    """An order of magnitude; small ones in full."""
    return f"{round(10**log10):,}" if log10 < 6 else f"10^{log10:.1f}"


def alike(names: Sequence[str]) -> str:
    """Names that differ in the numbers of layers alone as one, with a * for the number."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in names:
        kinds[_NUMBER.sub("*", name)].append(name)
    return some([f"{kind} ({len(each)})" if len(each) > 1 else each[0] for kind, each in kinds.items()])


def some(texts: Sequence[str], most: int = 3) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def plain(text: str) -> str:
    """Names and source lines are the user's: no control characters reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
