"""fxrebasin: permutation symmetries of neural networks, and what can be carried along them.

The public names are loaded when they are first used: `import fxrebasin` itself loads nothing else, torch included.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import Alignment
    from .capture import capture
    from .checkpoint import fit
    from .errors import CaptureError, CheckpointError, FxrebasinError, NotEquivalentError, SpecError, StateError
    from .infer import infer
    from .match import match, match_many, merge
    from .passes import Canonical, canonicalize
    from .report import Report, report
    from .spec import Group, Site, Spec
    from .transport import (Adapter, Alpha, Calibration, Gains, Probes, TransportNote, calibrate, carry, choose_alpha,
                            merge_adapter, probes, task_vector, transport, transport_adapter)
    from .verify import Evidence, find_equivalence, verify

__version__ = "0.1.0"

_HOME = {name: part for part, names in {
    "alignment": "Alignment",
    "capture": "capture",
    "checkpoint": "fit",
    "errors": "CaptureError CheckpointError FxrebasinError NotEquivalentError SpecError StateError",
    "infer": "infer",
    "match": "match match_many merge",
    "passes": "Canonical canonicalize",
    "report": "Report report",
    "spec": "Group Site Spec",
    "transport": "Adapter Alpha Calibration Gains Probes TransportNote calibrate carry choose_alpha merge_adapter probes "
                 "task_vector transport transport_adapter",
    "verify": "Evidence find_equivalence verify",
}.items() for name in names.split()}

__all__ = sorted(_HOME)


class _Package(ModuleType):
    """Loads public names on use. Some of them are also the names of packages in here (`match`): the function is meant,
    whichever is imported first."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):  # what the import system does for every submodule
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME})


sys.modules[__name__].__class__ = _Package
