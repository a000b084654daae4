"""Carrying an adapter over: an adapter of the old base becomes one of the new base, of the same rank.

A permutation of a weight's outputs permutes the rows of one factor, one of its inputs the columns of the other, so
that merging the carried adapter into the new base is the same as carrying the merged task vector.
"""
from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..alignment import Alignment
from ..errors import StateError
from ..parts import Parts, origin
from .adapter import RANK, Adapter, Contents, Factor, LowRank, Whole, contents, lengths
from .arithmetic import Alphas
from .pair import check_pair
from .task_vector import State, transport

DORA = ("the adapter is a DoRA: its magnitudes are lengths of the base's rows, and are scaled by how much longer the "
        "target's rows are; that is exact only where the target is the permuted base")


def transport_adapter(base: State, adapter: Adapter | str | os.PathLike, target: State, alignment: Alignment,
                      alpha: float | Alphas = 1.0, *, force: bool = False) -> Adapter:
    """An adapter for the target, of the same rank: pi of what `adapter` adds to the base.

    base, target  states of one architecture; only those tensors are looked at that the adapter replaces (biases,
                  modules_to_save, rows of an embedding) or knows the lengths of (DoRA)
    adapter       an Adapter, or the folder of one
    alignment     pi, of base onto target
    alpha         how much of it is carried; may be one for each tensor
    force         warn, where the alignment was matched from another base, instead of refusing

    Merged into the target it gives what `transport` makes of the adapter merged into the base. Dtypes are the
    adapter's. Raises StateError where the adapter does not fit, or where pi moves an axis of a weight without
    regard to the other no longer, so that the rank would grow.
    """
    adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    alphas = Alphas.given(alpha)
    alphas.check(list(alignment.spec.names))
    check_pair(alignment, base, base, target, force=force)
    parts = Parts(alignment)
    found = contents(adapter, parts)
    carried: dict[str, Tensor] = {}
    for part, layers in _by_part(found, parts).items():
        own = alphas.of_all([low.name for low in layers])
        carried |= _Layers(part, layers, adapter, parts, alignment).carried(base, target, own)
    for part, whole in _whole_by_part(found, parts).items():
        own = alphas.of_all([each.name for each in whole])
        carried |= _carry_whole(part, whole, base, adapter, target, parts, own)
    order = {key: k for k, key in enumerate(adapter.tensors)}
    tensors = {key: carried[key] for key in sorted(carried, key=lambda key: (order.get(key, len(order)), key))}
    notes = (DORA,) if any(low.magnitude for low in found.low_rank.values()) else ()
    return Adapter(_config(adapter, found, tensors), tensors, notes)


def _by_part(found: Contents, parts: Parts) -> dict[str, list[LowRank]]:
    """Layers whose weights are moved together; of two names of one tensor, each is on its own."""
    result: dict[str, list[LowRank]] = {}
    for low in found.low_rank.values():
        part = parts.part_of[low.name]
        result.setdefault(part if parts.sizes[part] else low.name, []).append(low)
    return result


def _config(adapter: Adapter, found: Contents, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The adapter's configuration; where layers took the place of others, its targets name them one by one."""
    config = dict(adapter.config)
    if tensors.keys() != adapter.tensors.keys():
        modules = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in tensors if ".lora_" in key}
        config["target_modules"] = sorted(modules)
        config["layers_to_transform"] = config["layers_pattern"] = None
    return config


@dataclass(frozen=True)
class _Layers:
    """The layers of one part: one, or those whose weights are stacked."""

    part: str
    layers: list[LowRank]
    adapter: Adapter
    parts: Parts
    alignment: Alignment

    @property
    def tensor(self) -> str:
        return self.parts.part_of[self.layers[0].name]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.parts.sizes[self.tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the weights along the stack, or the one."""
        return self.parts.names[self.tensor][:math.prod(self.sizes)] if self.sizes else (self.layers[0].name,)

    def carried(self, base: State, target: State, alpha: float) -> dict[str, Tensor]:
        """The tensors of the carried adapter."""
        first, own = self.layers[0], {low.name: low for low in self.layers}
        for low in self.layers:
            if (low.a.axes, low.a.shape, low.b.shape, low.scaling, not low.bias, not low.magnitude) != (
                    first.a.axes, first.a.shape, first.b.shape, first.scaling, not first.bias, not first.magnitude):
                raise StateError(f"the adapter treats {first.name!r} and {low.name!r} differently, and the alignment "
                                 "exchanges the two: give --full for the full-rank result")
        scale = {"a": 1.0, "b": alpha, "bias": alpha, "magnitude": 1.0}
        if first.magnitude and alpha != 1:
            raise StateError("the adapter is a DoRA, of which a part is not the same with smaller factors: leave alpha "
                             "at 1, or give --full")
        result: dict[str, Tensor] = {}
        for role in ("a", "b", "bias", "magnitude"):
            factors = {name: self._factor(low, role) for name, low in own.items() if self._factor(low, role)}
            if not factors:
                continue
            for name, (key, tensor) in self._moved(factors).items():
                if role == "magnitude":
                    tensor = tensor * self._stretch(name, base, target).to(tensor.dtype).reshape(tensor.shape)
                result[key] = tensor * scale[role] if scale[role] != 1 else tensor
        return result

    def _factor(self, low: LowRank, role: str) -> Factor | None:
        """The factor a or b, or what runs along the outputs alone."""
        if role in "ab":
            return getattr(low, role)
        key = getattr(low, role)
        return key and Factor(key, (self.alignment.spec.names[low.name][low.out],), (low.out,))

    def _moved(self, factors: Mapping[str, Factor]) -> dict[str, tuple[str, Tensor]]:
        """Name of a weight -> key and tensor of its factor, in its new place."""
        one = next(iter(factors.values()))
        blank = torch.zeros_like(self.adapter.tensors[one.key])
        given = torch.stack([(self.adapter.tensors[factors[n].key] if n in factors else blank).reshape(one.shape)
                             for n in self.names])
        k = len(self.sizes)
        axes = (*range(k), *(axis if axis == RANK else axis + k for axis in one.axes))
        there = [int(n in factors) for n in self.names]
        source = self._origin(axes)
        moved = _take(given.reshape(*self.sizes, *one.shape), axes, source)
        came = there if not k else np.asarray(there)[self._origin(tuple(range(k))).reshape(-1)]
        moved = moved.reshape(given.shape)
        return {name: (self._key(name, factors), tensor.reshape(blank.shape).clone())
                for name, tensor, here in zip(self.names, moved, came) if here}

    def _origin(self, axes: tuple[int, ...]) -> np.ndarray:
        """Where what runs along these axes comes from. Raises StateError if other axes have a say in it."""
        source = origin(self.alignment, self.tensor, tuple(sorted(set(axes) - {RANK})))
        if source is None:
            raise StateError(f"no adapter of the same rank does to the target what this one does to {self.part!r}: the "
                             "alignment does not move its axes each on its own; give --full for the full-rank result")
        return source

    def _key(self, name: str, factors: Mapping[str, Factor]) -> str:
        """The name that a factor of the weight `name` has in the adapter."""
        if name in factors:
            return factors[name].key
        other, factor = next(iter(factors.items()))
        old, new = other.rpartition(".")[0], name.rpartition(".")[0]
        shared = len(os.path.commonprefix([old[::-1], new[::-1]]))
        old, new = old[:len(old) - shared], new[:len(new) - shared]
        head, _, tail = factor.key.rpartition(old)
        return head + new + tail

    def _stretch(self, name: str, base: State, target: State) -> Tensor:
        """How much longer the rows of the target's weight are than those of the permuted base's."""
        low, dtype = self.layers[0], torch.float64
        names = self.parts.names[self.tensor]
        moved = self.parts.alignment(self.tensor).apply({n: _at(base, n, self.parts, "the base") for n in names})[name]
        old, new = (lengths(t.to(dtype), low.out) for t in (moved, _at(target, name, self.parts, "the target")))
        return torch.where(old > 0, new / old, torch.ones_like(old))


def _take(tensor: Tensor, axes: tuple[int, ...], source: np.ndarray) -> Tensor:
    """A tensor whose dimensions are `axes` of a weight, gathered along them."""
    order = sorted(range(len(axes)), key=lambda d: (axes[d] == RANK, axes[d]))
    turned = tensor.permute(order)
    flat = turned.reshape(source.size, -1)[torch.from_numpy(source.reshape(-1))]
    return flat.reshape(turned.shape).permute([order.index(d) for d in range(len(axes))])


# ---- tensors that are replaced -----------------------------------------------------------------------------


def _whole_by_part(found: Contents, parts: Parts) -> dict[str, list[Whole]]:
    result: dict[str, list[Whole]] = {}
    for whole in found.whole:
        result.setdefault(parts.part_of[whole.name], []).append(whole)
    return result


def _carry_whole(part: str, whole: list[Whole], base: State, adapter: Adapter, target: State, parts: Parts,
                 alpha: float) -> dict[str, Tensor]:
    """Tensors that the adapter replaces: the target's own plus pi of what they are more than the base's."""
    names, spec = parts.names[part], parts.spec
    fresh = not any(_known(base, n, spec) or _known(target, n, spec) for n in names)  # a head that the bases lack
    like = {w.name: adapter.tensors[w.key] for w in whole}
    zero = {n: torch.zeros(spec.names[n], dtype=next(iter(like.values())).dtype) for n in names} if fresh else {}
    old, new = ({n: _wide(zero[n] if fresh else _at(state, n, parts, what)) for n in names}
                for state, what in ((base, "the base"), (target, "the target")))
    tuned = dict(old)
    for w in whole:
        own = adapter.tensors[w.key].to(old[w.name].dtype)
        tuned[w.name] = own if w.rows is None else tuned[w.name].index_copy(0, torch.tensor(w.rows), own)
    tied = {spec.ties.get(w.name, w.name): tuned[w.name] for w in whole}
    tuned = {n: tied.get(spec.ties.get(n, n), tensor) for n, tensor in tuned.items()}
    carried = transport(old, tuned, new, parts.alignment(part), alpha)
    replaced = {spec.ties.get(w.name, w.name) for w in whole}
    if odd := [n for n in names if spec.ties.get(n, n) not in replaced and not torch.equal(carried[n], new[n])]:
        raise StateError(f"the adapter replaces {whole[0].name!r} but not {odd[0]!r}, and the alignment exchanges the "
                         "two: give --full for the full-rank result")
    return {w.key: _rows_of(carried[w.name], w, new[w.name]).to(adapter.tensors[w.key].dtype) for w in whole}


def _rows_of(tensor: Tensor, whole: Whole, old: Tensor) -> Tensor:
    """The rows that are replaced. Raises StateError if others changed, so that rows were exchanged."""
    if whole.rows is None:
        return tensor
    rows = torch.tensor(whole.rows, dtype=torch.int64)
    rest = torch.ones(len(tensor), dtype=torch.bool).index_fill(0, rows, False)
    if not torch.equal(tensor[rest], old[rest]):
        raise StateError(f"the adapter trains rows of {whole.name!r}, and the alignment exchanges rows: give --full")
    return tensor[rows].clone()


def _known(state: State, name: str, spec) -> str | None:
    """A name under which the state holds the tensor `name`."""
    first = spec.ties.get(name, name)
    return next((n for n in (name, first, *(a for a in spec.ties if spec.ties[a] == first)) if n in state), None)


def _at(state: State, name: str, parts: Parts, what: str) -> Tensor:
    known = _known(state, name, parts.spec)
    if known is None:
        raise StateError(f"{what} lacks {name!r}, which the adapter changes: is it a checkpoint of this model?")
    return state[known].detach()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
