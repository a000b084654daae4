"""The header of a safetensors file: which tensor lies where. Tensors are read and written one by one.

Source: the format's description (https://huggingface.co/docs/safetensors): eight bytes that say how long the header is,
the header in JSON, and the numbers without gaps.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .form import first_sentence

DTYPES: dict[str, torch.dtype] = {  # in the order of the library, which writes the last one first
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 1 << 30  # bytes for one call: systems take no more than 2 GiB


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: what it is, and the bytes it lies in, counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file holds: name -> Entry, and free text entries."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a file, checked against its length. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt"):  # the library checks that the numbers lie without gaps and overlaps
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            content = json.loads(file.read(length))
        metadata = content.pop("__metadata__", None) or {}
        entries = {name: _entry(given, 8 + length, name) for name, given in content.items()}
        if max((entry.stop for entry in entries.values()), default=8 + length) != path.stat().st_size:
            raise ValueError("its length is not what its header says")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({first_sentence(error)}): copy or download "
                              "it again") from None
    if str(metadata.get("format", "")).startswith("fxrebasin-alignment"):
        raise CheckpointError(f"{path} is an alignment, not a checkpoint: give the weights of a model here")
    return Header(entries, metadata)


def _entry(given: Mapping, begin: int, name: str) -> Entry:
    if given["dtype"] not in DTYPES:
        raise CheckpointError(f"{name!r} is of dtype {given['dtype']}, which is not known here: convert it first")
    dtype, shape, (start, stop) = DTYPES[given["dtype"]], tuple(given["shape"]), given["data_offsets"]
    if stop - start != math.prod(shape) * dtype.itemsize or start < 0:
        raise ValueError(f"the place of {name!r} does not fit its shape")
    return Entry(dtype, shape, begin + start, begin + stop)


def compose(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
            metadata: Mapping[str, str]) -> tuple[bytes, Header]:
    """The first bytes of a file with tensors of these dtypes and shapes, and where the tensors are to lie: as the
    library itself orders them, wide dtypes first and names in order. Raises CheckpointError."""
    for name, (dtype, _) in tensors.items():
        if dtype not in _NAMES:
            raise CheckpointError(f"{name!r} is {dtype}, which safetensors files cannot hold: convert it, or give -o a "
                                  "name that ends in .pt")
    order = {dtype: k for k, dtype in enumerate(_NAMES)}
    names = sorted(tensors, key=lambda name: (-order[tensors[name][0]], name))
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start, places = 0, {}
    for name in names:
        dtype, shape = tensors[name]
        places[name] = start, start + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": list(places[name])}
        start = places[name][1]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    entries = {name: Entry(*tensors[name], begin + a, begin + b) for name, (a, b) in places.items()}
    return len(text).to_bytes(8, "little") + text, Header(entries, metadata)


def read_tensor(descriptor: int, entry: Entry) -> Tensor:
    """A tensor from an open file. Raises OSError, also if the file has become shorter."""
    data = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
    view, done = memoryview(data.numpy()), 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:done + _CHUNK]], entry.start + done)
        if count == 0:
            raise OSError("the file has become shorter while it was read")
        done += count
    return data.view(entry.dtype).reshape(entry.shape) if len(view) else torch.empty(entry.shape, dtype=entry.dtype)


def write_tensor(descriptor: int, entry: Entry, tensor: Tensor) -> None:
    """A tensor to its place in an open file. Raises OSError."""
    data = tensor.detach().contiguous().reshape(-1)
    view, done = memoryview(data.view(torch.uint8).numpy()) if data.numel() else memoryview(b""), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:done + _CHUNK], entry.start + done)
