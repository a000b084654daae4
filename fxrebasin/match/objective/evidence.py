"""What speaks for an alignment, and how much each of it counts.

A function does not depend on the scale of the parts that a network is written in: a norm's gain and the linear
maps that read it, say. Nor is a tensor of larger numbers a better witness. So every block counts at unit root
mean square, gains are multiplied into what reads them, and entries that are no parameters (batch-norm
statistics, constants) are left out where parameters speak of the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from ...spec import Fold, Spec
from ...spec.layout import foldable, same
from ...spec.roles import PARAMETER, kind
from .piece import PART, Piece, Side, dot, factor_form

OBJECTIVES = {  # name -> (parameters alone, gains folded, how far every block is brought to unit size: 0 to 1)
    "scaled": (True, True, 1.0),
    "half": (True, True, 0.5),
    "folded": (True, True, 0.0),
    "plain": (True, False, 0.0),
    "all": (False, False, 1.0),
    "raw": (False, False, 0.0)}
SIDED = 0.5  # a gain whose mean is below this share of its mean size has both signs: it is no scale
SAFE = 2.0 ** 20  # numbers beyond this, or below its inverse, are brought near 1 before they are multiplied

State = Mapping[str, torch.Tensor]


def pieces_of(spec: Spec, source: State, target: State, dtype: torch.dtype | None, objective: str) -> list[Piece]:
    """The pieces that count (states stacked), each at the size at which it does."""
    alone, folding, unit = OBJECTIVES[objective]
    shapes_only = any(state[name].is_meta for state in (source, target) for name in spec.permutable)
    folds = believed(spec, source, target) if folding and not shapes_only else {}
    names = _counted(spec, {fold.gain for fold in folds.values()}) if alone else spec.permutable
    part = max(PART, max((g.size for g in spec.groups.values()), default=0) ** 2 // 4)
    pieces = [piece for name in names
              for piece in _blocks(spec, name, target[name].detach(), source[name].detach(), dtype, part)]
    for piece in pieces:
        if piece.tensor in folds:
            _fold(spec, piece, folds[piece.tensor], target, source)
    if shapes_only:
        return pieces
    squares = [_measured(piece) for piece in pieces]
    for k in range(2):
        _sized([(p.new, p.old)[k] for p in pieces], [s[k] for s in squares], [p.target.numel() for p in pieces], unit)
    return pieces


def _blocks(spec: Spec, name: str, new: torch.Tensor, old: torch.Tensor, dtype: torch.dtype | None,
            part: int) -> Iterable[Piece]:
    wide = dtype or (torch.float64 if new.dtype == torch.float64 else torch.float32)
    for block in spec.layouts[name]:
        factors = tuple(f for axis in block for f in axis.factors)
        yield Piece(name, factors, Side(factor_form(new, block)), Side(factor_form(old, block)), wide, part=part,
                    block=block)


# == which entries count =====================================================================================


def is_parameter(spec: Spec, name: str) -> bool:
    """Whether an entry (stacked or not) is a parameter, as far as is known."""
    return kind(spec.role(name)) == PARAMETER


def _counted(spec: Spec, folded: set[str]) -> list[str]:
    """Names of the permutable tensors that count: parameters but for gains folded elsewhere, and whatever else
    is the only witness of a group."""
    groups = {name: {spec.group_of[f] for block in spec.layouts[name] for axis in block for f in axis.factors
                     if f in spec.group_of} for name in spec.permutable}
    first = {name for name in spec.permutable if name not in folded and is_parameter(spec, name)}
    seen = set().union(*(groups[name] for name in first))
    return [name for name in spec.permutable if name in first or name not in folded and groups[name] - seen]


# == gains ===================================================================================================


def believed(spec: Spec, source: State, target: State) -> dict[str, Fold]:
    """Tensor -> the gain to be folded into it, for gains that are scales in both states."""
    scales = {fold.gain for fold in spec.folds
              if all(_is_scale(state[fold.gain].detach().double() + fold.plus) for state in (source, target))
              and all(foldable(spec.layouts[f.tensor], f.axis, spec.layouts[f.gain])
                      for f in spec.folds if f.gain == fold.gain)}
    return {fold.tensor: fold for fold in spec.folds if fold.gain in scales}


def _is_scale(gain: torch.Tensor) -> bool:
    """Whether a gain has one sign, by and large: random numbers would spoil what they are multiplied into."""
    largest = float(gain.abs().max()) if gain.numel() else 0.0
    return largest > 0 and abs(float((gain / largest).mean())) > SIDED * float((gain / largest).abs().mean())


def _fold(spec: Spec, piece: Piece, fold: Fold, target: State, source: State) -> None:
    """Hangs the gain onto both sides of a piece."""
    along = piece.block[fold.axis]
    block = next(b for b in spec.layouts[fold.gain] if same(b[0], along))
    first = sum(len(axis.factors) for axis in piece.block[:fold.axis])
    piece.folded = tuple(range(first, first + len(along.factors)))
    for side, state in ((piece.new, target), (piece.old, source)):
        gain = factor_form(state[fold.gain].detach().double() + fold.plus, block)
        gain = gain / gain.abs().max()
        side.gain = (gain / gain.square().mean().sqrt()).to(piece.dtype)


# == sizes ===================================================================================================


def _measured(piece: Piece) -> list[float]:
    """Mean squares of both sides as they are looked at; sides of numbers out of range are shifted."""
    found = _mean_squares(piece)
    odd = [side for side, square in zip((piece.new, piece.old), found) if not SAFE ** -2 < square < SAFE ** 2]
    for side in odd:
        side.shift = _shift(side.array, piece.dtype)
    return _mean_squares(piece) if odd else found


def _mean_squares(piece: Piece) -> list[float]:
    count = max(1, piece.target.numel())
    squares = [[dot(x, x) for x in sides] for sides in piece.parts(range(piece.target.ndim))]
    return [math.fsum(side) / count for side in zip(*squares)]


def _shift(array: torch.Tensor, dtype: torch.dtype) -> float:
    """The power of two that brings the largest number near 1, as far as the dtype can hold it."""
    largest = max(float(array.max()), -float(array.min())) if array.numel() else 0.0
    most = 1000 if dtype == torch.float64 else 100
    return 2.0 ** max(-most, min(most, -math.frexp(largest)[1])) if largest > 0 else 1.0


def _sized(sides: Sequence[Side], squares: Sequence[float], counts: Sequence[int], unit: float) -> None:
    """Gives the blocks of one state their scales: each to unit root mean square (1), all by one factor (0), or
    between, by powers."""
    levels = [0.5 * math.log2(square) - math.log2(side.shift) if square > 0 else None
              for side, square in zip(sides, squares)]  # of root mean squares
    common = max((level for level in levels if level is not None), default=0.0)
    for side, level in zip(sides, levels):
        by = common if level is None else unit * level + (1 - unit) * common
        power = -math.log2(side.shift) - by
        side.scale = 0.0 if level is None else 2.0 ** power if power > -1000 else 0.0
    for side, square, count in zip(sides, squares, counts):
        side.square = square * count * side.scale ** 2
