"""The folder of a PEFT adapter: a configuration, and the tensors in one file."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..draft import whole
from ..errors import CheckpointError
from .folder import copy_rest
from .form import Form, State, first_sentence
from .state import load_state
from .writer import choose, plan, writing

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")


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
    return config, load_state(tensors_of(folder))


def tensors_of(folder: Path) -> Path:
    """The file of an adapter's tensors."""
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has no {' or '.join(_FILES)}: copy or download it too")


def save_adapter(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | os.PathLike,
                 like: str | os.PathLike | None = None, card: str = "") -> None:
    """Writes the folder of an adapter, with all else that the folder `like` holds. Raises CheckpointError."""
    check_folder(path)
    with whole(path) as draft:
        draft.mkdir()
        if like is not None:
            copy_rest(Path(like), draft, {CONFIG, *_FILES}, card)
        (draft / CONFIG).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        with writing(plan(draft / _FILES[0], tensors, None)) as writer:
            for name, tensor in tensors.items():
                writer.put(name, tensor)
            writer.finish()


def check_folder(path: str | os.PathLike) -> None:
    """Raises CheckpointError if no new folder can be written to `path`."""
    choose(Path(path), Form("safetensors", Path(path), {}))
