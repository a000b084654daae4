"""Adapters: what a LoRA adds to the tensors of a state, read from the files that PEFT writes.

Source: "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (W + scaling * B A); "DoRA: Weight-Decomposed
Low-Rank Adaptation", ICML 2024 (the same, each row brought to a learned length); the names of tensors are PEFT's.
"""
from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import StateError
from ..parts import Parts
from ..spec import Spec
from .task_vector import State

RANK = -1  # stands for the rank where the axes of a factor are listed
_PREFIX = "base_model.model."
_SUFFIX = re.compile(r"(?P<module>.+)\.(?P<what>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|"
                     r"lora_embedding_B|lora_magnitude_vector(?:\.weight)?|token_adapter\.trainable_tokens_delta)")
_FACTORS = {"lora_A.weight": "a", "lora_embedding_A": "a", "lora_B.weight": "b", "lora_embedding_B": "b",
            "lora_B.bias": "bias", "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude"}
_OTHER_MATHS = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "layer_replication")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter as values.

    config   what adapter_config.json holds
    tensors  name -> tensor, with the names that PEFT gives them in adapter_model.safetensors
    notes    what its reader should know of how it was made
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Adapter":
        """Reads a folder that PEFT wrote. Raises CheckpointError."""
        from ..checkpoint import load_adapter

        return cls(*load_adapter(folder))

    def save(self, folder: str | os.PathLike, like: str | os.PathLike | None = None) -> None:
        """Writes a folder that PEFT reads; what else the folder `like` holds is copied. Raises CheckpointError."""
        from ..checkpoint import save_adapter

        save_adapter(self.config, self.tensors, folder, like)


@dataclass(frozen=True)
class Factor:
    """One of the two factors: the tensor `key`, read as `shape`, whose dimensions are these axes of the weight."""

    key: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.key].reshape(self.shape)


@dataclass(frozen=True)
class LowRank:
    """What is added to the tensor `name` of the state, that of `module`: scaling * b a, in the axes of its weight.

    bias       key of what is added to the layer's bias, times the scaling
    magnitude  key of the lengths that rows get (DoRA)
    out        the axis of the weight that is the layer's output: along it run `bias` and `magnitude`
    """

    name: str
    module: str
    a: Factor
    b: Factor
    scaling: float
    out: int
    bias: str | None = None
    magnitude: str | None = None

    def product(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """scaling * b a, in the shape of the weight."""
        a, b = self.a.of(tensors).to(dtype), self.b.of(tensors).to(dtype)
        rank = len(self.a.axes) + len(self.b.axes)
        axes = [[axis if axis != RANK else rank for axis in factor.axes] for factor in (self.a, self.b)]
        return self.scaling * torch.einsum(b, axes[1], a, axes[0], sorted({*axes[0], *axes[1]} - {rank}))


@dataclass(frozen=True)
class Whole:
    """The tensor `key`, which takes the place of the state's `name`, or of some of its rows."""

    key: str
    name: str
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Contents:
    """What an adapter does to a state: low-rank sums by the tensor they are added to, and tensors replaced."""

    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    whole: tuple[Whole, ...] = ()


# ---- reading -----------------------------------------------------------------------------------------------


def contents(adapter: Adapter, parts: Parts) -> Contents:
    """What an adapter does to the states of a spec. Raises StateError for what it cannot be read as."""
    _check(adapter.config)
    spec = parts.spec
    layers, whole, tokens = _sorted(adapter.tensors)
    fit = _names(spec, [module for module, _ in (*layers, *tokens)], list(whole))
    wrappers = Counter(module for module, _ in layers)
    low_rank: dict[str, LowRank] = {}
    for (module, depth), keys in layers.items():
        name = _weight_of(fit(module), wrappers[module] - 1 - depth, adapter.config, spec)
        if name in low_rank:
            raise StateError(f"the adapter adds to {name!r} twice: it cannot be told which is which")
        low_rank[name] = _low_rank(name, module, keys, adapter, parts)
    rows = [Whole(key, f"{fit(module)}.weight", _rows(adapter.config, module)) for (module, _), key in tokens.items()]
    found = Contents(low_rank, (*rows, *(Whole(key, fit(name)) for name, key in whole.items())))
    for part in found.whole:
        _check_whole(part, adapter, spec)
    return found


def _check(config: Mapping[str, Any]) -> None:
    """Raises StateError for adapters that are more than a sum of low rank."""
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2].upper()
    if kind != "LORA":
        raise StateError(f"the adapter is a {kind}: only LoRA (with rsLoRA and DoRA) can be carried; merge it into its "
                         "base and carry the merged checkpoint")
    for option in _OTHER_MATHS:
        if config.get(option):
            raise StateError(f"the adapter has {option!r}, which is more than a sum of low rank: merge it into its base "
                             "and carry the merged checkpoint")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise StateError(f"the adapter was started by {start!r}, which changes the base's own weights: save it with "
                         "PEFT's path_initial_model_for_weight_conversion first")


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict, dict, dict]:
    """(module, depth) -> role -> key for layers, name -> key for whole tensors, (module, 0) -> key for rows.

    depth  how many "base_layer" the name ends in: of several parameters of one module, each wraps the last
    """
    layers: dict[tuple[str, int], dict[str, str]] = {}
    whole, tokens = {}, {}
    for key in tensors:
        own = key.removeprefix(_PREFIX)
        found = _SUFFIX.fullmatch(own)
        if found is None:
            if "lora_" in own or "token_adapter" in own:
                raise StateError(f"the adapter holds {key!r}, which is none of the tensors of a LoRA that are known here")
            whole[_plain(own)] = key
        elif found["what"].startswith("token_adapter"):
            tokens[_plain(found["module"]), 0] = key
        else:
            depth = len(re.search(r"(\.base_layer)*$", found["module"])[0]) // len(".base_layer")
            layers.setdefault((_plain(found["module"]), depth), {})[_FACTORS[found["what"]]] = key
    return layers, whole, tokens


def _plain(name: str) -> str:
    """A name as it is without the adapter's wrappers."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "modules_to_save"))


def _names(spec: Spec, modules: Sequence[str], whole: Sequence[str]):
    """How names of the adapter become names of the spec: a prefix dropped and another one put in front."""
    if not modules and not whole:
        raise StateError("the adapter holds no tensors: is it complete?")
    known = {".".join(name.split(".")[:k]) for name in spec.names for k in range(1, name.count(".") + 2)}
    first = (*modules, *whole)[0].split(".")
    for dropped in range(len(first)):
        gone, rest = ".".join(first[:dropped] + [""] * bool(dropped)), ".".join(first[dropped:])
        for put in sorted({name[:len(name) - len(rest)] for name in known if f".{name}".endswith(f".{rest}")}, key=len):
            names = [put + name.removeprefix(gone) for name in (*modules, *whole)]
            if all(name in known for name in names) and all(n.startswith(gone) for n in (*modules, *whole)):
                return lambda name: put + name.removeprefix(gone)
    odd = next((name for name in (*modules, *whole) if name not in known), first)
    raise StateError(f"the adapter has a part for {odd!r}, which the model does not have: is it an adapter of this "
                     "model?")


def _weight_of(module: str, index: int, config: Mapping[str, Any], spec: Spec) -> str:
    """The tensor that an adapter of `module` adds to; `index`: which, counted from the innermost wrapper."""
    targets = config.get("target_parameters") or ()
    own = [name for name in spec.names if name.rpartition(".")[0] == module]
    chosen = [name for name in own if any(name == target or name.endswith(f".{target}") for target in targets)]
    if not chosen:
        chosen = [name for name in (f"{module}.weight", f"{module}.in_proj_weight") if name in spec.names][:1]
    if not 0 <= index < len(chosen):
        raise StateError(f"the adapter has a part for {module!r}, of which it cannot be told what it adds to: its "
                         "target_parameters do not name it")
    return chosen[index]


def _low_rank(name: str, module: str, keys: Mapping[str, str], adapter: Adapter, parts: Parts) -> LowRank:
    if not {"a", "b"} <= set(keys):
        raise StateError(f"the adapter's part for {module!r} lacks one of its two factors: is it complete?")
    shape = parts.spec.names[name]
    a, b = (adapter.tensors[keys[role]] for role in "ab")
    rank, reading = _reading(keys, a.shape, b.shape, name, parts, adapter)
    if reading is None:
        raise StateError(f"the adapter's factors for {name!r} are of shapes {tuple(b.shape)} and {tuple(a.shape)}, and "
                         f"do not add to a tensor of shape {shape}: is it an adapter of this model? (those of "
                         "convolutions in groups add to no weight at all)")
    (shape_a, axes_a), (shape_b, axes_b) = reading
    pattern = f"{module}.{name.rpartition('.')[2]}" if len(shape) == 3 and a.ndim == 2 else module
    scaling = _by_pattern(adapter.config.get("alpha_pattern"), pattern, adapter.config.get("lora_alpha", 8))
    scaling /= math.sqrt(rank) if adapter.config.get("use_rslora") else rank
    out = next(axis for axis in reversed(axes_b) if axis != RANK and axis not in axes_a)
    magnitude = keys.get("magnitude") if adapter.config.get("use_dora") else None
    low = LowRank(name, module, Factor(keys["a"], shape_a, axes_a), Factor(keys["b"], shape_b, axes_b), float(scaling), out,
                  keys.get("bias"), magnitude)
    for key in filter(None, (low.bias, low.magnitude)):
        if adapter.tensors[key].numel() != shape[out]:
            raise StateError(f"the adapter's {key!r} has {adapter.tensors[key].numel()} numbers, and the layer "
                             f"{shape[out]}: is it an adapter of this model?")
    return low


def _reading(keys, a: torch.Size, b: torch.Size, name: str, parts: Parts, adapter: Adapter):
    """The rank, and how the two factors are read: (shape, axes of the weight) for each; or None for the latter."""
    w, rank = parts.spec.names[name], a[0]
    if keys["a"].endswith("lora_embedding_A"):
        rank, ways = a[0], [(((a, (RANK, 0)), (b, (1, RANK))))]
    elif len(w) == 2 and len(a) == len(b) == 2:
        straight, turned = ((a, (RANK, 1)), (b, (0, RANK))), ((a, (RANK, 0)), (b, (1, RANK)))
        ways = [turned, straight] if _is_turned(name, parts, adapter.config) else [straight, turned]
    elif len(w) > 2 and len(a) == len(w):
        ways = [((a, (RANK, *range(1, len(w)))), (b[:2], (0, RANK)))]
        if math.prod(b[2:]) != 1:
            ways = []
    elif len(w) == 3 and len(a) == len(b) == 2 and w[0] and a[0] % w[0] == 0 and b[1] == a[0]:
        rank = a[0] // w[0]
        shapes = (w[0], rank, a[1]), (b[0], rank, w[0])
        ways = [((shapes[0], (0, RANK, i)), (shapes[1], (o, RANK, 0))) for o, i in ((1, 2), (2, 1))]
        if w[1] == w[2] and _experts_are_turned(name, parts.spec):
            ways.reverse()
    else:
        ways = []
    for way in ways:
        found = [(axis, n) for shape, axes in way for n, axis in zip(shape, axes)]
        if all(n == (rank if axis == RANK else w[axis]) for axis, n in found):
            return rank, tuple((tuple(shape), axes) for shape, axes in way)
    return rank, None


def _is_turned(name: str, parts: Parts, config: Mapping[str, Any]) -> bool:
    """Whether a weight is stored as (in, out). The shapes tell, but for a square one: then the layer's bias does, since
    it is laid out as the outputs are (the flag in the file is that of the last layer PEFT came to, whatever that was)."""
    bias = f"{name.rpartition('.')[0]}.bias"
    if bias not in parts.spec.names:
        return False  # layers that are stored so have a bias
    weight, own = (_factors(parts, n) for n in (name, bias))
    if own[0] in weight and weight[0] != weight[1]:
        return weight.index(own[0]) == 1
    return bool(config.get("fan_in_fan_out"))


def _factors(parts: Parts, name: str) -> list[frozenset[str]]:
    """The factors of each axis of a tensor, by its name in the state dict."""
    tensor = parts.part_of[name]
    return [frozenset(f for block in parts.spec.layout(tensor) for f in block[axis].factors)
            for axis in range(len(parts.sizes[tensor]), len(parts.spec.shapes[tensor]))]


def _experts_are_turned(name: str, spec: Spec) -> bool:
    """Whether square experts are stored as (experts, in, out): another parameter of the module tells, which joins two
    projections along their outputs. Raises StateError if none does."""
    module, n = name.rpartition(".")[0], spec.names[name][1]
    for other, shape in spec.names.items():
        if other.rpartition(".")[0] == module and len(shape) == 3 and shape[1:] in ((n, 2 * n), (2 * n, n)):
            return shape[2] == 2 * n
    raise StateError(f"the adapter adds to {name!r}, whose experts are square: it cannot be told which side is the input")


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value for a module, where a pattern for its name says another than the default."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default


def _rows(config: Mapping[str, Any], module: str) -> tuple[int, ...]:
    """Which rows of an embedding were trained on their own."""
    given = config.get("trainable_token_indices")
    if isinstance(given, Mapping):
        given = next((rows for name, rows in given.items() if f".{module}".endswith(f".{name}")), None)
    if not isinstance(given, Sequence) or not all(type(row) is int and row >= 0 for row in given):
        raise StateError(f"the adapter has rows for {module!r}, and its trainable_token_indices do not say which")
    return tuple(given)


def _check_whole(part: Whole, adapter: Adapter, spec: Spec) -> None:
    found, shape = tuple(adapter.tensors[part.key].shape), spec.names.get(part.name)
    if shape is not None and part.rows is not None:
        shape = (len(part.rows), *shape[1:]) if max(part.rows, default=0) < shape[0] else None
    if shape != found:
        raise StateError(f"the adapter's {part.key!r} has shape {found}, and the model has {shape} for {part.name!r}: is "
                         "it an adapter of this model?")


# ---- merging -----------------------------------------------------------------------------------------------


class Merged(Mapping[str, Tensor]):
    """A base with an adapter merged into it: each tensor is made when it is asked for, in float32 at least where the
    adapter changes something. Raises StateError if the adapter is not one of this base."""

    def __init__(self, base: State, adapter: Adapter, parts: Parts):
        self._base, self._adapter, self._ties = base, adapter, parts.spec.ties
        self._changes: dict[str, list] = {}
        found = contents(adapter, parts)
        for change in (*found.whole, *found.low_rank.values()):
            self._add(change.name, change)
            if isinstance(change, LowRank) and change.bias:
                self._add(bias_of(change, parts.spec), (change.bias, change.scaling))
        known = {self._ties.get(name, name) for name in base}
        self._fresh = dict.fromkeys(name for name in self._changes if name not in known)
        for name, own in self._changes.items():
            if name in self._fresh and not (isinstance(own[0], Whole) and own[0].rows is None):
                raise StateError(f"the base lacks {name!r}, which the adapter adds to: is it the adapter's base?")
            if len(own) > 1 and any(isinstance(change, LowRank) and change.magnitude for change in own):
                raise StateError(f"the adapter changes {name!r} under two names, as a DoRA, where the order would "
                                 "matter: it cannot be merged")

    def _add(self, name: str, change: Any) -> None:
        self._changes.setdefault(self._ties.get(name, name), []).append(change)

    def __getitem__(self, name: str) -> Tensor:
        changes = self._changes.get(self._ties.get(name, name))
        if changes is None:
            return self._base[name]
        tensor = self._adapter.tensors[changes[0].key] if name in self._fresh else self._base[name]
        tensor = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
        for change in changes:
            tensor = _changed(tensor, change, self._adapter.tensors)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._base), **self._fresh})

    def __len__(self) -> int:
        return len(self._base) + len(self._fresh)


def merge_adapter(base: State, adapter: Adapter, spec: Spec) -> dict[str, Tensor]:
    """A new state: the base with an adapter merged into it, in float32 at least where it changes something; ties stay
    tied. Raises StateError if the adapter is not one of this base."""
    state, done = Merged(base, adapter, Parts(spec.identity())), {}
    for name in state:
        first = spec.ties.get(name, name)
        if first not in done:
            done[first] = state[name]
    return {name: done[spec.ties.get(name, name)] for name in state}


def bias_of(low: LowRank, spec: Spec) -> str:
    """The name of a layer's bias. Raises StateError if it has none."""
    name = low.name.removesuffix("weight") + "bias"
    if name not in spec.names:
        raise StateError(f"the adapter has a bias for {low.module!r}, a layer without: it adds to no tensor")
    return spec.ties.get(name, name)


def _changed(tensor: Tensor, change, tensors: Mapping[str, Tensor]) -> Tensor:
    """A tensor of the base, changed by a part of the adapter."""
    if isinstance(change, Whole):
        own = tensors[change.key].to(tensor.dtype)
        if change.rows is None:
            return own.clone()
        return tensor.index_copy(0, torch.tensor(change.rows, dtype=torch.int64), own)
    if isinstance(change, tuple):
        return tensor + change[1] * tensors[change[0]].to(tensor.dtype)
    tensor = tensor + change.product(tensors, tensor.dtype)
    if change.magnitude is None:
        return tensor
    return tensor * _along(tensors[change.magnitude].reshape(-1).to(tensor.dtype) / lengths(tensor, change.out), change.out, tensor.ndim)


def lengths(weight: Tensor, axis: int) -> Tensor:
    """The Euclidean lengths of a weight's slices along an axis."""
    return torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != axis])


def _along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    return vector.reshape([-1 if d == axis else 1 for d in range(ndim)])
