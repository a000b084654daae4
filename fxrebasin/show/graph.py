"""The spec as a graph of groups and the tensors that they move: networkx, DOT, Mermaid."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..spec import Spec
from .fact import plain
from .row import Row, rows

if TYPE_CHECKING:
    import networkx

Edge = tuple[int, str, str]  # number of a row, name of tensors alike, which of their axes it moves


def to_networkx(spec: Spec) -> networkx.Graph:
    """A bipartite graph: a node for each group (its name) and each axis of the state (tensor, axis), and an
    edge wherever a group moves an axis.

    Groups have `kind="group"`, `size`, `copies`, `within`; axes have `kind="axis"`, `size`, and `pinned`
    (why, "" if they move); edges have `blocks`, the numbers of the blocks of the tensor's layout.
    """
    import networkx

    graph = networkx.Graph()
    for group in spec.groups.values():
        graph.add_node(group.name, kind="group", bipartite=0, size=group.size, copies=group.copies,
                       within=", ".join(group.within))
    for tensor in spec.layouts:
        for axis, size in enumerate(spec.shapes[tensor]):
            graph.add_node((tensor, axis), kind="axis", bipartite=1, size=size,
                           pinned=spec.pinned.get((tensor, axis), ""))
    for group in spec.groups.values():
        blocks: dict[tuple[str, int], list[int]] = defaultdict(list)
        for site in group.sites:
            blocks[site.tensor, site.axis].append(site.block)
        for moved, numbers in blocks.items():
            graph.add_edge(group.name, moved, blocks=", ".join(map(str, numbers)))
    return graph


def to_dot(spec: Spec) -> str:
    """The groups, the tensors and which axes move with what, repeated layers once, in Graphviz's language."""
    several, edges = rows(spec), list(_edges(spec))
    tensors = _numbers(edges)
    text = ["graph spec {", "  rankdir=LR;", '  node [fontname="Helvetica", fontsize=10];']
    text += [f"  g{k} [shape=ellipse, style=filled, fillcolor=lightblue, label={_for_dot(*_label(row))}];"
             for k, row in enumerate(several)]
    text += [f"  t{k} [shape=box, label={_for_dot(tensor)}];" for tensor, k in tensors.items()]
    text += [f"  g{k} -- t{tensors[tensor]} [fontsize=9, label={_for_dot(label)}];"
             for k, tensor, label in edges]
    return "\n".join([*text, "}"]) + "\n"


def to_mermaid(spec: Spec) -> str:
    """The same graph as `to_dot` in Mermaid's language."""
    several, edges = rows(spec), list(_edges(spec))
    tensors = _numbers(edges)
    text = ["graph LR"]
    text += [f"  g{k}([{_for_mermaid(*_label(row))}])" for k, row in enumerate(several)]
    text += [f"  t{k}[{_for_mermaid(tensor)}]" for tensor, k in tensors.items()]
    text += [f"  g{k} ---|{_for_mermaid(label)}| t{tensors[tensor]}" for k, tensor, label in edges]
    return "\n".join(text) + "\n"


def _edges(spec: Spec) -> Iterator[Edge]:
    """Wherever a row moves tensors."""
    for k, row in enumerate(rows(spec)):
        labels: dict[str, list[str]] = defaultdict(list)
        for tensor, axis, span in row.sites:
            labels[tensor].append(f"{axis}" + (f" {span}" if span else ""))
        yield from ((k, tensor, ", ".join(texts)) for tensor, texts in labels.items())


def _numbers(edges: Iterable[Edge]) -> dict[str, int]:
    return {tensor: k for k, tensor in enumerate(dict.fromkeys(tensor for _, tensor, _ in edges))}


def _label(row: Row) -> tuple[str, str]:
    copies = f"^{row.group.copies}" if row.group.copies > 1 else ""
    layers = f" x{len(row.groups)}" if len(row.groups) > 1 else ""
    return row.name, f"{row.group.size}!{copies}{layers}"


def _for_dot(*lines: str) -> str:
    safe = (plain(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(safe) + '"'


def _for_mermaid(*lines: str) -> str:
    def safe(line: str) -> str:
        return "".join(c if c.isalnum() or c in " ._-:,!^=/" else f"#{ord(c)};" for c in plain(line))

    return '"' + "<br/>".join(map(safe, lines)) + '"'
