"""Running statistics: what they are beside, how they are carried, pooled, and measured again.

A running variance is positive, and what a fine-tuning did to it is a factor. A running mean is a number of
deviations away from where it was. So what is carried is var_ft / var_A and (mean_ft - mean_A) / sqrt(var_A),
and it arrives as var_B * factor^alpha and mean_B + alpha * shift * sqrt(var_B); of running deviations likewise.
Where a channel is dead in a state, and its variance next to nothing, no factor can be had: the target keeps what
it has.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .capture import arguments
from .errors import FxrebasinError
from .spec import Spec
from .spec.dtypes import wide
from .spec.roles import DEVIATION, MEAN, SPREADS, VARIANCE, by_name, kind

State = Mapping[str, torch.Tensor]
DEAD = 1e-5  # relative to the largest deviation of the same norm
WAYS = ("ratio", "target")  # of transporting them


def statistics_of(
    spec: Spec | None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, str | None]:
    """Every running variance or deviation -> None, and every running mean -> the one beside it in its module, if
    there is one. Without a spec, entries of these shapes are known by their names."""
    shapes = spec.names if spec is not None else shapes or {}
    roles = {name: _role(spec, name) for name in shapes}
    spreads = [name for name, role in roles.items() if role in SPREADS]
    found: dict[str, str | None] = dict.fromkeys(spreads)
    surest = [v for v in spreads if roles[v] == VARIANCE], [v for v in spreads if by_name(v) == DEVIATION], spreads
    for name in (name for name, role in roles.items() if role == MEAN):
        beside = next((near for some in surest if (near := [
            v for v in some if _place(v) == _place(name) and shapes[v] == shapes[name]])), [])
        found[name] = beside[0] if len(beside) == 1 else None
    return found


def _role(spec: Spec | None, name: str) -> str:
    return by_name(name) if spec is None else kind(spec.role(name))


def _place(name: str) -> str:
    return name.rpartition(".")[0]


# ---- carried ---------------------------------------------------------------------------------------------


def changes(spec: Spec, base: State, finetuned: State) -> dict[str, torch.Tensor]:
    """What a fine-tuning did to each statistic: factors of variances and deviations, shifts of means."""
    found = {}
    for name, beside in statistics_of(spec).items():
        old, new = _wide(base[name]), _wide(finetuned[name]).to(base[name].device)
        if _role(spec, name) in SPREADS:
            alive = _alive(_deviation(spec, name, old)) & _alive(_deviation(spec, name, new)) & (old.sign() == new.sign())
            found[name] = torch.where(alive, new / old, torch.ones_like(old))
        elif beside is None:
            found[name] = new - old
        else:
            deviation = _deviation(spec, beside, _wide(base[beside]).to(old.device))
            found[name] = torch.where(_alive(deviation), (new - old) / deviation, torch.zeros_like(old))
    return found


def arrived(spec: Spec, target: State, carried: State, alpha: float) -> dict[str, torch.Tensor]:
    """The target's statistics after the carried changes, in the dtype of the sums."""
    result = {}
    for name, beside in statistics_of(spec).items():
        own = _wide(target[name])
        change = carried[name].to(own.device, torch.promote_types(own.dtype, carried[name].dtype))
        if _role(spec, name) in SPREADS:
            result[name] = own * change ** alpha
        else:
            deviation = 1.0 if beside is None else _deviation(spec, beside, _wide(target[beside]).to(own.device))
            result[name] = own + alpha * change * deviation
    return result


def _wide(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return tensor.detach().to(wide(tensor.dtype, dtype or tensor.dtype))


def _deviation(spec: Spec, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clamp(min=0).sqrt() if _role(spec, name) == VARIANCE else tensor.abs()


def _alive(deviation: torch.Tensor) -> torch.Tensor:
    return deviation > DEAD * deviation.max() if deviation.numel() else deviation > 0


# ---- pooled ----------------------------------------------------------------------------------------------


def pooled(spec: Spec | None, states: list[State], weights: list[float],
           dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Mean and variance (or deviation) of what several states saw together: the variance within, and that between
    their means. Divisors that are no deviations, since some are negative, are left out.

    dtype  in which all of it is formed, if that is wider than float32 and what the states have
    """
    shapes = {name: tuple(t.shape) for name, t in states[0].items()
              if isinstance(t, torch.Tensor) and t.is_floating_point()}
    beside = statistics_of(spec, shapes)
    means = {variance: mean for mean, variance in beside.items() if variance is not None}
    found = {}
    for name in beside:
        first, *_ = every = [_wide(state[name], dtype).to(states[0][name].device) for state in states]
        squared = _role(spec, name) == DEVIATION
        if squared:
            if any(bool((x < 0).any()) for x in every):
                continue
            first, *_ = every = [x.square() for x in every]
        mean = sum((w * x for w, x in zip(weights, every)), torch.zeros_like(first))
        if name in means:
            centres = [_wide(state[means[name]], dtype).to(first.device) for state in states]
            centre = sum((w * x for w, x in zip(weights, centres)), torch.zeros_like(first))
            mean = mean + sum((w * (x - centre).square() for w, x in zip(weights, centres)), torch.zeros_like(first))
        found[name] = mean.sqrt() if squared else mean
    return found


# ---- measured again --------------------------------------------------------------------------------------


def measured(model: nn.Module, state: State, inputs: Iterable[Any]) -> dict[str, torch.Tensor]:
    """The statistics of a module's batch norms on `inputs` (batches, each as for `infer`), with a state's
    weights.

    Every batch counts alike. The module is left as it was. Statistics that no batch norm of torch keeps are
    not measured. Raises FxrebasinError without batches.
    """
    twin = copy.deepcopy(model).eval()
    own = twin.state_dict()
    twin.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)
    norms = dict(_norms(twin))
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(inputs, 1):
            args, kwargs = arguments(batch)
            twin(*args, **kwargs)
    if not count:
        raise FxrebasinError("there are no inputs to measure statistics on: give at least one batch")
    return {f"{place}.{name}" if place else name: getattr(norm, name).detach()
            for place, norm in norms.items() for name in ("running_mean", "running_var")}


def _norms(model: nn.Module) -> Iterator[tuple[str, _NormBase]]:
    """The batch norms that keep statistics, by their places."""
    for place, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            yield place, module
