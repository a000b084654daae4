"""PyTorch's own samples of arguments for its operators, as small networks.

    for case in cases(op, most=6): ...      # op: an entry of torch.testing's operator collection
    case.module(), case.inputs()

A sample is wrapped in three ways:

    raw      its floating-point tensors are parameters; the results are the outputs
    linear   one of them comes out of a linear map of an input, and the results go into another one
    summed   parameters again; the results are summed up

so that axes of parameters meet the op itself, in the middle of a network, and without any order that an output would
keep. Integer tensors of a sample are constants of the module ("raw", "summed") or inputs that change ("linear").

Beside the samples as they are stand their *variants*: dimensions counted from the end, flags the other way round,
orders reversed, an index that repeats, counts from the end or is a mask, and keywords that the samples seldom give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

WRAPS = ("raw", "linear", "summed")
LARGEST = 4000  # elements of a tensor of a sample
FEATURES = 3
# Keywords that change what many ops do, each tried on every op: those that an op does not know are left out.
ODD: tuple[tuple[str, Any], ...] = (
    ("sorted", False), ("largest", False), ("keepdim", True), ("descending", True), ("stable", True), ("unbiased", False),
    ("correction", 0), ("training", True), ("train", True), ("is_causal", True), ("accumulate", True),
    ("include_self", False), ("return_inverse", True), ("rounding_mode", "floor"), ("align_corners", True),
    ("ceil_mode", True), ("count_include_pad", False), ("right", True), ("upper", True), ("left", False),
    ("transpose", True), ("unitriangular", True), ("hermitian", True), ("dropout_p", 0.4), ("p", 1), ("p", math.inf),
    ("p", 0), ("ord", 1), ("ord", -1), ("ord", 2), ("ord", -2), ("ord", math.inf), ("ord", "nuc"), ("ord", "fro"),
    ("mode", "reflect"), ("mode", "replicate"), ("mode", "circular"), ("mode", "max"), ("mode", "sum"), ("reduction", "none"),
    ("reduction", "sum"), ("norm", "ortho"), ("dim", -1), ("dim", (0, -1)), ("groups", 1), ("use_input_stats", False),
    ("padding_idx", 1), ("max_norm", 1.0), ("swap", True), ("diagonal", 1), ("diagonal", -1), ("offset", -1),
    ("weights_only", False), ("full_matrices", False), ("some", False), ("equal_nan", True), ("interpolation", "lower"),
    ("antialias", True), ("scale_factor", None), ("log_input", False), ("full", True), ("blank", 1))


class Unusable(Exception):
    """A sample that makes no network: nothing to learn in it, too large, or refused by torch itself."""


@dataclass(frozen=True, eq=False)
class Case:
    """One sample (or variant of one) of an op, wrapped in one of three ways. `leaves`: the flat arguments."""

    op: str
    function: Callable
    leaves: tuple
    structure: Any
    number: int  # of the sample
    variant: str  # "" for the sample as it is
    wrap: str

    def __str__(self) -> str:
        return f"{self.op}, sample {self.number}{', ' * bool(self.variant)}{self.variant}, {self.wrap}"

    @property
    def learned(self) -> list[int]:
        """The leaves that become parameters (or come out of a linear map)."""
        whole = [k for k, x in enumerate(self.leaves) if isinstance(x, Tensor)]
        floating = [k for k in whole if self.leaves[k].is_floating_point() or self.leaves[k].is_complex()]
        return floating or whole

    def module(self, seed: int = 0) -> "Wrapped":
        return Wrapped(self, seed)

    def inputs(self, seed: int = 0, longer: int = 0) -> tuple[Tensor, ...]:
        """Inputs for the module; `longer`: so many samples more than the example has."""
        generator = torch.Generator().manual_seed(seed)
        if self.wrap != "linear":
            return (torch.randn(2, FEATURES, dtype=torch.double, generator=generator),)
        shape = list(self.leaves[self.mapped].shape[:-1])
        if longer and not shape:
            raise Unusable("no batch")
        shape[:1] = [n + longer for n in shape[:1]]
        made = [torch.randn(*shape, FEATURES, dtype=torch.double, generator=generator)]
        for k in self.changing:
            tensor = self.leaves[k]
            order = torch.randperm(tensor.numel(), generator=generator) if seed else torch.arange(tensor.numel())
            made.append(tensor.reshape(-1)[order].reshape(tensor.shape))
        return tuple(made)

    @property
    def mapped(self) -> int:
        """The leaf that comes out of a linear map."""
        able = [k for k in self.learned if self.leaves[k].dim()]
        if not able:
            raise Unusable("scalars alone")
        return able[self.number % len(able)]

    @property
    def changing(self) -> list[int]:
        """The leaves that are inputs: integers that may be anything."""
        return [k for k, x in enumerate(self.leaves) if isinstance(x, Tensor) and k not in self.learned
                and self.wrap == "linear"]


class Wrapped(nn.Module):
    """A case as a network in float64. Tensors of integers, of an op that knows no others, are parameters rounded."""

    def __init__(self, case: Case, seed: int = 0):
        super().__init__()
        self.case, self.dtypes = case, {}
        self.casts = case.op in ("float", "cfloat", "half", "chalf", "bfloat16")  # to numbers that are rounded more coarsely
        generator = torch.Generator().manual_seed(seed)
        for k in case.learned:
            tensor = case.leaves[k].detach()
            self.dtypes[k] = tensor.dtype
            tensor = tensor.double() if not tensor.is_complex() else tensor
            if case.wrap == "linear" and k == case.mapped:
                tensor = torch.randn(FEATURES, tensor.shape[-1], dtype=torch.double, generator=generator)
            self.register_parameter(f"p{k}", nn.Parameter(tensor.clone(), requires_grad=False))
        self.read = nn.ParameterDict()
        if case.wrap == "linear":  # one reading matrix for each length that a result may have
            for k, result in enumerate(_floating(self._apply(case.inputs()))):
                if result.dim():
                    weight = torch.randn(result.shape[-1], 2, dtype=torch.double, generator=generator)
                    self.read[str(k)] = nn.Parameter(weight, requires_grad=False)

    def _apply(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        case, leaves = self.case, list(self.case.leaves)
        for k in case.learned:
            value = getattr(self, f"p{k}")
            if case.wrap == "linear" and k == case.mapped:
                value = inputs[0] @ value
            kind = self.dtypes[k]
            leaves[k] = value > 0 if kind == torch.bool else value if kind in (torch.double, value.dtype) else value.to(kind)
        for k, value in zip(case.changing, inputs[1:]):
            leaves[k] = value
        first, args, kwargs = pytree.tree_unflatten(leaves, case.structure)
        return [x for x in pytree.tree_leaves(case.function(first, *args, **kwargs)) if isinstance(x, Tensor)]

    def forward(self, *inputs: Tensor):
        results = self._apply(inputs)
        if self.case.wrap == "summed":
            results = [x.sum() if x.dtype != torch.bool else x.double().sum() for x in results]
        if self.case.wrap == "linear":
            kept = [x for x in results if not x.is_floating_point()]
            read = [x if str(k) not in self.read else x @ self.read[str(k)].to(x.dtype)
                    for k, x in enumerate(_floating(results))]
            results = read + kept
        return tuple(results)


def _floating(tensors: list[Tensor]) -> list[Tensor]:
    return [x for x in tensors if x.is_floating_point()]


def cases(op, most: int = 6, variants: int = 1) -> Iterator[Case]:
    """The cases of an op: of at most `most` samples, spread evenly over those that the collection has, as they are, and
    of the first `variants` of these with other arguments."""
    able = [d for d in (torch.float64, torch.complex128, torch.int64, torch.bool, torch.float32, *op.dtypes) if d in op.dtypes]
    if not able:  # on other devices alone
        return
    dtype = able[0]
    samples = [(sample.input, sample.args, sample.kwargs) for sample in op.sample_inputs("cpu", dtype)]
    flat = [(k, *pytree.tree_flatten(sample)) for k, sample in enumerate(samples)]
    flat = [(k, leaves, structure) for k, leaves, structure in flat if _usable(leaves)]
    name = op.name + f".{op.variant_test_name}" * bool(op.variant_test_name)
    every = max(1, -(-len(flat) // most))
    for place, (k, leaves, structure) in enumerate(flat[::every]):
        made = [("", leaves, structure)]
        if place < variants:
            made += [variant for variant in changed(leaves, structure) if _runs(op.op, *variant[1:])]
        for variant, own, way in made:
            for wrap in WRAPS if not variant else WRAPS[1:]:
                yield Case(name, op.op, tuple(own), way, k, variant, wrap)


def _runs(function: Callable, leaves: list, structure) -> bool:
    first, args, kwargs = pytree.tree_unflatten(leaves, structure)
    try:
        with torch.no_grad():
            function(first, *args, **kwargs)
    except Exception:  # noqa: BLE001  torch refuses these arguments
        return False
    return True


def _usable(leaves: list) -> bool:
    """Tensors that are plain, strided, not empty and not too large; some of them floating."""
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    return bool(tensors) and all(type(x) is Tensor and x.layout == torch.strided and x.device.type == "cpu"
                                 and 0 < x.numel() <= LARGEST for x in tensors)


def changed(leaves: list, structure) -> Iterator[tuple[str, list, Any]]:
    """Variants of arguments: (what is other, leaves, structure)."""
    rank = max((x.dim() for x in leaves if isinstance(x, Tensor)), default=0)
    for k, leaf in enumerate(leaves):
        for what, other in _others(leaf, rank):
            yield f"argument {k} {what}", [*leaves[:k], other, *leaves[k + 1:]], structure
    first, args, kwargs = pytree.tree_unflatten(leaves, structure)
    for name, value in ODD:
        if name not in kwargs or kwargs[name] != value:
            yield (f"{name}={value}", *pytree.tree_flatten((first, args, {**kwargs, name: value})))


def _others(leaf: Any, rank: int) -> Iterator[tuple[str, Any]]:
    if isinstance(leaf, bool):
        yield f"{not leaf}", not leaf
    elif isinstance(leaf, int):
        if 0 <= leaf < rank:
            yield f"{leaf - rank}", leaf - rank
        yield f"{leaf + 1}", leaf + 1
        yield f"{-leaf}", -leaf
    elif isinstance(leaf, Tensor) and leaf.dtype == torch.int64 and leaf.dim():
        yield "repeats", torch.full_like(leaf, int(leaf.reshape(-1)[0]))
        yield "from the end", -leaf - 1
        yield "reversed", leaf.flip(-1)
        yield "as a mask", leaf % 2 == 0
