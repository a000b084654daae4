"""The methods of matching, one file each, under the names that users type."""

from __future__ import annotations

from ...errors import FxrebasinError
from . import chance, exact, git_rebasin, identity, ot, transfusion
from .flat import flattened
from .method import EFFORTS, Method, Search

METHODS: dict[str, Method] = {
    "exact": Method(exact.run, inputs=True),
    "transfusion": Method(transfusion.run, objective="plain"),
    "git-rebasin": Method(git_rebasin.run, flat=True, objective="plain"),
    "ot": Method(ot.run, flat=True, objective="plain"),
    "identity": Method(identity.run),
    "random": Method(chance.run),
}


def method_named(name: str) -> Method:
    """Raises FxrebasinError, naming the methods, for any other name."""
    if name not in METHODS:
        raise FxrebasinError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["EFFORTS", "METHODS", "Method", "Search", "flattened", "method_named"]
