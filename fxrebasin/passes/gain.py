"""A norm's gain moves into the linear maps that read it: W (g y) = (W g) y. Where a shift is added that stays, it is
divided by the gain."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from ..capture import argument
from ..spec import Fold, Rewrite
from .folds import MOVING, SCALING
from .graph import Maps

WORST = 1e6  # condition of a map that is refused


def found(maps: Maps, folds: tuple[Fold, ...]) -> Iterator[Rewrite]:
    """The gains of a graph: those of `folds`, and all others with what stands in their way."""
    shifts = dict(_scaled(maps))
    scales = {fold.gain: [f for f in folds if f.gain == fold.gain] for fold in folds}
    for name in dict.fromkeys([*shifts, *scales]):
        own = shifts.get(name, {""})
        if name not in scales:
            yield Rewrite("gain", name, maps.why_not(name))
        elif len(own) > 1 or None in own:
            yield Rewrite("gain", name, "what is added where it scales is no vector of the state, or are several")
        else:
            readers = tuple((f.tensor, f.axis, "", ()) for f in scales[name])
            yield Rewrite("gain", name, readers=readers, beside=next(iter(own)), plus=scales[name][0].plus)


def _scaled(maps: Maps) -> Iterator[tuple[str, set[str | None]]]:
    """Every gain, and the shifts that are added where it scales: "" for none, None for what is not in the state."""
    for gain in filter(maps.is_vector, maps.program.module.graph.nodes):
        norms = {user for user, given in maps.scales(gain) if str(user.target) in SCALING}
        given = [None if "rms" in str(norm.target) else argument(norm, "bias") for norm in norms]
        if norms or any(_is_normed(user, given) for user, given in maps.scales(gain)):
            yield maps.name(gain), {"" if node is None else maps.name(node) or None for node in given} or {""}


def _is_normed(user: fx.Node, gain: fx.Node) -> bool:
    """Whether a product scales what was multiplied by a root before: a norm that is written out."""
    other = next((a for a in user.args if a is not gain), None)
    while isinstance(other, fx.Node) and str(other.target) in MOVING:
        other = other.args[0]
    return isinstance(other, fx.Node) and str(other.target) == "aten.mul.Tensor" and any(
        isinstance(a, fx.Node) and "rsqrt" in str(a.target) for a in other.args)


def done(rewrite: Rewrite, state: dict[str, Tensor]) -> str:
    """Folds the gain; "" or why not."""
    gain = state[rewrite.entry] + rewrite.plus
    if rewrite.beside and bool((state[rewrite.beside] != 0).any()):
        condition = float(gain.abs().max() / gain.abs().min())
        if not condition <= WORST:
            return f"{rewrite.beside!r} cannot be divided by it: its condition is {condition:.1e}, above {WORST:.0e}"
        state[rewrite.beside] = state[rewrite.beside] / gain
    for weight, axis, _, _ in rewrite.readers:
        tensor = state[weight]
        state[weight] = tensor * gain.view([-1 if d == axis else 1 for d in range(tensor.ndim)])
    state[rewrite.entry] = torch.full_like(gain, 1 - rewrite.plus)
    return ""
