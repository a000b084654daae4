"""Rounding noise, measured: the program with every rounded number off by a little.

Whatever a permutation does to rounding (another order of summation, say) is an error of some few units in the
last place of the numbers on the way. So the outputs of two equal networks differ by less than what changes of
ROUNDING make of them; a number that is nearly zero by cancellation, or a choice between nearly equal scores,
differs by as much as its own network makes of these changes, however small other outputs are. It is Monte
Carlo arithmetic (Parker, 1997) at 4,096 units in the last place.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..capture import Program
from .ops import compares, rounds
from .wide import EPS, Wide

ROUNDING = 4096 * EPS  # relative: 9e-13
_TINY = 1e-290  # tells equal numbers apart, and changes no other


class Shaken(Wide):
    """A run in which every number that descends from the state and is rounded, the state's own included, is
    off by a factor between 1 - size and 1 + size."""

    def __init__(self, program: Program, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], seed: int,
                 size: float = ROUNDING):
        super().__init__(program, state, inputs)
        self.size, self.live = size, descends_from_state(program)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def changed(self, node: fx.Node, value: Any) -> Any:
        if node not in self.live or not (rounds(node) or node.name in self.program.sources or node in self.eps):
            return value
        size = max(self.size, self.eps.get(node, EPS) * self.size / EPS if node in self.eps else 0.0)
        return pytree.tree_map(lambda leaf: self._off(leaf, min(size, 0.5)), value)

    def argument(self, node: fx.Node, value: Any) -> Any:
        if node not in self.live or not compares(node):
            return value
        return pytree.tree_map(lambda leaf: self._off(leaf, self.size, _TINY), value)

    def _off(self, leaf: Any, size: float, more: float = 0.0) -> Any:
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            return leaf
        noise = torch.rand(leaf.shape, generator=self.generator, dtype=torch.float64, device=leaf.device) * 2 - 1
        return leaf * (1 + size * noise) + more * noise if more else leaf * (1 + size * noise)


def descends_from_state(program: Program) -> set[fx.Node]:
    """The nodes that a tensor of the state has a part in: only these can change when the state does."""
    found: set[fx.Node] = set()
    for node in program.module.graph.nodes:
        source = program.sources.get(node.name)
        if (source is not None and source.kind == "state") or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
