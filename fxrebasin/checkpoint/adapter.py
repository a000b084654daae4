"""The folder of a PEFT adapter: a configuration, and the tensors in one file."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .file import kind_of, read_file, whole, write_file
from .form import Kind, State, first_sentence

CONFIG = "adapter_config.json"
_FILES: dict[str, Kind] = {"adapter_model.safetensors": "safetensors", "adapter_model.bin": "torch"}


def is_adapter(path: str | os.PathLike) -> bool:
    """Whether `path` is the folder of an adapter."""
    return (Path(path) / CONFIG).is_file()


def load_adapter(path: str | os.PathLike) -> tuple[dict[str, Any], State]:
    """The configuration and the tensors of an adapter. Raises CheckpointError."""
    folder = Path(path)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{folder} is not an adapter: {CONFIG}: {error.strerror or error}: give a folder that "
                              "PEFT wrote") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not JSON ({first_sentence(error)}): copy or download it "
                              "again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} is not the configuration of an adapter: copy or download it again")
    file = tensors_of(folder)
    try:
        return config, read_file(file, kind_of(file), "cpu")[0]
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}: check its permissions") from None


def tensors_of(folder: Path) -> Path:
    """The file of an adapter's tensors."""
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has no {' or '.join(_FILES)}: copy or download it too")


def save_adapter(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | os.PathLike,
                 like: str | os.PathLike | None = None) -> None:
    """Writes the folder of an adapter. Raises CheckpointError."""
    with whole(path) as draft:
        draft.mkdir()
        (draft / CONFIG).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_file(dict(tensors), draft / "adapter_model.safetensors", "safetensors", {})
