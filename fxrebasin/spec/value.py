"""The result of the analysis, as values: which factors a model has, which groups are free, what is pinned and why.

Every axis of the state is laid out in *factors* (index sets). A *group* is what one unknown permutation acts on: one
free factor, or several that move together as one. A group is *within* the factors on which its permutation may depend:
it holds one permutation for each index of their product, its `copies`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from .errors import SpecError, StateError

FORMAT = "fxrebasin-spec-1"


@dataclass(frozen=True)
class Axis:
    """One dimension of a block: `positions[i1, ..., im]` is where the element (i1, ..., im) of `factors` lies."""

    positions: np.ndarray
    factors: tuple[str, ...]

    @property
    def span(self) -> str:
        """The positions as a slice, for people."""
        flat = np.sort(self.positions, axis=None)
        step = int(flat[1] - flat[0]) if flat.size > 1 else 1
        text = f"{flat[0]}:{flat[-1] + 1}" + (f":{step}" if step > 1 else "")
        return text if np.array_equal(flat, np.arange(flat[0], flat[-1] + 1, step)) else text + " (in part)"


Block = tuple[Axis, ...]  # one Axis for each dimension of a tensor


@dataclass(frozen=True)
class Site:
    """An axis (within one block of a tensor) that a group moves."""

    tensor: str
    axis: int
    block: int


@dataclass(frozen=True)
class Group:
    """What one unknown permutation (one for each index of `within`) acts on.

    size     elements that are permuted
    copies   independent permutations: one for each index of the factors in `within`
    within   names of the factors (of other groups, or pinned) on which the permutation may depend
    members  the factors that the group consists of: one, or several that are permuted as one index set of their product
    sites    where the group acts
    """

    name: str
    size: int
    copies: int
    within: tuple[str, ...]
    members: tuple[str, ...]
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Spec:
    """All permutation symmetries of one model. Made by `fxrebasin.infer`, or read with `Spec.from_json`.

    groups    name -> Group
    pinned    (tensor name, axis) -> reason, for axes that no group moves
    sizes     factor name -> size;  reasons: factor name -> reason, for pinned factors
    layouts   tensor name -> blocks that partition the tensor, each with an Axis for every dimension
    shapes    tensor name -> shape, aliases of tied tensors included;  ties: alias -> name
    passed    entries of the state dict outside the state (integer counters): left as they are
    outputs   with outputs="free": path -> shape and blocks of each output that moves with the network
    unruled   ops that the analysis has no rule for -> where, and what they pinned
    stacks    stacked tensor -> the names along its axis 0. Parameters of submodules that are alike (a list of experts)
              are treated as one tensor: groups, pinned, layouts and shapes speak of it, `names` of what it is made of.
              Those names may be stacks themselves, which then stand further up.
    """

    groups: Mapping[str, Group]
    pinned: Mapping[tuple[str, int], str]
    sizes: Mapping[str, int]
    reasons: Mapping[str, str]
    layouts: Mapping[str, tuple[Block, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str] = field(default_factory=dict)
    passed: tuple[str, ...] = ()
    outputs: Mapping[str, tuple[tuple[int, ...], tuple[Block, ...]]] = field(default_factory=dict)
    unruled: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("groups", "pinned", "sizes", "reasons", "layouts", "shapes", "ties", "outputs", "unruled", "stacks"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    # ------------------------------------------------------------------------------------------------ asking about it

    @cached_property
    def order(self) -> int:
        """The number of distinct alignments: the product over groups of (size!)^copies, exact."""
        return math.prod(math.factorial(group.size) ** group.copies for group in self.groups.values())

    @property
    def log10_order(self) -> float:
        return sum(math.lgamma(group.size + 1) * group.copies for group in self.groups.values()) / math.log(10)

    @cached_property
    def group_of(self) -> Mapping[str, str]:
        """Factor name -> name of the group it is a member of; pinned factors are absent."""
        return {factor: group.name for group in self.groups.values() for factor in group.members}

    @cached_property
    def permutable(self) -> tuple[str, ...]:
        """Names of the tensors that some group moves (tied tensors once)."""
        moved = {site.tensor for group in self.groups.values() for site in group.sites}
        return tuple(name for name in self.layouts if name in moved)

    def layout(self, tensor: str) -> tuple[Block, ...]:
        """The blocks of a tensor of the state, by any of its names."""
        return self.layouts[self.ties.get(tensor, tensor)]

    def identity(self):
        """The alignment that moves nothing."""
        from .alignment import Alignment
        return Alignment(self, {g.name: np.tile(np.arange(g.size), self.frame(g) + (1,)) for g in self.groups.values()})

    def random(self, seed: int = 0):
        """An alignment drawn uniformly from the whole group."""
        from .alignment import Alignment
        rng = np.random.default_rng(seed)
        return Alignment(self, {g.name: np.argsort(rng.random(self.frame(g) + (g.size,)), axis=-1)
                                for g in self.groups.values()})

    def frame(self, group: Group) -> tuple[int, ...]:
        """Sizes of the factors that a group is within: the leading shape of its array of permutations."""
        return tuple(self.sizes[factor] for factor in group.within)

    # ------------------------------------------------------------------------------------------------ stacked parameters

    @cached_property
    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Name in the state dict -> shape, aliases of tied tensors included: `shapes` with every stack taken apart."""
        shapes = dict(self.shapes)
        for stack, parts in reversed(self.stacks.items()):
            shape = shapes.pop(stack)
            shapes.update(dict.fromkeys(parts, shape[1:]))
        return MappingProxyType(shapes | {alias: shapes[name] for alias, name in self.ties.items()})

    def is_whole(self, tensor: str, axis: int) -> bool:
        """Whether an axis of a stacked tensor runs over whole tensors of the state dict."""
        return tensor in self.stacks and (axis == 0 or self.is_whole(self.stacks[tensor][0], axis - 1))

    @property
    def idle(self) -> frozenset[str]:
        """Names of the state dict that are stacked in vain: no group moves them as wholes."""
        moved = {site.tensor for group in self.groups.values() for site in group.sites if self.is_whole(site.tensor, site.axis)}
        names = [name for name in self.layouts if name in self.stacks and name not in moved]
        for name in names:  # grows
            names.extend(self.stacks.get(name, ()))
        return frozenset(names) - set(self.stacks)

    def stacked(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict with the tensors of each stack as one, in the widest of their dtypes; all others as they are."""
        result = dict(state)
        for stack, parts in self.stacks.items():
            tensors = [result.pop(name) for name in parts]
            wide = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
            result[stack] = torch.stack([tensor.detach().to(tensors[0].device, wide) for tensor in tensors])
        for alias, name in self.ties.items():
            if name not in result:
                result.pop(alias, None)
        return result

    def unstacked(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `stacked` undoes: every tensor under its own name again, ties tied."""
        result = dict(state)
        for stack, parts in reversed(self.stacks.items()):
            result.update(zip(parts, (tensor.clone() for tensor in result.pop(stack))))
        return result | {alias: result[name] for alias, name in self.ties.items() if alias not in result}

    def check(self, state: Mapping[str, torch.Tensor], what: str = "the state") -> None:
        """Raises StateError unless `state` has exactly the tensors of this spec, of the right shapes, all finite."""
        expected = set(self.names)
        missing = sorted(expected - set(state))
        extra = sorted(set(state) - expected - set(self.passed))
        for names, word, advice in ((missing, "lacks", "is it a checkpoint of this model?"),
                                    (extra, "has unexpected", "remove them, or infer the spec of the model they belong to")):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise StateError(f"{what} {word} {', '.join(map(repr, names[:3]))}{more}: {advice}")
        for name, shape in self.names.items():
            tensor = state[name]
            if not isinstance(tensor, torch.Tensor):
                raise StateError(f"{what}: {name!r} is a {type(tensor).__name__}, not a tensor: give the model's state_dict()")
            if tuple(tensor.shape) != shape:
                raise StateError(f"{what}: {name!r} has shape {tuple(tensor.shape)}, the spec says {shape}: "
                                 "is it a checkpoint of another size?")
            if not tensor.is_floating_point() and not tensor.is_complex():
                raise StateError(f"{what}: {name!r} is {tensor.dtype}, not a floating-point tensor: dequantise it first")
            if tensor.device.type != "meta" and not _finite(tensor):
                raise StateError(f"{what}: {name!r} holds NaN or infinity: the checkpoint is damaged or has diverged")

    # ------------------------------------------------------------------------------------------------------- as text

    def to_json(self) -> str:
        """The whole spec as one JSON document."""
        return json.dumps({
            "format": FORMAT,
            "order_log10": self.log10_order,
            "groups": {g.name: {"size": g.size, "copies": g.copies, "within": g.within, "members": g.members,
                                "sites": [[s.tensor, s.axis, s.block] for s in g.sites]} for g in self.groups.values()},
            "pinned": [[tensor, axis, reason] for (tensor, axis), reason in self.pinned.items()],
            "sizes": dict(self.sizes), "reasons": dict(self.reasons),
            "layouts": {name: _blocks_to_json(blocks) for name, blocks in self.layouts.items()},
            "shapes": self.shapes | {}, "ties": dict(self.ties), "passed": self.passed,
            "outputs": {path: [shape, _blocks_to_json(blocks)] for path, (shape, blocks) in self.outputs.items()},
            "unruled": dict(self.unruled), "notes": self.notes, "stacks": dict(self.stacks),
        })

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Reads what `to_json` wrote. Raises SpecError on anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise SpecError(f"this is {data['format']!r}, not {FORMAT!r}: write it again with this version")
            spec = cls(
                {name: Group(name, g["size"], g["copies"], tuple(g["within"]), tuple(g["members"]),
                             tuple(Site(*site) for site in g["sites"])) for name, g in data["groups"].items()},
                {(tensor, axis): reason for tensor, axis, reason in data["pinned"]},
                data["sizes"], data["reasons"],
                {name: _blocks_from_json(blocks, data["shapes"][name]) for name, blocks in data["layouts"].items()},
                {name: tuple(shape) for name, shape in data["shapes"].items()}, data["ties"], tuple(data["passed"]),
                {path: (tuple(shape), _blocks_from_json(blocks, shape)) for path, (shape, blocks) in data["outputs"].items()},
                data["unruled"], tuple(data["notes"]),
                {stack: tuple(parts) for stack, parts in data.get("stacks", {}).items()})  # absent in older files
            _validate(spec)
            return spec
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError) as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise SpecError(f"not a spec: {type(error).__name__} {reason}: use the text of Spec.to_json") from None

    def __eq__(self, other) -> bool:
        return isinstance(other, Spec) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((tuple(self.groups.values()), tuple(self.shapes.items())))

    def __str__(self) -> str:
        from .show import table
        return table(self)

    def to_networkx(self):
        """A bipartite graph: group nodes and axis nodes (tensor, axis), an edge for every site."""
        from .show import to_networkx
        return to_networkx(self)

    def to_dot(self) -> str:
        from .show import to_dot
        return to_dot(self)

    def to_html(self) -> str:
        from .show import to_html
        return to_html(self)


def _finite(tensor: torch.Tensor) -> bool:
    """One pass without temporaries (another dtype would be one): the sum of finite numbers is finite, but for overflow,
    which is looked at closely."""
    return bool(torch.isfinite(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())


def _validate(spec: Spec) -> None:
    """A spec read from a file may be hostile: raises ValueError unless it is consistent, so that applying it is safe."""
    layouts = {name: (spec.shapes[name], blocks) for name, blocks in spec.layouts.items()} | dict(spec.outputs)
    _validate_stacks(spec)
    if any(spec.ties.get(name, name) not in spec.layouts for name in spec.shapes) or any(
            spec.shapes[alias] != spec.names[name] for alias, name in spec.ties.items() if alias in spec.shapes):
        raise ValueError("names, ties and layouts do not agree")
    for size in (*spec.sizes.values(), *(n for shape in spec.shapes.values() for n in shape)):
        if type(size) is not int or size < 0:
            raise ValueError(f"{size!r} is not a size")
    for name, (shape, blocks) in layouts.items():
        _validate_layout(spec, name, shape, blocks)
    for group in spec.groups.values():
        if group.size != math.prod(spec.sizes[m] for m in group.members) or group.copies != math.prod(spec.frame(group)) or (
                type(group.size) is not int or type(group.copies) is not int):
            raise ValueError(f"group {group.name!r} does not fit its factors")
        for site in group.sites:
            if site.axis not in range(len(spec.shapes[site.tensor])) or site.block not in range(len(spec.layouts[site.tensor])):
                raise ValueError(f"group {group.name!r} has a site that does not exist")
    for blocks in layouts.values():
        for block in blocks[1]:
            places = [factor for axis in block for factor in axis.factors]
            for group in {spec.groups[spec.group_of[f]] for f in places if f in spec.group_of}:
                apart = group.within + (group.members if len(group.members) > 1 else ())
                if any(places.count(factor) != 1 for factor in apart) or set(group.within) & set(group.members):
                    raise ValueError(f"group {group.name!r} is within a factor that is not beside it")


def _validate_stacks(spec: Spec) -> None:
    """Every stack must be made of names that occur nowhere else, as many as its axis 0 is long."""
    left = dict(spec.shapes)
    for stack, parts in reversed(spec.stacks.items()):
        shape = left.pop(stack)
        if not shape or len(parts) != shape[0] or not all(isinstance(name, str) for name in parts) or (
                stack in spec.ties or len(set(parts)) != len(parts) or any(name in left or name in spec.ties for name in parts)):
            raise ValueError(f"the stack {stack!r} does not fit its tensor")
        left.update(dict.fromkeys(parts, shape[1:]))
    if set(left) & set(spec.passed) or any(name not in left or name in spec.ties for name in spec.ties.values()):
        raise ValueError("names, ties and stacks do not agree")


def _validate_layout(spec: Spec, name: str, shape: tuple[int, ...], blocks: tuple[Block, ...]) -> None:
    """The blocks of a tensor must be boxes that partition it."""
    sets = []
    for block in blocks:
        if len(block) != len(shape) or any(
                axis.positions.shape != tuple(spec.sizes[f] for f in axis.factors) for axis in block):
            raise ValueError(f"a block of {name!r} does not fit its factors")
        sets.append([np.unique(axis.positions) for axis in block])
        if any(s.size != axis.positions.size or s.size and not (0 <= s[0] and s[-1] < n)
               for s, axis, n in zip(sets[-1], block, shape)):
            raise ValueError(f"an axis of {name!r} has positions that repeat or lie outside")
    if sum(math.prod(s.size for s in box) for box in sets) != math.prod(shape) or any(
            all(np.intersect1d(a, b, assume_unique=True).size for a, b in zip(one, other))
            for k, one in enumerate(sets) for other in sets[:k]):
        raise ValueError(f"the blocks of {name!r} do not partition it")


def _blocks_to_json(blocks: tuple[Block, ...]) -> list:
    return [[[_positions_to_json(axis.positions), axis.factors] for axis in block] for block in blocks]


def _blocks_from_json(blocks: list, shape) -> tuple[Block, ...]:
    return tuple(tuple(Axis(_positions_from_json(p, size), tuple(factors)) for (p, factors), size in zip(block, shape))
                 for block in blocks)


def _positions_to_json(positions: np.ndarray) -> dict[str, Any]:
    """Start and strides where the positions are evenly spaced, which is nearly always; else all of them."""
    shape = positions.shape
    start = int(positions[(0,) * len(shape)])
    strides = [int(positions[tuple(int(i == k) for i in range(len(shape)))]) - start for k in range(len(shape))]
    if np.array_equal(_strided(start, strides, shape), positions):
        return {"start": start, "strides": strides, "shape": shape}
    return {"shape": shape, "list": positions.reshape(-1).tolist()}


def _positions_from_json(data: dict[str, Any], size: int) -> np.ndarray:
    numbers = [*data["shape"], *data.get("list", ()), *data.get("strides", ()), data.get("start", 0)]
    if any(type(n) is not int for n in numbers) or not 0 < math.prod(data["shape"]) <= size:
        raise ValueError("positions that do not fit their axis")  # before any memory is taken for them
    if "list" in data:
        return np.array(data["list"], dtype=np.int64).reshape(data["shape"])
    return _strided(data["start"], data["strides"], data["shape"])


def _strided(start: int, strides, shape) -> np.ndarray:
    grid = np.ogrid[tuple(slice(size) for size in shape)] if len(shape) else []
    return np.asarray(start + sum(stride * g for stride, g in zip(strides, grid)), dtype=np.int64)
