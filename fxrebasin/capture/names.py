"""What the tensors of a module are called in its `state_dict()`; they are known by their memory."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch._subclasses import FakeTensor

Kind = Literal["parameter", "buffer", "integer", "extra"]  # what a module registered an entry as
_EXTRA = "_extra_state"  # how torch ends the names of what `get_extra_state` returned


class Names:
    """The names of a state dict: `shapes`, `ties`, `passed`, `kinds` as in Program, `notes` on what is left out.

    stand_ins: id of a tensor of `state_dict` -> the tensor that the traced module holds in its place
    """

    def __init__(self, state_dict: Mapping[str, Any], stand_ins: Mapping[int, Tensor] | None = None):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ties: dict[str, str] = {}
        self.passed: list[str] = []
        self.kinds: dict[str, Kind] = {name: _kind(name, value) for name, value in state_dict.items()}
        self.notes: list[str] = []
        self._canonical: dict[Any, str] = {}
        overlapping = _overlapping(state_dict)
        for name, value in state_dict.items():
            if self.kinds[name] in ("integer", "extra"):
                self.passed.append(name)
            elif name in overlapping:
                self.passed.append(name)
                self.notes.append(f"{name} shares part of its memory with another tensor: it stays as it is")
            else:
                self.shapes[name] = tuple(value.shape)
                first = self._canonical.setdefault(_identity((stand_ins or {}).get(id(value), value)), name)
                if first != name:
                    self.ties[name] = first

    def of(self, value: Tensor | None) -> str | None:
        """The canonical name of a tensor of the state, None for any other."""
        return None if value is None else self._canonical.get(_identity(value))


def _kind(name: str, value: Any) -> Kind:
    if not isinstance(value, Tensor) or name.endswith(_EXTRA):
        return "extra"
    if not (value.is_floating_point() or value.is_complex()):
        return "integer"
    return "parameter" if isinstance(value, nn.Parameter) else "buffer"


def _identity(tensor: Tensor) -> Any:
    """Equal for tensors that are the same elements in the same order."""
    if not tensor.is_meta and not isinstance(tensor, FakeTensor):
        with contextlib.suppress(Exception):  # a tensor without memory of its own
            if tensor.numel() and tensor.data_ptr():
                return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    return id(tensor)


def _overlapping(state_dict: Mapping[str, Any]) -> set[str]:
    """Names of tensors that share some memory, but are not the same elements in the same order."""
    views: dict[Any, tuple[int, int, list[str]]] = {}
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and isinstance(key := _identity(value), tuple):
            reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
            views.setdefault(key, (key[0], key[0] + (reach + 1) * value.element_size(), []))[2].append(name)
    found: set[str] = set()
    end, last = 0, []
    for start, stop, names in sorted(views.values()):
        if start < end:
            found.update(names, last)
        if stop > end:
            end, last = stop, names
    return found
