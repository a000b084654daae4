"""Values that stay in place: the part of a spec's symmetries that moves no held number onto another.

A buffer that is the same in both states (a sinusoidal table, a window, a mask) is not matched but kept: an
axis that it has may exchange those positions alone at which it is equal. So its factor is *cut* into classes
of equal positions, each a group of its own; positions like no other stay. What is found within the part is
`lift`ed to the whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .layout import Axis, Block, Group, Site

if TYPE_CHECKING:
    from .value import Spec

MOST = (
    16  # classes of one factor that may move: each more cuts every tensor again, and the smallest are pinned
)  # classes of one factor that may move: each more cuts every tensor again, and the smallest are pinned


@dataclass(frozen=True)
class Held:
    """A part of the symmetries of `whole`.

    spec    that part, as a spec of the same tensors
    origin  factor of `spec` that is none of `whole` -> the factor that it is cut from, and its positions
            there
    """

    whole: Spec
    spec: Spec
    origin: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    def lift(self, permutations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Permutations for the groups of `spec` as ones for the groups of `whole`."""
        result = {name: array.copy() for name, array in self.whole.identity().permutations.items()}
        for name, part, index, own in self._parts():
            result[name][np.ix_(*index, own)] = own[permutations[part.name]]
        return result

    def restrict(self, permutations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `lift` undoes; what would move a held number stays."""
        result = {name: array.copy() for name, array in self.spec.identity().permutations.items()}
        for name, part, index, own in self._parts():
            given = permutations[name][np.ix_(*index, own)]
            if np.array_equal(np.sort(given, axis=-1), np.broadcast_to(own, given.shape)):
                result[part.name] = np.searchsorted(own, given)
        return result

    def _parts(self) -> Iterator[tuple[str, Group, list[np.ndarray], np.ndarray]]:
        """Name of a group of `whole`, a group that is part of it, and the positions of the part: frame,
        elements."""
        for part in self.spec.groups.values():
            name = self.whole.group_of[self._from(part.members[0])[0]]
            own = self._from(part.members[0])[1] if len(part.members) == 1 else np.arange(part.size)
            yield name, part, [self._from(factor)[1] for factor in part.within], own

    def _from(self, factor: str) -> tuple[str, np.ndarray]:
        return self.origin.get(factor) or (factor, np.arange(self.spec.sizes[factor]))


def hold(spec: Spec, kept: Mapping[str, Sequence[torch.Tensor]]) -> Held:
    """The part of a spec that keeps the numbers of some tensors in place.

    kept  tensor of `spec.layouts` -> arrays of its shape (one for each state), all of which stay as they are
    """
    held = Held(spec, spec)
    arrays = {name: [_array(tensor) for tensor in tensors] for name, tensors in kept.items() if name in spec.layouts}
    done: set[str] = set()
    while (group := next((g for g in _outermost_first(held.spec) if g.name not in done), None)) is not None:
        done.add(group.name)
        seen = _seen(held.spec, group, arrays)
        if not seen:
            continue
        labels = _labels(seen, group.size)
        if labels.max() > 0 and not (group.copies == 1 and len(group.members) == 1 and _invariant(seen, group.size)):
            held = _cut(held, group, labels if len(group.members) == 1 else np.arange(group.size))
            done.update(name for name in held.spec.groups if _cut_from(name, group.members[0]))
    return held


def _outermost_first(spec: Spec) -> list[Group]:
    return sorted(spec.groups.values(), key=lambda group: len(group.within))


def _cut_from(factor: str, whole: str) -> bool:
    return factor.startswith(whole + "#") and "#" not in factor[len(whole) + 1:]


def _array(tensor: torch.Tensor) -> np.ndarray:
    wide = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return wide.to("cpu", torch.float64).numpy() + 0.0  # 0.0 and -0.0 are one number


# ---- what a group sees of what is held -------------------------------------------------------------------


def _seen(
    spec: Spec, group: Group, arrays: Mapping[str, list[np.ndarray]]
) -> list[tuple[np.ndarray, list[int]]]:
    """The held numbers of every block that the group moves, with an axis for each factor (all members as
    one), and the axes that are the group's."""
    found = []
    for name, block in dict.fromkeys((site.tensor, site.block) for site in group.sites if site.tensor in arrays):
        axes = spec.layouts[name][block]
        factors = [factor for axis in axes for factor in axis.factors]
        for array in arrays[name]:
            part = array[np.ix_(*(axis.positions.reshape(-1) for axis in axes))]
            part = part.reshape(*(n for axis in axes for n in axis.positions.shape), *array.shape[len(axes):])
            at = [k for k, factor in enumerate(factors) if factor in group.members]
            if len(group.members) > 1:
                places = [factors.index(factor) for factor in group.members]
                part, at = np.moveaxis(part, places, range(len(places))).reshape(group.size, -1), [0]
            found.append((part, at))
    return found


def _labels(seen: Sequence[tuple[np.ndarray, list[int]]], size: int) -> np.ndarray:
    """A number for each element of a group, equal for those that can be exchanged whatever else stays."""
    labels = np.zeros(size, dtype=np.int64)
    for part, at in seen:
        for axis in at:
            rows = np.ascontiguousarray(np.moveaxis(part, axis, 0)).reshape(size, -1)
            _, new = np.unique(rows, axis=0, return_inverse=True)
            _, labels = np.unique(np.stack([labels, new.reshape(-1)]), axis=1, return_inverse=True)
            labels = labels.reshape(-1)
    return labels


def _invariant(seen: Sequence[tuple[np.ndarray, list[int]]], size: int) -> bool:
    """Whether every permutation keeps what is held, as with an identity matrix along both of its axes: an
    exchange and a cycle make all of them."""
    exchange, cycle = np.arange(size), np.roll(np.arange(size), 1)
    exchange[:2] = 1, 0
    return all(np.array_equal(part, _moved(part, at, p)) for part, at in seen for p in (exchange, cycle))


def _moved(part: np.ndarray, at: list[int], permutation: np.ndarray) -> np.ndarray:
    for axis in at:
        part = part.take(permutation, axis)
    return part


# ---- cutting a factor ------------------------------------------------------------------------------------


def _classes(labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Positions of equal labels, and the positions that stay."""
    alike = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    several = sorted((c for c in alike if c.size > 1), key=lambda c: (-c.size, c[0]))[:MOST]
    still = np.setdiff1d(np.arange(labels.size), np.concatenate([np.arange(0), *several]))
    return several, still


def _cut(held: Held, group: Group, labels: np.ndarray) -> Held:
    """The part in which a group moves no element onto one with another label."""
    classes, still = _classes(labels)
    if not classes:
        return replace(held, spec=_pinned(held.spec, group))
    factor, spec = group.members[0], held.spec
    pieces = {f"{factor}#{k}": positions for k, positions in enumerate((*classes, still)) if positions.size}
    inner = {m for g in spec.groups.values() if factor in g.within for m in g.members}
    new = _Cut(factor, pieces, inner)
    origin = dict(held.origin)
    root, places = held._from(factor)
    origin |= {piece: (root, places[positions]) for piece, positions in pieces.items()}
    origin |= {new.of(m, piece): held._from(m) for m in inner for piece in pieces}
    return replace(held, spec=new.spec(spec, f"{factor}#{len(classes)}" if still.size else None), origin=origin)


REASON = "a fixed buffer has another value at each position"


def _pinned(spec: Spec, group: Group) -> Spec:
    """Without a group: its factors stay."""
    groups = {name: g for name, g in spec.groups.items() if name != group.name}
    return replace(spec, groups=groups, reasons={**spec.reasons, **dict.fromkeys(group.members, REASON)},
                   pinned=_newly_pinned(spec, groups))


def _newly_pinned(spec: Spec, groups: Mapping[str, Group]) -> dict[tuple[str, int], str]:
    before, after = ({(site.tensor, site.axis) for g in some.values() for site in g.sites}
                     for some in (spec.groups, groups))
    return {**spec.pinned, **dict.fromkeys(before - after, REASON)}


@dataclass(frozen=True)
class _Cut:
    """A factor becomes several, `pieces` (name -> positions); what is within it becomes as many, one in
    each."""

    factor: str
    pieces: Mapping[str, np.ndarray]
    inner: set[str]

    def of(self, factor: str, piece: str) -> str:
        """What a factor is called where `self.factor` is cut down to a piece."""
        if factor == self.factor:
            return piece
        return f"{factor}{piece[len(self.factor):]}" if factor in self.inner else factor

    def spec(self, spec: Spec, still: str | None) -> Spec:
        layouts = {name: tuple(self._blocks(blocks)) for name, blocks in spec.layouts.items()}
        outputs = {path: (shape, tuple(self._blocks(blocks))) for path, (shape, blocks) in spec.outputs.items()}
        sizes = {f: n for f, n in spec.sizes.items() if f != self.factor and f not in self.inner}
        sizes |= {piece: positions.size for piece, positions in self.pieces.items()}
        sizes |= {self.of(m, piece): spec.sizes[m] for m in self.inner for piece in self.pieces}
        groups = {g.name: g for old in spec.groups.values() for g in self._groups(old, sizes) if g.name != still}
        groups = {name: replace(g, sites=_sites(g, layouts)) for name, g in groups.items()}
        reasons = {**spec.reasons, **({still: REASON} if still else {})}
        return replace(spec, groups=groups, layouts=layouts, outputs=outputs, sizes=sizes, reasons=reasons,
                       pinned=_newly_pinned(spec, groups))

    def _blocks(self, blocks: Sequence[Block]) -> Iterator[Block]:
        for block in blocks:
            count = sum(axis.factors.count(self.factor) for axis in block)
            for pieces in itertools.product(self.pieces, repeat=count):
                yield self._block(block, pieces)

    def _block(self, block: Block, pieces: tuple[str, ...]) -> Block:
        left, axes = list(pieces), []
        for axis in block:
            positions, factors = axis.positions, []
            for k, factor in enumerate(axis.factors):
                piece = left.pop(0) if factor == self.factor else pieces[0] if pieces else ""
                positions = positions.take(self.pieces[piece], k) if factor == self.factor else positions
                factors.append(self.of(factor, piece))
            axes.append(Axis(positions, tuple(factors)))
        return tuple(axes)

    def _groups(self, group: Group, sizes: Mapping[str, int]) -> Iterator[Group]:
        touched = self.factor in (*group.members, *group.within)
        for piece in self.pieces if touched else ("",):
            members, within = (tuple(self.of(f, piece) for f in some) for some in (group.members, group.within))
            yield replace(group, name=members[0], size=math.prod(sizes[m] for m in members), members=members,
                          within=within, copies=math.prod(sizes[f] for f in within))


def _sites(group: Group, layouts: Mapping[str, tuple[Block, ...]]) -> tuple[Site, ...]:
    """Where a group acts, in the order of the tensors."""
    return tuple(Site(name, axis, b) for name, blocks in layouts.items() for b, block in enumerate(blocks)
                 for axis, dimension in enumerate(block) if set(group.members) & set(dimension.factors))
