"""A folder that holds a checkpoint, in one file or in shards with an index, as transformers writes them."""
from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .form import INDEX, METADATA, SUFFIXES, first_sentence

# Where a folder holds several, the first one is read, as transformers does.
_MAIN = ("model.safetensors", "model.safetensors" + INDEX, "pytorch_model.bin", "pytorch_model.bin" + INDEX)
_WEIGHTS = re.compile(r"(.*[-_.])?(model|pytorch_model|consolidated)([-_.].*)?\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|ot)"
                      r"|.*\.(distcp|gguf|onnx|onnx_data|tflite|h5|msgpack|ot)")
_NOT_PART = {".git", ".cache", "__pycache__"}  # of folders: how they came here, not what they hold
CARD = "README.md"


def find(path: Path) -> tuple[Path, Path | None]:
    """The file to begin with, and the folder if the checkpoint is one."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder: check the path")
    if not path.is_dir():
        return path, path.parent if path.name.endswith(INDEX) or path.name == METADATA else None
    for name in _MAIN:
        if (path / name).is_file():
            return path / name, path
    if (path / METADATA).is_file():
        return path / METADATA, path
    others = (sorted(path.glob("*.safetensors" + INDEX))
              or sorted(p for p in path.iterdir() if p.suffix in SUFFIXES))
    if len(others) != 1:
        names = ", ".join(p.name for p in others[:3])
        found = f"{len(others)} files that could be one ({names})" if others else "none"
        raise CheckpointError(f"{path}: looked for {_MAIN[2]} or another checkpoint in this folder, found "
                              f"{found}: give the file itself")
    return others[0], path


def read_index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Tensor name -> shard, and what is said of the whole; only plain file names, so that nothing outside the folder is
    read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = content.get("weight_map") if isinstance(content, dict) else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({first_sentence(error)}): copy or download it "
                              "again") from None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f'{path} has no "weight_map" from tensors to files: copy or download it again')
    for name in files.values():
        if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
            raise CheckpointError(f"{path} names the shard {name!r}, which is not a file of its own folder: "
                                  "do not use this checkpoint, or correct the index")
    totals = content.get("metadata")
    return files, totals if isinstance(totals, dict) else {}


# ---- what it holds besides ---------------------------------------------------------------------------------


def copy_rest(folder: Path, draft: Path, written: Collection[str], card: str = "") -> list[str]:
    """Copies what a folder holds besides its weights to `draft`; returns what was left out, a line each.

    Links stay links: what lies outside the folder is never copied. Weights in other formats are left out, since they
    would be those of another model.

    written  names of files that are written anew
    card     a section to add to the folder's README.md
    """
    left: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name not in _NOT_PART and path.name not in written and not _is_draft(path):
            _copy(path, draft / path.name, folder.resolve(), left)
    if card:
        _add_to_card(draft / CARD, card)
    return left


def _is_draft(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part")


def _copy(path: Path, new: Path, root: Path, left: list[str]) -> None:
    inner = path.is_dir() and not path.is_symlink()
    if not inner and (_WEIGHTS.fullmatch(path.name) or _WEIGHTS.fullmatch(path.name.removesuffix(INDEX))) and (
            path.parent.resolve() == root or not path.name.endswith((".safetensors", ".bin", ".pt"))):
        left.append(f"{path}: other weights, of the model before")
    elif path.is_symlink():
        target = Path(os.path.realpath(path))
        inside = target.is_relative_to(root)
        new.symlink_to(os.path.relpath(target, path.parent.resolve()) if inside else target)
    elif inner:
        new.mkdir()
        for each in sorted(path.iterdir()):
            if each.name not in _NOT_PART:
                _copy(each, new / each.name, root, left)
    elif path.is_file():
        shutil.copyfile(path, new)
        shutil.copymode(path, new)
    else:
        left.append(f"{path}: neither a file nor a folder")


def _add_to_card(card: Path, section: str) -> None:
    """Adds a section to a model card; one that is a link is replaced, not followed."""
    text = ""
    if card.is_symlink():
        card.unlink()
    elif card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace").rstrip("\n") + "\n\n"
    card.write_text(text + section.rstrip("\n") + "\n", encoding="utf-8")


def index_text(files: Mapping[str, str], tensors: Mapping[str, Tensor], totals: Mapping[str, Any]) -> str:
    """The index of shards: `totals` with the sizes that these tensors have."""
    own = dict(totals) | {"total_size": sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())}
    if "total_parameters" in own:
        own["total_parameters"] = sum(tensor.numel() for tensor in tensors.values())
    return json.dumps({"metadata": own, "weight_map": dict(files)}, indent=2) + "\n"
