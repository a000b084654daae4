"""The spec as a table, for a terminal or a file."""
from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ..spec import Spec
from .fact import facts, plain, power, some
from .reason import Reason, reasons
from .row import Row, rows

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_GROUPS = (("group", "left"), ("size", "right"), ("copies", "right"), ("layers", "right"), ("order", "right"),
           ("within", "left"), ("sites", "left"))
_PINNED = (("pinned axes", "right"), ("reason", "left"), ("such as", "left"), ("at", "left"))


def table(spec: Spec, width: int | None = None, sites: int = 6) -> str:
    """The spec as a text table, `width` wide (None: as its content), with at most `sites` sites a row."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=width or 10_000, color_system=None, force_terminal=False,
                      legacy_windows=False)
    console.print(renderable(spec, sites), soft_wrap=False)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def renderable(spec: Spec, sites: int = 6) -> RenderableType:
    """The spec for a `rich` console."""
    from rich.console import Group as Stack
    from rich.text import Text

    parts: list[RenderableType] = [Text("\n".join(map(plain, facts(spec))))]
    if spec.groups:
        parts += [Text(), _grid(_GROUPS, [_group_cells(row, sites) for row in rows(spec)])]
    if spec.pinned:
        parts += [Text(), _grid(_PINNED, [_pinned_cells(reason) for reason in reasons(spec)])]
    return Stack(*parts)


def _grid(columns: tuple[tuple[str, str], ...], cells: list[list[list[str]]]) -> Table:
    """A rich table of cells, each a list of lines."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name, justify in columns:
        grid.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for line in cells:
        grid.add_row(*(Text("\n".join(map(plain, cell))) for cell in line))
    return grid


def _group_cells(row: Row, sites: int) -> list[list[str]]:
    more = [f"... {len(row.places) - sites} more"] if len(row.places) > sites else []
    layers = f"x{len(row.groups)}" if len(row.groups) > 1 else ""
    return [[row.name], [str(row.group.size)], [str(row.group.copies)], [layers], [power(row.log10_order)],
            [*row.within], row.places[:sites] + more]


def _pinned_cells(reason: Reason) -> list[list[str]]:
    lines = [where.split(" ")[0] for where in reason.where]
    return [[str(len(reason.axes))], [reason.why], ["{}[{}]".format(*reason.axes[0])], [some(lines, 2)]]
