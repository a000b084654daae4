"""What each objective and method carries over between independently trained networks, beside a random element.

    python -m benchmarks.objectives [--only mlp,vit,text-3-4] [--objectives scaled,half] [--out FILE]

The demo's pairs (images: three fine-tunings of A each; texts: four). For objectives of `fxr.match` and every
method: the cosine of all matrices and of all vectors after the match, the accuracy halfway between pi(A)
and B on the original data, the share of the fine-tuning gain that is recovered at alpha 1 (mean over the
tasks, and each), and the seconds of the processor for the match. Methods that draw: means over seeds. Writes
benchmarks/results/objectives.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

import fxrebasin as fxr
from benchmarks.machine import machine
from benchmarks.transport import PAIRS, text
from fxrebasin.demo import data, weights
from fxrebasin.demo.models import MODELS, build, example_inputs
from fxrebasin.demo.run import SUPPORT, Bench
from fxrebasin.match import METHODS

RESULTS = Path(__file__).parent / "results" / "objectives.md"
COUNT = {"mlp": 1000, "vit": 500, "text": 1000}  # inputs that accuracies are measured on
State = Mapping[str, torch.Tensor]


def cosine(a: State, b: State, matrices: bool) -> float:
    """Of all matrices together, or of all vectors, as they are."""
    flat = [torch.cat([t.flatten().double() for t in state.values() if (t.ndim > 1) == matrices])
            for state in (a, b)]
    return float(torch.nn.functional.cosine_similarity(*flat, dim=0))


class Pair:
    """A demo pair, and what there is to measure on it."""

    def __init__(self, kind: str):
        self.kind = kind
        views, labels = data.views(kind)
        self.tasks = [view for view in views if view != SUPPORT]
        self.bench = Bench(build(kind), views, labels, COUNT[kind])
        self.spec = fxr.infer(self.bench.model, example_inputs(kind))
        self.a, self.b = weights.base(kind, "A"), weights.base(kind, "B")
        self.tuned = {task: weights.finetuned(kind, task) for task in self.tasks}
        self.oracle = {task: weights.oracle(kind, task) for task in self.tasks}
        self.start = {task: self.bench.measure(self.b, task)["accuracy"] for task in self.tasks}

    def row(self, method: str, objective: str, seed: int) -> dict[str, float]:
        started = time.process_time()
        pi = fxr.match(self.spec, self.a, self.b, method, seed, objective=objective)
        seconds = time.process_time() - started
        moved = pi.apply(self.a)
        shares = {}
        for task in self.tasks:
            carried = fxr.transport(self.a, self.tuned[task], self.b, pi)
            gain = self.bench.measure(carried, task)["accuracy"] - self.start[task]
            shares[task] = gain / (self.oracle[task] - self.start[task])
        middle = self.bench.measure({k: torch.lerp(moved[k], self.b[k], 0.5) for k in self.b}, SUPPORT)
        return {"objective": pi.objective, "matrices": cosine(moved, self.b, True),
                "vectors": cosine(moved, self.b, False), "midpoint": middle["accuracy"],
                "share": float(np.mean(list(shares.values()))), **shares, "seconds": seconds}


def pair_named(name: str) -> Pair:
    """A demo pair, or "text-3-4": the text encoders of two seeds, whose files are in benchmarks/pairs."""
    kind, *seeds = name.split("-")
    pair = Pair(kind)
    if seeds:
        found = text(*map(int, seeds), PAIRS)
        if found is None:
            raise SystemExit(f"{name}: its files are not in {PAIRS}: python -m fxrebasin.demo.text makes them")
        pair.a, pair.b, pair.tuned, pair.oracle = found.a, found.b, found.tuned, found.oracles
        pair.start = {task: pair.bench.measure(pair.b, task)["accuracy"] for task in pair.tasks}
    return pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--objectives", default="scaled,plain,all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for kind in args.only.split(","):
        pair = pair_named(kind)
        for objective in args.objectives.split(","):
            for method in args.methods.split(","):
                if method in ("identity", "random") and objective != args.objectives.split(",")[0]:
                    continue  # they look at nothing
                rows = [pair.row(method, objective, seed)
                        for seed in range(1 if method in ("identity", "ot") else args.seeds)]
                mean = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
                tasks = " / ".join(f"{100 * mean[task]:.0f}" for task in pair.tasks)
                lines.append(f"| {kind} | {method} | {objective if method not in ('identity', 'random') else ''} | "
                             f"{mean['objective']:.3f} | {mean['matrices']:.3f} | {mean['vectors']:.3f} | "
                             f"{mean['midpoint']:.3f} | {100 * mean['share']:.0f} % | {tasks} | {mean['seconds']:.1f} |")
                print(lines[-1], file=sys.stderr, flush=True)
    head = [
        "# What each objective carries over", "",
        f"`python -m benchmarks.objectives {' '.join(sys.argv[1:])}`; {machine()}; means over {args.seeds} seeds "
        "where a method draws.", "",
        ("Shares of the fine-tuning gain at alpha 1, in percent; tasks: rotated / inverted / flipped images, Danish / "
         "Italian / French / German texts. Cosines of matrices and of vectors are of the weights as they are; `its "
         "value` is the cosine that `fxr.match` reports, in every row that of the objective `scaled`."), "",
        "| pair | method | objective | its value | matrices | vectors | midpoint | share | tasks | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|"]
    args.out.write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main()
