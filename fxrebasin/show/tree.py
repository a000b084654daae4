"""The spec as a tree of modules, for a terminal: the outline, the groups, and why the rest stays."""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..spec import Spec
from .fact import facts, plain, power, some
from .outline import Leaf, Module, Words, outline, raised
from .reason import Reason
from .row import Row

WIDTH = 100


def tree(spec: Spec, width: int = WIDTH) -> str:
    """The spec as text, at most `width` columns wide: facts, the tree of modules, the groups, why the rest stays."""
    words = Words(spec)
    lines = [_short(plain(fact), width) for fact in facts(spec)]
    body = list(_drawn(outline(spec, words)))
    if body:
        lines += ["", *_columns(body, width)]
    if words.rows:
        lines += ["", *_columns([_legend(words, row) for row in words.rows], width)]
    if words.reasons:
        lines += ["", *(line for k, reason in enumerate(words.reasons, 1) for line in _stays(k, reason, width))]
    return "\n".join(line.rstrip() for line in lines)


def _legend(words: Words, row: Row) -> tuple[str, str]:
    group = row.group
    size = f"{group.size}!" + (f"^{group.copies}" if group.copies > 1 else "")
    within = " ".join(map(words.factor, group.within))
    name = row.name + (f", differently for each of {within}" if within else "")
    layers = f" x{len(row.groups)}" if len(row.groups) > 1 else ""
    return f"{words.letter_of(row)} = {size}{layers}", f"{power(row.log10_order)}  {plain(name)}"


def _drawn(module: Module, before: str = "", root: bool = True) -> Iterator[tuple[str, str]]:
    """(branch and name, text) for each line."""
    last = len(module.children) - 1
    for k, (name, child) in enumerate(module.children.items()):
        branch, under = ("", "") if root else ("└ ", "  ") if k == last else ("├ ", "│ ")
        yield before + branch + plain(name), child.text if isinstance(child, Leaf) else _count(name)
        if isinstance(child, Module):
            yield from _drawn(child, before + under, False)


def _count(name: str) -> str:
    """How many layers a folded name stands for."""
    numbers = re.match(r"[\d,-]+", name.rpartition(".")[2]) if re.search(r"\d[-,]\d", name) else None
    if not numbers:
        return ""
    bounds = [run.split("-") for run in numbers[0].split(",")]
    return f"x{sum(int(run[-1]) - int(run[0]) + 1 for run in bounds)}"


def _columns(pairs: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Two columns; what is too long is cut, with dots."""
    left = min(max(len(name) for name, _ in pairs), width // 2)
    lines = (f"{_short(name, left).ljust(left)}  {text}" for name, text in pairs)
    return [_short(line.rstrip(), width) for line in lines]


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width - 3] + "..."


def _stays(number: int, reason: Reason, width: int) -> Iterator[str]:
    count = f"{len(reason.axes)} axes, " if len(reason.axes) > 1 else ""
    lines = list(dict.fromkeys(where.split(" ")[0] for where in reason.where))
    places = f" ({some(lines, 2)})" if lines else ""
    such = f": {count}such as {'{}[{}]'.format(*reason.axes[0])}"
    yield _short(plain(f"{raised(number)} stays: {reason.why}{places}{such}"), width)
    if reason.advice:
        yield _short(plain(f"  to free it: {reason.advice}"), width)
