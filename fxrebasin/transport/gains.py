"""How much of a carried task vector is used: one gain for each index of each axis of a matrix, one for a
vector."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, StateError
from ..parts import Parts
from ..spec import Spec
from .adapter import Adapter, Factor, bias_of, contents
from .task_vector import State

FORMAT = "fxrebasin-gains-1"


@dataclass(frozen=True)
class Gains:
    """Gains of a carried task vector v: diag(rows) v diag(columns) for a matrix, s * v for a vector.

    axes  tensor name -> a gain for each axis, shaped to be multiplied with the tensor (axes of a kernel and
          axes of size 1 have none); for a vector a single number
    used  tensor name -> norm of what is added, relative to the norm of v
    """

    axes: Mapping[str, tuple[Tensor, ...]]
    used: Mapping[str, float]

    @classmethod
    def ones(cls, vector: State) -> Gains:
        """All of a task vector as it is."""
        return cls({name: _ones(tensor) for name, tensor in vector.items()}, dict.fromkeys(vector, 1.0))

    @classmethod
    def of(cls, axes: Mapping[str, tuple[Tensor, ...]], vector: State) -> Gains:
        """Gains for a task vector, with how much of it they use."""
        fixed = {name: tuple(gain.detach().clone() for gain in gains) for name, gains in axes.items()}
        whole = {name: float(torch.linalg.vector_norm(vector[name])) for name in axes}
        used = {
            name: float(torch.linalg.vector_norm(_product(vector[name], gains))) / whole[name]
            if whole[name]
            else 0.0
            for name, gains in fixed.items()
        }
        return cls(fixed, used)

    def apply(self, vector: State) -> dict[str, Tensor]:
        """The task vector with its gains; tensors without gains are left out. Raises StateError on a
        misfit."""
        for name, gains in self.axes.items():
            if name not in vector or any(
                own not in (1, size) for gain in gains for own, size in zip(gain.shape, vector[name].shape)
            ):
                raise StateError(f"these gains do not fit {name!r}: they belong to another model")
        return {name: _product(vector[name], gains) for name, gains in self.axes.items()}

    def fold(self, adapter: Adapter, spec: Spec) -> Adapter:
        """A carried LoRA with the gains in its factors, of the same rank. Merged into the target it gives
        what `apply` makes of its product. Raises StateError for what is no plain product (DoRA, whole
        tensors)."""
        found, tensors = contents(adapter, Parts(spec.identity())), dict(adapter.tensors)
        if found.whole or any(low.magnitude for low in found.low_rank.values()):
            raise StateError(
                "gains cannot be folded into an adapter that replaces tensors or lengths of rows: merge "
                "it, and carry the merged checkpoint"
            )
        for name, low in found.low_rank.items():
            gains = self._gains(spec, name)
            first = low.a.axes
            for factor in (low.a, low.b):
                axes = [d for d in factor.axes if 0 <= d < len(gains) and (factor is low.a or d not in first)]
                tensors[factor.key] = _along(tensors[factor.key], factor, {d: gains[d] for d in axes})
            if low.bias:
                tensors[low.bias] = tensors[low.bias] * self._gains(spec, bias_of(low, spec))[0].to(
                    tensors[low.bias]
                )
        return replace(adapter, tensors=tensors)

    def _gains(self, spec: Spec, name: str) -> tuple[Tensor, ...]:
        own = spec.ties.get(name, name)
        if own not in self.axes:
            raise StateError(
                f"there are no gains for {name!r}, which the adapter changes: fit them for this model"
            )
        return self.axes[own]

    def __str__(self) -> str:
        width = max((len(name) for name in self.axes), default=6)
        lines = [f"{'tensor'.ljust(width)}  used  gains"]
        for name, gains in self.axes.items():
            ranges = "; ".join(f"{float(gain.min()):+.2f} to {float(gain.max()):+.2f}" for gain in gains)
            lines.append(f"{name.ljust(width)}  {self.used.get(name, 0):4.2f}  {ranges}")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file; it appears whole or not at all. Raises CheckpointError."""
        path = Path(path)
        tensors = {
            f"{name}:{k}": gain.detach().cpu().contiguous()
            for name, gains in self.axes.items()
            for k, gain in enumerate(gains)
        }
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, draft, metadata={"format": FORMAT, "used": json.dumps(dict(self.used))})
            os.replace(draft, path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write {path}: {error}: is there such a folder, and is it writable?"
            ) from None
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Gains:
        """Reads what `save` wrote. Raises CheckpointError on anything else."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(f"{path} holds no gains: give a file written by Gains.save")
                used, axes = json.loads(metadata["used"]), {}
                for key in sorted(
                    file.keys(), key=lambda key: (key.rpartition(":")[0], int(key.rpartition(":")[2]))
                ):
                    axes.setdefault(key.rpartition(":")[0], []).append(file.get_tensor(key))
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise CheckpointError(
                f"cannot read the gains {path}: {str(error).splitlines()[0]}: is it complete?"
            ) from None
        return cls({name: tuple(axes[name]) for name in used}, used)


def _ones(tensor: Tensor) -> tuple[Tensor, ...]:
    """One gain for each index of the first two axes; a kernel's other axes have none. One number for a
    vector."""
    if tensor.ndim < 2:
        return (torch.ones_like(tensor[:1] if tensor.ndim else tensor),)
    shapes = [[size if d == axis else 1 for d, size in enumerate(tensor.shape)] for axis in range(2)]
    return tuple(tensor.new_ones(shape) for shape in shapes)


def _product(tensor: Tensor, gains: tuple[Tensor, ...]) -> Tensor:
    for gain in gains:
        tensor = tensor * gain.to(tensor.device, tensor.dtype)
    return tensor


def _along(tensor: Tensor, factor: Factor, gains: Mapping[int, Tensor]) -> Tensor:
    """A factor of a low-rank product with gains on some axes of the weight."""
    shaped = tensor.reshape(factor.shape)
    for axis, gain in gains.items():
        place = factor.axes.index(axis)
        shaped = shaped * gain.to(tensor).reshape([-1 if d == place else 1 for d in range(shaped.ndim)])
    return shaped.reshape(tensor.shape)
