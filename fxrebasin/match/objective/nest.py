"""A group and all groups within it: what is solved as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ...spec import Group, Spec


class Nest:
    """A root group and all groups within it, as a tree: each group below the innermost group that it is
    within."""

    def __init__(self, spec: Spec, root: Group):
        self.spec, self.root = spec, root
        inside = [g for g in spec.groups.values() if set(root.members) <= set(g.within)]
        self.groups = [root, *inside]
        self.factors = {f for g in self.groups for f in g.members}
        self.chains: dict[str, tuple[Group, ...]] = {root.name: (root,)}
        for group in sorted(inside, key=lambda g: len(g.within)):
            above = [c for c in self.chains.values() if all(set(g.members) <= set(group.within) for g in c)]
            self.chains[group.name] = (*max(above, key=len), group)
        self.children: dict[str, list[Group]] = {g.name: [] for g in self.groups}
        for chain in self.chains.values():
            if len(chain) > 1:
                self.children[chain[-2].name].append(chain[-1])

    def chain(self, group: Group) -> list[str]:
        """The factors of a group and of those above it, the outermost first."""
        return [f for g in self.chains[group.name] for f in g.members]

    def extras(self, group: Group) -> tuple[str, ...]:
        """Factors that a group is within besides its chain: it is solved for each of their indices."""
        chain = set(self.chain(group))
        return tuple(f for f in group.within if f not in chain)

    def owner(self, factors: Sequence[str]) -> Group:
        """The innermost group of the nest that is present in a piece: the piece is evidence about it."""
        return max(self.present(factors), key=lambda g: len(self.chains[g.name]))

    def present(self, factors: Sequence[str]) -> list[Group]:
        """The groups of the nest that a piece holds."""
        return [g for g in self.groups if all(m in factors for m in g.members)]

    def indices(self, factors: Sequence[str]) -> list[dict[str, int]]:
        """Every index of a product of factors, as {factor: index}."""
        sizes = tuple(self.spec.sizes[f] for f in factors)
        return [dict(zip(factors, map(int, index))) for index in np.ndindex(*sizes)]

    # ------------------------------------------------------------------------------------ groups side by side

    def coupled(self, factors: Sequence[str]) -> tuple[Group, Group] | None:
        """The hub and the partner that a piece holds side by side within the root, where they are solved as
        one (see `coupled`): query groups and value units of grouped queries, both sides of a grouped
        convolution."""
        pair = self._pair(factors)
        if pair is None:
            return None
        hub = self.hubs.get(frozenset(g.name for g in pair))
        return None if hub is None else (hub, pair[pair[0] is hub])

    def held(self, factors: Sequence[str]) -> list[Group]:
        """Groups in a piece whose moves its scores leave out: they are taken as they stand, which is a
        linearisation."""
        inside = [f for f in factors if f in self.factors]
        if self.coupled(factors):
            return []
        chain = self.chain(self.owner(factors))
        return [g for g in self.present(factors)
                if any(m not in chain or inside.count(m) > 1 for m in g.members)]

    def _pair(self, factors: Sequence[str]) -> tuple[Group, Group] | None:
        """Two innermost groups just below the root, with nothing else of the nest beside them but the
        root."""
        pair = tuple(g for g in self.present(factors) if g is not self.root)
        inside = [f for f in factors if f in self.factors]
        if len(pair) != 2 or len(inside) != len(set(inside)) or set(inside) != {
                f for g in (self.root, *pair) for f in g.members}:
            return None
        alike = all(len(self.chains[g.name]) == 2 and not self.children[g.name]
                    and self.extras(g) == self.extras(self.root) for g in pair)
        return pair if alike else None

    @cached_property
    def hubs(self) -> dict[frozenset[str], Group]:
        """Pairs of groups that share a piece -> the one of the two that is the hub, such that no hub and no
        partner belongs to another hub. First comes the group of most partners, of these the smallest; pairs
        left over are absent."""
        blocks = [block for name in self.spec.permutable for block in self.spec.layouts[name]]
        found = filter(None, (self._pair([f for axis in block for f in axis.factors]) for block in blocks))
        pairs = {frozenset(g.name for g in pair): pair for pair in found}
        hubs: dict[frozenset[str], Group] = {}
        while pairs:
            groups = {g.name: g for pair in pairs.values() for g in pair}
            count = {name: sum(name in names for names in pairs) for name in groups}
            hub = max(groups.values(), key=lambda g: (count[g.name], -g.size, g.name))
            own = [names for names in pairs if hub.name in names]
            hubs |= dict.fromkeys(own, hub)
            pairs = {names: pair for names, pair in pairs.items() if not names & frozenset().union(*own)}
        return hubs

    def size(self, factors: Sequence[str]) -> int:
        return math.prod(self.spec.sizes[f] for f in factors)
