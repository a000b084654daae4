"""What states between two others have lost, put back from inputs: the size of their activations.

Source: "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..capture import arguments
from ..statistics import measured

State = Mapping[str, Tensor]
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DEAD = 1e-6  # of a unit's spread, relative to the layer's largest: nothing to renormalise


def repaired(model: nn.Module, a: State, b: State, state: State, t: float, inputs: Any) -> dict[str, Tensor]:
    """A state between a (t = 0) and b (1) whose units have, on a batch of inputs, means and spreads between theirs.

    model   the module, of which nothing is changed;  inputs: one batch, as for `infer`

    Every linear or convolutional layer that has a bias and weights of its own is renormalised, in the order in which
    the layers run; then the statistics of batch norms are measured anew. A network of layer norms has little to repair.
    """
    one, other = (_spreads(model, end, inputs) for end in (a, b))
    result = {name: tensor.clone() for name, tensor in state.items()}
    goal = {name: tuple((1 - t) * x + t * y for x, y in zip(one[name], other[name])) for name in one if name in other}

    def mend(name: str, output: Tensor) -> Tensor:
        if name not in goal:
            return output
        mean, spread = _of_units(output, name, model)
        alive = spread > _DEAD * spread.max()
        scale = torch.where(alive, goal[name][1] / spread.clamp_min(torch.finfo(spread.dtype).tiny), torch.ones_like(spread))
        shift = torch.where(alive, goal[name][0] - mean * scale, torch.zeros_like(mean))
        weight, bias = result[f"{name}.weight"], result[f"{name}.bias"]
        result[f"{name}.weight"] = weight * scale.reshape([-1] + [1] * (weight.ndim - 1)).to(weight)
        result[f"{name}.bias"] = bias * scale.to(bias) + shift.to(bias)
        shape = _shape(output, name, model)
        return output * scale.reshape(shape).to(output) + shift.reshape(shape).to(output)

    _run(model, state, inputs, mend)
    norms = measured(model, result, [inputs])
    return result | {name: tensor.to(result[name]) for name, tensor in norms.items()}


def _spreads(model: nn.Module, state: State, inputs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> mean and standard deviation of each of its units."""
    found = {}

    def look(name: str, output: Tensor) -> Tensor:
        found[name] = _of_units(output, name, model)
        return output

    _run(model, state, inputs, look)
    return found


def _run(model: nn.Module, state: State, inputs: Any, use: Callable[[str, Tensor], Tensor]) -> None:
    """Runs the model, with what `use` makes of the output of every layer in its place. Layers that run more than once
    are left alone."""
    twin = copy.deepcopy(model).eval()
    own = twin.state_dict()
    twin.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)
    names = _layers(model)
    seen: dict[str, int] = {}

    def hook(name: str):
        def apply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            seen[name] = seen.get(name, 0) + 1
            return use(name, output) if seen[name] == 1 else output
        return apply

    for name in names:
        twin.get_submodule(name).register_forward_hook(hook(name))
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        twin(*args, **kwargs)


def _layers(model: nn.Module) -> list[str]:
    """Layers with a bias, whose weight is that of no other module."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return [name for name, module in model.named_modules() if isinstance(module, _LAYERS) and module.bias is not None
            and users[id(module.weight)] == 1]


def _shape(output: Tensor, name: str, model: nn.Module) -> list[int]:
    """Along which axis of a layer's output its units lie."""
    axis = output.ndim - 1 if isinstance(model.get_submodule(name), nn.Linear) else 1
    return [-1 if d == axis else 1 for d in range(output.ndim)]


def _of_units(output: Tensor, name: str, model: nn.Module) -> tuple[Tensor, Tensor]:
    units = output.detach().double().movedim(_shape(output, name, model).index(-1), 0).flatten(1)
    return units.mean(1), units.std(1, correction=0)
