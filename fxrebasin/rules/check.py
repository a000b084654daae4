"""One validator for all rules: does the op honour what its rule claims, and does the rule claim all that the op honours?

    from fxrebasin.rules.check import check
    check("aten.linear.default")   # [] or a list of findings

A *sample* is a function of T that returns the op's arguments (positional; `T.keyword` for the rest):

    T(2, 3)            random floats              T.index(n, 2, 3)  random integers below n
    T.positive(2, 3)   floats in (0.1, 0.9)       T.bool(2, 3)      random booleans
    T.complex(2, 3)    random complex numbers     T.fixed([2, 0])   integers that the rule may look at: a constant
    T.op               the op's name              T.keyword(x=1)    keyword arguments

Sizes that differ from dimension to dimension make a sample sharp. Three kinds of findings:

    broken    the sample does not run, or the rule does not fit its own sample
    unsound   a permutation that the rule claims changes the op's numbers
    missing   a permutation of whole axes, or of the outer or inner part of axes, changes nothing, and the rule forbids it

A missing freedom is no error if the rule states its reason: `missing="..."`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..alignment import Alignment
from ..errors import SpecError
from ..factors import Factors, Value
from ..infer import _Reader
from ..spec import Spec
from .rule import RULES, Call, Rule

EXACT = 1e-10  # largest relative difference that counts as equal, in float64
SEEDS = 6  # a freedom is missing if it is there for every draw of numbers
FEW = 3  # missing freedoms that are listed for one sample
MANY = 8  # axes of one size beyond which not every combination is tried
ERRORS = (KeyError, IndexError, ValueError, TypeError, StopIteration, AssertionError, ZeroDivisionError,
          RuntimeError, AttributeError, NotImplementedError)


@dataclass(frozen=True)
class Finding:
    """What is wrong with a rule: kind is "broken", "unsound" or "missing"."""

    op: str
    sample: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.op}, sample {self.sample}: {self.kind}: {self.text}"


def check(op: str) -> list[Finding]:
    """All findings about the rule of one op, over all its samples; missing freedoms also where the rule states a
    reason for them. Raises KeyError if there is no rule."""
    rule, findings = RULES[op], []
    for k, sample in enumerate(rule.samples or default_samples(op)):
        try:
            cases = [Case(op, sample, seed) for seed in range(SEEDS)]
        except ERRORS as error:
            findings.append(Finding(op, k, "broken", f"the sample does not run ({type(error).__name__}: {error})"))
            continue
        findings += [Finding(op, k, kind, text) for kind, text in _findings(cases, rule)]
    return findings


def _findings(cases: list[Case], rule: Rule) -> Iterator[tuple[str, str]]:
    case = cases[0]
    shapes = [(t.shape, t.dtype) for t in case.tensors.values()]
    for vary in (_plain, _cut_first, _cut_last, _factored, *[_one_tensor] * (len(set(shapes)) < len(shapes))):
        for used in [_all_used] + [_first_used] * (len(case.before) > 1):
            what = "".join(f", {note}" for note in (vary.__doc__, used.__doc__) if note)
            try:
                claim = Claim(case, rule, vary, used)
            except ERRORS as error:
                yield "broken", f"the rule does not fit ({type(error).__name__}: {error}){what}"
                continue
            unsound = list(itertools.islice(claim.unsound(), 1))
            yield from (("unsound", text + what) for text in unsound)
            if vary is _plain and used is _all_used and not unsound:
                missing = itertools.islice(missing_freedoms(cases, claim.spec), FEW)
                yield from (("missing", text) for text in missing)


def resolve(op: str) -> torch._ops.OpOverload:
    """The op of a name such as "aten.linear.default". Raises AttributeError if there is none."""
    namespace, name, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


# ------------------------------------------------------------------------------------------------------------- samples


class Keyword(dict):
    """Keyword arguments within a sample."""


class T:
    """Makes a sample's tensors, the same on every run."""

    def __init__(self, op: str, seed: int = 0):
        self.op = op
        self.rng = np.random.default_rng(seed)
        self.constants: list[torch.Tensor] = []

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.rng.standard_normal(shape)))

    def positive(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.rng.uniform(0.1, 0.9, shape)))

    def complex(self, *shape: int) -> torch.Tensor:
        return torch.complex(self(*shape), self(*shape))

    def index(self, n: int, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.rng.integers(0, n, shape)))

    def bool(self, *shape: int) -> torch.Tensor:
        return self.index(2, *shape).bool()

    def fixed(self, numbers) -> torch.Tensor:
        self.constants.append(torch.tensor(numbers))
        return self.constants[-1]

    @staticmethod
    def keyword(**arguments) -> Keyword:
        return Keyword(arguments)


def default_samples(op: str) -> tuple[Callable, ...]:
    """For ops that act on each element: all tensors of one shape, and tensors that broadcast. Numbers that the op is
    defined on: any, else between 0 and 1, else above 1, else integers."""
    def sample(shapes: tuple, numbers: Callable) -> Callable:
        return lambda T: _from_schema(op, lambda k: numbers(T, *shapes[min(k, len(shapes) - 1)]))
    kinds = [lambda T, *s: T(*s), lambda T, *s: T.positive(*s), lambda T, *s: T.positive(*s) + 1,
             lambda T, *s: T.index(3, *s), lambda T, *s: T.bool(*s)]
    if re.match(r"aten\.(eq|ne|logical_.*)\.", op):
        kinds = kinds[3:] if "logical" not in op else kinds[4:]
    for numbers in kinds:
        samples = (sample(((2, 3, 4),), numbers), sample(((2, 3, 4), (3, 1), (4,)), numbers))
        try:
            if all(bool(torch.isfinite(r).all()) for r in Case(op, samples[0]).before):
                return samples[: 1 + (len(Case(op, samples[0]).tensors) > 1)]
        except ERRORS:
            pass
    return samples[:1]


def _from_schema(op: str, tensor: Callable[[int], torch.Tensor]) -> tuple:
    """Arguments for everything that an op's schema asks for."""
    made = {"Number": 2, "number": 2, "float": 0.5, "int": 2, "bool": False, "List[int]": [2, 3], "Device": "cpu",
            "device": "cpu"}
    arguments, named, count = [], {}, 0
    for argument in resolve(op)._schema.arguments:
        kind = str(argument.type)
        if argument.has_default_value():
            continue
        if kind == "Tensor":
            value = tensor(count) > 0 if argument.name in ("condition", "mask") else tensor(count)
            count += 1
        else:
            value = torch.float64 if argument.name == "dtype" else made[kind]
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            arguments.append(value)
    return (*arguments, Keyword(named))


class Case:
    """One op with concrete arguments. `tensors` are those that may be permuted, by path; `before` the op's results."""

    def __init__(self, op: str, sample: Callable, seed: int = 0):
        made = T(op, seed)
        given = sample(made)
        self.op, self.target = op, resolve(op)
        self.constants = {id(tensor) for tensor in made.constants}
        self.args = [a for a in given if not isinstance(a, Keyword)]
        self.kwargs = {k: v for a in given if isinstance(a, Keyword) for k, v in a.items()}
        self.tensors: dict[str, torch.Tensor] = {}
        self._map(lambda path, t: self.tensors.setdefault(path, t) if id(t) not in self.constants else t)
        self.before = self.run({})
        self.shapes = [tuple(result.shape) for result in self.before]

    def _map(self, f: Callable[[str, torch.Tensor], Any]) -> tuple[list, dict]:
        def walk(path, x):
            if isinstance(x, (list, tuple)):
                return [walk(f"{path}[{k}]", y) for k, y in enumerate(x)]
            return f(path, x) if isinstance(x, torch.Tensor) else x
        names = [a.name for a in self.target._schema.arguments]
        return ([walk(name, x) for name, x in zip(names, self.args)],
                {name: walk(name, x) for name, x in self.kwargs.items()})

    def run(self, moved: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The op's results, tensors only, with some arguments replaced."""
        args, kwargs = self._map(lambda path, t: moved.get(path, t).clone())
        with torch.no_grad():
            results = self.target(*args, **kwargs)
        return [r for r in (results if isinstance(results, (list, tuple)) else [results]) if isinstance(r, torch.Tensor)]

    def arguments(self, values: dict[str, Value], factors: Factors) -> dict[str, Any]:
        """The arguments as a rule sees them."""
        args, kwargs = self._map(lambda path, t: values[path] if path in values else factors.value(t.shape, "a constant"))
        schema = self.target._schema.arguments
        return {a.name: a.default_value for a in schema} | {a.name: x for a, x in zip(schema, args)} | kwargs

    def content(self, name: str) -> np.ndarray | None:
        names = [a.name for a in self.target._schema.arguments]
        given = self.kwargs.get(name, self.args[names.index(name)] if names.index(name) < len(self.args) else None)
        if isinstance(given, (list, tuple)):
            given = next((x for x in given if isinstance(x, torch.Tensor)), None)
        return given.numpy() if id(given) in self.constants else None


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest number; NaN where both have NaN is equal."""
    if a.shape != b.shape:
        return math.inf
    if a.numel() == 0 or not a.is_floating_point() and not a.is_complex():
        return 0.0 if torch.equal(a, b) else math.inf
    gap = torch.where(a.isnan() & b.isnan() | (a == b), 0.0, (a - b).abs().double())
    size = torch.where(a.isfinite(), a.abs().double(), 0.0).max().item()
    return math.inf if bool(gap.isnan().any()) else gap.max().item() / (size or 1.0)


# --------------------------------------------------------------------------------------------------- what a rule claims


def _plain(factors: Factors, values: dict[str, Value]) -> None:
    pass


def _cut_first(factors: Factors, values: dict[str, Value]) -> None:
    "with every first axis cut in two"
    for value in values.values():
        if value.shape and value.shape[0] > 2:
            factors.take(value, 0, np.arange(1))


def _cut_last(factors: Factors, values: dict[str, Value]) -> None:
    "with the last axis of the first argument cut in two"
    value = next(iter(values.values()), None)
    if value is not None and value.shape and value.shape[-1] > 2:
        factors.take(value, len(value.shape) - 1, np.arange(2, value.shape[-1]))


def _factored(factors: Factors, values: dict[str, Value]) -> None:
    "with axes that are products"
    for value in values.values():
        parts = [min((p for p in range(2, n) if n % p == 0), default=n) for n in value.shape]
        shape = [x for n, p in zip(value.shape, parts) for x in (p, n // p)]
        letters = [str(k) for k in range(len(shape))]
        factors.relate([(factors.reshape(value, shape), letters)], [letters[::2]])


def _one_tensor(factors: Factors, values: dict[str, Value]) -> None:
    "with one tensor for all arguments of a shape"


def _all_used(k: int) -> bool:
    return True


def _first_used(k: int) -> bool:
    "with the first result used alone"
    return k == 0


def read(values: dict[str, Value], results: dict[str, Value]) -> Spec:
    """The groups of some values, as if they were a state, and how other values move with them."""
    program = SimpleNamespace(state={name: value.shape for name, value in values.items()}, ties={}, passed=(), notes=())
    return _Reader(values, results).spec(program, {})


class Claim:
    """A rule applied to a case: a spec whose state are the arguments and whose outputs are the results."""

    def __init__(self, case: Case, rule: Rule, vary=_plain, used=_all_used):
        self.case, self.used = case, used
        factors = Factors()
        values = {name: factors.value(tensor.shape) for name, tensor in case.tensors.items()}
        self.before, self.tensors = case.before, case.tensors
        if vary is _one_tensor:
            first = {(t.shape, t.dtype): name for name, t in reversed(case.tensors.items())}
            same = {name: first[t.shape, t.dtype] for name, t in case.tensors.items()}
            values = {name: values[same[name]] for name in values}
            self.tensors = {name: case.tensors[same[name]] for name in values}
            self.before = case.run(self.tensors)
        vary(factors, values)
        call = Call(factors, case.op, case.arguments(values, factors), case.shapes, "the sample", used, case.content)
        results = rule.apply(call)
        results = list(results) if isinstance(results, (list, tuple)) else [results]
        self.results = results[: len(case.shapes)]
        if [r.shape for r in self.results] != case.shapes:
            raise ValueError(f"it says {[r.shape for r in self.results]}, the op makes {case.shapes}")
        self.spec = read(values, {str(k): value for k, value in enumerate(self.results)})

    def unsound(self) -> Iterator[str]:
        """What of the claim the op does not honour."""
        checked = [k for k in range(len(self.results)) if self.used(k) and "empty" not in self.case.op]
        for k in checked:
            yield from self._unequal(k)
        for element, words in _elements(self.spec):
            after = self.case.run({name: element.move(t, self.spec.layout(name)) for name, t in self.tensors.items()})
            for k in checked:
                gap = _difference(element.apply_to_output(str(k), self.before[k]), after[k])
                if gap > EXACT:
                    yield f"result {k} differs by {gap:.1e} after permuting {words}"

    def _unequal(self, k: int) -> Iterator[str]:
        """Positions that the rule says hold equal numbers, and do not."""
        for block in self.results[k].blocks:
            box = np.ix_(*(np.sort(s.positions, axis=None) for s in block.segments))
            part = self.before[k][tuple(torch.from_numpy(x) for x in box)] if box else self.before[k]
            for d, segment in enumerate(block.segments):
                free = segment.positions.size > 1 and not segment.atoms and not segment.reason
                if free and _difference(part.narrow(d, 0, 1).expand_as(part), part) > EXACT:
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


# ------------------------------------------------------------------------------------------- what a rule does not claim


@dataclass(frozen=True)
class Line:
    """A part of a tensor's axis on which a permutation can act: the axis is outer x size x inner."""

    tensor: str
    axis: int
    outer: int
    size: int
    inner: int

    def __str__(self) -> str:
        part = "" if self.outer == self.inner == 1 else f" (as {self.outer} x {self.size} x {self.inner})"
        return f"axis {self.axis}{part} of {self.tensor}"

    def apart(self, other: Line) -> bool:
        return ((self.tensor, self.axis) != (other.tensor, other.axis) or self.inner >= other.inner * other.size
                or other.inner >= self.inner * self.size)

    def move(self, labels: np.ndarray, p: np.ndarray) -> np.ndarray:
        shape = labels.shape
        parts = labels.reshape(shape[:self.axis] + (self.outer, self.size, self.inner) + shape[self.axis + 1:])
        return np.take(parts, p, axis=self.axis + 1).reshape(shape)

    def first(self, shape: tuple[int, ...]) -> np.ndarray:
        """Which elements of a tensor lie at the first index."""
        index = np.arange(self.outer * self.size * self.inner) // self.inner % self.size == 0
        return np.broadcast_to(index.reshape([-1 if d == self.axis else 1 for d in range(len(shape))]), shape)


def _lines(name: str, shape: tuple[int, ...]) -> list[Line]:
    return [Line(name, d, n // size // inner, size, inner) for d, n in enumerate(shape)
            for size in range(2, n + 1) if n % size == 0
            for inner in range(1, n // size + 1) if n // size % inner == 0]


@dataclass(frozen=True)
class Probe:
    """A candidate freedom: the same permutation along all `lines`; if `frame`, only where those are at their first
    index."""

    lines: tuple[Line, ...]
    frame: tuple[Line, ...] = ()

    def __str__(self) -> str:
        words = " with ".join(map(str, self.lines))
        return words + (f", differently along {' and '.join(map(str, self.frame))}" if self.frame else "")

    def labels(self, name: str, shape: tuple[int, ...], p: np.ndarray) -> np.ndarray | None:
        """Where each element of a tensor comes from; None if the frame itself would move."""
        moved = labels = np.arange(math.prod(shape)).reshape(shape)
        for line in self.lines:
            if line.tensor == name:
                moved = line.move(moved, p)
        for line in self.frame:
            if line.tensor == name:
                inside = line.first(shape)
                if not np.array_equal(inside.reshape(-1)[moved], inside):
                    return None
                moved = np.where(inside, moved, labels)
        return moved


def missing_freedoms(cases: list[Case], spec: Spec) -> Iterator[str]:
    """Permutations along axes that the op honours and the spec does not hold.

    For each size, the smallest sets of lines of the arguments along which every permutation, made on all of them at
    once, permutes the results along lines of theirs or leaves them alone; then the same for one index of a frame.
    """
    case = cases[0]
    lines = [line for name, tensor in case.tensors.items() for line in _lines(name, tuple(tensor.shape))]
    for size in sorted({line.size for line in lines}):
        honoured: list[Probe] = []
        for chosen in _subsets([line for line in lines if line.size == size]):
            if any(set(probe.lines) <= set(chosen) for probe in honoured):
                continue
            probe = Probe(chosen)
            found = [_follows(case, probe) for case in cases] if _follows(case, probe) else [None]
            if not all(found):
                continue
            honoured.append(probe)
            if not _holds(spec, case, probe):
                yield f"{probe} (size {size}; in the results: {found[0]})"
                continue
            yield from _framed(cases, spec, probe, lines)


def _framed(cases: list[Case], spec: Spec, probe: Probe, lines: list[Line]) -> Iterator[str]:
    """Freedoms of a probe to differ from index to index of something else that all its tensors have."""
    tensors = list(dict.fromkeys(line.tensor for line in probe.lines))
    for size in sorted({line.size for line in lines}):
        options = [[x for x in lines if x.tensor == name and x.size == size
                    and all(x.apart(y) for y in probe.lines)] for name in tensors]
        for frame in itertools.islice(itertools.product(*options), 64):
            framed = Probe(probe.lines, frame)
            if not _holds(spec, cases[0], framed) and all(_follows(case, framed) for case in cases):
                yield str(framed)


def _subsets(lines: list[Line]) -> Iterable[tuple[Line, ...]]:
    sizes = range(1, len(lines) + 1) if len(lines) <= MANY else (1, 2) if len(lines) <= 2 * MANY else (1,)
    return (chosen for k in sizes for chosen in itertools.combinations(lines, k)
            if all(a.apart(b) for a, b in itertools.combinations(chosen, 2)))


def _generators(size: int) -> list[np.ndarray]:
    """A transposition and a cycle: together all permutations."""
    swap = np.arange(size)
    swap[:2] = 1, 0
    return [swap, np.roll(np.arange(size), 1)][: size - 1]


def _follows(case: Case, probe: Probe) -> str | None:
    """How the results move with the arguments, in words; None if they do not just move."""
    candidates = None
    for p in _generators(probe.lines[0].size):
        moved = {}
        for name, tensor in case.tensors.items():
            labels = probe.labels(name, tuple(tensor.shape), p)
            if labels is None:
                return None
            moved[name] = tensor.reshape(-1)[torch.from_numpy(labels)]
        try:
            after = case.run(moved)
        except ERRORS:
            return None
        if any(_difference(_sorted(a), _sorted(b)) > EXACT for a, b in zip(case.before, after)):
            return None  # numbers have changed, not only places: most probes end here
        if candidates is None:
            candidates = [list(_result_probes(f"result {k}", shape, probe)) for k, shape in enumerate(case.shapes)]
        for k, shape in enumerate(case.shapes):
            candidates[k] = [c for c in candidates[k] if _moved_alike(c, f"result {k}", case.before[k], after[k], p)]
            if not candidates[k]:
                return None
    return "; ".join(str(c[0]) for c in candidates if c[0].lines) or "nothing moves"


def _sorted(tensor: torch.Tensor) -> torch.Tensor:
    flat = torch.view_as_real(tensor.resolve_conj()).sum(-1) if tensor.is_complex() else tensor
    return flat.reshape(-1).sort().values


def _result_probes(name: str, shape: tuple[int, ...], probe: Probe) -> Iterator[Probe]:
    lines = _lines(name, shape)
    frames = [(x,) for x in lines if x.size == probe.frame[0].size] if probe.frame else [()]
    yield Probe(())
    for chosen in _subsets([x for x in lines if x.size == probe.lines[0].size]):
        if len(chosen) <= 3:
            yield from (Probe(chosen, frame) for frame in frames if all(x.apart(y) for x in frame for y in chosen))


def _moved_alike(probe: Probe, name: str, before: torch.Tensor, after: torch.Tensor, p: np.ndarray) -> bool:
    labels = probe.labels(name, tuple(before.shape), p)
    return labels is not None and _difference(before.reshape(-1)[torch.from_numpy(labels)], after) <= EXACT


def _holds(spec: Spec, case: Case, probe: Probe) -> bool:
    """Whether the spec's group has the probe's permutations of the arguments."""
    for p in _generators(probe.lines[0].size):
        moved = {name: probe.labels(name, tuple(t.shape), p) for name, t in case.tensors.items()}
        if all(labels is not None for labels in moved.values()) and alignment_of(spec, moved) is None:
            return False
    return True


def alignment_of(spec: Spec, moved: dict[str, np.ndarray]) -> Alignment | None:
    """The alignment that moves labels 0 .. n-1 of every tensor as given, or None if the spec has none that does."""
    permutations = {}
    for group in spec.groups.values():
        site = group.sites[0]
        block = spec.layouts[site.tensor][site.block]
        factors = [f for axis in block for f in axis.factors]
        sizes = [spec.sizes[f] for f in factors]
        numbers = np.zeros(sizes, dtype=np.int64)  # the label of each element of the block
        for axis, n, k in zip(block, spec.shapes[site.tensor], np.cumsum([0] + [len(axis.factors) for axis in block])):
            numbers = numbers * n + axis.positions.reshape([1] * k + list(axis.positions.shape)
                                                           + [1] * (len(factors) - k - axis.positions.ndim))
        source = moved[site.tensor].reshape(-1)[numbers]  # and where it comes from
        where = np.full(math.prod(spec.shapes[site.tensor]), -1)
        where[numbers.reshape(-1)] = np.arange(numbers.size)
        if (where[source] < 0).any():
            return None
        index = dict(zip(factors, np.unravel_index(where[source], sizes)))
        flat = np.ravel_multi_index([index[m] for m in group.members], [spec.sizes[m] for m in group.members])
        wanted = [factors.index(f) for f in group.within] + [factors.index(m) for m in group.members]
        order = wanted + [k for k in range(len(factors)) if k not in wanted]
        flat = flat.transpose(order).reshape(*spec.frame(group), group.size, -1)
        permutations[group.name] = flat[..., 0]
    try:
        alignment = Alignment(spec, permutations)
    except SpecError:
        return None
    for name, labels in moved.items():
        numbers = torch.arange(labels.size).reshape(labels.shape)
        if not np.array_equal(alignment.move(numbers, spec.layout(name)).numpy(), labels):
            return None
    return alignment
