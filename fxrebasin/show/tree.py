"""The spec as a tree of modules: every tensor with its axes in the language of the rules, repeated layers once.

`q_proj.weight  (b c 128!²) x a` reads: axis 0 is a product of group b, group c and 128 elements that stay (!) for
reason 2; axis 1 is moved by group a. `(a | b)` is one after the other. Groups and reasons stand below the tree.
"""
from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

from ..spec import Axis, Group, Spec
from .fact import facts, plain, power, some
from .reason import Reason, reasons
from .row import Row, rows

WIDTH = 100
_PARTS = 6  # of a concatenation; more are counted
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class _Module:
    """Names below a dot -> modules, or the text of a tensor."""

    children: dict[str, Union[_Module, str]] = field(default_factory=dict)


def tree(spec: Spec, width: int = WIDTH) -> str:
    """The spec as text, at most `width` columns wide: facts, the tree of modules, the groups, why the rest stays."""
    words = _Words(spec)
    lines = [_short(plain(fact), width) for fact in facts(spec)]
    body = list(_drawn(_folded(_modules(spec, words))))
    if body:
        lines += ["", *_columns(body, width)]
    if words.rows:
        lines += ["", *_columns([words.legend(row) for row in words.rows], width)]
    if words.reasons:
        lines += ["", *(line for k, reason in enumerate(words.reasons, 1) for line in _stays(k, reason, width))]
    return "\n".join(line.rstrip() for line in lines)


class _Words:
    """A letter for every row of groups, a number for every reason."""

    def __init__(self, spec: Spec):
        self.spec, self.rows, self.reasons = spec, rows(spec), reasons(spec, inside=True)
        self._letters = dict(zip(map(id, self.rows), _letters()))
        self._row_of = {group.name: row for row in self.rows for group in row.groups}
        self._number = {text: k for k, reason in enumerate(self.reasons, 1) for text in reason.texts}

    def letter(self, group: Group) -> str:
        return self._letters[id(self._row_of[group.name])]

    def factor(self, name: str) -> str:
        """A letter; or the size of what stays, with the number of its reason."""
        if name not in self.spec.group_of:
            number = self._number.get(self.spec.reasons.get(name, ""), "")
            return f"{self.spec.sizes[name]}!{str(number).translate(_RAISED)}"
        group = self.spec.groups[self.spec.group_of[name]]
        several = f".{group.members.index(name)}" if len(group.members) > 1 else ""
        return self.letter(group) + several

    def axis(self, axis: Axis) -> str:
        factors = " ".join(map(self.factor, axis.factors)) or ("1" if axis.positions.size == 1 else "-")
        return f"({factors})" if len(axis.factors) > 1 else factors

    def tensor(self, name: str) -> str:
        """The axes of a tensor: `a x (b c)`."""
        blocks, shape = self.spec.layouts[name], self.spec.shapes[name]
        texts = []
        for d in range(len(shape)):
            parts = {block[d].positions.tobytes(): block[d] for block in blocks}
            ordered = sorted(parts.values(), key=lambda axis: int(axis.positions.min()))
            whole = [self.axis(axis) for axis in ordered[:_PARTS]]
            whole += [f"{len(ordered) - _PARTS} more"] * (len(ordered) > _PARTS)
            texts.append(whole[0] if len(whole) == 1 else f"({' | '.join(whole)})")
        return " x ".join(texts)

    def legend(self, row: Row) -> tuple[str, str]:
        group = row.group
        size = f"{group.size}!" + (f"^{group.copies}" if group.copies > 1 else "")
        within = " ".join(map(self.factor, group.within))
        name = row.name + (f", differently for each of {within}" if within else "")
        layers = f" x{len(row.groups)}" if len(row.groups) > 1 else ""
        return f"{self._letters[id(row)]} = {size}{layers}", f"{power(row.log10_order)}  {plain(name)}"


def _letters() -> Iterator[str]:
    """a to z, then aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _modules(spec: Spec, words: _Words) -> _Module:
    """All tensors of the state, aliases of tied ones too, by the parts of their names."""
    root = _Module()
    texts = {name: words.tensor(name) for name in spec.layouts}
    aliases = {alias: f"= {name}" for alias, name in spec.ties.items() if alias in spec.shapes}
    for name, text in {**texts, **aliases}.items():
        at, (*path, last) = root, name.split(".")
        for part in path:
            below = at.children.setdefault(part, _Module())
            if not isinstance(below, _Module):  # a tensor of the same name as a module
                break
            at = below
        else:
            at.children[last] = text
            continue
        at.children[".".join([*path[path.index(part):], last])] = text
    return root


def _folded(module: _Module) -> _Module:
    """Numbered children that are alike become one, tensors with the same text one line, small modules of tensors alone
    one line, and modules with a single child a dotted name."""
    children: dict[str, Union[_Module, str]] = {}
    for name, child in module.children.items():
        below = _folded(child) if isinstance(child, _Module) else child
        if isinstance(below, _Module) and len(below.children) == 1:
            (inner, below), = below.children.items()
            name = f"{name}.{inner}"
        elif isinstance(below, _Module) and (line := _line(below)):
            name, below = f"{name}.{line[0]}", line[1]
        children[name] = below
    return _Module(_joined(_numbered(children)))


def _line(module: _Module) -> tuple[str, str] | None:
    """A weight and a bias as one line: `{weight,bias}`, `a x b, a`."""
    texts = [text for text in module.children.values() if isinstance(text, str)]
    if len(texts) != len(module.children) or len(texts) != 2 or any("." in name for name in module.children):
        return None
    return "{" + ",".join(module.children) + "}", ", ".join(texts)


def _numbered(children: Mapping[str, Union[_Module, str]]) -> dict[str, Union[_Module, str]]:
    """`0.w` and `1.w` that are alike become `0-1.w`."""
    alike: dict[tuple, list[str]] = {}
    for name, child in children.items():
        first, _, rest = name.partition(".")
        key = ("", rest, str(child)) if first.isdigit() and isinstance(child, _Module) else (name,)
        alike.setdefault(key, []).append(name)
    result = {}
    for names in alike.values():
        first, dot, rest = names[0].partition(".")
        numbers = [int(name.partition(".")[0]) for name in names] if len(names) > 1 else []
        result[_ranges(numbers) + dot + rest if numbers else names[0]] = children[names[0]]
    return result


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _joined(children: Mapping[str, Union[_Module, str]]) -> dict[str, Union[_Module, str]]:
    """Tensors of one module with the same text as one line: `weight, bias`."""
    names: dict[object, list[str]] = {}
    for name, child in children.items():
        names.setdefault(child if isinstance(child, str) else id(child), []).append(name)
    return {_braced(group): children[group[0]] for group in names.values()}


def _braced(names: list[str]) -> str:
    """`{gate,up}.weight` for names that differ in one part, else one after the other."""
    parts = [name.split(".") for name in names]
    if len(names) > 1 and len({len(part) for part in parts}) == 1:
        differ = [k for k, column in enumerate(zip(*parts)) if len(set(column)) > 1]
        if len(differ) == 1 and len(names) <= _PARTS:
            several = "{" + ",".join(part[differ[0]] for part in parts) + "}"
            return ".".join(several if k == differ[0] else part for k, part in enumerate(parts[0]))
    return some(names, _PARTS)


def _drawn(module: _Module, before: str = "", root: bool = True) -> Iterator[tuple[str, str]]:
    """(branch and name, text) for each line."""
    last = len(module.children) - 1
    for k, (name, child) in enumerate(module.children.items()):
        branch, under = ("", "") if root else ("└ ", "  ") if k == last else ("├ ", "│ ")
        yield before + branch + plain(name), child if isinstance(child, str) else _count(name)
        if isinstance(child, _Module):
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
    yield _short(plain(f"{str(number).translate(_RAISED)} stays: {reason.why}{places}{such}"), width)
    if reason.advice:
        yield _short(plain(f"  to free it: {reason.advice}"), width)
