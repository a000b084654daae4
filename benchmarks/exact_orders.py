"""Orders of symmetry groups: inferred from axes, and exact from scalar graphs.

    python benchmarks/exact_orders.py [NAME ...]      writes benchmarks/results/exact_orders.md

For every network of tests/tiny_networks.py: the exact order of the group (tests/scalar_graph.py), the part of
it that permutes whole axes where that is less, the order of the inferred spec, and the seconds for both. With
names, only those networks are measured and the table is printed, not written.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import torch
from scalar_graph import Expansion
from tiny_networks import AXES, NETWORKS

import fxrebasin as fxr
from benchmarks.machine import machine
from fxrebasin.errors import FxrebasinError

HEAD = """# Exact and inferred orders of tiny networks

{equal} of {count} specs have the exact order. Command: `python benchmarks/exact_orders.py`.

Machine: {machine}.

*scalar graph*: automorphisms of the graph of scalar operations. *axes*: those that permute whole axes, where
they are fewer. *spec*: `fxr.infer(...).order`. Equal means equal to one of the two; `1/n` says by how much a
spec is smaller.

| network | scalar graph | axes | spec | equal | seconds, exact | seconds, spec |
|---|---:|---:|---:|---|---:|---:|
"""


def timed(function, *arguments):
    start = time.perf_counter()
    answer = function(*arguments)
    return answer, time.perf_counter() - start


def row(name: str) -> tuple[str, bool]:
    """One line of the table, and whether the spec is all that axes can express."""
    module, inputs = NETWORKS[name]()
    exact, exact_seconds = timed(lambda: Expansion(module, inputs).order())
    axes = AXES.get(name, exact)
    try:
        order, seconds = timed(lambda: fxr.infer(module, inputs, falsify=False).order)
    except FxrebasinError as error:
        return f"| {name} | {exact} | | {type(error).__name__} | no | {exact_seconds:.2f} | |", False
    if order in (axes, exact):
        verdict = "yes"
    else:
        verdict = f"no: 1/{exact // order}" if exact % order == 0 else "NO: not a subgroup"
    shown = str(axes) if axes != exact else ""
    line = f"| {name} | {exact} | {shown} | {order} | {verdict} | {exact_seconds:.2f} | {seconds:.2f} |"
    return line, order in (axes, exact)


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    Expansion(*NETWORKS["mlp"]())  # the first export loads much of torch: not part of anyone's time
    rows = []
    for name in names or NETWORKS:
        rows.append(row(name))
        print(rows[-1][0], file=sys.stderr)
    equal = sum(fine for _, fine in rows)
    head = HEAD.format(equal=equal, count=len(rows), machine=machine())
    text = head + "".join(f"{line}\n" for line, _ in rows)
    if names:
        print(text)
        return
    target = HERE / "results" / "exact_orders.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)
    print(f"{equal} of {len(rows)} equal; written to {target}")


if __name__ == "__main__":
    main(sys.argv[1:])
