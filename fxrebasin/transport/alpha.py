"""How much of a task vector to add, by agreement with the fine-tuned model on unlabelled inputs."""
from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..alignment import Alignment
from .outputs import Distance, Goal, Runner, goal, refuse_free_outputs
from .samples import named, samples_of
from .task_vector import State, TransportNote, transport

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Alpha:
    """An alpha that was chosen on inputs.

    value  the alpha with the lowest loss
    curve  alpha -> loss: 0 is the fine-tuned model, 1 no better than a constant answer
    """

    value: float
    curve: Mapping[float, float]

    def __str__(self) -> str:
        return f"alpha {self.value:g} (loss: {', '.join(f'{a:g} {loss:.3f}' for a, loss in self.curve.items())})"


def choose_alpha(model: nn.Module, base: State, finetuned: State, target: State, alignment: Alignment,
                 inputs: Any, *, loss: str | Distance = "auto") -> Alpha:
    """The alpha at which target + alpha * pi(tau) says what the fine-tuned model says on unlabelled inputs.

    Arguments as for `calibrate`. A grid of alphas is tried, then the lowest point of the parabola through the best
    of them and its neighbours. Costs ten forward passes and no gradient. Raises as `calibrate` does.
    """
    refuse_free_outputs(alignment)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in target.values()) else torch.float32
    device = next(iter(target.values())).device
    run, samples = Runner(model, device, dtype), named(samples_of(inputs, "inputs"), model).to(device, dtype)

    def wide(state: State) -> dict[str, Tensor]:
        return {name: tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
                for name, tensor in state.items()}
    with torch.random.fork_rng(devices=[]):
        wanted = goal(samples, run.all(wide(finetuned), samples), loss, "the fine-tuned model")

        def at(alpha: float) -> float:
            moved = wide(transport(base, finetuned, target, alignment, alpha))
            return _finite(wanted, run.all(moved, samples))
        curve = {alpha: at(alpha) for alpha in ALPHAS}
        if (between := _lowest(curve)) is not None:
            curve[between] = at(between)
    best = min(curve, key=curve.__getitem__)
    if best == 0:
        warnings.warn("alpha is 0: on these inputs every share of the task vector leads away from the fine-tuned "
                      "model; try calibrate", TransportNote, stacklevel=2)
    return Alpha(best, dict(sorted(curve.items())))


def _finite(wanted: Goal, outputs: Mapping[str, Tensor]) -> float:
    found = float(wanted.distance(dict(outputs)))
    return found if found == found else float("inf")


def _lowest(curve: Mapping[float, float]) -> float | None:
    """Where the parabola through the best alpha and its two neighbours is lowest; None at an end of the grid."""
    grid = sorted(curve)
    k = grid.index(min(curve, key=curve.__getitem__))
    if not 0 < k < len(grid) - 1:
        return None
    (a, b, c), (x, y, z) = grid[k - 1:k + 2], (curve[alpha] for alpha in grid[k - 1:k + 2])
    below = (b - a) * (y - z) - (b - c) * (y - x)
    if below == 0 or x == float("inf") or z == float("inf"):
        return None
    return round(b - 0.5 * ((b - a) ** 2 * (y - z) - (b - c) ** 2 * (y - x)) / below, 4)
