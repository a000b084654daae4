"""How a checkpoint is stored, apart from its numbers."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import Note
from ..spec.dtypes import stored_as

Kind = Literal["safetensors", "torch", "distributed"]
State = dict[str, Tensor]

SUFFIXES: dict[str, Kind] = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch",
                             ".ckpt": "torch"}
INDEX = ".index.json"  # how the name of a file ends that says which shard holds which tensor
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys that a model's state is commonly saved under
METADATA = ".metadata"  # the index of a folder of torch.distributed.checkpoint


class CheckpointNote(Note):
    """Something about a checkpoint that its reader should know."""


@dataclass(frozen=True)
class Form:
    """How a checkpoint is stored, without its numbers: all that is needed to write another one like it.

    kind      of every file
    folder    of a checkpoint that is a folder, else None
    files     tensor name -> the name of the file that holds it
    index     name of the file that says so, for checkpoints in shards, else None
    dtypes    tensor name -> dtype
    shapes    tensor name -> shape
    metadata  file name -> free text entries of a safetensors file ({"format": "pt"})
    wrapper   the key under which the state lies in what torch wrote ("state_dict"), else None
    totals    what the index says of the checkpoint as a whole
    """

    kind: Kind
    folder: Path | None
    files: Mapping[str, str]
    index: str | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    wrapper: str | None = None
    totals: Mapping[str, Any] = field(default_factory=dict)

    def bytes(self, name: str) -> int:
        """How much room a tensor takes."""
        return torch.Size(self.shapes[name]).numel() * self.dtypes[name].itemsize

    def widened(self, dtype: torch.dtype | None) -> "Form":
        """The same with floating-point and complex tensors in another dtype (None: as they are)."""
        return self if dtype is None else replace(self, dtypes={
            name: stored_as(own, dtype) for name, own in self.dtypes.items()})

    def blank(self) -> State:
        """Its tensors without their numbers, on the meta device."""
        return {name: torch.empty(self.shapes[name], dtype=dtype, device="meta")
                for name, dtype in self.dtypes.items()}


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error, for use within a line."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".")[:160] if lines else type(error).__name__
