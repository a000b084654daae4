"""Checkpoints: safetensors files, torch files, and folders of either, whole or in shards.

What a file is, is told from its first bytes, not from its name. Torch files are read with `weights_only=True`
alone, so that no code in them is run. What is written appears under its name whole or not at all.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError

Kind = Literal["safetensors", "torch"]
State = dict[str, Tensor]

SUFFIXES: dict[str, Kind] = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch",
                             ".ckpt": "torch"}
_MAIN = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "model.safetensors",
    "pytorch_model.bin",
)
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_COPIED = {
    ".json",
    ".txt",
    ".model",
    ".jinja",
}  # what a folder holds besides weights: configuration, tokenizer
_INDEX = ".index.json"


class CheckpointNote(UserWarning):
    """Something about a checkpoint that its reader should know."""


@dataclass(frozen=True)
class Form:
    """How a checkpoint is stored, without its numbers: all that is needed to write another one like it.

    kind      of every file
    folder    of a checkpoint that is a folder, else None
    files     tensor name -> the name of the file that holds it
    index     name of the file that says so, for checkpoints in shards, else None
    dtypes    tensor name -> dtype
    metadata  file name -> free text entries of a safetensors file ({"format": "pt"})
    wrapper   the key of a torch file under which the state lies ("state_dict"), else None
    """

    kind: Kind
    folder: Path | None
    files: Mapping[str, str]
    index: str | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    wrapper: str | None = None


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


def save_state(
    state: Mapping[str, Tensor], path: str | os.PathLike, like: str | os.PathLike | Form | None = None
) -> None:
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
    form = form_of(like) if like is not None and not isinstance(like, Form) else like
    kind, as_folder = _choose(path, form)
    tensors = _as_stored(state, form)
    with whole(path) as draft:
        if not as_folder:
            metadata = {} if form is None else next(iter(form.metadata.values()), {})
            _write(tensors, draft, kind, metadata, form.wrapper if form else None)
        else:
            assert form is not None and form.folder is not None
            _write_folder(tensors, draft, form)


def fill_ties(state: Mapping[str, Tensor], ties: Mapping[str, str]) -> State:
    """The state with the tied names that its file leaves out; `ties`: alias -> name, as in `Spec.ties`."""
    result = dict(state)
    for alias, name in ties.items():
        known = next((n for n in (name, *(a for a in ties if ties[a] == name)) if n in state), None)
        for missing in {alias, name} - set(state) if known else ():
            result[missing] = state[known]
    return result


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A name beside `path` to write to: it becomes `path` at the end, or vanishes if anything fails."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        if draft.is_file():
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())  # the name must not outlive a crash that the content does not
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or _line(error)
        raise CheckpointError(
            f"cannot write {path}: {reason}: choose a place that exists and has room"
        ) from None
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


# ---- reading -----------------------------------------------------------------------------------------------


def _read(path: Path, device: str) -> tuple[State, Form]:
    try:
        path, folder = _find(path)
        if path.name.endswith(_INDEX):
            return _read_shards(path, folder, device)
        kind = _kind(path)
        state, metadata, wrapper = _read_file(path, kind, device)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}: check the path and its permissions"
        ) from None
    if not state:
        raise CheckpointError(f"{path} holds no tensors: give the checkpoint of a model")
    return state, Form(
        kind, folder, dict.fromkeys(state, path.name), None, _dtypes(state), {path.name: metadata}, wrapper
    )


def _find(path: Path) -> tuple[Path, Path | None]:
    """The file to begin with, and the folder if the checkpoint is one."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder: check the path")
    if not path.is_dir():
        return path, path.parent if path.name.endswith(_INDEX) else None
    for name in _MAIN:
        if (path / name).is_file():
            return path / name, path
    others = sorted(path.glob("*.safetensors" + _INDEX)) or sorted(
        p for p in path.iterdir() if p.suffix in SUFFIXES
    )
    if len(others) != 1:
        found = (
            f"{len(others)} files that could be one ({', '.join(p.name for p in others[:3])})"
            if others
            else "none"
        )
        raise CheckpointError(
            f"{path}: looked for {_MAIN[2]} or another checkpoint in this folder, found {found}: "
            "give the file itself"
        )
    return others[0], path


def _kind(path: Path) -> Kind:
    """What a file is, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if not head:
        raise CheckpointError(f"{path} is empty: copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights themselves: run `git lfs pull`")
    if (
        head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
        and head[8:9] != b"{"
    ):
        return "torch"
    if head[8:9] == b"{":
        if int.from_bytes(head[:8], "little") + 8 > size:
            raise CheckpointError(
                f"{path} is truncated (its header alone is longer than the file): copy or download it again"
            )
        return "safetensors"
    known = SUFFIXES.get(path.suffix)
    what = f"damaged, or not a {known} file" if known else "of an unknown format"
    raise CheckpointError(
        f"{path} is {what} (it begins with {head[:8]!r}): give a safetensors file or a torch file of tensors"
    )


def _read_file(path: Path, kind: Kind, device: str) -> tuple[State, dict[str, str], str | None]:
    if kind == "safetensors":
        return *_read_safetensors(path, device), None
    state, wrapper = _read_torch(path, device)
    return state, {}, wrapper


def _read_safetensors(path: Path, device: str) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu" if device == "meta" else device) as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format", "").startswith("fxrebasin-alignment"):
                raise CheckpointError(
                    f"{path} is an alignment, not a checkpoint: give the weights of a model here"
                )
            names = list(file.keys())
            return {name: file.get_tensor(name).to(device) for name in names}, metadata
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({_line(error)}): copy or download it again"
        ) from None


def _read_torch(path: Path, device: str) -> tuple[State, str | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise CheckpointError(_torch_refusal(path, error)) from None
    wrapper = None
    if isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if wrapper is not None:
        left = [str(key) for key in content if key != wrapper]
        also = (
            f"; {', '.join(map(repr, left[:3]))}{' and more' if len(left) > 3 else ''} left aside"
            if left
            else ""
        )
        warnings.warn(f"{path}: took the state under {wrapper!r}{also}", CheckpointNote, stacklevel=5)
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not named tensors: save model.state_dict()"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor: save model.state_dict() "
                "alone, or under the key 'state_dict'"
            )
    return {name: value.detach() for name, value in content.items()}, wrapper


def _torch_refusal(path: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return f"{path} is a TorchScript archive: save the state_dict() of the module instead"
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"{path} holds Python objects ({found[1]}), which could run any code, and was not loaded: get a "
            "safetensors file, or save model.state_dict() alone"
        )
    if "Weights only load failed" in text and "Unsupported" in text:
        return (
            f"{path} holds more than tensors and was not loaded: get a safetensors file, or save "
            "model.state_dict() alone"
        )
    return f"{path} is truncated, damaged or not a torch file ({_line(error)}): copy or download it again"


def _read_shards(index: Path, folder: Path | None, device: str) -> tuple[State, Form]:
    assert folder is not None
    files = _read_index(index)
    state: State = {}
    metadata: dict[str, dict[str, str]] = {}
    kinds: set[Kind] = set()
    for name in dict.fromkeys(files.values()):
        shard = folder / name
        if not shard.is_file():
            raise CheckpointError(
                f"{index} names the shard {name!r}, which is not there: copy or download it too"
            )
        kinds.add(kind := _kind(shard))
        found, metadata[name], _ = _read_file(shard, kind, device)
        expected = {tensor for tensor, file in files.items() if file == name}
        if odd := sorted(expected ^ set(found)):
            raise CheckpointError(
                f"{index} and its shard {name!r} disagree on {odd[0]!r}: get both from one source"
            )
        state.update(found)
    if len(kinds) != 1:
        raise CheckpointError(f"{index} names shards of different kinds: get them from one source")
    return {name: state[name] for name in files}, Form(
        kinds.pop(), folder, files, index.name, _dtypes(state), metadata
    )


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard; only plain file names, so that nothing outside the folder is read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = content.get("weight_map") if isinstance(content, dict) else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({_line(error)}): copy or download it again") from None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f'{path} has no "weight_map" from tensors to files: copy or download it again')
    for name in files.values():
        if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
            raise CheckpointError(
                f"{path} names the shard {name!r}, which is not a file of its own folder: do not use this "
                "checkpoint, or correct the index"
            )
    return files


def _dtypes(state: State) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in state.items()}


def _line(error: BaseException) -> str:
    """The first sentence of an error, for use within a line."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".")[:160] if lines else type(error).__name__


# ---- writing -----------------------------------------------------------------------------------------------


def check_writable(path: str | os.PathLike, like: str | os.PathLike | Form | None = None) -> None:
    """Raises CheckpointError if `save_state` to `path` could not succeed, before any work is done for it."""
    _choose(Path(path), form_of(like) if like is not None and not isinstance(like, Form) else like)


def _choose(path: Path, form: Form | None) -> tuple[Kind, bool]:
    """Kind of file, and whether a folder is to be written."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {parent}: make it first")
    if path.is_dir() and any(path.iterdir()):
        raise CheckpointError(
            f"cannot write {path}: a folder of that name is there and not empty: choose another name"
        )
    if path.suffix in SUFFIXES and not path.is_dir():
        return SUFFIXES[path.suffix], False
    if form is None or (form.folder is None and path.is_dir()):
        raise CheckpointError(
            f"cannot tell what to write to {path}: give a name that ends in .safetensors or .pt"
        )
    return form.kind, form.folder is not None


def _as_stored(state: Mapping[str, Tensor], form: Form | None) -> State:
    """The tensors as `form` has them: without the tied names that it leaves out, in its dtypes."""
    if not state:
        raise CheckpointError("there are no tensors to save: give a model's state_dict()")
    if form is not None:
        kept = {_place(tensor) for name, tensor in state.items() if name in form.files}
        state = {
            name: tensor for name, tensor in state.items() if name in form.files or _place(tensor) not in kept
        }
    tensors: State = {}
    done: dict[tuple, Tensor] = {}  # ties remain ties
    for name, tensor in state.items():
        if tensor.device.type == "meta":
            raise CheckpointError(
                f"{name!r} has no data (it is on the meta device): load its values before saving"
            )
        dtype = form.dtypes.get(name, tensor.dtype) if form is not None else tensor.dtype
        cast = tensor.detach().to(
            "cpu", dtype if tensor.is_floating_point() and dtype.is_floating_point else None
        )
        if cast.dtype != tensor.dtype and torch.isfinite(tensor).all() and not torch.isfinite(cast).all():
            raise CheckpointError(
                f"{name!r} has values too large for {dtype}, the dtype of the checkpoint to resemble: "
                "convert that to a wider dtype first"
            )
        tensors[name] = done.setdefault((_place(tensor), dtype), cast)
    return tensors


def _place(tensor: Tensor) -> tuple:
    """Equal for two names of one tensor."""
    return (
        tensor.data_ptr() if tensor.numel() else id(tensor),
        tensor.device,
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
    )


def _write(
    state: State, path: Path, kind: Kind, metadata: Mapping[str, str], wrapper: str | None = None
) -> None:
    path.touch()  # safetensors would make a file for its owner's eyes only
    mode = path.stat().st_mode
    if kind == "safetensors":
        metadata = {"format": "pt"} | dict(metadata)
        save_file(
            _apart({name: tensor.contiguous() for name, tensor in state.items()}), path, metadata=metadata
        )
    else:
        compact = {}
        seen: dict[tuple, Tensor] = {}
        for (
            name,
            tensor,
        ) in state.items():  # a view would be saved with all of the storage that it is a view of
            small = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
            compact[name] = seen.setdefault(_place(tensor), tensor.clone() if small else tensor)
        try:
            torch.save({wrapper: compact} if wrapper else compact, path)
        except RuntimeError as error:  # how it reports a full disk
            raise OSError(_line(error)) from None
    path.chmod(mode)


def _apart(state: State) -> State:
    """The same tensors, none of which overlaps another in memory."""
    result, end = dict(state), {}
    for name in sorted(state, key=lambda name: (state[name].data_ptr(), state[name].numel())):
        tensor = state[name]
        storage = tensor.untyped_storage().data_ptr()
        if tensor.data_ptr() < end.get(storage, 0):
            result[name] = tensor.clone()
        else:
            end[storage] = tensor.data_ptr() + tensor.numel() * tensor.element_size()
    return result


def _write_folder(state: State, draft: Path, form: Form) -> None:
    assert form.folder is not None
    draft.mkdir()
    for path in sorted(form.folder.iterdir()):
        if path.is_file() and path.suffix in _COPIED and not path.name.endswith(_INDEX):
            shutil.copyfile(path, draft / path.name)
    last = list(form.files.values())[-1]
    files = {name: form.files.get(name, last) for name in state}
    for file in dict.fromkeys(files.values()):
        part = {name: tensor for name, tensor in state.items() if files[name] == file}
        _write(part, draft / file, form.kind, form.metadata.get(file, {}), form.wrapper)
    if form.index is not None:
        total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2) + "\n"
        (draft / form.index).write_text(text, encoding="utf-8")
