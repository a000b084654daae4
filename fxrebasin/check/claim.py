"""What a rule claims about a case, tried out on real tensors."""
from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..alignment import Alignment
from ..factors import Factors, Value
from ..infer import Reader
from ..rules import Call, Rule
from ..spec import Spec
from .case import EXACT, Case, difference

# ---- variations of the arguments, and of which results are used; their docstrings end the findings


def plain(factors: Factors, values: dict[str, Value]) -> None:
    pass


def cut_first(factors: Factors, values: dict[str, Value]) -> None:
    "with every first axis cut in two"
    for value in values.values():
        if value.shape and value.shape[0] > 2:
            factors.take(value, 0, np.arange(1))


def cut_last(factors: Factors, values: dict[str, Value]) -> None:
    "with the last axis of the first argument cut in two"
    value = next(iter(values.values()), None)
    if value is not None and value.shape and value.shape[-1] > 2:
        factors.take(value, len(value.shape) - 1, np.arange(2, value.shape[-1]))


def factored(factors: Factors, values: dict[str, Value]) -> None:
    "with axes that are products"
    for value in values.values():
        parts = [min((p for p in range(2, n) if n % p == 0), default=n) for n in value.shape]
        shape = [x for n, p in zip(value.shape, parts) for x in (p, n // p)]
        letters = [str(k) for k in range(len(shape))]
        factors.relate([(factors.reshape(value, shape), letters)], [letters[::2]])


def one_tensor(factors: Factors, values: dict[str, Value]) -> None:
    "with one tensor for all arguments of a shape"


def all_used(k: int) -> bool:
    return True


def first_used(k: int) -> bool:
    "with the first result used alone"
    return k == 0


# ---- what the rule says


def read(values: dict[str, Value], results: dict[str, Value]) -> Spec:
    """The groups of some values, as if they were a state, and how other values move with them."""
    shapes = {name: value.shape for name, value in values.items()}
    program: Any = SimpleNamespace(state=shapes, ties={}, passed=(), notes=())
    return Reader(values, results).spec(program, {})


class Claim:
    """A rule applied to a case: `spec`, whose state are the arguments and whose outputs are the results.

    An index that points into an axis has that axis beside it, as one more entry of the state or output.
    """

    def __init__(self, case: Case, rule: Rule, vary=plain, used=all_used):
        self.case, self.used = case, used
        factors = Factors()
        values = {name: factors.value(tensor.shape) for name, tensor in case.tensors.items()}
        self.before, self.tensors = case.before, case.tensors
        if vary is one_tensor:
            kinds = {name: (t.shape, t.dtype, case.points.get(name)) for name, t in case.tensors.items()}
            first = {kind: name for name, kind in reversed(kinds.items())}
            same = {name: first[kind] for name, kind in kinds.items()}
            values = {name: values[same[name]] for name in values}
            self.tensors = {name: case.tensors[same[name]] for name in values}
            self.before = case.run(self.tensors)
        vary(factors, values)
        for name, size in case.points.items():
            values[name].points = values[f"axis of {name}"] = factors.value((size,))
        arguments = case.arguments(values, factors)
        call = Call(factors, case.op, arguments, case.shapes, "the sample", used, case.content, masks=case.masks)
        self.results = rule.apply(call)[: len(case.shapes)]
        if [r.shape for r in self.results] != case.shapes:
            raise ValueError(f"it says {[r.shape for r in self.results]}, the op makes {case.shapes}")
        outputs = {}
        for k, value in enumerate(self.results):
            segments = [block.segments for block in value.blocks]
            outputs[str(k)] = factors.build(value.shape, segments)  # without the choices behind it
            if value.points is not None:
                outputs[f"axis of {k}"] = value.points
        self.spec = read(values, outputs)

    def unsound(self) -> Iterator[str]:
        """What of the claim the op does not honour."""
        checked = [k for k in range(len(self.results)) if self.used(k) and "empty" not in self.case.op]
        for k in checked:
            yield from self._unequal(k)
        for element, words in _elements(self.spec):
            after = self.case.run({name: self._moved(element, name) for name in self.tensors})
            for k in checked:
                gap = difference(self._moved_result(element, k), after[k])
                if gap > EXACT:
                    yield f"result {k} differs by {gap:.1e} after permuting {words}"

    def _moved(self, element: Alignment, name: str) -> torch.Tensor:
        """An argument, permuted; if it points into an axis, to where the places have gone."""
        moved = element.move(self.tensors[name], self.spec.layout(name))
        if name in self.case.points:
            places = torch.arange(self.case.points[name])
            moved = element.move(places, self.spec.layout(f"axis of {name}")).argsort()[moved]
        return moved

    def _moved_result(self, element: Alignment, k: int) -> torch.Tensor:
        """The same for a result."""
        moved = element.apply_to_output(str(k), self.before[k])
        axis = self.results[k].points
        if axis is not None:
            places = torch.arange(axis.shape[0])
            moved = element.apply_to_output(f"axis of {k}", places).argsort()[moved]
        return moved

    def _unequal(self, k: int) -> Iterator[str]:
        """Positions that the rule says hold equal numbers, and do not."""
        for block in self.results[k].blocks:
            box = np.ix_(*(np.sort(s.positions, axis=None) for s in block.segments))
            part = self.before[k][tuple(torch.from_numpy(x) for x in box)] if box else self.before[k]
            for d, segment in enumerate(block.segments):
                free = segment.positions.size > 1 and not segment.atoms and not segment.reason
                if free and difference(part.narrow(d, 0, 1).expand_as(part), part) > EXACT:
                    yield f"result {k} is not constant along dimension {d}"


def _elements(spec: Spec) -> Iterator[tuple[Alignment, str]]:
    """Elements of a spec's group: some of everything, then each group alone, all copies and a single one."""
    for seed in range(2):
        yield spec.random(seed), "everything"
    still = spec.identity().permutations
    for name, group in spec.groups.items():
        words = f"{name} (size {group.size})"
        rolled = np.roll(still[name], 1, axis=-1)
        yield Alignment(spec, {**still, name: rolled}), words
        if group.copies > 1:
            single = still[name].copy().reshape(-1, group.size)
            single[0] = rolled.reshape(-1, group.size)[0]
            yield Alignment(spec, {**still, name: single.reshape(rolled.shape)}), f"one copy of {words}"
