"""What two elements of a group have in common: the scores of an assignment, by matrix products over what
pieces hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ...spec import Group
from .gather import flat_sources
from .nest import Nest
from .piece import Piece

THIN = 32  # products this thin are mostly a pass over the result: they are taken together


def similarity(nest: Nest, group: Group, pieces: Sequence[Piece], alone: bool = False) -> torch.Tensor:
    """Scores of every pair of elements of a group, for every pair of elements of the groups above it.

    Shape (E, N, N), in the pieces' dtype: E runs over the factors in `extras`, N over the
    product of the group's chain. Entry [e, i, j] is what target element i and source element j have in
    common. `alone`: the groups above are held, E runs over all that the group is within.
    """
    lead = group.within if alone else nest.extras(group)
    chain = list(group.members) if alone else nest.chain(group)
    size = nest.size(chain)
    alike = [p for p in pieces
             if not lead and sorted(f for f in p.factors if f in nest.factors) == sorted(chain)]
    if sum(p.target.numel() for p in alike) < size ** 2:
        alike = []
    total = _sum(alike, lead, chain, still=True)
    if total is not None and alike[0].alignment is not None:  # columns move once, instead of every source
        order = flat_sources(alike[0].alignment, chain)
        if not torch.equal(order, torch.arange(size)):
            total = total.index_select(2, order.to(total.device))
    total = _sum([p for p in pieces if not any(p is q for q in alike)], lead, chain, total)
    return torch.zeros(nest.size(lead), size, size) if total is None else total


def _sum(pieces: Sequence[Piece], lead: Sequence[str], chain: Sequence[str],
         total: torch.Tensor | None = None, still: bool = False) -> torch.Tensor | None:
    """`total` and the products of some pieces."""
    thin: list[tuple[torch.Tensor, torch.Tensor]] = []
    for piece in pieces:
        for target, source in operands(piece, lead, chain, still):
            if target.shape[-1] <= THIN:
                thin.append((target * piece.weight, source))
            else:
                total = _added(total, target, source, piece.weight)
    if not thin:
        return total
    targets, sources = zip(*thin)
    return _added(total, torch.cat(targets, -1), torch.cat(sources, -1), 1.0)


def _added(total: torch.Tensor | None, target: torch.Tensor, source: torch.Tensor,
           weight: float) -> torch.Tensor:
    """`total` plus the weighted products of all elements of target and source."""
    product = source.transpose(-1, -2)
    if total is None:  # what is not yet there counts nothing, whatever it holds
        empty = target.new_empty(target.shape[0], target.shape[1], product.shape[2])
        return torch.baddbmm(empty, target, product, beta=0, alpha=weight)
    return total.baddbmm_(target, product, alpha=weight)


def operands(piece: Piece, lead: Sequence[str], chain: Sequence[str],
             still: bool = False) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Target and moved source as (lead, chain, rest), in parts along the rest, not scaled. A factor that stands twice (a
    square weight) gives one view for each place, the other held as it is; that is a linearisation. `still`:
    not moved along the chain."""
    if not piece.target.numel():
        return
    ahead = [piece.factors.index(f) for f in lead]
    for k in range(max(piece.factors.count(f) for f in chain)):
        own = []
        for f in chain:
            places = [i for i, x in enumerate(piece.factors) if x == f]
            own.append(places[min(k, len(places) - 1)])
        rest = [i for i in range(len(piece.factors)) if i not in own and i not in ahead]
        for target, source in piece.parts(rest, own if still else ()):
            yield flattened(target, ahead, own, rest), flattened(source, ahead, own, rest)


def flattened(side: torch.Tensor, *axes: Sequence[int]) -> torch.Tensor:
    """With one axis for each of some lists of axes."""
    shape = [1] * len(axes)
    for k, part in enumerate(axes):
        for axis in part:
            shape[k] *= side.shape[axis]
    return side.permute([axis for part in axes for axis in part]).reshape(shape)
