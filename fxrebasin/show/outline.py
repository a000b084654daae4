"""The outline of a spec: its modules, repeated layers once, and each tensor's axes in the language of the rules.

`(b c 128!²) x a` reads: axis 0 is a product of group b, group c and 128 elements that stay (!) for reason 2; axis 1 is
moved by group a. `(a | b)` is one after the other.
"""
from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

from ..spec import Axis, Group, Spec
from .fact import some
from .reason import reasons
from .row import Row, rows

_PARTS = 6  # of a concatenation, or of names that share a line; more are counted
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Leaf:
    """Tensors with the same axes: `text` says which, `names` are theirs in full."""

    text: str
    names: tuple[str, ...]


@dataclass
class Module:
    """What stands below a dot: name -> modules, or tensors."""

    children: dict[str, Union[Module, Leaf]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple:
        """The same for modules that are alike."""
        return tuple((name, child.text if isinstance(child, Leaf) else child.shape)
                     for name, child in self.children.items())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for child in self.children.values() for name in child.names)


def raised(number: int | str) -> str:
    return str(number).translate(_RAISED)


def outline(spec: Spec, words: Words) -> Module:
    """All tensors of the state by the parts of their names, folded."""
    return _folded(_modules(spec, words))


class Words:
    """A letter for every row of groups, a number for every reason."""

    def __init__(self, spec: Spec):
        self.spec, self.rows, self.reasons = spec, rows(spec), reasons(spec, inside=True)
        self._letters = dict(zip(map(id, self.rows), _letters()))
        self._row_of = {group.name: row for row in self.rows for group in row.groups}
        self._number = {text: k for k, reason in enumerate(self.reasons, 1) for text in reason.texts}

    def letter(self, group: Group) -> str:
        return self._letters[id(self._row_of[group.name])]

    def letter_of(self, row: Row) -> str:
        return self._letters[id(row)]

    def factor(self, name: str) -> str:
        """A letter; or the size of what stays, with the number of its reason."""
        if name not in self.spec.group_of:
            number = self._number.get(self.spec.reasons.get(name, ""), "")
            return f"{self.spec.sizes[name]}!{raised(number)}"
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

def _letters() -> Iterator[str]:
    """a to z, then aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _modules(spec: Spec, words: Words) -> Module:
    """All tensors of the state, aliases of tied ones too, by the parts of their names."""
    root = Module()
    texts = {name: words.tensor(name) for name in spec.layouts}
    texts |= {alias: f"= {name}" for alias, name in spec.ties.items() if alias in spec.shapes}
    for name, text in texts.items():
        at, parts = root, name.split(".")
        while len(parts) > 1:
            below = at.children.setdefault(parts[0], Module())
            if not isinstance(below, Module):  # a tensor has the name of a module
                break
            at, parts = below, parts[1:]
        at.children[".".join(parts)] = Leaf(text, (name,))
    return root


def _folded(module: Module) -> Module:
    """Numbered children that are alike become one, tensors with the same text one line, small modules of tensors alone
    one line, and modules with a single child a dotted name."""
    children: dict[str, Union[Module, Leaf]] = {}
    for name, child in module.children.items():
        below = _folded(child) if isinstance(child, Module) else child
        if isinstance(below, Module):
            name, below = _flat(name, below)
        children[name] = below
    return Module(_joined(_numbered(children)))


def _flat(name: str, module: Module) -> tuple[str, Union[Module, Leaf]]:
    """A module with a single child as a dotted name; a weight and a bias as `{weight,bias}`, `a x b, a`."""
    if len(module.children) == 1:
        (inner, below), = module.children.items()
        return f"{name}.{inner}", below
    leaves = [child for child in module.children.values() if isinstance(child, Leaf)]
    if len(leaves) == len(module.children) == 2 and not any(set(".,{") & set(inner) for inner in module.children):
        return f"{name}.{{{','.join(module.children)}}}", Leaf(", ".join(leaf.text for leaf in leaves), module.names)
    return name, module


def _numbered(children: Mapping[str, Union[Module, Leaf]]) -> dict[str, Union[Module, Leaf]]:
    """`0.w` and `1.w` that are alike become `0-1.w`."""
    alike: dict[tuple, list[str]] = {}
    for name, child in children.items():
        first, _, rest = name.partition(".")
        shape = child.shape if isinstance(child, Module) else child.text
        alike.setdefault(("", rest, shape) if first.isdigit() else (name,), []).append(name)
    result = {}
    for names in alike.values():
        first, dot, rest = names[0].partition(".")
        number = _ranges([int(name.partition(".")[0]) for name in names]) if len(names) > 1 else first
        result[number + dot + rest] = _merged([children[name] for name in names])
    return result


def _merged(alike: Sequence[Union[Module, Leaf]]) -> Union[Module, Leaf]:
    """Modules, or tensors, that are alike as one that has the names of all."""
    first = alike[0]
    if isinstance(first, Leaf):
        return Leaf(first.text, tuple(name for each in alike for name in each.names))
    modules = [each for each in alike if isinstance(each, Module)]
    return Module({name: _merged([each.children[name] for each in modules]) for name in first.children})


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _joined(children: Mapping[str, Union[Module, Leaf]]) -> dict[str, Union[Module, Leaf]]:
    """Tensors of one module with the same text as one line: `weight, bias`."""
    names: dict[object, list[str]] = {}
    for name, child in children.items():
        names.setdefault(child.text if isinstance(child, Leaf) else id(child), []).append(name)
    return {_braced(group): _merged([children[name] for name in group]) for group in names.values()}


def _braced(names: list[str]) -> str:
    """`{gate,up}.weight` for names that differ in one part, else one after the other."""
    parts = [name.split(".") for name in names]
    if len(names) > 1 and len({len(part) for part in parts}) == 1:
        differ = [k for k, column in enumerate(zip(*parts)) if len(set(column)) > 1]
        if len(differ) == 1 and len(names) <= _PARTS:
            several = "{" + ",".join(part[differ[0]] for part in parts) + "}"
            return ".".join(several if k == differ[0] else part for k, part in enumerate(parts[0]))
    return some(names, _PARTS)
