"""Two states made ready for a search: numbers that real arithmetic can take, and a spec that holds what must
stay.

Complex tensors become pairs of real ones, so that their inner product is the real part of the complex one.
What is infinite becomes zero. Fixed buffers, and the places of what is infinite, are held (see `spec.hold`):
the search runs in the part of the symmetries that keeps them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..alignment import Alignment
from ..spec import Axis, Spec
from ..spec.dtypes import plain
from ..spec.fit import infinities
from ..spec.hold import Held, hold
from ..spec.stacks import parts_of
from .objective.problem import Problem

State = Mapping[str, torch.Tensor]
PAIR = "real and imaginary part"


@dataclass(frozen=True)
class Prepared:
    """whole   the spec of the alignment that is to come out
    held    its part that is searched
    source, target  states, stacked, of real and finite numbers
    """

    whole: Spec
    held: Held
    source: State
    target: State

    @property
    def spec(self) -> Spec:
        return self.held.spec

    def cosine(self, problem: Problem) -> float:
        """The scaled objective over all that the whole can move, whatever a problem sees of it."""
        if self.spec is self.held.whole and problem.objective == "scaled":
            return problem.cosine()
        whole = Problem(self.held.whole, self.source, self.target, problem.dtype)
        whole.reset(Alignment(self.held.whole, self.held.lift(problem.alignment.permutations)))
        return whole.cosine()

    def alignment(self, found: Alignment, **more) -> Alignment:
        """What was found within the part, as an alignment of the whole."""
        return Alignment(self.whole, self.held.lift(found.permutations), **more)

    def part(self, alignment: Alignment) -> Alignment:
        """An alignment of the whole, as far as it keeps what is held."""
        return Alignment(self.spec, self.held.restrict(alignment.permutations))


def prepared(spec: Spec, source: State, target: State, infinite: Collection[str] = ()) -> Prepared:
    """The states (stacked, and known to fit together) and the spec, ready for a search.

    infinite  names of tensors of the state dict that are infinite somewhere, at the same places in both
              states
    """
    odd = {name for name in spec.layouts if not {name, *parts_of(spec, name)}.isdisjoint(infinite)}
    kept: dict[str, tuple[torch.Tensor, ...]] = {name: (_places(target[name]),) for name in odd}
    kept |= {name: (source[name], target[name]) for name in spec.fixed(source, target)}
    pairs = {name for name in spec.layouts if source[name].is_complex() or target[name].is_complex()}
    held = hold(_paired(spec, pairs), kept)
    old, new = ({name: _real(state[name], name in pairs, name in odd) for name in spec.layouts}
                for state in (source, target))
    return Prepared(spec, held, old, new)


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """Where a tensor is infinite, in the dtype of the tensor."""
    return infinities(tensor).to(plain(tensor).dtype)


def _real(tensor: torch.Tensor, paired: bool, odd: bool) -> torch.Tensor:
    """A tensor of real and finite numbers."""
    numbers = plain(tensor)
    if paired:
        numbers = torch.view_as_real(numbers.to(numbers.dtype.to_complex()))
    return numbers.where(numbers.isfinite(), torch.zeros((), dtype=numbers.dtype)) if odd else numbers


def _paired(spec: Spec, names: Collection[str]) -> Spec:
    """A spec in which some tensors have a last axis of two: the real and the imaginary part."""
    if not names:
        return spec
    last = Axis(np.arange(2), (PAIR,))
    layouts = {name: tuple((*block, last) for block in blocks) if name in names else blocks
               for name, blocks in spec.layouts.items()}
    shapes = {name: (*shape, 2) if spec.ties.get(name, name) in names else shape for name, shape in spec.shapes.items()}
    return replace(spec, layouts=layouts, shapes=shapes, sizes={**spec.sizes, PAIR: 2},
                   reasons={**spec.reasons, PAIR: "parts of one number"})
