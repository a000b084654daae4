"""The table of git-re-basin: tensor -> for each axis the name of the permutation that moves it, or None.

Source: `PermutationSpec.axes_to_perm`, Git Re-Basin (Ainsworth et al. 2023). It knows whole axes alone: no
concatenations, no heads with units within them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SpecError
from .layout import Axis, Group, Site

if TYPE_CHECKING:
    from .value import Spec

Table = Mapping[str, Sequence[str | None]]
REASON = "the table has no permutation for it"


def to_table(spec: Spec) -> dict[str, tuple[str | None, ...]]:
    """Name in the state dict -> for each axis the name of the group that moves it, None for pinned ones.

    Raises SpecError if some group moves anything but whole axes, one permutation for all of them.
    """
    if spec.stacks:
        raise SpecError("modules that change places as wholes have no place in axes_to_perm: it knows axes of tensors")
    found = {}
    for name in spec.names:
        blocks = spec.layout(name)
        groups = [{spec.group_of[f] for block in blocks for f in block[axis].factors if f in spec.group_of}
                  for axis in range(len(spec.names[name]))]
        for axis, own in enumerate(groups):
            if own and (len(blocks) > 1 or len(blocks[0][axis].factors) > 1 or spec.groups[min(own)].within
                        or not np.array_equal(blocks[0][axis].positions, np.arange(spec.names[name][axis]))):
                raise SpecError(f"axis {axis} of {name!r} is no whole axis that one permutation moves: axes_to_perm cannot "
                                "say how it moves")
        found[name] = tuple(min(own) if own else None for own in groups)
    return found


def from_table(cls: type[Spec], table: Table, shapes: Mapping[str, Sequence[int]]) -> Spec:
    """The spec that a table says, of tensors of these shapes; it is believed, and not checked against any
    network.

    Raises SpecError if table and shapes do not fit.
    """
    sizes: dict[str, int] = {}
    sites: dict[str, list[Site]] = {}
    for name, perms in table.items():
        if name not in shapes or len(perms) != len(shapes[name]):
            raise SpecError(
                f"axes_to_perm has {len(perms)} axes for {name!r}, the state has "
                f"{len(shapes[name]) if name in shapes else 'no such tensor'}: give the shapes of this model"
            )
        for axis, (perm, size) in enumerate(zip(perms, shapes[name])):
            if perm is not None and sizes.setdefault(perm, size) != size:
                raise SpecError(f"{perm!r} moves {sizes[perm]} places elsewhere, and axis {axis} of {name!r} has {size}: "
                                "give the shapes of this model")
            if perm is not None:
                sites.setdefault(perm, []).append(Site(name, axis, 0))
    if left := sorted(set(shapes) - set(table)):
        raise SpecError(f"axes_to_perm says nothing of {left[0]!r}: leave it out of the shapes, or give it a row")
    still = {f"{name}:{axis}": shapes[name][axis] for name, perms in table.items() for axis, perm in enumerate(perms)
             if perm is None}
    layouts = {name: (tuple(Axis(np.arange(size), (perm or f"{name}:{axis}",))
                            for axis, (perm, size) in enumerate(zip(perms, shapes[name]))),)
               for name, perms in table.items()}
    groups = {perm: Group(perm, sizes[perm], 1, (), (perm,), tuple(own)) for perm, own in sites.items() if sizes[perm] > 1}
    still |= {perm: size for perm, size in sizes.items() if perm not in groups}
    pinned = {(name, axis): REASON for name, perms in table.items() for axis, perm in enumerate(perms) if perm not in groups}
    return cls(groups, pinned, sizes | still, dict.fromkeys(still, REASON), layouts,
               {name: tuple(shapes[name]) for name in table})
