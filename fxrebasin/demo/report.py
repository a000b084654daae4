"""How the demo's numbers are shown: rich tables and two pictures."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .data import LANGUAGES

COLOURS = {"identity": "#888888", "git-rebasin": "#c98a2b", "ot": "#8a5aa8", "exact": "#1f6fb4"}
LABELS = {"identity": "tau as it is", "exact": "pi(tau), exact"}


def show(results: dict[str, Any], console: Console) -> None:
    """All tables."""
    for kind, found in results["models"].items():
        console.print(alignments(kind, found))
        for task, measured in found["tasks"].items():
            console.print(outcomes(kind, task, measured))
    console.print(f"Data: {results['data']}. Cosines are of all weights but vectors (biases, norms).")
    console.print(f"Recipes: {results['recipes']}.")
    console.print(f"Share of the gain recovered: {results['share']}; its accuracy is read from the training "
                  f"record, all else was measured just now. Support: what the bases learned. Fitted: {results['fit']}.")


def alignments(kind: str, found: dict[str, Any]) -> Table:
    """What each method's alignment of A to B is worth: cosine, evidence, midpoint."""
    a, b = (found["support"][name]["accuracy"] for name in "AB")
    table = Table(title=f"{kind}: A onto B (A {a:.3f}, B {b:.3f}; 10^{found['log10 order']:.0f} alignments)",
                  caption=f"A realigned and midpoint: support accuracy on the first {found['few']:,} inputs",
                  title_justify="left", caption_justify="left")
    for name in ("method", "cosine before", "after", "worst relative error", "function", "A realigned",
                 "midpoint", "seconds"):
        table.add_column(name, justify="left" if name in ("method", "function") else "right")
    for method, row in found["methods"].items():
        table.add_row(method, f"{row['cosine before']:.3f}", f"{row['cosine after']:.3f}",
                      f"{row['worst relative error']:.1e}",
                      "kept" if row["keeps the function"] else "[bold red]BROKEN[/]",
                      f"{row['A realigned']['accuracy']:.3f}", f"{row['midpoint']['accuracy']:.3f}",
                      f"{row['seconds']:.1f}")
    return table


def outcomes(kind: str, task: str, measured: dict[str, Any]) -> Table:
    """One task: what every way of carrying the fine-tuning over gives, losses in red like gains in green."""
    table = Table(title=f"{kind}: {LANGUAGES.get(task, f'images {task}')}", title_justify="left")
    for name in ("network", "task accuracy", "support accuracy", "share of the gain recovered"):
        table.add_column(name, justify="left" if name == "network" else "right")
    before = measured["B untouched"]
    table.add_row("B untouched", f"{before['task']:.3f}", f"{before['support']:.3f}", "")
    for method, row in measured["methods"].items():
        fitted = "agreement" in row
        name = "B + tau (identity)" if method == "identity" else f"B + pi(tau), {'fitted to ' * fitted}{method}"
        table.add_row(name, signed(row["task"], before["task"]), signed(row["support"], before["support"]),
                      f"{row['share']:+.1%}")
    tuned = measured["A fine-tuned"]
    table.add_section()
    table.add_row("A fine-tuned", f"{tuned['task']:.3f}", f"{tuned['support']:.3f}", "")
    table.add_row("B fine-tuned (oracle)", f"{measured['oracle']['task']:.3f}", "", "+100.0%")
    return table


def signed(value: float, before: float) -> str:
    """A figure and how far it is from what was there before."""
    colour = "green" if value > before else "red" if value < before else "default"
    return f"{value:.3f} [{colour}]({value - before:+.3f})[/]"


def figure(rows: int, columns: int):
    """A figure that needs no display, and its axes as a 2-d array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    drawn = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, drawn.subplots(rows, columns, squeeze=False)


def picture_of_accuracy(kind: str, found: dict[str, Any], file: Path) -> Path:
    """Accuracy against alpha, a column a task, and what fitting to a few inputs comes to."""
    drawn, axes = figure(1, len(found["tasks"]))
    for axis, (task, measured) in zip(axes[0], found["tasks"].items(), strict=True):
        curves = measured["curves"]
        for method in (name for name in COLOURS if name in curves):
            for what, line in (("task", {"marker": "o", "ms": 3}), ("support", {"ls": "--", "lw": 1})):
                axis.plot(curves["alphas"], curves[method][what], color=COLOURS[method],
                          label=f"{what}, {LABELS[method]}", **line)
        fit = next(row for row in measured["methods"].values() if "agreement" in row)
        axis.plot([1], [fit["task"]], color="#b4341f", marker="*", ms=11, ls="", label="task, pi(tau) fitted to 64 inputs")
        axis.axhline(measured["oracle"]["task"], color="#2a8a3c", lw=1, ls=":", label="task, oracle")
        axis.set(title=f"{kind}: {LANGUAGES.get(task, task)} (curves: {curves['count']:,} inputs)", xlabel="alpha",
                 ylabel="accuracy", ylim=(0, 1))
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    drawn.savefig(file, dpi=120)
    return file


def picture_of_loss(kind: str, found: dict[str, Any], file: Path) -> Path:
    """Cross-entropy along the straight line from A to B and from pi(A) to B, on what the bases learned."""
    drawn, axes = figure(1, 1)
    line = found["loss"]
    for method in (name for name in COLOURS if name in line):
        label = "A to B" if method == "identity" else f"pi(A) to B, {method}"
        axes[0][0].plot(line["steps"], line[method], color=COLOURS[method], marker="o", ms=3, label=label)
    axes[0][0].set(title=f"{kind} ({line['count']:,} inputs)", xlabel="share of B", ylabel="cross-entropy")
    axes[0][0].legend()
    drawn.savefig(file, dpi=120)
    return file
