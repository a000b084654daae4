"""Inputs from files: a batch of a model's inputs, by the names of its arguments."""
from __future__ import annotations

import inspect
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError


def read_samples(path: str, module: nn.Module) -> Any:
    """The batch in a safetensors or npz file. One tensor is the first argument of `forward`, whatever it is called,
    unless its name is that of another argument; several are the arguments of their names. Raises CheckpointError."""
    tensors = _tensors(Path(path))
    parameters = inspect.signature(module.forward).parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if len(tensors) == 1 and next(iter(tensors)) not in parameters:
        return next(iter(tensors.values()))
    unknown = [name for name in tensors if name not in parameters and not free]
    if unknown:
        raise CheckpointError(f"{path} holds {unknown[0]!r}, which is no argument of {type(module).__name__}.forward: it "
                              f"takes {', '.join(list(parameters)[:6]) or 'none'}")
    return tensors


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
        else:
            found = load_file(path)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        raise CheckpointError(f"cannot read the inputs {path}: {(str(error) or type(error).__name__).splitlines()[0]}: "
                              "give a safetensors or npz file of numbers, by the names of the model's arguments") from None
    if not found:
        raise CheckpointError(f"{path} is empty: give a batch of inputs")
    return found
