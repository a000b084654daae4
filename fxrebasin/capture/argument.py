"""The arguments of a call in a captured graph, by the names of its schema."""
from __future__ import annotations

from typing import Any

from torch import fx

from .node import op_of


def argument(node: fx.Node, name: str) -> Any:
    """An argument of a call by its schema name; None if it was not given."""
    names = [a.name for a in op_of(node)._schema.arguments]
    return node.kwargs.get(name, node.args[names.index(name)] if names.index(name) < len(node.args) else None)
