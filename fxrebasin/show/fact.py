"""What is said beside the groups: the order, ties, missing rules, and why axes are pinned."""
from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..spec import Spec
from ..spec.roles import PARAMETER

_REASON = re.compile(r"(?P<why>.*?) \((?P<where>[^()]*:\d+ .*|aten\.[\w.]+|)\)", re.DOTALL)


@dataclass(frozen=True)
class Reason:
    """Pinned axes with one reason; `where`: lines of the user's source."""

    why: str
    where: tuple[str, ...]
    axes: tuple[tuple[str, int], ...]


def reasons(spec: Spec) -> list[Reason]:
    """Why axes are pinned, the most frequent reason first."""
    found: dict[str, list[tuple[str, tuple[str, int]]]] = defaultdict(list)
    for axis, reason in spec.pinned.items():
        match = _REASON.fullmatch(reason)
        found[match["why"] if match else reason].append((match["where"] if match else "", axis))
    several = [Reason(why, tuple(dict.fromkeys(where for where, _ in places if where)),
                      tuple(axis for _, axis in places)) for why, places in found.items()]
    return sorted(several, key=lambda reason: -len(reason.axes))


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
        lines.append("passed through unchanged: " + some(spec.passed))
    lines += [f"{role}: {some(names)}" for role, names in _by_role(spec).items()]
    if spec.outputs:
        lines.append("outputs that move with the network: " + some(list(spec.outputs)))
    lines += [f"no rule for {op} ({where}): {_cost(spec, op)} axes pinned"
              for op, where in spec.unruled.items()]
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


def some(texts: Sequence[str], most: int = 3) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def plain(text: str) -> str:
    """Names and source lines are the user's: no control characters reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
