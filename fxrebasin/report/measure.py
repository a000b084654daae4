"""The figures of a report, as values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from ..alignment import Alignment
from ..errors import SpecError
from ..match import Problem, match, prepared
from ..match.objective.evidence import is_parameter
from ..match.objective.piece import Piece
from ..spec import Group, Spec
from ..spec.fitting import fitted

State = Mapping[str, torch.Tensor]
MATRICES, VECTORS, OTHERS = KINDS = ("matrices", "vectors", "statistics and constants")
NEAR = 1.25  # an alignment that is not better than chance by this factor may be chance


@dataclass(frozen=True)
class Cosines:
    """Cosine similarities with the target.

    before  of the source as it is;  after: of the source as the alignment has it
    random  of the source moved by a random element: what moving anything anywhere gives
    chance  after matching a source of the same numbers that has nothing to do with the target (each axis of each
            tensor reordered on its own): what searching for the best alignment gives. None if not measured.
    """

    before: float
    after: float
    random: float
    chance: float | None = None


@dataclass(frozen=True)
class TensorRow(Cosines):
    """A tensor that the alignment can move (stacked ones as one), of a kind in KINDS, and how many numbers it has."""

    name: str = ""
    kind: str = ""
    numbers: int = 0


@dataclass(frozen=True)
class Kind(Cosines):
    """All tensors of a kind together."""

    name: str = ""
    tensors: int = 0


@dataclass(frozen=True)
class GroupRow(Cosines):
    """A group: its cosines are those of all that it moves, at the size at which it counts.

    what   "heads" if other groups are within it, "units" if it is within another, else "channels"
    moved  the share of its elements, over all copies, that are not where they were
    journey  for heads: the old place of each new one
    """

    name: str = ""
    what: str = ""
    size: int = 0
    copies: int = 1
    moved: float = 0.0
    journey: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """Made by `fxr.report`. `str` is a table, `to_json` everything, `to_html` one page.

    objective  what the match maximises: every parameter at unit size, gains with what reads them
    kinds, tensors  cosines of the weights as they are;  groups: the weakest first
    moved      share of what moved, by what it is: heads, units, channels
    method     that made the alignment, or None
    """

    objective: Cosines
    kinds: tuple[Kind, ...]
    tensors: tuple[TensorRow, ...]
    groups: tuple[GroupRow, ...]
    moved: Mapping[str, float]
    method: str | None = None

    @property
    def warning(self) -> str:
        """Why the alignment should not be trusted; "" if nothing speaks against it."""
        found, name = self.objective.after, "a match of unrelated states"
        floor = self.objective.chance
        if floor is None:
            floor, name = max(self.objective.random, 0.04), "a random element"
        if not self.groups or found > NEAR * floor:
            return ""
        return (f"what is aligned is close to what chance gives: cosine {found:.3f}, where {name} reaches "
                f"{floor:.3f}: the two states may have nothing in common that a permutation can show")

    def to_json(self) -> str:
        """Everything, as one JSON document."""
        return json.dumps(asdict(self) | {"moved": dict(self.moved), "warning": self.warning}, allow_nan=False)

    def __str__(self) -> str:
        from .text import table
        return table(self)

    def to_html(self) -> str:
        """One page that needs nothing else."""
        from .page import page
        return page(self)

    def _repr_html_(self) -> str:
        from .page import fragment
        return fragment(self)


def report(spec: Spec, source: State, target: State, alignment: Alignment, *, seed: int = 0,
           chance: bool = True) -> Report:
    """What an alignment of `source` onto `target` (states of the spec's model) did.

    seed    of the random element, and of the control
    chance  whether the method is run once more, on a source that has nothing to do with the target: the honest
            control, as dear as the match itself

    Raises StateError if a state does not fit, SpecError if the alignment is one of another model.
    """
    if set(alignment.spec.names) != set(spec.names):
        raise SpecError("the alignment belongs to another model: give one that was matched with this spec")
    source, target = fitted(spec, source, "the source")[0], fitted(spec, target, "the target")[0]
    infinite = spec.check_together({"the source": source, "the target": target})
    old, new, own = spec.stacked(source), spec.stacked(target), alignment.spec
    ready = prepared(own, old, new, infinite)
    whole = ready.held.whole

    def placed(objective: str, at: Alignment, source=ready.source) -> list[Piece]:
        problem = Problem(whole, source, ready.target, objective=objective)
        problem.reset(Alignment(whole, at.permutations))
        return problem.pieces

    elements = {"before": own.identity(), "after": alignment, "random": own.random(seed)}
    shares = {objective: {name: placed(objective, at) for name, at in elements.items()}
              for objective in ("raw", "scaled")}
    if chance and own.groups:
        strange = _reordered(ready.source, seed)
        found = match(whole, strange, ready.target, _method(alignment), seed)
        for objective, pieces in shares.items():
            pieces["chance"] = placed(objective, found, strange) if found.spec is whole or (
                set(found.permutations) == set(whole.groups)) else []
    raw, scaled = ({name: pieces for name, pieces in found.items() if pieces or name != "chance"}
                     for found in shares.values())
    rows = tuple(_tensor_row(spec, name, raw) for name in own.permutable)
    return Report(Cosines(**_cosines(scaled, lambda piece: True)), tuple(_kinds(spec, raw)), rows,
                  tuple(sorted((_group_row(own, g, alignment, scaled) for g in own.groups.values()),
                               key=lambda g: g.after - (g.chance or 0.0))),
                  _moved(own, alignment), alignment.method)


def _method(alignment: Alignment) -> str:
    """The method to run the control with: that of the alignment, where it has one of its own spec."""
    return alignment.method if alignment.method in ("exact", "transfusion") else "exact"


def _reordered(state: State, seed: int) -> dict[str, torch.Tensor]:
    """Each axis of each tensor in a random order of its own: the same numbers, rows and columns, and nothing of what
    holds tensors together."""
    draw = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in state.items():
        for axis in range(tensor.ndim):
            tensor = tensor.index_select(axis, torch.randperm(tensor.shape[axis], generator=draw).to(tensor.device))
        result[name] = tensor
    return result


# == cosines =================================================================================================


def _cosines(shares: Mapping[str, list[Piece]], which: Callable[[Piece], bool]) -> dict[str, float]:
    """Name -> cosine similarity over some pieces."""
    return {name: _cosine([p for p in pieces if which(p)]) for name, pieces in shares.items()}


def _cosine(pieces: list[Piece]) -> float:
    norm = math.sqrt(math.fsum(p.new.square for p in pieces)) * math.sqrt(math.fsum(p.old.square for p in pieces))
    return max(-1.0, min(1.0, math.fsum(p.inner() for p in pieces) / norm)) if norm > 0 else 0.0


def _kind(spec: Spec, name: str) -> str:
    return OTHERS if not is_parameter(spec, name) else MATRICES if len(spec.shapes[name]) > 1 else VECTORS


def _tensor_row(spec: Spec, name: str, shares) -> TensorRow:
    found = _cosines(shares, lambda piece: piece.tensor == name)
    return TensorRow(**found, name=name, kind=_kind(spec, name), numbers=math.prod(spec.shapes[name]))


def _kinds(spec: Spec, shares):
    for kind in KINDS:
        names = {p.tensor for p in shares["before"] if _kind(spec, p.tensor) == kind}
        if names:
            yield Kind(**_cosines(shares, lambda piece: piece.tensor in names), name=kind, tensors=len(names))


# == groups ==================================================================================================


def _group_row(spec: Spec, group: Group, alignment: Alignment, shares) -> GroupRow:
    found = _cosines(shares, lambda piece: group.members[0] in piece.factors)
    permutation = alignment.permutations[group.name]
    what = _what(spec, group)
    journey = tuple(map(int, permutation)) if what == "heads" and permutation.ndim == 1 else ()
    return GroupRow(**found, name=group.name, what=what, size=group.size, copies=group.copies,
                    moved=alignment.moved[group.name] / max(1, permutation.size), journey=journey)


def _what(spec: Spec, group: Group) -> str:
    inner = any(set(group.members) <= set(other.within) for other in spec.groups.values())
    return "heads" if inner else "units" if any(f in spec.group_of for f in group.within) else "channels"


def _moved(spec: Spec, alignment: Alignment) -> dict[str, float]:
    """Share of elements that moved, by what they are."""
    count: dict[str, list[int]] = {}
    for group in spec.groups.values():
        own = count.setdefault(_what(spec, group), [0, 0])
        own[0] += alignment.moved[group.name]
        own[1] += alignment.permutations[group.name].size
    return {what: moved / all_ for what, (moved, all_) in count.items()}
