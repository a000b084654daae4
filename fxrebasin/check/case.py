"""An op with concrete arguments."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..factors import Factors, Value
from ..rules.call import Call, values_in
from ..rules.rule import resolve
from ..rules.sample import Keyword, T

EXACT = 1e-10  # largest relative difference that counts as equal, in float64
# What an op or a rule raises on arguments that it cannot take.
ERRORS = (KeyError, IndexError, ValueError, TypeError, StopIteration, AssertionError, ZeroDivisionError,
          RuntimeError, AttributeError, NotImplementedError)


class Case:
    """One op with concrete arguments.

    tensors  arguments that may be permuted, by path: `input`, or `tensors[1]` in a list
    points   path of an index -> the size of the axis that it points into
    before   the op's results, tensors only;  shapes: theirs
    """

    def __init__(self, op: str, sample: Callable, seed: int = 0):
        made = T(op, seed)
        given = sample(made)
        self.op, self.target, self.seed = op, resolve(op), seed
        self.constants = {id(tensor) for tensor in made.constants}
        self.args = [a for a in given if not isinstance(a, Keyword)]
        self.kwargs = {k: v for a in given if isinstance(a, Keyword) for k, v in a.items()}
        found: dict[str, torch.Tensor] = {}
        self._map(found.setdefault)
        self.tensors = {path: t for path, t in found.items() if id(t) not in self.constants}
        self.points = {path: made.pointing[id(t)] for path, t in found.items() if id(t) in made.pointing}
        self.before = self.run({})
        self.shapes = [tuple(result.shape) for result in self.before]

    def _map(self, f: Callable[[str, torch.Tensor], Any]) -> tuple[list, dict]:
        """(args, kwargs) with f(path, tensor) in the place of each tensor."""
        def walk(path, x):
            if isinstance(x, (list, tuple)):
                return [walk(f"{path}[{k}]", y) for k, y in enumerate(x)]
            return f(path, x) if isinstance(x, torch.Tensor) else x
        names = [a.name for a in self.target._schema.arguments]
        return ([walk(name, x) for name, x in zip(names, self.args)],
                {name: walk(name, x) for name, x in self.kwargs.items()})

    def run(self, moved: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The op's results, tensors only, with some arguments replaced; random draws are always the same."""
        args, kwargs = self._map(lambda path, t: moved.get(path, t).clone())
        draws = torch.Tag.nondeterministic_seeded in self.target.tags
        with torch.no_grad(), torch.random.fork_rng(devices=[], enabled=draws):
            if draws:
                torch.manual_seed(self.seed)
            results = self.target(*args, **kwargs)
        several = results if isinstance(results, (list, tuple)) else [results]
        tensors = (result for result in several if isinstance(result, torch.Tensor))
        return [x if x.layout == torch.strided else x.to_dense() for x in tensors]

    def arguments(self, values: dict[str, Value], factors: Factors) -> dict[str, Any]:
        """The arguments as a rule sees them."""
        args, kwargs = self._map(lambda path, t: values[path] if path in values
                                 else factors.value(t.shape, "a constant"))
        schema = self.target._schema.arguments
        return {a.name: a.default_value for a in schema} | {a.name: x for a, x in zip(schema, args)} | kwargs

    def call(self) -> tuple[list[str], Call]:
        """The call as a rule sees it, and the paths of its tensors in order."""
        factors = Factors()
        values = {path: factors.value(tensor.shape) for path, tensor in self.tensors.items()}
        call = Call(factors, self.op, self.arguments(values, factors), self.shapes)
        names = [f"{name}[{k}]" if isinstance(given, (list, tuple)) else name for name, given in dict.items(call.args)
                 for k, _ in enumerate(values_in(given))]
        return names, call

    def plain(self) -> dict[str, Any]:
        """The arguments by name, tensors as None."""
        args, kwargs = self._map(lambda path, t: None)
        schema = self.target._schema.arguments
        return {a.name: a.default_value for a in schema} | {a.name: x for a, x in zip(schema, args)} | kwargs

    def with_argument(self, name: str, given: Any) -> "Case":
        """The same case with another value for an argument that is no tensor. Raises what the op raises."""
        other = copy.copy(self)
        names = [a.name for a in self.target._schema.arguments]
        k = names.index(name)
        other.args = [given if i == k else x for i, x in enumerate(self.args)]
        other.kwargs = self.kwargs if k < len(self.args) else {**self.kwargs, name: given}
        other.before = other.run({})
        other.shapes = [tuple(result.shape) for result in other.before]
        return other

    def masks(self, name: str) -> bool:
        """Whether an argument, or an element of it, is a tensor of booleans."""
        given = self._given(name)
        return any(x.dtype == torch.bool for x in (given if isinstance(given, (list, tuple)) else [given])
                   if isinstance(x, torch.Tensor))

    def _given(self, name: str) -> Any:
        place = [a.name for a in self.target._schema.arguments].index(name)
        return self.kwargs.get(name, self.args[place] if place < len(self.args) else None)

    def content(self, name: str) -> np.ndarray | None:
        """The numbers of an argument, if it is a constant (the first tensor of a list)."""
        given = self._given(name)
        if isinstance(given, (list, tuple)):
            given = next((x for x in given if isinstance(x, torch.Tensor)), None)
        return given.numpy() if id(given) in self.constants else None


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest number; NaN where both have NaN is equal."""
    if a.shape != b.shape:
        return math.inf
    if a.numel() == 0 or not a.is_floating_point() and not a.is_complex():
        return 0.0 if torch.equal(a, b) else math.inf
    gap = torch.where(a.isnan() & b.isnan() | (a == b), 0.0, (a - b).abs().double())
    size = torch.where(a.isfinite(), a.abs().double(), 0.0).max().item()
    return math.inf if bool(gap.isnan().any()) else gap.max().item() / (size or 1.0)
