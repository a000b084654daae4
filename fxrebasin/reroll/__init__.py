"""Loop rerolling: submodules that are alike become one, over stacked parameters.

A forward pass that runs E experts of one shape on one input and adds up what they say is left as it is when
whole parameters change places among the experts, together with the router's rows. No single axis of the state
shows that. So the graph is rewritten: the experts' parameters become tensors with a new first axis, their ops run
once for all experts, the sum becomes a sum over that axis, and the inference finds what it finds in packed
experts: E! * f!^E.

    twins   finds slots that no structure tells apart, by colour refinement
    slots   compares them node by node; nothing is guessed
    batch   one op for all slots
    roll    the new graph, which `writer` writes

Nested lists take several rounds, from the outside inwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import fx

from ..capture import Program
from ..errors import CaptureError
from .roll import Roll
from .slots import Refused, Slots
from .twins import Wiring


@dataclass(frozen=True)
class Rolled:
    """A program whose state holds stacked tensors; `stacks`: their names -> the names along axis 0, which may be
    those of stacks further up."""

    program: Program
    stacks: Mapping[str, tuple[str, ...]]


def rerolled(program: Program, leave: AbstractSet[str] = frozenset()) -> Iterator[Rolled]:
    """The program with its lists of twins rolled up, after each round; nothing if there are none.

    leave  names of the state that are not to be stacked

    Every program computes the same function of the stacked state as the given one does of its own. Nothing is run
    on real tensors, and the given program stays as it is.
    """
    stacks: dict[str, tuple[str, ...]] = {}
    known: dict = {}
    while (roll := _round(program, leave, known)) is not None:
        program = roll.program
        stacks.update(roll.stacks)
        yield Rolled(program, dict(stacks))


def _round(program: Program, leave: AbstractSet[str], known: dict) -> Roll | None:
    """All families that can be rolled up at once. Twins that cannot are told apart, so that what is inside them
    is seen."""
    wiring = Wiring(program)
    apart: dict[fx.Node, tuple[int, ...]] = {}
    while families := wiring.families(apart):
        fit: list[Slots] = []
        for family in families:
            try:
                fit.append(Slots(wiring, family, leave))
            except Refused:
                _tell_apart(family, apart)
        while fit:
            try:
                return Roll(wiring, fit, known)
            except Refused as refused:  # an op that cannot be run for all slots at once, wherever it is
                for slots in [slots for slots in fit if slots.has(refused.op)] or list(fit):
                    _tell_apart(slots.family, apart)
                    fit.remove(slots)
    return None


def _tell_apart(family: list[list[fx.Node]], apart: dict[fx.Node, tuple[int, ...]]) -> None:
    apart.update({node: (*apart.get(node, ()), k) for k, slot in enumerate(family) for node in slot})


def rerolled_as(program: Program, stacks: Mapping[str, tuple[str, ...]]) -> Program:
    """The program whose state is stacked in a given way. Raises CaptureError if there is none."""
    if not stacks:
        return program
    parts = {name for names in stacks.values() for name in names}
    for rolled in rerolled(program, frozenset(program.state) - parts):
        if rolled.stacks == stacks:
            return rolled.program
    raise CaptureError("the module's parameters do not stack as the spec says: infer the spec from this module again")


__all__ = ["Rolled", "rerolled", "rerolled_as"]
