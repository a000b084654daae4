"""A program with a map on each skip of a spec of residual segments: an index along one axis, held like a buffer."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from ..capture import Program, Source
from ..errors import SpecError
from ..evaluate import Comparison, Trial, evaluate
from ..evaluate.trial import Move
from ..reroll.writer import Writer
from ..spec import Skip, Spec

if TYPE_CHECKING:
    from ..alignment import Alignment

aten = torch.ops.aten


def mapped(program: Program, spec: Spec) -> Program:
    """The program with an `index_select` on every skip, by an entry `skips.*` of its state.

    With 0, 1, 2 ... in these entries it is the function of the program as it was. Raises SpecError if the graph has no
    such skip: it is not the one that the spec was inferred from.
    """
    nodes = {node.name: node for node in program.module.graph.nodes}
    for skip in spec.skips:
        _check(skip, nodes)
    writer, like = Writer(program.module), next(iter(program.module.graph.nodes))
    indices = {skip.name: _index(writer, like, skip) for skip in spec.skips}

    def select(node: fx.Node, operand: fx.Node, skip: Skip) -> fx.Node:
        return writer.call(node, aten.index_select.default, operand, skip.dim, indices[skip.name])

    state = {**program.state, **{skip.name: (skip.size,) for skip in spec.skips}}
    return replace(on_skips(program, writer, spec.skips, select), state=state)


def on_skips(program: Program, writer: Writer, places: Sequence[Any],
             op: Callable[[fx.Node, fx.Node, Any], fx.Node]) -> Program:
    """The program, with what `op(add, operand, place)` writes where an add reads its skip, at every place; all else that
    reads the skip still reads it as it was. A place has `add`, a node's name, and `operand`, a number."""
    at: dict[str, list[Any]] = {}
    for place in places:
        at.setdefault(place.add, []).append(place)
    held: dict[fx.Node, fx.Node] = {}
    for node in program.module.graph.nodes:
        operands = dict(held) if node.name in at else held
        for place in at.get(node.name, ()):
            given = node.args[place.operand]
            operands[given] = op(node, operands[given], place)
        held[node] = writer.copy(node, operands, program.sources.get(node.name))
    outputs = tuple(replace(output, node=output.node and held[output.node]) for output in program.outputs)
    return replace(program, module=writer.finished(), sources=writer.sources, outputs=outputs)


def _index(writer: Writer, like, skip: Skip):
    node = writer.graph.placeholder(skip.name.replace(".", "_"))
    with writer.mode:
        node.meta["val"] = torch.empty((skip.size,), dtype=torch.int64)
    writer.sources[node.name] = Source("state", skip.name)
    return node


def _check(skip: Skip, nodes: Mapping) -> None:
    node = nodes.get(skip.add)
    given = node.args[skip.operand] if node is not None and len(node.args) > skip.operand else None
    value = getattr(given, "meta", {}).get("val")
    if not isinstance(value, Tensor) or skip.dim >= value.ndim or value.shape[skip.dim] != skip.size:
        raise SpecError(f"the module's graph has no skip at {skip.add!r} with {skip.size} units along axis "
                        f"{skip.dim}: infer the spec from this module again, on inputs of these shapes")


def maps_of(alignment: Alignment) -> dict[str, Tensor]:
    """Entry of the rewritten module -> where each unit behind a skip comes from.

    A unit j behind the map is unit P_behind[j] of the original, which the moved stretch before it holds at the place
    where P_before is P_behind[j]: the paper's P_out P_in^T as an index.
    """
    maps = {}
    for skip in alignment.spec.skips:
        start = torch.arange(skip.size)
        before, behind = (alignment.move(start, end).numpy() if end else start.numpy()
                          for end in (skip.before, skip.behind))
        maps[skip.name] = torch.from_numpy(np.argsort(before)[behind])
    return maps


def beside(trial: Trial, alignment: Alignment, moved: Mapping[str, Any], rewritten: Program | None,
           move: Move | None = None) -> Comparison:
    """A trial's outputs beside those of the moved state, in the graph as it is, or in the one that `mapped` made.

    moved  what the alignment made of the trial's state;  move: how outputs move with it
    """
    if rewritten is None:
        return trial.compare(moved, move)
    return trial.beside(evaluate(rewritten, {**moved, **maps_of(alignment)}, trial.inputs, trial.seed), move)
