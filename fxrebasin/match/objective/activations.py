"""Matching with a handful of unlabelled inputs: activations as further evidence about the groups.

The captured graph is interpreted on both states; wherever an intermediate holds factors of some group, its
activations become pieces of the objective like any weight. No hooks, and no architecture is special.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...capture import capture
from ...errors import SpecError
from ...infer import observed
from ...reroll import rerolled_as
from ...spec import Axis, Spec
from .piece import Piece
from .problem import Problem

PLACES = 4  # intermediates that are looked at for each group, spread over the network


def add_activations(problem: Problem, spec: Spec, model, inputs: Iterable[Any],
                    source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], weight: float) -> None:
    """Adds activations on `inputs` (an iterable of batches, each as for `infer`) to the objective. The states
    are stacked.

    Every unit is centred and scaled to unit variance in each network, so that a piece counts correlations.
    `weight` scales all pieces so that activations together weigh `weight` times as much as the weights do.
    """
    batches = list(inputs)
    if not batches:
        raise SpecError("no inputs to match activations on: give at least one batch, or leave `inputs` out")
    program = rerolled_as(capture(model, batches[0]), spec.stacks)
    places = observed(program, problem.spec, PLACES)  # what is held is not watched
    rows: list[dict] = [{name: [] for name in places} for _ in range(2)]
    for side, state in zip(rows, (source, target)):
        for batch in batches:
            def note(node, value, side=side):
                if node.name in side:
                    side[node.name].append(_rows(value.detach(), places[node.name]))
            with torch.no_grad():
                program.interpret(state, batch, on_node=note)
    pieces = []
    for name, axes in places.items():
        factors = ("samples",) + tuple(f for axis in axes for f in axis.factors)
        sizes = [spec.sizes[f] for f in factors[1:]]
        old, new = (_standardised(torch.cat(side[name])).reshape(-1, *sizes) for side in rows)
        like, kind = problem.pieces[0].target.device, problem.pieces[0].dtype
        pieces.append(Piece.plain(f"activations of {name}", factors, new.to(like, kind), old.to(like, kind),
                                  alignment=problem.alignment))
    total = sum(math.prod(float(torch.linalg.vector_norm(side)) for side in (p.target, p.source)) for p in pieces)
    if total > 0:
        for piece in pieces:
            piece.new.scale = weight * problem.norm / total
        problem.add(pieces)


def _rows(value: torch.Tensor, axes: tuple[Axis, ...]) -> torch.Tensor:
    """Activations as (samples, elements of the factors): axes without factors are samples."""
    held = [d for d, axis in enumerate(axes) if axis.factors]
    for d in held:
        flat = torch.from_numpy(axes[d].positions.reshape(-1).copy()).to(value.device)
        value = value.index_select(d, flat)
    rest = [d for d in range(value.ndim) if d not in held]
    return value.permute(rest + held).reshape(-1, math.prod(value.shape[d] for d in held)).double()


def _standardised(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(0)
    spread = centred.square().mean(0).sqrt()
    return centred / spread.clamp_min(1e-6 * float(spread.max()) + 1e-30)
