"""A checkpoint as a mapping whose tensors are read from its files when they are asked for."""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .distributed import Chunks
from .file import kind_of, open_torch
from .folder import find, read_index
from .form import INDEX, METADATA, CheckpointNote, Form
from .header import Header, read_header, read_tensor


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, in its order; each is read anew when it is asked for. Close it at the end.

    Of a torch file the system maps in what is asked for. Raises CheckpointError on opening if the checkpoint is
    missing or damaged as far as its headers tell, and on reading if it changes meanwhile.

    form     how it is stored
    mapped   leave what torch files hold in them until it is used; else it is read at once
    checked  hold torch files against their checksums; safetensors files have none
    """

    def __init__(self, path: str | os.PathLike, mapped: bool = True, checked: bool = True):
        self.path, self._mapped, self._checked = Path(path), mapped, checked
        self._headers: dict[str, Header] = {}
        self._torch: dict[str, dict[str, Tensor]] = {}
        self._open: dict[str, int] = {}
        try:
            first, folder = find(self.path)
            self._folder = first.parent
            self._chunks = Chunks(self._folder) if first.name == METADATA else None
            if self._chunks is not None:
                self.form = self._chunks.form
                return
            in_shards = folder is not None and first.name.endswith(INDEX)
            self.form = self._form_of_shards(first, folder) if in_shards else self._form_of_file(first, folder)
        except OSError as error:
            raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror or error}: check the path and "
                                  "its permissions") from None

    def _form_of_file(self, path: Path, folder: Path | None) -> Form:
        form = self._look_into(path)
        if not form.dtypes:
            raise CheckpointError(f"{path} holds no tensors: give the checkpoint of a model")
        return replace(form, folder=folder)

    def _form_of_shards(self, index: Path, folder: Path) -> Form:
        files, totals = read_index(index)
        forms: dict[str, Form] = {}
        for name in dict.fromkeys(files.values()):
            if not (folder / name).is_file():
                raise CheckpointError(f"{index} names the shard {name!r}, which is not there: copy or download "
                                      "it too")
            forms[name] = self._look_into(folder / name)
            expected = {tensor for tensor, file in files.items() if file == name}
            if odd := sorted(expected ^ set(forms[name].dtypes)):
                raise CheckpointError(f"{index} and its shard {name!r} disagree on {odd[0]!r}: get both from one "
                                      "source")
        if len({form.kind for form in forms.values()}) != 1:
            raise CheckpointError(f"{index} names shards of different kinds: get them from one source")
        return Form(next(iter(forms.values())).kind, folder, files, index.name,
                    {name: forms[file].dtypes[name] for name, file in files.items()},
                    {name: forms[file].shapes[name] for name, file in files.items()},
                    {file: form.metadata[file] for file, form in forms.items()}, totals=totals)

    def _look_into(self, path: Path) -> Form:
        """The form of one file."""
        kind, name = kind_of(path), path.name
        if kind == "torch":
            content, wrapper = open_torch(path, self._mapped, self._checked)
            self._torch[name] = content
            dtypes = {key: tensor.dtype for key, tensor in content.items()}
            shapes = {key: tuple(tensor.shape) for key, tensor in content.items()}
            return Form(kind, None, dict.fromkeys(content, name), None, dtypes, shapes, {name: {}}, wrapper)
        self._headers[name] = header = read_header(path)
        return Form(kind, None, dict.fromkeys(header.entries, name), None,
                    {key: entry.dtype for key, entry in header.entries.items()},
                    {key: entry.shape for key, entry in header.entries.items()}, {name: dict(header.metadata)})

    # ---- as a mapping --------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        file = self.form.files[name]
        if file in self._torch:
            return self._torch[file][name]
        try:
            if self._chunks is not None:
                return self._chunks[name]
            if file not in self._open:
                self._open[file] = os.open(self._folder / file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return read_tensor(self._open[file], self._headers[file].entries[name])
        except OSError as error:
            raise CheckpointError(f"cannot read {self._folder / file}: {error.strerror or error}: copy or download it "
                                  "again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.form.files)

    def __len__(self) -> int:
        return len(self.form.files)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(map(self.form.bytes, self))

    def __reduce__(self):
        """Another process opens the files anew, where it sees them under the same path."""
        return type(self), (os.path.abspath(self.path), self._mapped, False)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
        self._torch.clear()

    def __enter__(self) -> "Stored":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def files_of(path: Path) -> list[Path]:
    """The files that the checkpoint at `path` lies in, its index included. Raises CheckpointError."""
    first, folder = find(path)
    if first.name == METADATA:
        return [first, *sorted(first.parent.glob("*.distcp"))]
    if folder is None or not first.name.endswith(INDEX):
        return [first]
    return [first, *(folder / name for name in dict.fromkeys(read_index(first)[0].values()))]


def form_of(path: str | os.PathLike) -> Form:
    """How the checkpoint at `path` is stored, without its numbers. Raises CheckpointError as `Stored`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNote)
        with Stored(path, checked=False) as stored:
            return stored.form
