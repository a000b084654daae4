"""The demo's checkpoint files: small enough to travel with the package.

Matrices are stored as int8 with one float32 scale a row, everything else as float16 (ten whole networks in
float16 would be 15 MB). Task vectors are rounded on their own, so that their error is relative to the task
vector and not to the weights. All training steps start from the rounded weights: what is shipped is what
was trained on.
"""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from .data import SHIPPED

State = dict[str, Tensor]


def pack(state: State) -> State:
    """The stored form: `name` (int8 with `name:scale` for matrices, else float16)."""
    packed: State = {}
    for name, value in state.items():
        if value.ndim == 2:
            scale = value.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            packed[name] = (value / scale).round().to(torch.int8)
            packed[f"{name}:scale"] = scale.float()
        else:
            packed[name] = value.half()
    return packed


def unpack(packed: State) -> State:
    """The float32 state of a stored form."""
    return {name: value.float() * packed.get(f"{name}:scale", 1.0)
            for name, value in packed.items() if not name.endswith(":scale")}


def rounded(state: State) -> State:
    """What comes back after storing."""
    return unpack(pack(state))


def save(file: Path, state: State, note: str) -> None:
    """Write one stored state with a line of provenance."""
    save_file(pack(state), str(file), metadata={"note": note})
    file.chmod(0o644)  # safetensors writes files that only their owner may read


def read(file: Path) -> State:
    """The float32 state in a file written by `save`; CheckpointError if there is none."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file, it is part of fxrebasin: install the package again")
    with safe_open(str(file), "pt") as tensors:
        return unpack({name: tensors.get_tensor(name) for name in tensors.keys()})


def base(model: str, letter: str, folder: Path = SHIPPED) -> State:
    """Base "A" or "B" of a model ("mlp", "vit")."""
    return read(folder / f"{model}_{letter.lower()}.safetensors")


def finetuned(model: str, task: str, folder: Path = SHIPPED) -> State:
    """Base A fine-tuned on a task: base A plus the stored task vector."""
    start, change = base(model, "A", folder), read(folder / f"{model}_a_{task}.safetensors")
    return {name: value + change[name] for name, value in start.items()}
