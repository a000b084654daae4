"""One file of tensors: what kind it is, and torch files: reading them, writing them."""
from __future__ import annotations

import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .form import SUFFIXES, WRAPPERS, CheckpointNote, Kind, State, first_sentence

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


def open_torch(path: Path, mapped: bool, checked: bool) -> tuple[State, str | None]:
    """The tensors of a torch file, and the key they lie under.

    mapped   leave the numbers in the file until they are used (where it is of the newer kind)
    checked  hold all of the file against its checksums first
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip and checked:
        _check_sums(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip and mapped)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a hostile or damaged pickle can raise anything
        raise CheckpointError(_torch_refusal(path, error)) from None
    wrapper = None
    if isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
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


def _check_sums(path: Path) -> None:
    """Raises CheckpointError if a torch file's content is not what its checksums say."""
    try:
        with zipfile.ZipFile(path) as archive:
            odd = archive.testzip()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error,
            struct.error) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({first_sentence(error)}): copy or download it "
                              "again") from None
    if odd is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {odd!r} is wrong: copy or download it again")


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


def write_torch(state: Mapping[str, Tensor], path: Path, wrapper: str | None = None) -> None:
    """Writes tensors in CPU memory to a torch file. Raises OSError."""
    tensors = _compact(state)
    try:
        with open(path, "wb") as file:  # by its name the file would say what the draft was called
            torch.save({wrapper: tensors} if wrapper else tensors, file)
    except RuntimeError as error:  # how it reports a full disk
        raise OSError(first_sentence(error)) from None


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
