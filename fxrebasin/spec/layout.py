"""How axes are made of factors: the values that a spec consists of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """One dimension of a block: `positions[i1, ..., im]` is where the element (i1, ..., im) of `factors` lies."""

    positions: np.ndarray
    factors: tuple[str, ...]

    @property
    def span(self) -> str:
        """The positions as a slice, for people."""
        flat = np.sort(self.positions, axis=None)
        step = int(flat[1] - flat[0]) if flat.size > 1 else 1
        text = f"{flat[0]}:{flat[-1] + 1}" + (f":{step}" if step > 1 else "")
        return text if np.array_equal(flat, np.arange(flat[0], flat[-1] + 1, step)) else text + " (in part)"


Block = tuple[Axis, ...]  # one Axis for each dimension of a tensor


@dataclass(frozen=True)
class Site:
    """An axis (within one block of a tensor) that a group moves."""

    tensor: str
    axis: int
    block: int


@dataclass(frozen=True)
class Fold:
    """A gain and a linear map that reads what it scales, and is the only one to do so with this tensor: the
    function depends on the two through `tensor` times (`gain` + `plus`) along `axis`."""

    tensor: str
    axis: int
    gain: str
    plus: float = 0.0


Reader = tuple[str, int, str, tuple[int, ...]]


@dataclass(frozen=True)
class Rewrite:
    """A change of the state that the function does not see, as the graph allows it, or why it does not.

    kind     "shift", "gain", "centre", "key bias" or "value bias": see `fxrebasin.passes`
    entry    the tensor that gives something up
    reason   why it cannot; "" if it can
    axis     of `entry`, along which it is centred
    places   the elements of `entry` that are meant; () for all
    readers  the linear maps that take it up: (weight, axis that it sums over, its bias or "", for every position of that
             axis the element of `entry` that it reads, () for the same order)
    beside   the shift that is added where a gain scales; "" if there is none
    plus     what is added to a gain before it scales
    """

    kind: str
    entry: str
    reason: str = ""
    axis: int = 0
    places: tuple[int, ...] = ()
    readers: tuple[Reader, ...] = ()
    beside: str = ""
    plus: float = 0.0


@dataclass(frozen=True)
class Group:
    """What one unknown permutation (one for each index of `within`) acts on.

    size     elements that are permuted
    copies   independent permutations: one for each index of the factors in `within`
    within   names of the factors (of other groups, or pinned) on which the permutation may depend
    members  the factors that the group consists of: one, or several that are permuted as one index set of their product
    sites    where the group acts
    """

    name: str
    size: int
    copies: int
    within: tuple[str, ...]
    members: tuple[str, ...]
    sites: tuple[Site, ...]


def same(a: Axis, b: Axis) -> bool:
    """Whether two axes are made of the same factors in the same way."""
    return a.factors == b.factors and a.positions.shape == b.positions.shape and np.array_equal(a.positions, b.positions)


def foldable(tensor: tuple[Block, ...], axis: int, gain: tuple[Block, ...]) -> bool:
    """Whether every block of a tensor has, along an axis, the layout of a block of a vector."""
    return all(len(block) == 1 for block in gain) and all(any(same(block[axis], own[0]) for own in gain)
                                                          for block in tensor)


@dataclass(frozen=True)
class Skip:
    """A place where a map stands on a skip, in a spec of residual segments.

    add       name of the residual add in the captured graph;  operand: which of its operands is the skip (0 or 1)
    dim       the axis of the skip that is re-ordered;  size: of that axis
    before    layout of the axis in the stretch that the skip comes from;  behind: in the one that it goes to. Empty where
              nothing can move
    """

    add: str
    operand: int
    dim: int
    size: int
    before: tuple[Block, ...]
    behind: tuple[Block, ...]

    @property
    def name(self) -> str:
        """The entry under which a rewritten module holds the map."""
        return f"skips.{self.add}_{self.dim}"
