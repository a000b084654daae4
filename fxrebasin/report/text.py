"""A report as a table."""

from __future__ import annotations

import io

from .measure import Cosines, Report

WEAKEST = 5  # groups and tensors that are shown


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def cells(row: Cosines) -> list[str]:
    return [number(row.before), number(row.after), number(row.random), number(row.chance)]


def table(report: Report) -> str:
    """Kinds, what moved, and the weakest groups and tensors."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def grid(first: str, rows: list[tuple[str, list[str]]], *more: str) -> Table:
        found = Table(box=None, pad_edge=False)
        found.add_column(first, overflow="fold")
        for name in ("before", "after", "random", "chance", *more):
            found.add_column(name, justify="right")
        for name, row in rows:
            found.add_row(Text(name), *row)
        return found

    text = io.StringIO()
    console = Console(file=text, width=120, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(grid("cosine with the target", [("objective", cells(report.objective))] + [
        (f"{kind.name} ({kind.tensors})", cells(kind)) for kind in report.kinds]))
    moved = ", ".join(f"{percent(share)} of {what}" for what, share in report.moved.items())
    console.print(Text(f"\nmoved: {moved or 'nothing can be'}"))
    if report.groups:
        console.print(Text())
        console.print(grid("weakest groups", [
            (group.name, [*cells(group), f"{group.copies} x {group.size} {group.what}", percent(group.moved)])
            for group in report.groups[:WEAKEST]], "of", "moved"))
        weakest = sorted((t for t in report.tensors if t.kind == "matrices"), key=lambda t: t.after)[:WEAKEST]
        console.print(Text())
        console.print(grid("weakest matrices", [(t.name, cells(t)) for t in weakest]))
    if report.warning:
        console.print(Text(f"\nwarning: {report.warning}"))
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())
