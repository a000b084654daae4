"""The state in a checkpoint: loading it, saving it in the form of another one, and ties."""
from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .file import identity, kind_of, read_file, whole, write_file
from .folder import find, read_shards, write_folder
from .form import INDEX, SUFFIXES, CheckpointNote, Form, Kind, State, dtypes_of


def load_state(path: str | os.PathLike, device: str | torch.device = "cpu") -> State:
    """The tensors of a checkpoint: a file, a folder, or the index file of a folder.

    A torch file that nests its state under "state_dict", "model_state_dict" or "model" is unwrapped, with a
    `CheckpointNote`. Raises CheckpointError for files that are missing, empty, truncated, unknown, or that
    hold more than tensors.
    """
    return _read(Path(path), str(device))[0]


def form_of(path: str | os.PathLike) -> Form:
    """How the checkpoint at `path` is stored, without its numbers. Raises CheckpointError as `load_state`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNote)
        return _read(Path(path), "meta")[1]


def _read(path: Path, device: str) -> tuple[State, Form]:
    try:
        path, folder = find(path)
        if folder is not None and path.name.endswith(INDEX):
            return read_shards(path, folder, device)
        kind = kind_of(path)
        state, metadata, wrapper = read_file(path, kind, device)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}: check the path and its "
                              "permissions") from None
    if not state:
        raise CheckpointError(f"{path} holds no tensors: give the checkpoint of a model")
    files = dict.fromkeys(state, path.name)
    return state, Form(kind, folder, files, None, dtypes_of(state), {path.name: metadata}, wrapper)


def save_state(state: Mapping[str, Tensor], path: str | os.PathLike,
               like: str | os.PathLike | Form | None = None) -> None:
    """Writes a checkpoint to `path`: a file by its ending, safetensors or torch.

    With `like`, a checkpoint or its `form_of`, the new one keeps its form: dtypes, metadata, wrapper key,
    and, if `path` has none of the endings above, also the kind of file or the folder with the same shards,
    its configuration and tokenizer files.

    Ties: a safetensors file cannot say that two names are one tensor, so each name gets its own copy, and
    the file loads into the tied model with `load_state_dict` as it is. Where `like` leaves a tied name out,
    as transformers does, so does the new checkpoint.

    An existing file is replaced, an existing folder must be empty. Raises CheckpointError.
    """
    path = Path(path)
    form = _form(like)
    kind, as_folder = _choose(path, form)
    tensors = _as_stored(state, form)
    with whole(path) as draft:
        if as_folder and form is not None:
            write_folder(tensors, draft, form)
        else:
            metadata = {} if form is None else next(iter(form.metadata.values()), {})
            write_file(tensors, draft, kind, metadata, form.wrapper if form else None)


def check_writable(path: str | os.PathLike, like: str | os.PathLike | Form | None = None) -> None:
    """Raises CheckpointError if `save_state` to `path` could not succeed, before any work is done for it."""
    _choose(Path(path), _form(like))


def _form(like: str | os.PathLike | Form | None) -> Form | None:
    return like if like is None or isinstance(like, Form) else form_of(like)


def _choose(path: Path, form: Form | None) -> tuple[Kind, bool]:
    """Kind of file, and whether a folder is to be written."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {parent}: make it first")
    if path.is_dir() and any(path.iterdir()):
        raise CheckpointError(f"cannot write {path}: a folder of that name is there and not empty: choose "
                              "another name")
    if path.suffix in SUFFIXES and not path.is_dir():
        return SUFFIXES[path.suffix], False
    if form is None or (form.folder is None and path.is_dir()):
        raise CheckpointError(f"cannot tell what to write to {path}: give a name that ends in .safetensors "
                              "or .pt")
    return form.kind, form.folder is not None


def _as_stored(state: Mapping[str, Tensor], form: Form | None) -> State:
    """The tensors as `form` has them: without the tied names that it leaves out, in its dtypes."""
    if not state:
        raise CheckpointError("there are no tensors to save: give a model's state_dict()")
    if form is not None:
        kept = {identity(tensor) for name, tensor in state.items() if name in form.files}
        state = {name: tensor for name, tensor in state.items()
                 if name in form.files or identity(tensor) not in kept}
    tensors: State = {}
    done: dict[tuple, Tensor] = {}  # ties remain ties
    for name, tensor in state.items():
        dtype = form.dtypes.get(name, tensor.dtype) if form is not None else tensor.dtype
        key = identity(tensor), dtype
        if key not in done:
            done[key] = _cast(name, tensor, dtype)
        tensors[name] = done[key]
    return tensors


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in CPU memory, in `dtype` if both are floating-point. Raises CheckpointError on overflow."""
    if tensor.device.type == "meta":
        raise CheckpointError(f"{name!r} has no data (it is on the meta device): load its values before "
                              "saving")
    both_float = tensor.is_floating_point() and dtype.is_floating_point
    cast = tensor.detach().to("cpu", dtype if both_float else None)
    if cast.dtype != tensor.dtype and torch.isfinite(tensor).all() and not torch.isfinite(cast).all():
        raise CheckpointError(f"{name!r} has values too large for {dtype}, the dtype of the checkpoint to "
                              "resemble: convert that to a wider dtype first")
    return cast


def fill_ties(state: Mapping[str, Tensor], ties: Mapping[str, str]) -> State:
    """The state with the tied names that its file leaves out; `ties`: alias -> name, as in `Spec.ties`."""
    result = dict(state)
    for alias, name in ties.items():
        known = next((n for n in (name, *(a for a in ties if ties[a] == name)) if n in state), None)
        for missing in {alias, name} - set(state) if known else ():
            result[missing] = state[known]
    return result
