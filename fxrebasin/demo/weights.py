"""The demo's checkpoint files: small enough to travel with the package.

Matrices are stored as int8 with one float32 scale a row, everything else as float16 (ten whole networks in
float16 would be 15 MB). Task vectors are rounded on their own, so that their error is relative to the task
vector and not to the weights. All training steps start from the rounded weights: what is shipped is what
was trained on.
"""
from __future__ import annotations

import json
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


def name_of(model: str, letter: str) -> str:
    """What the files of a base are called: "mlp_a"; of the text encoders by their seeds, A is 1 and B is 2."""
    return f"text_{'AB'.index(letter) + 1}" if model == "text" else f"{model}_{letter.lower()}"


def base(model: str, letter: str, folder: Path = SHIPPED) -> State:
    """Base "A" or "B" of a model ("mlp", "vit", "text")."""
    return read(folder / f"{name_of(model, letter)}.safetensors")


def finetuned(model: str, task: str, folder: Path = SHIPPED) -> State:
    """Base A fine-tuned on a task: base A plus the stored task vector."""
    start, change = base(model, "A", folder), read(folder / f"{name_of(model, 'A')}_{task}.safetensors")
    return {name: value + change[name] for name, value in start.items()}


def oracle(model: str, task: str, folder: Path = SHIPPED) -> float:
    """The recorded accuracy of B fine-tuned on a task, on (the first of) the shipped test data."""
    recorded = json.loads((folder / f"{'text_2' if model == 'text' else model}_measured.json").read_text())["accuracy"]
    label = f"fine-tuned, {task}" if model == "text" else f"B fine-tuned, {task}"
    return recorded[label][task]["first 1,000" if model == "text" else "first 2,000"]
