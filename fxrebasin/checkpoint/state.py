"""The state in a checkpoint: loading it, saving it in the form of another one, and ties."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .file import identity
from .form import Form, State
from .stored import Stored, form_of
from .writer import choose, plan, writing


def load_state(path: str | os.PathLike, device: str | torch.device = "cpu") -> State:
    """The tensors of a checkpoint: a file, a folder, or the index file of a folder.

    A torch file that nests its state under "state_dict", "model_state_dict" or "model" is unwrapped, with a
    `CheckpointNote`. Raises CheckpointError for files that are missing, empty, truncated, unknown, or that
    hold more than tensors.
    """
    with Stored(path, mapped=False) as stored:
        return {name: tensor.to(device) for name, tensor in stored.items()}


def save_state(state: Mapping[str, Tensor], path: str | os.PathLike,
               like: str | os.PathLike | Form | None = None) -> None:
    """Writes a checkpoint to `path`: a file by its ending, safetensors or torch.

    With `like`, a checkpoint or its `form_of`, the new one keeps its form: dtypes, metadata, wrapper key,
    and, if `path` has none of the endings above, also the kind of file or the folder with the same shards
    and all else that it holds.

    Ties: a safetensors file cannot say that two names are one tensor, so each name gets its own copy, and
    the file loads into the tied model with `load_state_dict` as it is. Where `like` leaves a tied name out,
    as transformers does, so does the new checkpoint.

    An existing file is replaced, an existing folder must be empty. Raises CheckpointError.
    """
    form = _form(like)
    state = _as_stored(state, form)
    with writing(plan(path, state, form)) as writer:
        for name, tensor in state.items():
            writer.put(name, tensor)
        writer.finish()


def check_writable(path: str | os.PathLike, like: str | os.PathLike | Form | None = None) -> None:
    """Raises CheckpointError if `save_state` to `path` could not succeed, before any work is done for it."""
    choose(Path(path), _form(like))


def _form(like: str | os.PathLike | Form | None) -> Form | None:
    return like if like is None or isinstance(like, Form) else form_of(like)


def _as_stored(state: Mapping[str, Tensor], form: Form | None) -> Mapping[str, Tensor]:
    """The tensors as `form` has them: without the tied names that it leaves out."""
    if form is None:
        return state
    kept = {identity(tensor) for name, tensor in state.items() if name in form.files}
    return {name: tensor for name, tensor in state.items() if name in form.files or identity(tensor) not in kept}


def fill_ties(state: Mapping[str, Tensor], ties: Mapping[str, str]) -> State:
    """The state with the tied names that its file leaves out; `ties`: alias -> name, as in `Spec.ties`."""
    result = dict(state)
    for alias, name in ties.items():
        known = next((n for n in (name, *(a for a in ties if ties[a] == name)) if n in state), None)
        for missing in {alias, name} - set(state) if known else ():
            result[missing] = state[known]
    return result
