"""Numbers that leave the graph: what Python reads from a tensor is seen, and what need not be a read is
none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import CaptureError

_READS = {
    getattr(Tensor, name)
    for name in (
        "tolist",
        "numpy",
        "__array__",
        "__repr__",
        "__format__",
        "__reduce_ex__",
        "__dlpack__",
        "untyped_storage",
        "storage",
        "_typed_storage",
        "data_ptr",
    )
}
_COPIES = {torch.tensor, torch.as_tensor, torch.asarray, torch.sparse_coo_tensor, Tensor.new_tensor}

_DATA: Any = Tensor.data  # the attribute itself, which torch declares as the tensor that it gives


class Reads(TorchFunctionMode):
    """Calls `on_read(tensor)` for every tensor whose numbers leave the graph without an operation that says
    so.

    `tensor.data`, also where it is assigned, and `copy.deepcopy(tensor)` are operations instead.
    """

    def __init__(self, on_read: Callable[[Tensor], Any]):
        super().__init__()
        self.on_read = on_read

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if torch.compiler.is_dynamo_compiling():  # the body of a `cond`, which is refused if it reads numbers
            return function(*args, **(kwargs or {}))
        if function == _DATA.__get__:
            return args[0].detach()
        if function == _DATA.__set__:
            return _replaced(*args)
        if function == Tensor.__deepcopy__:
            return args[1].setdefault(id(args[0]), args[0].detach().clone())
        if function in _READS:
            self.on_read(args[0])
        elif function in _COPIES:
            for tensor in _listed((*args, *(kwargs or {}).values())):
                self.on_read(tensor)
        return function(*args, **(kwargs or {}))


def _replaced(tensor: Tensor, data: Tensor) -> None:
    """`tensor.data = data`, as a write. Raises CaptureError if that is something else."""
    if (tensor.shape, tensor.dtype) != (data.shape, data.dtype):
        raise CaptureError("forward puts data of another shape or type in the place of a tensor's: "
                           f"{tuple(data.shape)} for {tuple(tensor.shape)}; use a tensor of its own")
    tensor.detach().copy_(data)


def _listed(data: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors within lists and tuples. (A tensor that is copied as it is stays in the graph.)"""
    for part in data:
        if isinstance(part, (list, tuple)):
            yield from (piece for piece in part if isinstance(piece, Tensor))
            yield from _listed(part)


def note_read(tensor: Tensor) -> None:
    """Makes a read an operation that a recorder sees: a comparison of the tensor with itself."""
    torch.equal(tensor, tensor)


def refuse_read(tensor: Tensor) -> None:
    """For a trace of tensors without numbers."""
    raise RuntimeError(
        f"forward reads the numbers of a tensor of shape {tuple(tensor.shape)} outside the graph"
    )
