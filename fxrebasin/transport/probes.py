"""Inputs where there are none: images of 1/f noise, token sequences by frequency. Experimental, and guarded.

Natural images have amplitudes that fall like 1/f (Field, "Relations between the statistics of natural images and the
response properties of cortical cells", 1987); words, like tokens in the order they were merged, have frequencies that
fall like 1/rank (Zipf). Whether a model makes anything of such inputs is another question, and is measured: the
fine-tuned model and the target must agree on them better than on shuffled ones.
"""
from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..capture import Program, capture
from ..capture.leaves import arguments, inputs_of, signature_of
from ..errors import StateError
from .outputs import Outputs, Runner
from .samples import Samples, samples_of
from .task_vector import State, TransportNote

SHUFFLES = 200
LEVEL = 0.05  # how often chance alone may look like agreement


@dataclass(frozen=True)
class Probes:
    """Made inputs, and whether they can be trusted.

    inputs     as for `infer`, `match`, `calibrate`
    agreement  correlation of the fine-tuned model's and the target's outputs over the probes
    chance     the correlation that one in twenty shuffles of the probes exceeds
    """

    inputs: Any
    agreement: float
    chance: float

    @property
    def trusted(self) -> bool:
        return self.agreement > self.chance

    def __str__(self) -> str:
        word = "better than" if self.trusted else "no better than"
        return (f"probes: the fine-tuned model and the target agree {word} chance (correlation {self.agreement:.3f}, "
                f"chance {self.chance:.3f})")


def probes(model: nn.Module, finetuned: State, target: State, example_inputs: Any, count: int = 64,
           *, seed: int = 0) -> Probes:
    """Inputs of the kind of `example_inputs`, made from nothing.

    example_inputs  as for `infer`: shapes and dtypes; where their numbers differ, floating-point probes have their
                    mean and deviation. Whole numbers are token ids of the table that they look rows up in, truth
                    values and `attention_mask` are all true.
    count           how many

    Warns where the two models agree on them no better than chance: then nothing that rests on them is worth
    anything. Raises StateError for inputs of which none can be made.
    """
    args, kwargs = arguments(example_inputs)
    generator = torch.Generator().manual_seed(seed)
    rooms = _rooms(capture(model, example_inputs))
    names = {id(tensor): path for path, tensor in inputs_of(signature_of(model), args, kwargs).items()}

    def made(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            return leaf
        if leaf.dtype == torch.bool or "attention_mask" in pytree.keystr(path):
            return torch.ones((count, *leaf.shape[1:]), dtype=leaf.dtype)
        if leaf.is_floating_point():
            return _noise(count, leaf, generator)
        return _tokens(count, leaf, rooms.get(names.get(id(leaf), "")), generator)
    args, kwargs = pytree.tree_map_with_path(made, (args, kwargs))
    inputs = kwargs or (args[0] if len(args) == 1 else args)
    samples = samples_of(inputs, "probes")
    device = next(iter(target.values())).device
    run = Runner(model, device, torch.float32)
    agreed, chance = _agreement(run, finetuned, target, samples.to(device, torch.float32), generator)
    found = Probes(inputs, agreed, chance)
    if not found.trusted:
        warnings.warn(f"{found}: do not trust what is fitted to them", TransportNote, stacklevel=2)
    return found


def _noise(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls like 1/f over the last two axes (the last one of two), the same in all channels
    but for a third of it."""
    shape, space = (count, *like.shape[1:]), min(2, like.ndim - 1)
    if space == 0:
        return torch.randn(shape, generator=generator).to(like.dtype)
    axes = tuple(range(-space, 0))
    common = torch.randn((count, *[1] * (like.ndim - 1 - space), *shape[-space:]), generator=generator)
    white = common + torch.randn(shape, generator=generator) / 3
    grid = sum(torch.fft.fftfreq(n).reshape([-1 if d == k else 1 for d in range(space)]) ** 2
               for k, n in enumerate(shape[-space:]))
    falling = 1 / grid.sqrt().clamp_min(1 / max(shape[-space:]))
    pink = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * falling, dim=axes).real
    pink = (pink - pink.mean()) / pink.std()
    told = like.device.type != "meta" and not bool((like == like.flatten()[:1]).all())
    return (pink * float(like.std()) + float(like.mean()) if told else pink).to(like.dtype)


def _tokens(count: int, like: Tensor, room: int | None, generator: torch.Generator) -> Tensor:
    """Token ids, the k-th with a frequency of 1/k."""
    if room is None:
        raise StateError("whole numbers that look nothing up in a table of the model are no tokens: no probes can be made")
    weights = 1 / torch.arange(1, room + 1, dtype=torch.float64)
    drawn = torch.multinomial(weights, count * like[0].numel(), replacement=True, generator=generator)
    return drawn.reshape(count, *like.shape[1:]).to(like.dtype)


def _rooms(program: Program) -> dict[str, int]:
    """Path of an input -> how many rows the table has in which it looks rows up."""
    found: dict[str, int] = {}
    for node in program.module.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("aten.embedding."):
            index = node.args[1]
            while isinstance(index, fx.Node) and index.op == "call_function" and index.args:
                index = index.args[0]
            source = program.sources.get(index.name) if isinstance(index, fx.Node) else None
            if source is not None and source.kind == "input":
                found.setdefault(source.name, int(node.args[0].meta["val"].shape[0]))
    return found


def _agreement(run: Runner, finetuned: State, target: State, samples: Samples,
               generator: torch.Generator) -> tuple[float, float]:
    """The correlation of two models' outputs over the samples, and what chance gives."""
    def outputs(state: State) -> Outputs:
        return run.all({name: t.to(run.dtype) if t.is_floating_point() else t for name, t in state.items()}, samples)
    one, two = (torch.cat([_standard(z) for z in outputs(state).values()], 1) for state in (finetuned, target))

    def correlation(order: Tensor) -> float:
        return float((one * two[order]).mean())
    shuffled = torch.tensor([correlation(torch.randperm(len(one), generator=generator)) for _ in range(SHUFFLES)])
    return correlation(torch.arange(len(one))), float(shuffled.quantile(1 - LEVEL))


def _standard(z: Tensor) -> Tensor:
    """(samples, features), centred over the samples, of unit size in all."""
    z = z.detach().double().flatten(1)
    z = z - z.mean(0)
    return z / z.square().mean().sqrt().clamp_min(1e-30)
