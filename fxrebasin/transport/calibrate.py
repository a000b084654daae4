"""Calibration: a handful of unlabelled inputs turns a carried task vector into the fine-tuned function.

What is carried over by a permutation is far better as a start than as an answer. On inputs without labels the
fine-tuned model A_ft says what is wanted; the gains of pi(tau), then all weights of B, are fitted until B
says the same. A quarter of the inputs is held back: it stops the fit, says how far B and A_ft agree
afterwards, and decides between a start from B + pi(tau) and one from B itself (which is distillation, and the
control).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..alignment import Alignment
from ..errors import FxrebasinError
from .fit import EVALUATIONS, UNIT, Bench, fit_gains, fit_weights
from .gains import Gains
from .head import fit_head
from .outputs import Distance, Goal, Runner, agreement, flat, goal, refuse_free_outputs
from .samples import Samples, named, samples_of
from .task_vector import State, TransportNote, transport

FITS = ("gains", "head", "all")
PASSES = 200  # forward and backward, of 64 inputs each, both starts together
ITERATIONS = 20  # of L-BFGS
SHARE = 0.4  # of the passes that L-BFGS may take: more inputs than that allows are left to Adam
CARRIED_SHARE = 0.6  # of what is left then, for the start from pi(tau); the rest is for that from the target
FEW = 32
BASE, CARRIED = "the target itself", "pi(tau)"


@dataclass(frozen=True)
class Calibration:
    """A fine-tuning carried over and fitted to inputs.

    state      the new state, with the keys, dtypes and devices of the target
    gains      of pi(tau), as fitted first; ones where they were not fitted
    agreement  share of the variance of A_ft's outputs over the inputs held back that the new state explains:
               1 is all, 0 no more than a constant does. Slightly kind: the same inputs decided when to stop.
    before     the same for the target as it was
    start      what the new state was reached from
    losses     what was tried -> loss on the inputs held back (without a unit; 0 is A_ft, and B's outputs
               kept)
    passes     forward and backward passes of 64 inputs that were used
    notes      remarks that the user should read
    """

    state: dict[str, Tensor]
    gains: Gains
    agreement: float
    before: float
    start: str
    losses: Mapping[str, float]
    passes: float
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {loss:.3f}" for name, loss in self.losses.items())
        text = (
            f"agreement with the fine-tuned model on inputs held back: {self.before:.3f} before, {self.agreement:.3f} "
            f"after (from {self.start}; loss: {tried}); {self.passes:.0f} passes of {UNIT} inputs, {self.seconds:.1f} s"
        )
        return "\n".join((text, *(f"note: {note}" for note in self.notes)))


def calibrate(
    model: nn.Module,
    base: State,
    finetuned: State,
    target: State,
    alignment: Alignment,
    inputs: Any,
    keep: Any = None,
    *,
    fit: str = "all",
    loss: str | Distance = "auto",
    passes: float = PASSES,
    seed: int = 0,
) -> Calibration:
    """Carries a fine-tuning over and fits it to unlabelled inputs of its task.

    model      the module; only its code is used, and it is left as it is
    base, finetuned, target, alignment  as for `transport`
    inputs     a batch as for `infer`, or a list of batches; axis 0 counts inputs. 64 do well, 1,000 better.
    keep       the same, of inputs on which the target's own outputs are to stay as they are. Without them
               what the target could do besides the task is mostly lost.
    fit        "gains": rows and columns of pi(tau) are scaled; "head": the last linear map alone, in closed
               form; "all": gains, then all weights
    loss       "squared": error in units of its variance, summed over all floating-point outputs, padding
               masked; "kl": divergence of the softmax over the last axis, in units of that of a constant
               answer; "auto": the mean of the two; or a function (outputs, wanted outputs) -> a scalar
    passes     how much is spent, in forward and backward passes of 64 inputs, both starts together

    The held-back loss is never worse than the target's: where nothing is better, its state is returned, with
    a note. Raises StateError for inputs that are too few, all alike, or on which A_ft's outputs are flat, and
    CaptureError for those that the module refuses.
    """
    if fit not in FITS:
        raise FxrebasinError(f"unknown fit {fit!r}: choose one of {', '.join(FITS)}")
    if not (math.isfinite(passes) and passes > 0):
        raise FxrebasinError(f"passes is {passes}: give a positive number")
    started = time.perf_counter()
    refuse_free_outputs(alignment)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        job = Job(model, base, finetuned, target, alignment, loss, seed)
        job.split(
            named(samples_of(inputs, "inputs"), model),
            None if keep is None else named(samples_of(keep, "inputs to keep"), model),
        )
        tried, gains = job.tried(fit, passes)
    return job.result(tried, gains, time.perf_counter() - started)


class Job:
    """One calibration: states as wide tensors, what is fitted to what, and what was tried."""

    def __init__(
        self,
        model: nn.Module,
        base: State,
        finetuned: State,
        target: State,
        alignment: Alignment,
        loss: str | Distance,
        seed: int,
    ):
        self.spec, self.target, self.loss, self.notes = alignment.spec, target, loss, []
        dtypes = [tensor.dtype for tensor in target.values() if tensor.is_floating_point()]
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.device = next(iter(target.values())).device
        carried = transport(base, finetuned, target, alignment, dtype=self.dtype)
        self.run = Runner(model, self.device, self.dtype)
        self.generator = torch.Generator().manual_seed(seed)
        self.own, self.carried, self.teacher, old = map(self._wide, (target, carried, finetuned, base))
        self.idle = all(torch.equal(self.teacher[name], old[name]) for name in old)
        self.fitted = _parameters(model, self.own, self.spec.ties)
        self.vector = {name: self.carried[name] - self.own[name] for name in self.fitted}

    def _wide(self, state: State) -> dict[str, Tensor]:
        return {
            name: tensor.detach().to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in state.items()
        }

    def _weights(self, state: State) -> dict[str, Tensor]:
        return {name: state[name] for name in self.fitted}

    def split(self, inputs: Samples, keep: Samples | None) -> None:
        """Three quarters to fit to, a quarter held back."""
        wanted = [
            goal(
                moved := inputs.to(self.device, self.dtype),
                self.run.all(self.teacher, moved),
                self.loss,
                "the fine-tuned model",
            )
        ]
        self._remark(wanted[0], inputs, keep)
        if keep is not None:
            kept = keep.to(self.device, self.dtype)
            wanted.append(goal(kept, self.run.all(self.own, kept), self.loss, "the target"))
        parts = [_quartered(whole, self.generator) for whole in wanted]
        self.bench = Bench(
            self.run,
            self._around(self.carried),
            self.spec.ties,
            [part[0] for part in parts],
            [part[1] for part in parts],
            lambda samples: self.run.all(self.teacher, samples),
            generator=self.generator,
        )

    def _remark(self, wanted: Goal, inputs: Samples, keep: Samples | None) -> None:
        if self.idle:
            self.notes.append("the fine-tuned state is its base: there is nothing to carry over")
        if len(inputs) < FEW:
            self.notes.append(f"{len(inputs)} inputs are few: 64 carry much more over")
        if (path := flat(wanted.wanted)) is not None:
            self.notes.append(
                f"the fine-tuned model hardly tells these inputs apart (output {path!r}): are they of its task?"
            )
        if keep is None:
            self.notes.append(
                "without inputs to keep, what the target could do besides this task is mostly lost: give some "
                "(keep=)"
            )

    def _around(self, state: State) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if name not in self.fitted}

    def tried(self, fit: str, passes: float) -> tuple[dict[str, tuple[dict, float]], Gains]:
        """What was tried -> (state, loss on what is held back); and the gains."""
        found: dict[str, tuple[dict, float]] = {}

        def note(name: str, weights: dict[str, Tensor], score: float | None = None) -> None:
            score = self.bench.held_back(weights) if score is None else score
            found[name] = self.bench.whole(weights), score

        start, gains = self._weights(self.carried), Gains.ones(self.vector)
        note(CARRIED, start)
        if fit == "head":
            note("head", fit_head(self.bench, start))
        else:
            gains, start = self._gains(passes)
            note("gains", start)
        if fit == "all":
            left = max(passes - self.bench.passes, 0)
            note("gains, then all weights", *fit_weights(self.bench, start, self._steps(CARRIED_SHARE * left)))
        self.bench.around = self._around(self.own)
        note(BASE, self._weights(self.own))
        if fit == "all":
            note(
                "all weights from the target",
                *fit_weights(self.bench, self._weights(self.own), self._steps((1 - CARRIED_SHARE) * left)),
            )
        return found, gains

    def _gains(self, passes: float) -> tuple[Gains, dict[str, Tensor]]:
        rounds = int(ITERATIONS * EVALUATIONS)
        most = max(8, int(SHARE * passes * UNIT / rounds / len(self.bench.fitted)))
        return fit_gains(self.bench, self._weights(self.own), self.vector, ITERATIONS, most)

    def _steps(self, passes: float) -> int:
        return max(1, int(passes / sum(min(UNIT, len(part)) / UNIT for part in self.bench.fitted)))

    def result(self, tried: dict[str, tuple[dict, float]], gains: Gains, seconds: float) -> Calibration:
        best = min(tried, key=lambda name: tried[name][1])
        if tried[best][1] >= tried[BASE][1]:
            best = BASE
            self.notes.append(
                "nothing brought the target closer to the fine-tuned model on the inputs held back: the "
                "target is returned as it was"
            )
        for note in self.notes:
            warnings.warn(note, TransportNote, stacklevel=3)
        agreed = {
            name: agreement(self.run.all(tried[name][0], self.bench.held[0].samples), self.bench.held[0])
            for name in (best, BASE)
        }
        state = self.target if best == BASE else tried[best][0]
        return Calibration(
            self._as_target(state),
            gains,
            agreed[best],
            agreed[BASE],
            best,
            {name: score for name, (_, score) in tried.items()},
            self.bench.passes,
            seconds,
            tuple(self.notes),
        )

    def _as_target(self, state: State) -> dict[str, Tensor]:
        """New tensors with the keys, dtypes and ties of the target."""
        done: dict[tuple, Tensor] = {}
        for name, tensor in self.target.items():
            same = self.spec.ties.get(name, name), tensor.data_ptr()
            done.setdefault(same, state[name].detach().to(tensor.device, tensor.dtype, copy=True))
        return {
            name: done[self.spec.ties.get(name, name), tensor.data_ptr()]
            for name, tensor in self.target.items()
        }


def _parameters(model: nn.Module, state: State, ties: Mapping[str, str]) -> list[str]:
    """The canonical names of the floating-point parameters."""
    own = dict(model.named_parameters(remove_duplicate=False))
    return [
        name
        for name, tensor in state.items()
        if name in own and name not in ties and tensor.is_floating_point()
    ]


def _quartered(whole: Goal, generator: torch.Generator) -> tuple[Goal, Goal]:
    order = torch.randperm(len(whole), generator=generator)
    held = max(1, len(whole) // 4)
    return whole.take(order[held:]), whole.take(order[:held])
