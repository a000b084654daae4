"""One file of tensors: what kind it is, reading it, writing it."""
from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from .form import SUFFIXES, CheckpointNote, Kind, State, first_sentence

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_ZIP_OR_PICKLE = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


# ---- reading -----------------------------------------------------------------------------------------------


def kind_of(path: Path) -> Kind:
    """What a file is, by its first bytes. Raises CheckpointError if it is neither kind, or not complete."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty: copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights themselves: run `git lfs pull`")
    has_json_header = head[8:9] == b"{"
    if head.startswith(_ZIP_OR_PICKLE) and not has_json_header:
        return "torch"
    if has_json_header:
        if int.from_bytes(head[:8], "little") + 8 > path.stat().st_size:
            raise CheckpointError(f"{path} is truncated (its header alone is longer than the file): copy or "
                                  "download it again")
        return "safetensors"
    known = SUFFIXES.get(path.suffix)
    what = f"damaged, or not a {known} file" if known else "of an unknown format"
    raise CheckpointError(f"{path} is {what} (it begins with {head[:8]!r}): give a safetensors file or a "
                          "torch file of tensors")


def read_file(path: Path, kind: Kind, device: str) -> tuple[State, dict[str, str], str | None]:
    """The tensors of a file, its metadata (safetensors), and the key they lie under (torch)."""
    if kind == "safetensors":
        return *_read_safetensors(path, device), None
    state, wrapper = _read_torch(path, device)
    return state, {}, wrapper


def _read_safetensors(path: Path, device: str) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu" if device == "meta" else device) as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format", "").startswith("fxrebasin-alignment"):
                raise CheckpointError(f"{path} is an alignment, not a checkpoint: give the weights of a "
                                      "model here")
            names = list(file.keys())
            return {name: file.get_tensor(name).to(device) for name in names}, metadata
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({first_sentence(error)}): copy or download "
                              "it again") from None


def _read_torch(path: Path, device: str) -> tuple[State, str | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a hostile or damaged pickle can raise anything
        raise CheckpointError(_torch_refusal(path, error)) from None
    wrapper = None
    if isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if wrapper is not None:
        left = [repr(str(key)) for key in content if key != wrapper]
        also = f"; {', '.join(left[:3])}{' and more' if len(left) > 3 else ''} left aside" if left else ""
        warnings.warn(f"{path}: took the state under {wrapper!r}{also}", CheckpointNote, stacklevel=5)
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors: save "
                              "model.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor: save "
                                  "model.state_dict() alone, or under the key 'state_dict'")
    return {name: value.detach() for name, value in content.items()}, wrapper


def _torch_refusal(path: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return f"{path} is a TorchScript archive: save the state_dict() of the module instead"
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (f"{path} holds Python objects ({found[1]}), which could run any code, and was not loaded: "
                "get a safetensors file, or save model.state_dict() alone")
    if "Weights only load failed" in text and "Unsupported" in text:
        return (f"{path} holds more than tensors and was not loaded: get a safetensors file, or save "
                "model.state_dict() alone")
    return (f"{path} is truncated, damaged or not a torch file ({first_sentence(error)}): copy or download "
            "it again")


# ---- writing -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A name beside `path` to write to: it becomes `path` at the end, or vanishes if anything fails.

    Raises CheckpointError if the place cannot be written to.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        if draft.is_file():
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())  # the name must not outlive a crash that the content does not
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_sentence(error)
        raise CheckpointError(f"cannot write {path}: {reason}: choose a place that exists and has "
                              "room") from None
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def write_file(state: State, path: Path, kind: Kind, metadata: Mapping[str, str],
               wrapper: str | None = None) -> None:
    """Writes tensors in CPU memory. Raises OSError or SafetensorError."""
    path.touch()  # safetensors would make a file for its owner's eyes only
    mode = path.stat().st_mode
    if kind == "safetensors":
        tensors = _apart({name: tensor.contiguous() for name, tensor in state.items()})
        save_file(tensors, path, metadata={"format": "pt"} | dict(metadata))
    else:
        tensors = _compact(state)
        try:
            torch.save({wrapper: tensors} if wrapper else tensors, path)
        except RuntimeError as error:  # how it reports a full disk
            raise OSError(first_sentence(error)) from None
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


def _compact(state: State) -> State:
    """The same tensors without what is around them: a view would be saved with all that it is a view of."""
    compact: State = {}
    seen: dict[tuple, Tensor] = {}
    for name, tensor in state.items():
        is_part = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        compact[name] = seen.setdefault(identity(tensor), tensor.clone() if is_part else tensor)
    return compact


def identity(tensor: Tensor) -> tuple:
    """Equal for two names of one tensor."""
    place = tensor.data_ptr() if tensor.numel() else id(tensor)
    return place, tensor.device, tensor.dtype, tensor.shape, tensor.stride()
