"""A folder that holds a checkpoint, in one file or in shards with an index, as transformers writes them."""
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ..errors import CheckpointError
from .file import kind_of, read_file, write_file
from .form import INDEX, SUFFIXES, Form, Kind, State, dtypes_of, first_sentence

_MAIN = ("model.safetensors" + INDEX, "pytorch_model.bin" + INDEX, "model.safetensors", "pytorch_model.bin")
_COPIED = {".json", ".txt", ".model", ".jinja"}  # what it holds besides weights: configuration, tokenizer


def find(path: Path) -> tuple[Path, Path | None]:
    """The file to begin with, and the folder if the checkpoint is one."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder: check the path")
    if not path.is_dir():
        return path, path.parent if path.name.endswith(INDEX) else None
    for name in _MAIN:
        if (path / name).is_file():
            return path / name, path
    others = (sorted(path.glob("*.safetensors" + INDEX))
              or sorted(p for p in path.iterdir() if p.suffix in SUFFIXES))
    if len(others) != 1:
        names = ", ".join(p.name for p in others[:3])
        found = f"{len(others)} files that could be one ({names})" if others else "none"
        raise CheckpointError(f"{path}: looked for {_MAIN[2]} or another checkpoint in this folder, found "
                              f"{found}: give the file itself")
    return others[0], path


def read_shards(index: Path, folder: Path, device: str) -> tuple[State, Form]:
    """The tensors of all shards that an index names, in its order. Raises CheckpointError."""
    files = _read_index(index)
    state: State = {}
    metadata: dict[str, dict[str, str]] = {}
    kinds: set[Kind] = set()
    for name in dict.fromkeys(files.values()):
        shard = folder / name
        if not shard.is_file():
            raise CheckpointError(f"{index} names the shard {name!r}, which is not there: copy or download "
                                  "it too")
        kinds.add(kind := kind_of(shard))
        found, metadata[name], _ = read_file(shard, kind, device)
        expected = {tensor for tensor, file in files.items() if file == name}
        if odd := sorted(expected ^ set(found)):
            raise CheckpointError(f"{index} and its shard {name!r} disagree on {odd[0]!r}: get both from one "
                                  "source")
        state.update(found)
    if len(kinds) != 1:
        raise CheckpointError(f"{index} names shards of different kinds: get them from one source")
    state = {name: state[name] for name in files}
    return state, Form(kinds.pop(), folder, files, index.name, dtypes_of(state), metadata)


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard; only plain file names, so that nothing outside the folder is read."""
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
    return files


def write_folder(state: State, draft: Path, form: Form) -> None:
    """Writes tensors to a new folder `draft`, with the shards, index and configuration of that of `form`."""
    assert form.folder is not None
    draft.mkdir()
    for path in sorted(form.folder.iterdir()):
        if path.is_file() and path.suffix in _COPIED and not path.name.endswith(INDEX):
            shutil.copyfile(path, draft / path.name)
    last = list(form.files.values())[-1]
    files = {name: form.files.get(name, last) for name in state}
    for file in dict.fromkeys(files.values()):
        part = {name: tensor for name, tensor in state.items() if files[name] == file}
        write_file(part, draft / file, form.kind, form.metadata.get(file, {}), form.wrapper)
    if form.index is not None:
        total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2) + "\n"
        (draft / form.index).write_text(text, encoding="utf-8")
