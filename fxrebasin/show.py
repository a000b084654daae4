"""A spec for people: a table, graphs (networkx, DOT, Mermaid), one HTML page.

Networks repeat themselves, so groups that differ in nothing but the numbers of their layer are shown as one
row, with a * for the number. Names come from the user's model: whatever they hold is shown as text.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .spec import Axis, Group, Site, Spec

if TYPE_CHECKING:
    import networkx
    from rich.console import RenderableType

_REASON = re.compile(r"(?P<why>.*?) \((?P<where>[^()]*:\d+ .*|aten\.[\w.]+|)\)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """Groups alike, with one name; `sites`: (name for tensors alike, axis, span) -> how many."""

    name: str
    groups: tuple[Group, ...]
    within: tuple[str, ...]
    sites: dict[tuple[str, int, str], int]

    @property
    def group(self) -> Group:
        return self.groups[0]

    @property
    def log10_order(self) -> float:
        return len(self.groups) * self.group.copies * math.lgamma(self.group.size + 1) / math.log(10)

    @property
    def places(self) -> list[str]:
        """The sites as text, such as `blocks.*.attn.qkv.weight[0] 0:768 x12`."""
        layers = len(self.groups)
        shown = (
            (site, count // layers if count % layers == 0 else count) for site, count in self.sites.items()
        )
        return [
            f"{tensor}[{axis}]" + (f" {span}" if span else "") + (f" x{count}" if count > 1 else "")
            for (tensor, axis, span), count in shown
        ]


# ---- alike -------------------------------------------------------------------------------------------------


def rows(spec: Spec) -> list[Row]:
    """All groups, those of repeated layers together, in the order of the first of each."""
    alike: dict[tuple, list[Group]] = defaultdict(list)
    for group in spec.groups.values():
        alike[_signature(spec, group)].append(group)
    names = _tensor_names(spec, alike)
    return [
        Row(
            _starred(spec, groups),
            tuple(groups),
            tuple(_star(w, _depth(groups[0])) if len(groups) > 1 else w for w in groups[0].within),
            _sites(spec, groups, names),
        )
        for groups in alike.values()
    ]


def _signature(spec: Spec, group: Group) -> tuple:
    """Equal for groups that differ in the numbers of their layer alone."""
    depth = _depth(group)
    return (
        _star(group.name, depth),
        group.size,
        group.copies,
        tuple(_star(w, depth) for w in group.within),
        tuple(_star(m, depth) for m in group.members),
        tuple((_star(s.tensor, depth), s.axis, s.block, _size(spec, s)) for s in group.sites),
    )


def _size(spec: Spec, site: Site) -> tuple[int, ...]:
    return spec.layouts[site.tensor][site.block][site.axis].positions.shape


def _depth(group: Group) -> int:
    """How many leading parts all names of a group share: `blocks.3.attn` is three."""
    names = {site.tensor for site in group.sites} | {
        name.split(":")[0] for name in (group.name, *group.within)
    }
    parts = [name.split(".") for name in names]
    shared = 0
    for column in zip(*parts):
        if len(set(column)) > 1:
            break
        shared += 1
    return shared


def _star(name: str, depth: int | None = None) -> str:
    """The name with a * for each of its numbers, within the first `depth` parts."""
    parts = name.split(".")
    return ".".join(
        "*" if part.isdigit() and (depth is None or k < depth) else part for k, part in enumerate(parts)
    )


def _starred(spec: Spec, groups: list[Group]) -> str:
    return groups[0].name if len(groups) == 1 else _star(groups[0].name, _depth(groups[0]))


def _tensor_names(spec: Spec, alike: dict[tuple, list[Group]]) -> dict[str, str]:
    """Tensor -> a name for all tensors that groups alike move in the same way."""
    moved: dict[str, set[tuple]] = defaultdict(set)
    for k, groups in enumerate(alike.values()):
        for site in (site for group in groups for site in group.sites):
            moved[site.tensor].add((k, site.axis, site.block))
    kinds: dict[tuple, list[str]] = defaultdict(list)
    for tensor, ways in moved.items():
        kinds[_star(tensor), spec.shapes[tensor], frozenset(ways)].append(tensor)
    return {
        tensor: kind[0] if len(tensors) > 1 else tensor
        for kind, tensors in kinds.items()
        for tensor in tensors
    }


def _sites(spec: Spec, groups: list[Group], names: dict[str, str]) -> dict[tuple[str, int, str], int]:
    found: Counter[tuple[str, int, str]] = Counter()
    for group in groups:
        blocks: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
        for site in group.sites:
            blocks[site.tensor, site.axis].append(spec.layouts[site.tensor][site.block][site.axis].positions)
        found.update(
            (names[tensor], axis, _span(positions, spec.shapes[tensor][axis]))
            for (tensor, axis), positions in blocks.items()
        )
    return dict(found)


def _span(positions: list[np.ndarray], size: int) -> str:
    """All positions as a slice, nothing where they are the whole axis."""
    union = np.unique(np.concatenate([block.reshape(-1) for block in positions]))
    return "" if union.size == size else Axis(union, ("",)).span


# ---- pinned ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """Pinned axes with one reason; `where`: lines of the user's source."""

    why: str
    where: tuple[str, ...]
    axes: tuple[tuple[str, int], ...]


def reasons(spec: Spec) -> list[Reason]:
    """Why axes are pinned, the most frequent reason first."""
    found: dict[str, list[tuple[str, tuple[str, int]]]] = defaultdict(list)
    for axis, reason in spec.pinned.items():
        match = _REASON.fullmatch(reason)
        found[match["why"] if match else reason].append((match["where"] if match else "", axis))
    return sorted(
        (
            Reason(why, tuple(dict.fromkeys(w for w, _ in places if w)), tuple(axis for _, axis in places))
            for why, places in found.items()
        ),
        key=lambda reason: -len(reason.axes),
    )


def _cost(spec: Spec, op: str) -> int:
    """How many axes are pinned for want of a rule for `op`."""
    return sum(
        reason.startswith((f"{op} has no rule", f"the rule for {op} ")) for reason in spec.pinned.values()
    )


def _facts(spec: Spec) -> list[str]:
    """What is to be said before the tables."""
    sizes = {name: math.prod(spec.shapes[name]) for name in spec.layouts}
    share = sum(sizes[name] for name in spec.permutable) / max(1, sum(sizes.values()))
    facts = [
        f"{len(spec.groups)} groups, order {_power(spec.log10_order)}",
        f"{len(spec.permutable)} of {len(spec.layouts)} tensors can be permuted: {share:.1%} of "
        f"{sum(sizes.values()):,} numbers",
    ]
    if spec.ties:
        facts.append("tied: " + _some([f"{alias} = {name}" for alias, name in spec.ties.items()]))
    if spec.passed:
        facts.append("passed through unchanged: " + _some(list(spec.passed)))
    if spec.outputs:
        facts.append("outputs that move with the network: " + _some(list(spec.outputs)))
    facts += [
        f"no rule for {op} ({where}): {_cost(spec, op)} axes pinned" for op, where in spec.unruled.items()
    ]
    return facts + [f"note: {note}" for note in spec.notes]


def _power(log10: float) -> str:
    """An order of magnitude; small ones in full."""
    return f"{round(10**log10):,}" if log10 < 6 else f"10^{log10:.1f}"


def _some(texts: list[str], most: int = 3) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _plain(text: str) -> str:
    """Names and source lines are the user's: no control characters reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# ---- text --------------------------------------------------------------------------------------------------


def table(spec: Spec, width: int | None = None, sites: int = 6) -> str:
    """The spec as a text table, `width` wide (None: as its content), with at most `sites` sites a row."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(
        file=text,
        width=width or 10_000,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
    )
    console.print(renderable(spec, sites), soft_wrap=False)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def renderable(spec: Spec, sites: int = 6) -> RenderableType:
    """The spec for a `rich` console."""
    from rich.console import Group as Stack
    from rich.table import Table
    from rich.text import Text

    def new(*columns: tuple[str, str]) -> Table:
        new_table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
        for name, justify in columns:
            new_table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
        return new_table

    groups = new(
        ("group", "left"),
        ("size", "right"),
        ("copies", "right"),
        ("layers", "right"),
        ("order", "right"),
        ("within", "left"),
        ("sites", "left"),
    )
    for row in rows(spec):
        places = row.places[:sites] + (
            [f"... {len(row.places) - sites} more"] if len(row.places) > sites else []
        )
        cells = (
            row.name,
            str(row.group.size),
            str(row.group.copies),
            f"x{len(row.groups)}" if len(row.groups) > 1 else "",
            _power(row.log10_order),
            "\n".join(map(_plain, row.within)),
        )
        groups.add_row(
            *(Text(cell if k == 5 else _plain(cell)) for k, cell in enumerate(cells)),
            Text("\n".join(map(_plain, places))),
        )
    pinned = new(("pinned axes", "right"), ("reason", "left"), ("such as", "left"), ("at", "left"))
    for reason in reasons(spec):
        first = "{}[{}]".format(*reason.axes[0])
        pinned.add_row(
            *(
                Text(_plain(cell))
                for cell in (
                    str(len(reason.axes)),
                    reason.why,
                    first,
                    _some([where.split(" ")[0] for where in reason.where], 2),
                )
            )
        )
    facts = Text("\n".join(map(_plain, _facts(spec))))
    return Stack(
        facts, *([Text(), groups] if spec.groups else []), *([Text(), pinned] if spec.pinned else [])
    )


# ---- graphs ------------------------------------------------------------------------------------------------


def to_networkx(spec: Spec) -> networkx.Graph:
    """A bipartite graph: a node for each group (its name) and each axis of the state (tensor, axis), and an
    edge wherever a group moves an axis.

    Groups have `kind="group"`, `size`, `copies`, `within`; axes have `kind="axis"`, `size`, and `pinned`
    (why, "" if they move); edges have `blocks`, the numbers of the blocks of the tensor's layout.
    """
    import networkx

    graph = networkx.Graph()
    for group in spec.groups.values():
        graph.add_node(
            group.name,
            kind="group",
            bipartite=0,
            size=group.size,
            copies=group.copies,
            within=", ".join(group.within),
        )
    for tensor in spec.layouts:
        for axis, size in enumerate(spec.shapes[tensor]):
            graph.add_node(
                (tensor, axis),
                kind="axis",
                bipartite=1,
                size=size,
                pinned=spec.pinned.get((tensor, axis), ""),
            )
    blocks: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for group in spec.groups.values():
        for site in group.sites:
            blocks[group.name, site.tensor, site.axis].append(site.block)
    for (name, tensor, axis), numbers in blocks.items():
        graph.add_edge(name, (tensor, axis), blocks=", ".join(map(str, numbers)))
    return graph


def _edges(spec: Spec) -> Iterator[tuple[int, str, str]]:
    """(row number, name of tensors alike, axes and spans) wherever a row moves tensors."""
    for k, row in enumerate(rows(spec)):
        labels: dict[str, list[str]] = defaultdict(list)
        for tensor, axis, span in row.sites:
            labels[tensor].append(f"{axis}" + (f" {span}" if span else ""))
        yield from ((k, tensor, ", ".join(texts)) for tensor, texts in labels.items())


def _group_label(row: Row) -> Iterator[str]:
    times = f" x{len(row.groups)}" if len(row.groups) > 1 else ""
    yield row.name
    yield f"{row.group.size}!" + (f"^{row.group.copies}" if row.group.copies > 1 else "") + times


def _tensors(edges: Iterable[tuple[int, str, str]]) -> dict[str, int]:
    return {tensor: k for k, tensor in enumerate(dict.fromkeys(tensor for _, tensor, _ in edges))}


def to_dot(spec: Spec) -> str:
    """The groups, the tensors and which axes move with what, repeated layers once, in Graphviz's language."""

    def quoted(*lines: str) -> str:
        return (
            '"' + "\\n".join(_plain(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
        )

    edges = list(_edges(spec))
    tensors = _tensors(edges)
    text = ["graph spec {", "  rankdir=LR;", '  node [fontname="Helvetica", fontsize=10];']
    text += [
        f"  g{k} [shape=ellipse, style=filled, fillcolor=lightblue, label={quoted(*_group_label(row))}];"
        for k, row in enumerate(rows(spec))
    ]
    text += [f"  t{k} [shape=box, label={quoted(tensor)}];" for tensor, k in tensors.items()]
    text += [
        f"  g{k} -- t{tensors[tensor]} [fontsize=9, label={quoted(label)}];" for k, tensor, label in edges
    ]
    return "\n".join([*text, "}"]) + "\n"


def to_mermaid(spec: Spec) -> str:
    """The same graph as `to_dot` in Mermaid's language."""

    def quoted(*lines: str) -> str:
        safe = (
            "".join(c if c.isalnum() or c in " ._-:,!^=/" else f"#{ord(c)};" for c in _plain(line))
            for line in lines
        )
        return '"' + "<br/>".join(safe) + '"'

    edges = list(_edges(spec))
    tensors = _tensors(edges)
    text = ["graph LR"]
    text += [f"  g{k}([{quoted(*_group_label(row))}])" for k, row in enumerate(rows(spec))]
    text += [f"  t{k}[{quoted(tensor)}]" for tensor, k in tensors.items()]
    text += [f"  g{k} ---|{quoted(label)}| t{tensors[tensor]}" for k, tensor, label in edges]
    return "\n".join(text) + "\n"


# ---- HTML --------------------------------------------------------------------------------------------------

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none';
 form-action 'none'">
<title>fxrebasin: {{ spec.groups | length }} groups</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: Canvas; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; } code, td.c { font-family: ui-monospace, monospace; font-size: .87rem; }
input { font: inherit; width: 24rem; max-width: 100%; padding: .3rem .6rem; }
summary { cursor: pointer; } ul { margin: .2rem 0; padding-left: 1.2rem; }
.facts { padding-left: 1.2rem; }
tr:hover td { background: var(--soft); }
</style>
</head>
<body>
<h1>Permutation symmetries</h1>
<ul class="facts">{% for fact in facts %}<li>{{ fact }}</li>{% endfor %}</ul>
<p><input type="search" id="filter" placeholder="Search groups, tensors, reasons" aria-label="Search">
<span id="count"></span></p>
<h2>Groups</h2>
<table>
<thead><tr><th>group</th><th class="n">size</th><th class="n">copies</th><th class="n">layers</th>
<th class="n">order</th><th>within</th><th>sites</th></tr></thead>
<tbody>
{% for row in rows %}<tr data-more="{{ row.groups | map(attribute='name') | join(' ') }}">
<td class="c">{{ row.name }}</td><td class="n">{{ row.group.size }}</td>
<td class="n">{{ row.group.copies }}</td>
<td class="n">{{ row.groups | length }}</td>
<td class="n">{{ power(row.log10_order) }}</td>
<td class="c">{% for name in row.within %}{{ name }}{% if not loop.last %}<br>{% endif %}{% endfor %}</td>
<td class="c">{% for place in row.places[:4] %}{{ place }}{% if not loop.last %}<br>{% endif %}{% endfor %}
{% if row.places | length > 4 %}<details><summary>{{ row.places | length - 4 }} more</summary>
{% for place in row.places[4:] %}
{{ place }}{% if not loop.last %}<br>{% endif %}{% endfor %}</details>{% endif %}
</td>
</tr>
{% endfor %}</tbody>
</table>
<h2>Pinned axes</h2>
<table>
<thead><tr><th>tensor</th><th class="n">axis</th><th class="n">size</th><th>reason</th></tr></thead>
<tbody>
{% for (tensor, axis), reason in spec.pinned.items() %}<tr>
<td class="c">{{ tensor }}</td><td class="n">{{ axis }}</td>
<td class="n">{{ spec.shapes[tensor][axis] }}</td><td>{{ reason }}</td></tr>
{% else %}<tr><td colspan="4">none</td></tr>
{% endfor %}</tbody>
</table>
<script>
const field = document.getElementById("filter"), rows = [...document.querySelectorAll("tbody tr")];
field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = (row.textContent + " " + (row.dataset.more || "")).toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = words.length ? shown + " of " + rows.length + " rows" : "";
});
</script>
</body>
</html>
"""


def to_html(spec: Spec) -> str:
    """One page that needs nothing else: what there is in `table`, every pinned axis, and a search field."""
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return page.render(spec=spec, rows=rows(spec), facts=_facts(spec), power=_power)
