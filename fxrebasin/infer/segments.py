"""Residual segments: a stream whose skips may be re-ordered on their way, so that each stretch has units of its own.

A plain checkpoint holds one permutation for a whole residual stream, since `x + f(x)` ties what goes in to what comes
out. A graph can hold more: with a map on the skip, `P(x) + f(x)`, the stretches before and after the add are ordered
each by itself (Rinaldi et al., ICML 2025, arXiv 2505.22697, on residual connections: the identity of the skip becomes
P_out P_in^T). Here such maps are put into the graph as an op that says which axis is re-ordered, and the analysis runs
as ever: what stands before the map and what stands behind it have factors of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from ..capture import Program
from ..errors import SpecError
from ..factors import Value
from ..reroll.writer import Writer
from ..rewrite import on_skips
from ..rules import Call
from ..spec import Block, Skip, Spec
from .analysis import Analysis

_LIBRARY = torch.library.Library("fxrebasin", "DEF")
_LIBRARY.define("skip(Tensor x, int dim) -> Tensor")
_LIBRARY.impl("skip", lambda x, dim: x.clone(), "CompositeExplicitAutograd")
SKIP = torch.ops.fxrebasin.skip.default
_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Place:
    """A residual add, which of its operands is the skip, and the axis along which a map can stand."""

    add: str
    operand: int
    dim: int


def segmented_spec(program: Program, names: Sequence[str] | None = None) -> Spec:
    """The spec of a program with a map on every skip, or on those of the adds that are named: `Spec.skips` says where.

    Raises SpecError if an add is named that is no residual add.
    """
    places = residual_adds(program)
    if names is not None:
        unknown = sorted(set(names) - {place.add for place in places})
        if unknown:
            raise SpecError(f"{unknown[0]!r} is no residual add of this graph that a map could stand at: "
                            f"choose among {', '.join(place.add for place in places) or 'none'}")
        places = [place for place in places if place.add in names]
    spec = Segmented(with_skips(program, places), places).spec("pinned")
    return replace(spec, inputs=_inputs(program))


def _inputs(program: Program) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path of an input -> its shape and dtype: what `to_module` captures the module again with."""
    values = {program.sources[node.name].name: node.meta["val"] for node in program.module.graph.nodes
              if node.name in program.sources and program.sources[node.name].kind == "input"}
    return {path: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for path, value in values.items()}


def residual_adds(program: Program) -> list[Place]:
    """The adds whose one operand is made from the other, in the order of the graph, with each axis of the skip that is
    free to move somewhere."""
    analysis = Analysis(program)
    analysis.spec("pinned")
    found = []
    for node, operand in _skips(program.module.graph):
        value = analysis.values.get(node.args[operand])
        if isinstance(value, Value) and not value.chosen:
            found += [Place(node.name, operand, d) for d in range(len(value.shape))
                      if any(atom.pinned is None for block in value.blocks for atom in block.segments[d].atoms)]
    return found


def _skips(graph: fx.Graph) -> Iterator[tuple[fx.Node, int]]:
    """(add, which operand the other one is made from)."""
    above: dict[fx.Node, int] = {}  # node -> a bit for each node that it is made from, itself included
    for k, node in enumerate(graph.nodes):
        above[node] = 1 << k
        for operand in node.all_input_nodes:
            above[node] |= above[operand]
        if node.target in _ADDS and all(isinstance(arg, fx.Node) for arg in node.args[:2]):
            one, other = node.args[:2]
            if one is not other and one.meta["val"].shape == other.meta["val"].shape == node.meta["val"].shape:
                # equal shapes: a map along the skip's axis is one along the sum's
                if above[one] & above[other] == above[one]:
                    yield node, 0
                elif above[one] & above[other] == above[other]:
                    yield node, 1


def with_skips(program: Program, places: Sequence[Place]) -> Program:
    """The same function, with an op at every place."""
    writer = Writer(program.module)

    def skip(node: fx.Node, operand: fx.Node, place: Place) -> fx.Node:
        mark = writer.call(node, SKIP, operand, place.dim)
        mark.name = _name(place)
        return mark

    return on_skips(program, writer, places, skip)


def _name(place: Place) -> str:
    return f"skip_{place.add}_{place.dim}"


class Segmented(Analysis):
    """An analysis that tells the two ends of every map apart."""

    def __init__(self, program: Program, places: Sequence[Place]):
        self.places = {_name(place): place for place in places}
        self.ends: dict[str, tuple[Value, Value]] = {}
        super().__init__(program)

    def _apply_rule(self, node: fx.Node, sizes: list[tuple[int, ...]]) -> list[Value]:
        if node.target is not SKIP:
            return super()._apply_rule(node, sizes)
        value, dim = self.values[node.args[0]], node.args[1]
        behind = self.factors.value((value.shape[dim],))
        letters = [f"d{d}" for d in range(len(value.shape))]
        after = ["z" if d == dim else letter for d, letter in enumerate(letters)]
        call = Call(self.factors, str(SKIP), {"x": value, "dim": dim}, sizes, self.program.where(node))
        # the ends by themselves: one map for all else that the skip has, so neither may depend on anything
        result, before = call.relate(f"{' '.join(letters)}, z -> {' '.join(after)}, {letters[dim]}", [value, behind])
        self.ends[node.name] = before, behind
        return [result]

    def spec(self, outputs: str) -> Spec:
        self.marks.update({f"{name} {side}": value for name, ends in self.ends.items()
                           for side, value in zip(("before", "behind"), ends)})
        spec = super().spec(outputs)
        known = dict(spec.outputs)
        skips = []
        for name, (before, _) in self.ends.items():
            ends: list[tuple[Block, ...]] = [known.pop(f"{name} {side}", ((), ()))[1] for side in ("before", "behind")]
            place = self.places[name]
            if any(ends):
                skips.append(Skip(place.add, place.operand, place.dim, before.shape[0], *ends))
        return replace(spec, outputs=known, skips=tuple(skips))
