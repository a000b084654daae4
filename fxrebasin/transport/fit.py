"""Fitting: the gains of a task vector by L-BFGS, all weights by Adam. Every pass over inputs is counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import StateError
from .gains import Gains
from .outputs import Goal, Runner
from .samples import mixed

UNIT = 64  # inputs that one forward and backward pass is counted by
EVALUATIONS = 1.25  # of the loss for each iteration of L-BFGS, at most
RATE, WARM_UP = 3e-4, 5
EVERY = 10  # steps between two looks at what is held back
FAR = 10.0  # a mixture whose outputs are further off than so many deviations is none that the module was made for
State = dict[str, Tensor]


@dataclass
class Bench:
    """What is fitted, and to what. Wide tensors by canonical name.

    run       the module
    around    entries of the state that are not fitted
    aliases   alias -> the name of the same tensor
    fitted    parts of the goal, one for the inputs and one for those where the target's outputs are kept
    held      the same for inputs that are held back
    teacher   samples -> the outputs wanted there
    """

    run: Runner
    around: State
    aliases: Mapping[str, str]
    fitted: list[Goal]
    held: list[Goal]
    teacher: Callable
    passes: float = 0.0
    generator: torch.Generator = field(default_factory=torch.Generator)

    def whole(self, weights: State, around: State | None = None) -> State:
        """The state that the module runs with."""
        state = {**(self.around if around is None else around), **weights}
        return state | {alias: state[name] for alias, name in self.aliases.items() if name in state}

    def loss(self, weights: State, goals: list[Goal]) -> Tensor:
        """The sum over the parts of the goal, with gradients."""
        self.passes += sum(map(len, goals)) / UNIT
        state = self.whole(weights)
        loss = torch.stack([goal.distance(self.run(state, goal.samples)) for goal in goals]).sum()
        if not loss.requires_grad:
            raise StateError(
                f"the outputs of {self.run.name} carry no gradient with respect to its weights: it runs "
                "under no_grad, or detaches them"
            )
        return loss

    def held_back(self, weights: State) -> float:
        """The loss on what is held back; infinity where outputs are not finite."""
        state = self.whole(weights)
        total = sum(float(goal.distance(self.run.all(state, goal.samples))) for goal in self.held)
        return total if math.isfinite(total) else math.inf


def first(goals: list[Goal], most: int) -> list[Goal]:
    """The same goals on their first samples."""
    return [goal.take(torch.arange(min(len(goal), most))) for goal in goals]


def fit_gains(bench: Bench, target: State, vector: State, iterations: int, most: int) -> tuple[Gains, State]:
    """Gains by L-BFGS on the first `most` samples of each part of the goal, and the weights that they
    give."""
    goals = first(bench.fitted, most)
    axes = {
        name: tuple(gain.clone().requires_grad_() for gain in gains)
        for name, gains in Gains.ones(vector).axes.items()
    }
    solver = torch.optim.LBFGS(
        [gain for gains in axes.values() for gain in gains],
        max_iter=iterations,
        max_eval=int(iterations * EVALUATIONS),
        line_search_fn="strong_wolfe",
        history_size=iterations,
    )

    def weights() -> State:
        moved = Gains(axes, {}).apply(vector)
        return {name: tensor + moved[name] if name in moved else tensor for name, tensor in target.items()}

    def closure() -> Tensor:
        solver.zero_grad()
        loss = bench.loss(weights(), goals)
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        return Gains.of(axes, vector), weights()


def fit_weights(bench: Bench, start: State, steps: int, rate: float = RATE) -> tuple[State, float]:
    """All weights by Adam from a start, on mixtures of the inputs; those with the lowest loss on what is held
    back, and that loss."""
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    best, score = start, bench.held_back(start)
    solver = torch.optim.Adam(weights.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        solver, lambda t: min((t + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * t / steps))
    )
    batches = [_batches(len(goal), bench.generator) for goal in bench.fitted]
    for step in range(1, steps + 1):
        goals = [goal.take(next(indices)) for goal, indices in zip(bench.fitted, batches)]
        goals[0] = _mixture(bench, goals[0])
        solver.zero_grad()
        bench.loss(weights, goals).backward()
        solver.step()
        schedule.step()
        if step % EVERY == 0 or step == steps:
            now = bench.held_back({name: tensor.detach() for name, tensor in weights.items()})
            if now < score:
                best, score = {name: tensor.detach().clone() for name, tensor in weights.items()}, now
    return best, score


def _batches(count: int, generator: torch.Generator):
    """Indices of batches without end, each sample once before any comes again."""
    while True:
        for batch in torch.randperm(count, generator=generator).split(UNIT):
            if len(batch) == min(UNIT, count):
                yield batch


def _mixture(bench: Bench, goal: Goal) -> Goal:
    """The goal on mixtures of its samples; where the fine-tuned model makes nothing sensible of one, on the
    sample."""
    samples = mixed(goal.samples, bench.generator)
    wanted = bench.teacher(samples)
    usable = torch.ones(len(samples), dtype=torch.bool)
    for path, z in goal.wanted.items():
        mean, spread = z.mean(), z.std()
        usable &= ((wanted[path] - mean).abs() <= FAR * spread).flatten(1).all(1).cpu()

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(usable.to(new.device).view(-1, *[1] * (new.ndim - 1)), new, old)

    own = iter(goal.samples.tensors())
    samples = samples.map(lambda tensor: chosen(tensor, next(own)))
    return Goal(
        samples, {path: chosen(wanted[path], z) for path, z in goal.wanted.items()}, goal.units, goal.loss
    )
