"""Groups alike, as one row: those of repeated layers differ in nothing but the numbers of their layer."""
from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from ..spec import Axis, Group, Site, Spec


@dataclass(frozen=True)
class Row:
    """Groups alike, with one name; `sites`: (name for tensors alike, axis, span) -> how many."""

    name: str
    groups: tuple[Group, ...]
    within: tuple[str, ...]
    sites: dict[tuple[str, int, str], int]

    @property
    def group(self) -> Group:
        return self.groups[0]

    @property
    def log10_order(self) -> float:
        return len(self.groups) * self.group.copies * math.lgamma(self.group.size + 1) / math.log(10)

    @property
    def places(self) -> list[str]:
        """The sites as text, such as `blocks.*.attn.qkv.weight[0] 0:768 x12`."""
        layers, places = len(self.groups), []
        for (tensor, axis, span), count in self.sites.items():
            each = count // layers if count % layers == 0 else count
            times = f" x{each}" if each > 1 else ""
            places.append(f"{tensor}[{axis}]" + (f" {span}" if span else "") + times)
        return places


def rows(spec: Spec) -> list[Row]:
    """All groups, those of repeated layers together, in the order of the first of each."""
    alike: dict[tuple, list[Group]] = defaultdict(list)
    for group in spec.groups.values():
        alike[_signature(spec, group)].append(group)
    names = _tensor_names(spec, alike)
    return [_row(spec, groups, names) for groups in alike.values()]


def _row(spec: Spec, groups: list[Group], names: dict[str, str]) -> Row:
    first = groups[0]
    depth = _depth(first) if len(groups) > 1 else 0
    within = tuple(_star(factor, depth) for factor in first.within)
    return Row(_star(first.name, depth), tuple(groups), within, _sites(spec, groups, names))


def _signature(spec: Spec, group: Group) -> tuple:
    """Equal for groups that differ in the numbers of their layer alone."""
    depth = _depth(group)
    return (_star(group.name, depth), group.size, group.copies,
            tuple(_star(factor, depth) for factor in group.within),
            tuple(_star(factor, depth) for factor in group.members),
            tuple((_star(site.tensor, depth), site.axis, site.block, _positions(spec, site).shape)
                  for site in group.sites))


def _positions(spec: Spec, site: Site) -> np.ndarray:
    return spec.layouts[site.tensor][site.block][site.axis].positions


def _depth(group: Group) -> int:
    """How many leading parts all names of a group share: `blocks.3.attn` is three."""
    factors = {name.split(":")[0] for name in (group.name, *group.within)}
    parts = [name.split(".") for name in factors | {site.tensor for site in group.sites}]
    shared = 0
    for column in zip(*parts):
        if len(set(column)) > 1:
            break
        shared += 1
    return shared


def _star(name: str, depth: int | None = None) -> str:
    """The name with a * for each of its numbers, within the first `depth` parts."""
    return ".".join("*" if part.isdigit() and (depth is None or k < depth) else part
                    for k, part in enumerate(name.split(".")))


def _tensor_names(spec: Spec, alike: dict[tuple, list[Group]]) -> dict[str, str]:
    """Tensor -> a name for all tensors that groups alike move in the same way."""
    moved: dict[str, set[tuple]] = defaultdict(set)
    for k, groups in enumerate(alike.values()):
        for site in (site for group in groups for site in group.sites):
            moved[site.tensor].add((k, site.axis, site.block))
    kinds: dict[tuple, list[str]] = defaultdict(list)
    for tensor, ways in moved.items():
        kinds[_star(tensor), spec.shapes[tensor], frozenset(ways)].append(tensor)
    return {tensor: kind[0] if len(tensors) > 1 else tensor
            for kind, tensors in kinds.items() for tensor in tensors}


def _sites(spec: Spec, groups: list[Group], names: dict[str, str]) -> dict[tuple[str, int, str], int]:
    found: Counter[tuple[str, int, str]] = Counter()
    for group in groups:
        blocks: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
        for site in group.sites:
            blocks[site.tensor, site.axis].append(_positions(spec, site))
        found.update((names[tensor], axis, _what(spec, tensor, axis, positions))
                     for (tensor, axis), positions in blocks.items())
    return dict(found)


def _what(spec: Spec, tensor: str, axis: int, positions: list[np.ndarray]) -> str:
    """What is moved, in words: whole tensors of a stack, or a part of an axis; nothing for all of one."""
    span = _span(positions, spec.shapes[tensor][axis])
    return " ".join(filter(None, ("whole tensors" * spec.is_whole(tensor, axis), span)))


def _span(positions: list[np.ndarray], size: int) -> str:
    """All positions as a slice, nothing where they are the whole axis."""
    union = np.unique(np.concatenate([block.reshape(-1) for block in positions]))
    return "" if union.size == size else Axis(union, ("",)).span
