"""What the tensors of a module are called in its `state_dict()`; they are known by their memory."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn, strided
from torch._subclasses import FakeTensor

from .memory import Place, Step, place_of, steps

Kind = Literal["parameter", "buffer", "integer", "extra"]  # what a module registered an entry as
_EXTRA = "_extra_state"  # how torch ends the names of what `get_extra_state` returned


class Names:
    """The names of a state dict: `shapes`, `ties`, `passed`, `kinds` as in Program, and what is known of
    its memory.

    views     name -> (another name, the steps that make this tensor of that one)
    jumbled   name -> another name whose tensor shares some of its memory, in no way that is understood
    """

    def __init__(self, state_dict: Mapping[str, Any], originals: Mapping[int, Tensor] | None = None):
        """originals: id of a tensor that stands in for another one -> that one"""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ties: dict[str, str] = {}
        self.passed: list[str] = []
        self.kinds: dict[str, Kind] = {name: _kind(name, value) for name, value in state_dict.items()}
        self.views: dict[str, tuple[str, list[Step]]] = {}
        self.jumbled: dict[str, str] = {}
        self._originals = originals or {}
        self._known: dict[Any, str] = {}  # what a tensor is recognised by -> its canonical name
        self._places: list[tuple[str, Place]] = []  # the largest first
        for name, value in state_dict.items():
            first = self._known.setdefault(self._identity(value), name) if isinstance(value, Tensor) else name
            if self.kinds[name] in ("integer", "extra"):
                self.passed.append(name)
                continue
            self.shapes[name] = tuple(value.shape)
            if first != name:
                self.ties[name] = first
        self._find_overlaps()

    def add_copy(self, state_dict: Mapping[str, Any]) -> None:
        """Another module with the same entries, elsewhere in memory: its tensors have the same names."""
        for name, value in state_dict.items():
            if isinstance(value, Tensor):
                self._known.setdefault(self._identity(value), self.ties.get(name, name))
        self._sort_places()

    def of(self, value: Tensor | None) -> str | None:
        """The canonical name of an entry of the state dict, None for any other tensor."""
        return None if value is None else self._known.get(self._identity(value))

    def view(self, value: Tensor) -> tuple[str, list[Step]] | None:
        """The name of the entry in which another tensor lies, and the steps that make it."""
        place = self._place(value)
        if place is None:
            return None
        for name, held in self._places:
            if (found := steps(held, place)) is not None:
                return name, found
        return None

    def met(self, value: Tensor) -> list[str]:
        """The names of the entries that share memory with a tensor."""
        place = self._place(value)
        return [] if place is None else [name for name, held in self._places if held.meets(place)]

    def _place(self, value: Tensor) -> Place | None:
        return place_of(self._originals.get(id(value), value))

    def _identity(self, value: Tensor) -> Any:
        """Equal for tensors that are the same elements in the same order."""
        return self._place(value) or id(value)

    def _sort_places(self) -> None:
        places = [(name, place) for place, name in self._known.items() if isinstance(place, Place)]
        self._places = sorted(places, key=lambda item: item[1].start - item[1].stop)

    def _find_overlaps(self) -> None:
        """Every tensor is compared with those larger ones whose range of addresses it begins in."""
        self._sort_places()
        open_: list[tuple[str, Place]] = []
        for name, place in sorted(self._places, key=lambda item: item[1].order):
            open_ = [(other, held) for other, held in open_
                     if held.storage == place.storage and held.stop > place.start]
            for other, held in open_:
                if name in self.views or not held.meets(place):
                    continue
                if (found := steps(held, place)) is not None:
                    self.views[name] = other, found
                else:
                    self.jumbled.update({name: other, other: name})
            open_.append((name, place))


def _kind(name: str, value: Any) -> Kind:
    if not isinstance(value, Tensor) or name.endswith(_EXTRA):
        return "extra"
    if not (value.is_floating_point() or value.is_complex()):
        return "integer"
    return "parameter" if isinstance(value, nn.Parameter) and not _is_constant(value) else "buffer"


def _is_constant(parameter: nn.Parameter) -> bool:
    """Whether a parameter is frozen and infinite somewhere, such as a mask: nothing that anybody trains."""
    frozen = not parameter.requires_grad and not parameter.is_meta and not isinstance(parameter, FakeTensor)
    return frozen and parameter.layout is strided and parameter.dtype.itemsize > 1 and bool(parameter.isinf().any())
