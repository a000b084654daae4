"""Writing a checkpoint tensor by tensor, in any order, each to its place in its shard."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..draft import check_place, whole
from ..errors import CheckpointError
from .distributed import ChunkWriter
from .file import identity, write_torch
from .folder import CARD, copy_rest, index_text
from .form import SUFFIXES, Form, Kind, State
from .header import Header, compose, write_tensor


@dataclass(frozen=True)
class Plan:
    """What a checkpoint to be written will look like.

    tensors    name -> the tensor without its numbers, in the dtype it is stored in
    files      name -> file; one file of the name "" if the checkpoint is a file itself
    """

    path: Path
    kind: Kind
    tensors: Mapping[str, Tensor]
    files: Mapping[str, str]
    form: Form | None
    as_folder: bool

    def metadata(self, file: str) -> dict[str, str]:
        known = self.form.metadata if self.form else {}
        return {"format": "pt"} | dict(known.get(file, {}) if self.as_folder else next(iter(known.values()), {}))


def plan(path: str | os.PathLike, tensors: Mapping[str, Tensor], form: Form | None) -> Plan:
    """How a state (its shapes and dtypes are looked at alone) is to be stored at `path`: in the form of another, with the
    names and dtypes that it has there. Raises CheckpointError if it cannot be."""
    kind, as_folder = choose(Path(path), form)
    if not tensors:
        raise CheckpointError("there are no tensors to save: give a model's state_dict()")
    dtypes = form.dtypes if form else {}
    blank = {}
    for name, tensor in tensors.items():
        dtype = dtypes.get(name, tensor.dtype)
        both_float = tensor.is_floating_point() and dtype.is_floating_point
        blank[name] = torch.empty(tensor.shape, dtype=dtype if both_float else tensor.dtype, device="meta")
    files = dict.fromkeys(blank, "")
    if as_folder:
        last = list(form.files.values())[-1]
        files = {name: form.files.get(name, last) for name in blank}
    return Plan(Path(path), kind, blank, files, form, as_folder)


def choose(path: Path, form: Form | None) -> tuple[Kind, bool]:
    """Kind of file, and whether a folder is to be written. Raises CheckpointError if neither could be."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {parent}: make it first")
    if not os.access(parent, os.W_OK):
        raise CheckpointError(f"cannot write {path}: {parent} may not be written to: choose another place")
    check_place(path)
    if path.is_dir() and any(path.iterdir()):
        raise CheckpointError(f"cannot write {path}: a folder of that name is there and not empty: choose "
                              "another name")
    if path.suffix in SUFFIXES and not path.is_dir():
        return SUFFIXES[path.suffix], False
    if form is None or (form.folder is None and path.is_dir()):
        raise CheckpointError(f"cannot tell what to write to {path}: give a name that ends in .safetensors "
                              "or .pt")
    return form.kind, form.folder is not None


class Writer:
    """Takes tensors in any order and writes each at once; of a torch file, when its last one has come.

    Tensors are given by name in any dtype and on any device. `left` says what was not copied from the folder that is
    resembled.
    """

    def __init__(self, given: Plan, draft: Path, only: Path | None = None):
        """`only`: the one file of the plan is written there, whatever its name."""
        self.plan, self.draft, self.left, self._only = given, draft, [], only
        self._names: dict[str, list[str]] = {}
        for name, file in given.files.items():
            self._names.setdefault(file, []).append(name)
        self._waiting = set(given.tensors)
        self._held: dict[str, State] = {}
        self._cast: dict[tuple, Tensor] = {}
        self._open: dict[str, tuple[int, Header]] = {}
        if given.as_folder and only is None:
            draft.mkdir()
        self._chunks = ChunkWriter(draft, given.form.wrapper) if given.form and given.kind == "distributed" else None

    def put(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor; one that the checkpoint leaves out, as tied names are, is passed over."""
        if name not in self.plan.tensors:
            return
        file, blank = self.plan.files[name], self.plan.tensors[name]
        self._waiting.remove(name)
        if self.plan.kind == "torch":
            self._hold(file, name, tensor, blank.dtype)
        elif self._chunks is not None:
            self._chunks.put(file, name, cast(name, tensor, blank.dtype))
        else:
            descriptor, header = self._file(file)
            write_tensor(descriptor, header.entries[name], cast(name, tensor, blank.dtype))

    def leave(self, names: Iterable[str]) -> None:
        """These tensors are written by somebody else."""
        self._waiting.difference_update(names)

    def finish(self, card: str = "") -> None:
        """Index and all else that a folder has. Raises CheckpointError if tensors are missing."""
        assert not self._waiting, f"nothing was put for {sorted(self._waiting)[:3]}"
        if not self.plan.as_folder:
            return
        form = self.plan.form
        written = {*self.plan.files.values(), *filter(None, [form.index])}
        self.left = copy_rest(form.folder, self.draft, written, card)
        if self._chunks is not None:
            self._chunks.finish()
        elif form.index is not None:
            text = index_text(self.plan.files, self.plan.tensors, form.totals)
            (self.draft / form.index).write_text(text, encoding="utf-8")

    def _place(self, file: str) -> Path:
        return self._only or self.draft / file if self.plan.as_folder else self.draft

    def _file(self, file: str) -> tuple[int, Header]:
        """The open safetensors file of this name."""
        if file not in self._open:
            tensors = {name: (self.plan.tensors[name].dtype, tuple(self.plan.tensors[name].shape))
                       for name in self._names[file]}
            start, header = compose(tensors, self.plan.metadata(file))
            descriptor = os.open(self._place(file), os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
            self._open[file] = descriptor, header
            os.ftruncate(descriptor, max((e.stop for e in header.entries.values()), default=len(start)))
            os.pwrite(descriptor, start, 0)
        return self._open[file]

    def _hold(self, file: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """Torch files are written whole; tied tensors stay tied in them."""
        key = identity(tensor), dtype
        if key not in self._cast:
            self._cast[key] = cast(name, tensor, dtype)
        held = self._held.setdefault(file, {})
        held[name] = self._cast[key]
        if len(held) == len(self._names[file]):
            form = self.plan.form
            write_torch({n: held[n] for n in self._names[file]}, self._place(file), form.wrapper if form and form.kind == "torch" else None)
            del self._held[file]
            self._cast = {} if not self._held else self._cast

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1][0])


@contextlib.contextmanager
def writing(given: Plan) -> Iterator[Writer]:
    """A Writer whose checkpoint appears whole at the end, after `finish`, or not at all. Raises CheckpointError."""
    with whole(given.path) as draft:
        writer = Writer(given, draft)
        try:
            yield writer
        finally:
            writer.close()


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in CPU memory, in `dtype` if both are floating-point. Raises CheckpointError on overflow."""
    if tensor.device.type == "meta":
        raise CheckpointError(f"{name!r} has no data (it is on the meta device): load its values before "
                              "saving")
    both_float = tensor.is_floating_point() and dtype.is_floating_point
    result = tensor.detach().to("cpu", dtype if both_float else None)
    if result.dtype != tensor.dtype and torch.isfinite(tensor).all() and not torch.isfinite(result).all():
        raise CheckpointError(f"{name!r} has values too large for {dtype}, the dtype of the checkpoint to "
                              "resemble: convert that to a wider dtype first")
    return result


__all__ = ["CARD", "Plan", "Writer", "cast", "choose", "plan", "writing"]
