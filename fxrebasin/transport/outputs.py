"""A module as a function of its state, and how far its outputs are from what they should be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..alignment import Alignment
from ..capture import leaves_of
from ..errors import CaptureError, FxrebasinError, SpecError, StateError
from .samples import Samples, padding

CHUNK = 64  # inputs that run at once where no gradient is needed
Outputs = dict[str, Tensor]
LOSSES = ("auto", "squared", "kl")
Distance = Callable[[Tensor, Tensor], Tensor]


class Runner:
    """A copy of a module, in eval mode and one floating-point dtype, that runs with any state."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype):
        self.module = copy.deepcopy(model).eval()
        if any(buffer.is_meta for buffer in self.module.buffers()):
            self._refuse_meta()
        self.name, self.dtype = type(model).__name__, dtype
        self.module = self.module.to(device, dtype) if not _on_meta(self.module) else self.module

    def _refuse_meta(self) -> None:
        held = self.module.state_dict()
        lost = [name for name, buffer in self.module.named_buffers() if buffer.is_meta and name not in held]
        if lost:
            raise CaptureError(
                f"{lost[0]!r} is on the meta device and in no state: build the module with values"
            )

    def __call__(self, state: Mapping[str, Tensor], samples: Samples) -> Outputs:
        """The floating-point outputs by path. Raises CaptureError where the module refuses the inputs."""
        try:
            result = torch.func.functional_call(
                self.module, dict(state), samples.args, samples.kwargs, tie_weights=False
            )
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            raise CaptureError(
                f"{self.name} does not run on the inputs: {(str(error) or type(error).__name__).splitlines()[0]}: "
                "give them as to the module itself"
            ) from error
        return {
            path: leaf
            for path, leaf in leaves_of(result)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        }

    @torch.no_grad()
    def all(self, state: Mapping[str, Tensor], samples: Samples) -> Outputs:
        """The outputs on all samples, a few at a time, without gradients; outputs that count no samples left
        out."""
        parts = []
        for index in torch.arange(len(samples)).split(CHUNK):
            found = self(state, samples.take(index))
            parts.append(
                {path: leaf for path, leaf in found.items() if leaf.ndim and len(leaf) == len(index)}
            )
        if not parts[0]:
            raise StateError(
                f"{self.name} returns nothing floating-point that counts its inputs: there is nothing to fit"
            )
        paths = [path for path in parts[0] if all(path in part for part in parts)]
        return {path: torch.cat([part[path] for part in parts]) for path in paths}


def _on_meta(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


@dataclass(frozen=True)
class Goal:
    """Samples, and the outputs that are wanted on them. `units`: path -> what an error is measured in."""

    samples: Samples
    wanted: Outputs
    units: dict[str, dict[str, float]]
    loss: str | Distance

    def take(self, index: Tensor) -> Goal:
        return Goal(
            self.samples.take(index),
            {path: z[index.to(z.device)] for path, z in self.wanted.items()},
            self.units,
            self.loss,
        )

    def __len__(self) -> int:
        return len(self.samples)

    def distance(self, outputs: Outputs) -> Tensor:
        """How far outputs are from those wanted: 0 is there, 1 no better than their mean, for each output."""
        held = padding(self.samples)
        total = []
        for path, units in self.units.items():
            found, wanted = _without_padding(outputs[path], self.wanted[path], held)
            if callable(self.loss):
                total.append(self.loss(found, wanted))
            else:
                total.append(
                    sum(_DISTANCES[kind](found, wanted) / unit for kind, unit in units.items()) / len(units)
                )
        return torch.stack(total).sum()


def goal(samples: Samples, wanted: Outputs, loss: str | Distance, what: str) -> Goal:
    """A goal in units of the variance over the samples. Raises StateError where there is nothing to go by."""
    if not callable(loss) and loss not in LOSSES:
        raise FxrebasinError(
            f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}, or give a function of "
            "outputs and wanted outputs"
        )
    units, held = {}, padding(samples)
    for path, z in wanted.items():
        if not bool(torch.isfinite(z).all()):
            raise StateError(
                f"{what} gives NaN or infinity at the output {path!r} on these inputs: remove such inputs"
            )
        own, _ = _without_padding(z, z, held)
        spread = float((own - own.mean(0)).double().square().mean())
        if spread > 1e-10 * max(float(own.double().square().mean()), 1e-30):
            units[path] = {
                kind: unit for kind, unit in _units(own, spread).items() if kind in _kinds(loss, own)
            }
    if not units:
        raise StateError(
            f"the outputs of {what} are the same for all of these inputs: there is nothing to fit; "
            "give inputs that it tells apart"
        )
    return Goal(samples, {path: wanted[path] for path in units}, units, loss)


def _kinds(loss: str | Distance, z: Tensor) -> tuple[str, ...]:
    if loss == "squared" or callable(loss) or z.ndim < 2 or z.shape[-1] < 2:
        return ("squared",)
    return ("kl",) if loss == "kl" else ("squared", "kl")


def _units(z: Tensor, spread: float) -> dict[str, float]:
    """What each kind of distance comes to for the best answer that looks at no input."""
    units = {"squared": spread}
    if z.ndim > 1 and z.shape[-1] > 1:
        mean = z.softmax(-1).reshape(-1, z.shape[-1]).mean(0).clamp_min(1e-30).log()
        units["kl"] = max(float(_divergence(mean.expand_as(z), z)), 1e-6)
    return units


def _squared(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean()


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    wanted = wanted.log_softmax(-1)
    return (F.kl_div(found.log_softmax(-1), wanted, reduction="none", log_target=True)).sum(-1).mean()


_DISTANCES: dict[str, Distance] = {"squared": _squared, "kl": _divergence}


def _without_padding(found: Tensor, wanted: Tensor, held: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both without the places where a sequence holds nothing, for outputs that have such places."""
    if held is None or found.ndim < 2 or found.shape[:2] != held.shape or held.shape[1] < 2:
        return found, wanted
    return found[held], wanted[held]


def agreement(outputs: Outputs, goal: Goal) -> float:
    """The share of the variance of what is wanted that outputs explain: 1 all, 0 no more than the mean
    does."""
    held, shares = padding(goal.samples), []
    for path in goal.units:
        found, wanted = (x.double() for x in _without_padding(outputs[path], goal.wanted[path], held))
        spread = (wanted - wanted.mean(0)).square().mean()
        shares.append(1 - float((found - wanted).square().mean() / spread.clamp_min(1e-30)))
    return sum(shares) / len(shares)


def flat(outputs: Outputs) -> Any:
    """The first of the outputs that hardly tells its inputs apart, or None."""
    for path, z in outputs.items():
        if z.ndim > 1 and float((z - z.mean(0)).double().square().mean()) < 1e-4 * float(
            z.double().square().mean()
        ):
            return path
    return None


def refuse_free_outputs(alignment: Alignment) -> None:
    """Raises SpecError where outputs move with the network: those of two models then mean different things."""
    if alignment.spec.outputs:
        raise SpecError(f"the output {next(iter(alignment.spec.outputs))!r} moves with the network, so outputs cannot be "
                        'compared: infer the spec with outputs="pinned"')
