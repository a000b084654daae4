"""Random networks whose vocabulary is PyTorch's own collection of operators, odd arguments included.

    vocabulary = Vocabulary()
    network = composed(seed, vocabulary)      the same network for the same seed
    print(network)                            one line for each step

A step calls an op of the collection with the arguments of one of its samples (or of a variant of one); each floating-point
tensor among them is a parameter, or a value from the pool: an input carried on, or the result of an earlier step. Where shapes
differ, dimensions are mapped by parameters, summed over or added. So every op meets every other, on parameters alone and
on what depends on inputs, and sizes of unrelated axes are often equal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from operator_cases import _runs, _usable, changed
from torch import Tensor, nn
from torch.utils import _pytree as pytree

LARGEST = 300  # elements of a sample's tensor, and of a result
# What leaves memory as it was, or is slow to sample; the first fuzzer has plenty of attention.
LEFT_OUT = ("empty", "nested", "jiterator", "sparse", "ormqr", "lobpcg", "stft", "ctc_loss", "nn.functional.multi_head_attention")


class Unfit(Exception):
    """A step that cannot be taken: torch refuses it, or its numbers are not finite."""


class Vocabulary:
    """The ops of the collection that can be met in float64, their samples looked up when first asked for."""

    def __init__(self):
        from torch.testing._internal.common_methods_invocations import op_db
        fit = [op for op in op_db if torch.float64 in op.dtypes and not any(word in op.name for word in LEFT_OUT)]
        self.ops = {op.name + f".{op.variant_test_name}" * bool(op.variant_test_name): op for op in fit}
        self.names = sorted(self.ops)
        self._calls: dict[str, list[tuple]] = {}

    def calls(self, name: str) -> list[tuple[str, list, Any]]:
        """(variant, leaves, structure) of an op, small ones."""
        if name not in self._calls:
            self._calls[name] = list(self._found(self.ops[name]))
        return self._calls[name]

    @staticmethod
    def _found(op):
        try:
            with torch.random.fork_rng(devices=[]):  # a network is its seed's, whatever was looked up before
                torch.manual_seed(0)
                samples = [pytree.tree_flatten((s.input, s.args, s.kwargs))
                           for s, _ in zip(op.sample_inputs("cpu", torch.float64), range(40))]
        except Exception:  # noqa: BLE001  samples that fail by themselves
            return
        fit = [(leaves, way) for leaves, way in samples if _usable(leaves) and all(
            x.numel() <= LARGEST for x in leaves if isinstance(x, Tensor))][:6]
        for leaves, way in fit:
            yield "", leaves, way
        for leaves, way in fit[:1]:
            yield from (found for found in changed(leaves, way) if _runs(op.op, *found[1:]))


@dataclass(frozen=True, eq=False)
class Step:
    """One call. `sources`: for each floating-point leaf, ("own", parameter) or ("pool", value, how it is fitted)."""

    op: str
    variant: str
    function: Callable
    leaves: tuple
    structure: Any
    sources: dict[int, tuple]
    result: int  # which of the floating-point results goes on

    def __str__(self) -> str:
        given = [f"{x}" if not isinstance(x, Tensor) else f"{tuple(x.shape)}{self.sources.get(k, (x.dtype,))}"
                 for k, x in enumerate(self.leaves)]
        return f"{self.op}({', '.join(given)}){', ' * bool(self.variant)}{self.variant} -> result {self.result}"


class Composed(nn.Module):
    """Runs steps over a pool that starts with the inputs; the outputs are read off the last values."""

    def __init__(self):
        super().__init__()
        self.steps: list[Step] = []
        self.weights: list[Tensor] = []  # while the network is put together; then its parameters
        self.outputs: list[tuple[int, int, bool]] = []  # (value, reading weight, whether all but the last dimension is summed)

    def weight(self, numbers: Tensor) -> int:
        self.weights.append(numbers.detach().double().clone())
        return len(self.weights) - 1

    def finished(self) -> "Composed":
        for k, numbers in enumerate(self.weights):
            self.register_parameter(f"w{k}", nn.Parameter(numbers, requires_grad=False))
        self.weights = []
        return self

    def _weight(self, k: int) -> Tensor:
        return self.weights[k] if self.weights else getattr(self, f"w{k}")

    def forward(self, *inputs: Tensor):
        pool: list[Tensor | None] = list(inputs)
        needed = self._needed(len(inputs))
        for step in self.steps:
            pool.append(self.take(step, pool) if len(pool) in needed else None)
        return tuple(self.read(pool[value], weight, summed) for value, weight, summed in self.outputs)

    def _needed(self, first: int) -> set[int]:
        """The values that an output depends on. What nothing reads can still refuse its numbers (`normal` of a negative
        deviation): that is not part of the function."""
        needed = {value for value, *_ in self.outputs}
        for k in range(len(self.steps) - 1, -1, -1):
            if first + k in needed:
                needed |= {how[0] for kind, *how in self.steps[k].sources.values() if kind == "pool"}
        return needed

    def take(self, step: Step, pool: list[Tensor]) -> Tensor:
        leaves = list(step.leaves)
        for k, (kind, *how) in step.sources.items():
            leaves[k] = self._weight(how[0]) if kind == "own" else self.fitted(pool[how[0]], how[1])
        first, args, kwargs = pytree.tree_unflatten(leaves, step.structure)
        torch.manual_seed(0)
        results = [x for x in pytree.tree_leaves(step.function(first, *args, **kwargs)) if isinstance(x, Tensor)]
        result = results[step.result]
        return result if result.dtype == torch.double else result.double()

    def fitted(self, value: Tensor, how: list[tuple]) -> Tensor:
        for what, *detail in how:
            if what == "map":
                dim, weight = detail
                value = (value.movedim(dim, -1) @ self._weight(weight)).movedim(-1, dim)
            elif what == "sum":
                value = value.sum(0)
            else:
                value = value.unsqueeze(0).expand(detail[0], *value.shape)
        return value

    def read(self, value: Tensor, weight: int, summed: bool) -> Tensor:
        value = value.reshape(1) if value.dim() == 0 else value
        value = value @ self._weight(weight)
        return value.reshape(-1, value.shape[-1]).sum(0) if summed else value

    def __str__(self) -> str:
        return "\n".join(f"{k + 2}: {step}" for k, step in enumerate(self.steps)) + f"\noutputs {self.outputs}"


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, dtype=torch.double, generator=generator) for shape in ((3, 4), (2, 3, 5)))


def composed(seed: int, vocabulary: Vocabulary) -> Composed:
    """A network of two to six steps."""
    rng, network = random.Random(seed), Composed()
    torch.manual_seed(seed)
    pool = list(inputs())
    wanted = rng.randrange(2, 7)
    for _ in range(12 * wanted):
        if len(network.steps) == wanted:
            break
        kept = len(network.weights)
        try:
            with torch.no_grad():
                step = _step(rng, network, pool, vocabulary)
                result = network.take(step, pool)
            if not result.isfinite().all() or not 0 < result.numel() <= LARGEST or result.abs().max() > 1e4:
                raise Unfit
        except Exception:  # noqa: BLE001  whatever torch raises of what it is given
            del network.weights[kept:]
            continue
        network.steps.append(step)
        pool.append(result)
    for value in dict.fromkeys([len(pool) - 1, rng.randrange(2, len(pool)) if len(pool) > 2 else len(pool) - 1]):
        size = pool[value].shape[-1] if pool[value].dim() else 1
        network.outputs.append((value, network.weight(torch.randn(size, 2)), rng.random() < 0.5))
    return network.finished()


def _step(rng: random.Random, network: Composed, pool: list[Tensor], vocabulary: Vocabulary) -> Step:
    name = rng.choice(vocabulary.names)
    calls = vocabulary.calls(name)
    if not calls:
        raise Unfit
    variant, leaves, structure = rng.choice(calls)
    floating = [k for k, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
    sources: dict[int, tuple] = {}
    for k in floating:
        if rng.random() < (0.25 if k == floating[0] and len(pool) > 2 else 0.6):
            if not leaves[k].isfinite().all():  # no state holds such numbers
                raise Unfit
            sources[k] = ("own", network.weight(leaves[k]))
        else:
            value = rng.randrange(len(pool)) if rng.random() < 0.5 else len(pool) - 1
            sources[k] = ("pool", value, _fit(rng, network, pool[value], leaves[k].shape))
    step = Step(name, variant, vocabulary.ops[name].op, tuple(leaves), structure, sources, 0)
    first, args, kwargs = pytree.tree_unflatten(list(leaves), structure)
    results = [x for x in pytree.tree_leaves(step.function(first, *args, **kwargs)) if isinstance(x, Tensor)]
    floats = [k for k, x in enumerate(results) if x.is_floating_point()] or list(range(len(results)))
    return Step(name, variant, step.function, step.leaves, structure, sources, rng.choice(floats))


def _fit(rng: random.Random, network: Composed, value: Tensor, shape: tuple[int, ...]) -> list[tuple]:
    """How a value is brought to a shape: dimensions summed over or added in front, sizes mapped."""
    how: list[tuple] = [("sum",)] * max(0, value.dim() - len(shape))
    sizes = list(value.shape[len(how):])
    for size in reversed(shape[:len(shape) - len(sizes)]):
        how.append(("expand", size))
        sizes.insert(0, size)
    for dim, (own, wanted) in enumerate(zip(sizes, shape)):
        if own != wanted or rng.random() < 0.2:
            how.append(("map", dim, network.weight(torch.randn(own, wanted) / math.sqrt(own))))
    return how
