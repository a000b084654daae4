"""A state, or the file of one, under the names of a module: what every command does first, by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..capture.names import Names
from ..spec import Spec
from ..spec.fit import check_names
from ..spec.fitting import Fitted, Wanted, undone
from ..spec.fitting import fit as fit_of
from .converted import conversions
from .state import load_state


@dataclass(frozen=True)
class _Entries:
    """The entries of a module's state dict, as a spec lists them."""

    names: Mapping[str, tuple[int, ...]]
    passed: tuple[str, ...]
    ties: Mapping[str, str]

    @classmethod
    def of(cls, module: nn.Module) -> "_Entries":
        own = Names(module.state_dict(keep_vars=True))
        return cls(own.shapes, tuple(own.passed), own.ties)


class FittedState(Fitted):
    """A state under the names of a model, for its `load_state_dict`. Tensors are those of the state that was given.

    steps  what was done to its names, a line each; empty if they are the model's
    left   names in the file that the model does not have, and need not have
    """

    @property
    def left(self) -> tuple[str, ...]:
        return self.fit.left

    def undone(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of the model under the names of the state that was given: what it renamed, converted or left out is so
        again, and what was left aside is as it was."""
        return undone(self.fit, result, self.given)

    def __iter__(self) -> Iterator[str]:
        return (name for name in super().__iter__() if name not in self.fit.left)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) and name not in self.fit.left

    def __len__(self) -> int:
        return sum(1 for _ in self)


def fit(model: nn.Module | Spec, state: Mapping[str, Tensor] | str | os.PathLike) -> FittedState:
    """A state under the names of a module, whatever wrappers, prefixes and older names it was saved with.

    model  the module, or its Spec; what transformers converts when it saves and loads is known of a module alone
    state  named tensors, or the path of a checkpoint

    Nothing is copied, and shapes are not looked at. Raises StateError if entries are lacking or unexpected in the end,
    CheckpointError for a file that is none.
    """
    given = load_state(state) if isinstance(state, (str, os.PathLike)) else state
    wanted: Wanted = model if isinstance(model, Spec) else _Entries.of(model)
    found = fit_of(wanted, given)
    if isinstance(model, nn.Module) and not set(wanted.names) <= {*found.of, *found.ties}:
        found = fit_of(wanted, given, conversions(model))
    result = FittedState(found, given)
    check_names(wanted, result, f"{state}:" if given is not state else "the state")
    return result
