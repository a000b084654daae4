"""The result of the analysis, as values: which factors a model has, which groups are free, what is pinned and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch

from ..errors import SpecError
from . import axes, fit, roles, stacks, text
from .entry import Entry, entry_of
from .layout import Block, Fold, Group, Rewrite, Skip
from .order import Order
from .validity import validate

_MAPPINGS = ("groups", "pinned", "sizes", "reasons", "layouts", "shapes", "ties", "outputs", "unruled", "stacks", "roles",
             "numbers", "inputs")


@dataclass(frozen=True)
class Spec:
    """All permutation symmetries of one model. Made by `fxrebasin.infer`, or read with `Spec.from_json`.

    groups    name -> Group
    pinned    (tensor name, axis) -> reason, for axes that no group moves
    sizes     factor name -> size;  reasons: factor name -> reason, for pinned factors
    layouts   tensor name -> blocks that partition the tensor, each with an Axis for every dimension
    shapes    tensor name -> shape, aliases of tied tensors included;  ties: alias -> name
    passed    entries of the state dict outside the state (integer counters): left as they are
    outputs   with outputs="free": path -> shape and blocks of each output that moves with the network
    unruled   ops that the analysis has no rule for -> where, and what they pinned
    stacks    stacked tensor -> the names along its axis 0. Parameters of submodules that are alike (a list of experts)
              are treated as one tensor: groups, pinned, layouts and shapes speak of it, `names` of what it is made of.
              Those names may be stacks themselves, which then stand further up.
    assumptions  what the claims rest on and nobody can check from the graph alone, a sentence each
    evidence     how the claims were tried before they were returned, in a sentence; "" if they were not
    roles        entry of the state dict -> what it is, one of those in `spec.roles`
    skips        where maps stand on skips, in a spec of residual segments (`infer(..., residual="segmented")`)
    numbers      entry on whose numbers the analysis relied, most of integers or booleans -> a hash of them
    folds        gains, and the linear maps that read what they scale
    rewrites     changes of a state that its function does not see, for `fxrebasin.canonicalize`
    inputs       path of an example input -> its shape and dtype, where a module has to be captured again
    """

    groups: Mapping[str, Group]
    pinned: Mapping[tuple[str, int], str]
    sizes: Mapping[str, int]
    reasons: Mapping[str, str]
    layouts: Mapping[str, tuple[Block, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str] = field(default_factory=dict)
    passed: tuple[str, ...] = ()
    outputs: Mapping[str, tuple[tuple[int, ...], tuple[Block, ...]]] = field(default_factory=dict)
    unruled: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    evidence: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    folds: tuple[Fold, ...] = ()
    skips: tuple[Skip, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    inputs: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    def __post_init__(self):
        for name in _MAPPINGS:
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self):
        given = (getattr(self, each.name) for each in fields(self))
        return Spec, tuple(dict(value) if isinstance(value, MappingProxyType) else value for value in given)

    # ------------------------------------------------------------------------------------------------ asking about it

    @cached_property
    def order(self) -> Order:
        """The number of distinct alignments: the product over groups of (size!)^copies, exact."""
        return Order(math.prod(math.factorial(group.size) ** group.copies for group in self.groups.values()))

    @property
    def log10_order(self) -> float:
        return sum(math.lgamma(group.size + 1) * group.copies for group in self.groups.values()) / math.log(10)

    @cached_property
    def group_of(self) -> Mapping[str, str]:
        """Factor name -> name of the group it is a member of; pinned factors are absent."""
        return {factor: group.name for group in self.groups.values() for factor in group.members}

    @cached_property
    def permutable(self) -> tuple[str, ...]:
        """Names of the tensors that some group moves (tied tensors once)."""
        moved = {site.tensor for group in self.groups.values() for site in group.sites}
        return tuple(name for name in self.layouts if name in moved)

    def layout(self, tensor: str) -> tuple[Block, ...]:
        """The blocks of a tensor of the state, by any of its names."""
        return self.layouts[self.ties.get(tensor, tensor)]

    def role(self, name: str) -> str:
        """What an entry of the state is, by any of its names; a stacked tensor is what it is made of."""
        return roles.role_of(self, name)

    def fixed(self, *states: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
        """The buffers that are the same, bit for bit, in all of some states (whole or stacked): they stay in place."""
        return roles.fixed(self, *states)

    def identity(self):
        """The alignment that moves nothing."""
        from ..alignment import Alignment
        return Alignment(self, {g.name: np.tile(np.arange(g.size), self.frame(g) + (1,)) for g in self.groups.values()})

    def random(self, seed: int = 0):
        """An alignment drawn uniformly from the whole group."""
        from ..alignment import Alignment
        rng = np.random.default_rng(seed)
        return Alignment(self, {g.name: np.argsort(rng.random(self.frame(g) + (g.size,)), axis=-1)
                                for g in self.groups.values()})

    def frame(self, group: Group) -> tuple[int, ...]:
        """Sizes of the factors that a group is within: the leading shape of its array of permutations."""
        return tuple(self.sizes[factor] for factor in group.within)

    # ------------------------------------------------------------------------------------------------ stacked parameters

    @cached_property
    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Name in the state dict -> shape, aliases of tied tensors included: `shapes` with every stack taken apart."""
        return MappingProxyType(stacks.names_of(self))

    @property
    def idle(self) -> frozenset[str]:
        """Names of the state dict that are stacked in vain: no group moves them as wholes."""
        return stacks.idle(self)

    def is_whole(self, tensor: str, axis: int) -> bool:
        """Whether an axis of a stacked tensor runs over whole tensors of the state dict."""
        return stacks.is_whole(self, tensor, axis)

    def stacked(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict with the tensors of each stack as one, in the widest of their dtypes; all others as they are."""
        return stacks.stacked(self, state)

    def unstacked(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `stacked` undoes: every tensor under its own name again, ties tied."""
        return stacks.unstacked(self, state)

    def check(self, state: Mapping[str, torch.Tensor], what: str = "the state") -> None:
        """Raises StateError unless `state` has exactly the tensors of this spec, of the right shapes, and each holds
        what its role allows."""
        fit.check(self, state, what)

    def check_together(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> frozenset[str]:
        """`check` for some states (by what they are called in errors) that are to be used together: what is infinite
        must be so in all of them. Returns the names of what is."""
        return fit.check_together(self, states)

    # ------------------------------------------------------------------------------------------------------- as text

    def to_json(self) -> str:
        """The whole spec as one JSON document."""
        return text.to_json(self)

    @classmethod
    def from_json(cls, document: str) -> "Spec":
        """Reads what `to_json` wrote. Raises SpecError on anything else."""
        try:
            spec = cls(**text.fields_of(document))
            validate(spec)
            return spec
        except text.NOT_A_SPEC as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise SpecError(f"not a spec: {type(error).__name__} {reason}: use the text of Spec.to_json") from None

    def axes_to_perm(self) -> dict[str, tuple[str | None, ...]]:
        """The table of git-re-basin. Raises SpecError where it cannot say what moves."""
        return axes.to_table(self)

    @classmethod
    def from_axes_to_perm(cls, table: Mapping[str, Sequence[str | None]],
                          shapes: Mapping[str, Sequence[int]]) -> "Spec":
        """The spec that a table of git-re-basin says, which is believed. Raises SpecError if it does not fit."""
        return axes.from_table(cls, table, shapes)

    def __eq__(self, other) -> bool:
        return isinstance(other, Spec) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((tuple(self.groups.values()), tuple(self.shapes.items())))

    def __getitem__(self, name: str) -> Entry:
        """What moves the entry `name` of the state dict, and what keeps it. Raises SpecError if there is none."""
        return entry_of(self, name)

    def __str__(self) -> str:
        from ..show import tree
        return tree(self)

    def __repr__(self) -> str:
        return (f"Spec({len(self.groups)} groups, order 10^{self.log10_order:.1f}, "
                f"{len(self.permutable)} of {len(self.layouts)} tensors can be permuted)")

    def _repr_html_(self) -> str:
        from ..show import fragment
        return fragment(str(self))

    def to_networkx(self):
        """A bipartite graph: group nodes and axis nodes (tensor, axis), an edge for every site."""
        from ..show import to_networkx
        return to_networkx(self)

    def to_dot(self) -> str:
        from ..show import to_dot
        return to_dot(self)

    def to_html(self, title: str = "") -> str:
        """One HTML page that needs nothing else; `title` names the model and the command."""
        from ..show import to_html
        return to_html(self, title)
