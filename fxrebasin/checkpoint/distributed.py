"""Folders of `torch.distributed.checkpoint`: a pickle that says which chunk of which tensor lies where, and the
chunks, each a small torch file within a larger one.

The library's own reader runs whatever the pickle holds. Here it may name nothing but what such a pickle is made of.
Source: torch/distributed/checkpoint/metadata.py and filesystem.py.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .form import METADATA, WRAPPERS, CheckpointNote, Form, first_sentence

_LIBRARY = "torch.distributed.checkpoint"
_KNOWN = {
    *(
        (f"{_LIBRARY}.metadata", name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    (f"{_LIBRARY}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("collections", "OrderedDict"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (
            (module, name) in _KNOWN
            or module == "torch"
            and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise CheckpointError(
            f"it names {module}.{name}, which could run any code, and was not loaded: get the checkpoint "
            "from a source that you trust, as safetensors"
        )


class Chunks:
    """The tensors of such a folder, each put together when it is asked for. Raises CheckpointError.

    form  how they are stored; a state under a key such as "model", beside an optimizer's, is taken alone
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._meta = _read_metadata(folder / METADATA)
        try:
            self.form = self._form()
        except (AttributeError, TypeError, LookupError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder / METADATA} is damaged ({first_sentence(error)}): copy or download the folder again"
            ) from None

    def _form(self) -> Form:
        kinds = self._meta.state_dict_metadata
        wrapper = _wrapper(self._meta.planner_data or {})
        self._keys = (
            _inside(self._meta.planner_data or {}, wrapper) if wrapper else {key: key for key in kinds}
        )
        if left := [key for key in kinds if key not in set(self._keys.values())]:
            more = " and more" if len(left) > 3 else ""
            warnings.warn(
                f"{self._folder}: took the state under {'.'.join(wrapper)!r}; "
                f"{', '.join(map(repr, left[:3]))}{more} left aside",
                CheckpointNote,
                stacklevel=5,
            )
        files = {name: self._first_file(name) for name in self._keys}
        if not files:
            raise CheckpointError(f"{self._folder} holds no tensors: give the checkpoint of a model")
        known = {name: kinds[key] for name, key in self._keys.items()}
        return Form(
            "distributed",
            self._folder,
            files,
            METADATA,
            {name: each.properties.dtype for name, each in known.items()},
            {name: tuple(each.size) for name, each in known.items()},
            wrapper=".".join(wrapper) or None,
        )

    def _first_file(self, name: str) -> str:
        """The file that a tensor begins in; all of its files are looked for."""
        key = self._keys[name]
        known = self._meta.state_dict_metadata[key]
        if not hasattr(known, "chunks"):
            raise CheckpointError(
                f"{self._folder}: {key!r} is not a tensor: save the model's state_dict() alone, or under "
                "the key 'model'"
            )
        places = [self._place(key, chunk) for chunk in known.chunks]
        for place in places:
            if re.search(r"[/\\\0]", place.relative_path) or place.relative_path in ("", ".", ".."):
                raise CheckpointError(
                    f"{self._folder / METADATA} names the file {place.relative_path!r}, which is not one of "
                    "its own folder: do not use this checkpoint"
                )
            if not (self._folder / place.relative_path).is_file():
                raise CheckpointError(
                    f"{self._folder / METADATA} names the file {place.relative_path!r}, which is not "
                    "there: copy or download it too"
                )
            if getattr(place, "transform_descriptors", None):
                raise CheckpointError(f"{self._folder}: {key!r} is compressed: save it without extensions")
        return places[0].relative_path

    def _place(self, key: str, chunk: Any) -> Any:
        from torch.distributed.checkpoint.metadata import MetadataIndex

        found = self._meta.storage_data.get(MetadataIndex(key, chunk.offsets))
        if found is None:
            raise CheckpointError(
                f"{self._folder / METADATA} does not say where a part of {key!r} lies: copy or download "
                "the folder again"
            )
        return found

    def __getitem__(self, name: str) -> Tensor:
        key = self._keys[name]
        known = self._meta.state_dict_metadata[key]
        dtype, shape = self.form.dtypes[name], self.form.shapes[name]
        result = torch.empty(shape, dtype=dtype)
        covered = torch.zeros(shape, dtype=torch.bool) if len(known.chunks) > 1 else None
        for chunk in known.chunks:
            piece = self._piece(key, self._place(key, chunk))
            where = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes))
            if piece.dtype != dtype or piece.shape != chunk.sizes or result[where].shape != piece.shape:
                raise CheckpointError(
                    f"{self._folder}: a part of {key!r} is not what {METADATA} says: copy or download the "
                    "folder again"
                )
            result[where] = piece
            if covered is not None:
                covered[where] = True
        if not covered.all() if covered is not None else known.chunks[0].sizes != known.size:
            raise CheckpointError(
                f"{self._folder}: parts of {key!r} are missing: copy or download the folder again"
            )
        return result

    def _piece(self, key: str, place: Any) -> Tensor:
        """A chunk, held against its checksums."""
        path = self._folder / place.relative_path
        with open(path, "rb") as file:
            file.seek(place.offset)
            content = io.BytesIO(file.read(place.length))
        try:
            with zipfile.ZipFile(content) as archive:
                if archive.testzip() is not None:
                    raise ValueError("its checksum is wrong")
            content.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                piece = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - a hostile or damaged pickle can raise anything
            raise CheckpointError(
                f"{path}: a part of {key!r} is truncated or damaged ({first_sentence(error)}): copy or "
                "download it again"
            ) from None
        if not isinstance(piece, Tensor):
            raise CheckpointError(
                f"{path}: a part of {key!r} is a {type(piece).__name__}, not a tensor: is it damaged?"
            )
        return piece.detach()


def _read_metadata(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            found = _Unpickler(file).load()
    except OSError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # noqa: BLE001 - a hostile or damaged pickle can raise anything
        raise CheckpointError(
            f"{path} is truncated or damaged ({first_sentence(error)}): copy or download the folder again"
        ) from None
    if type(found).__name__ != "Metadata" or not isinstance(found.storage_data, dict):
        raise CheckpointError(
            f"{path} is not the index of a distributed checkpoint: give a folder that "
            "torch.distributed.checkpoint wrote"
        )
    return found


def _wrapper(paths: dict[str, tuple]) -> tuple[str, ...]:
    """The keys that a model's state lies under; () if it is all there is."""
    found = {path[:-1] for path in paths.values() if len(path) > 1 and path[-2] in WRAPPERS}
    return min(found, key=lambda keys: (len(keys), WRAPPERS.index(keys[-1])), default=())


def _inside(paths: dict[str, tuple], wrapper: tuple[str, ...]) -> dict[str, str]:
    """Names in the state -> keys in the checkpoint."""
    return {
        ".".join(map(str, path[len(wrapper) :])): key
        for key, path in paths.items()
        if path[: len(wrapper)] == wrapper
    }


class ChunkWriter:
    """Writes such a folder tensor by tensor, each as one chunk: the library cuts it anew for whatever ranks load it."""

    def __init__(self, folder: Path, wrapper: str | None):
        self._folder = folder
        self._outer = tuple(wrapper.split(".")) if wrapper else ()
        self._tensors: dict[str, Any] = {}
        self._places: dict[Any, Any] = {}
        self._paths: dict[str, tuple[str, ...]] = {}

    def put(self, file: str, name: str, tensor: Tensor) -> None:
        from torch.distributed.checkpoint import filesystem, metadata

        content = io.BytesIO()
        own = tensor.contiguous()
        torch.save(own.clone() if own.untyped_storage().nbytes() > own.nbytes else own, content)
        with open(self._folder / file, "ab") as out:
            start = out.seek(0, os.SEEK_END)
            out.write(content.getbuffer())
        key, zero = ".".join((*self._outer, name)), torch.Size([0] * tensor.ndim)
        self._tensors[key] = metadata.TensorStorageMetadata(
            metadata.TensorProperties(dtype=tensor.dtype),
            tensor.shape,
            [metadata.ChunkStorageMetadata(zero, tensor.shape)],
        )
        self._places[metadata.MetadataIndex(key, zero, 0)] = filesystem._StorageInfo(
            file, start, len(content.getbuffer())
        )
        self._paths[key] = (*self._outer, name)

    def finish(self) -> None:
        """The index, once all tensors are there."""
        from torch.distributed.checkpoint.metadata import Metadata

        found = Metadata(self._tensors, planner_data=self._paths, storage_data=self._places)
        (self._folder / METADATA).write_bytes(pickle.dumps(found))
