"""One entry of the state: what moves it, and what keeps it where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import SpecError
from . import stacks

if TYPE_CHECKING:
    from .value import Spec


@dataclass(frozen=True)
class Part:
    """A factor of an axis: `group` is the name of what moves it, `reason` why nothing does; one of the two is None."""

    size: int
    group: str | None
    reason: str | None

    def __str__(self) -> str:
        return f"{self.size} moved by {self.group}" if self.group else f"{self.size} that stay: {self.reason}"


@dataclass(frozen=True)
class Entry:
    """What `spec[name]` says: for each axis, the parts that its factors are, in the order in which they stand there.

    name   in the state dict;  shape: of the tensor there
    tied   the name that the layouts know it by, if that is another one (a tie, or the stack that it is a part of)
    role   see `fxrebasin.spec.roles`
    whole  what moves the tensor as a whole, if it is a part of a stack
    axes   a tuple of parts for each axis
    """

    name: str
    shape: tuple[int, ...]
    tied: str
    role: str
    whole: tuple[Part, ...]
    axes: tuple[tuple[Part, ...], ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        known = "" if self.tied == self.name else f", laid out as {self.tied}"
        yield f"{self.name} {self.shape}: {self.role}{known}"
        if self.whole:
            yield f"  as a whole: {', '.join(map(str, self.whole))}"
        for d, parts in enumerate(self.axes):
            yield f"  axis {d}: " + ("; ".join(map(str, dict.fromkeys(parts))) or "a single element")


def entry_of(spec: Spec, name: str) -> Entry:
    """The entry of that name. Raises SpecError if the state has none."""
    if name not in spec.names:
        near = [other for other in spec.names if other.endswith(name) or name.endswith(other)][:1]
        raise SpecError(f"the state has no entry {name!r}: " + (f"is it {near[0]!r}?" if near else "see spec.names"))
    own = spec.ties.get(name, name)
    holder, depth = own, 0
    while (above := next((stack for stack, parts in spec.stacks.items() if holder in parts), None)) is not None:
        holder, depth = above, depth + 1
    axes = tuple(_parts(spec, holder, d) for d in range(len(spec.shapes[holder])))
    wholes = tuple(part for axis in axes[:depth] for part in axis if part.group)
    assert all(stacks.is_whole(spec, holder, d) for d in range(depth))
    return Entry(name, tuple(spec.names[name]), holder, spec.roles.get(name, "parameter"), wholes, axes[depth:])


def _parts(spec: Spec, name: str, axis: int) -> tuple[Part, ...]:
    """The parts of an axis, block after block."""
    blocks = sorted((block[axis] for block in spec.layouts[name]), key=lambda a: int(a.positions.min()))
    segments = {a.positions.tobytes(): a for a in blocks}
    return tuple(Part(spec.sizes[factor], spec.group_of.get(factor),
                      None if factor in spec.group_of else spec.reasons.get(factor, "a single element"))
                 for segment in segments.values() for factor in segment.factors)
