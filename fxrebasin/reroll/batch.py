"""One op for all slots at once: tensors that differ from slot to slot carry a leading dimension of slots.

Most ops are batched by `torch.vmap`. Those for which it would make a loop, or lose what the op is, are written out
here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def traced(target: Callable, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor],
           batched: list[bool]) -> torch.fx.Graph:
    """The graph of an op over all slots; `args` and `kwargs` hold a Hole(k) for each of the fake `tensors`.

    Its results have the slots as their first dimension. Raises whatever vmap raises if the op cannot be batched.
    """
    def run(*given: Tensor):
        return target(*_filled(args, given), **{name: _filled(value, given) for name, value in kwargs.items()})

    own = OPS.get(str(target))
    with torch.no_grad(), _without_loops():
        if own is None:
            return make_fx(torch.vmap(run, in_dims=tuple(0 if b else None for b in batched)))(*tensors).graph

        def run_own(*given: Tensor):
            return own(Slotted(target, args, kwargs, given, batched))
        return make_fx(run_own, pre_dispatch=True)(*tensors).graph


class Hole:
    """Stands for a tensor among the arguments of an op."""

    def __init__(self, k: int):
        self.k = k

    def __repr__(self) -> str:
        return f"Hole({self.k})"


def _filled(x: Any, tensors) -> Any:
    if isinstance(x, Hole):
        return tensors[x.k]
    return type(x)(_filled(y, tensors) for y in x) if isinstance(x, (list, tuple)) else x


@contextlib.contextmanager
def _without_loops() -> Iterator[None]:
    """vmap raises where it has no rule, instead of running slot by slot."""
    functorch: Any = torch._C._functorch  # torch declares a part of what is in it
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


class Slotted:
    """The arguments of an op by schema name, and which of them have slots."""

    def __init__(self, target, args, kwargs, tensors, batched):
        names = [a.name for a in target._schema.arguments]
        self.values = {a.name: a.default_value for a in target._schema.arguments} | dict(zip(names, args)) | kwargs
        self.slots = next(t.shape[0] for t, b in zip(tensors, batched) if b)
        self.tensors, self.batched = tensors, batched

    def __getitem__(self, name: str) -> Any:
        return _filled(self.values[name], self.tensors)

    def has_slots(self, name: str) -> bool:
        value = self.values[name]
        return isinstance(value, Hole) and self.batched[value.k]

    def spread(self, name: str, rank: int | None = None) -> Tensor:
        """A tensor with slots in any case, its own dimensions to the right; `rank` dimensions besides the slots."""
        value = self[name]
        if not self.has_slots(name):
            value = value.unsqueeze(0).expand(self.slots, *value.shape)
        missing = 0 if rank is None else rank - (value.ndim - 1)
        return value.reshape(value.shape[0], *[1] * missing, *value.shape[1:]) if missing > 0 else value


def _linear(a: Slotted) -> Tensor:
    if not a.has_slots("weight"):
        result = aten.linear.default(a["input"], a["weight"])
    else:
        rank = a["input"].ndim - a.has_slots("input")
        weight = a.spread("weight").transpose(1, 2)
        if rank > 2:
            weight = weight.reshape(weight.shape[0], *[1] * (rank - 2), *weight.shape[1:])
        result = torch.matmul(a["input"].unsqueeze(-2) if rank == 1 else a["input"], weight)
        result = result.squeeze(-2) if rank == 1 else result
    if a["bias"] is None:
        return result
    rank = result.ndim - (a.has_slots("weight") or a.has_slots("input"))
    return result + (a.spread("bias", rank) if a.has_slots("bias") else a["bias"])


def _attention(a: Slotted) -> Tensor:
    if a["is_causal"] is None or a["dropout_p"]:
        raise NotImplementedError("attention with dropout")
    q, k, v = (a.spread(name) for name in ("query", "key", "value"))
    mask = a["attn_mask"]
    if mask is not None and a.has_slots("attn_mask"):
        mask = a.spread("attn_mask", q.ndim - 1)
    return aten.scaled_dot_product_attention.default(q, k, v, mask, 0.0, a["is_causal"], scale=a["scale"],
                                                     enable_gqa=a["enable_gqa"])


def _embedding(a: Slotted) -> Tensor:
    if not a.has_slots("weight"):
        return aten.embedding.default(a["weight"], a["indices"])
    if a.has_slots("indices"):
        raise NotImplementedError("a table and indices for each slot")
    return aten.index.Tensor(a["weight"], [None, a["indices"]])


def _batch_norm(a: Slotted) -> Tensor:
    """With the statistics of the state: an affine map of each channel."""
    x = a.spread("input")
    if a["running_mean"] is None or a["running_var"] is None or a.values.get("training"):
        raise NotImplementedError("batch statistics")

    def channels(t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], 1, t.shape[1], *[1] * (x.ndim - 3))

    mean, var = (channels(a.spread(name)) for name in ("running_mean", "running_var"))
    y = (x - mean) * torch.rsqrt(var + a["eps"])
    y = y if a["weight"] is None else y * channels(a.spread("weight"))
    return y if a["bias"] is None else y + channels(a.spread("bias"))


def _batch_norm_results(a: Slotted) -> tuple[Tensor, ...]:
    empty = torch.empty(a.slots, 0)
    return _batch_norm(a), empty, empty


def _group_norm(a: Slotted) -> Tensor:
    """Slots times groups are groups."""
    x = a.spread("input").transpose(0, 1)
    y = x.reshape(x.shape[0], -1, *x.shape[3:])
    weight, bias = (None if a[name] is None else a.spread(name).reshape(-1) for name in ("weight", "bias"))
    y = aten.group_norm.default(y, a.slots * a["num_groups"], weight, bias, a["eps"])
    return y.reshape(x.shape).transpose(0, 1)


OPS: dict[str, Callable[[Slotted], Any]] = {
    "aten.linear.default": _linear,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.embedding.default": _embedding,
    "aten.group_norm.default": _group_norm,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm_results,
}
