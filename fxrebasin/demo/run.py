"""The measurements behind `fxrebasin demo`: offline, from shipped checkpoints and test images alone.

Two bases A and B of a network were trained apart (other seed, other half of the data). A was fine-tuned on a
task that B never saw. The task vector is added to B as it is, carried over by each method, and fitted to 64 inputs
without labels, and everything that can be told from the outside is measured. Only the oracle (B fine-tuned on the task itself) is not
measured here, since its weights are not shipped: its accuracy comes from the training run's record.
"""
from __future__ import annotations

import json
import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import fxrebasin as fxr

from . import data, report, weights
from .models import MODELS, build, example_inputs

EVIDENCE = 16  # inputs that the function is compared on
DRAWN = ("identity", "git-rebasin", "ot", "exact")  # the methods in the picture of the loss
CURVES = ("identity", "exact")  # those in the picture of accuracies
METHODS = ("identity", "random", "ot", "git-rebasin", "transfusion", "exact")
ALPHAS = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0)
STEPS = tuple(step / 10 for step in range(11))
MEASURED = {"mlp": 1000, "vit": 500, "text": 1000}  # of the shipped inputs, so that the demo takes 90 seconds at most
FEW = {"mlp": 1000, "vit": 200, "text": 500}  # for what is measured often: curves and realigned networks
FITTED = 64  # inputs without labels, none of them among those measured
PASSES = {"mlp": 200, "vit": 60, "text": 100}  # for the fit; the standing comparison has 200 for all
KEPT = ("mlp", "text")  # networks that are also fitted with inputs to keep
SUPPORT = "support"
State = dict[str, Tensor]


@lru_cache
def _workers() -> ThreadPoolExecutor:
    """One thread for each core, each with no threads of its own: these wait for each other for ages on a busy machine."""
    return ThreadPoolExecutor(os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,))


@dataclass(frozen=True)
class Bench:
    """A network and the test data, as the support set and every task sees them."""

    model: nn.Module
    views: dict[str, Tensor]
    labels: dict[str, Tensor]
    count: int  # how many are looked at

    @torch.no_grad()
    def measure(self, state: State, view: str, count: int | None = None) -> dict[str, float]:
        """Accuracy and mean cross-entropy of a state on (the first `count` of) one view."""
        x, y = (held[view][:count or self.count] for held in (self.views, self.labels))
        self.model.load_state_dict(state)
        logits = torch.cat(list(_workers().map(self._forward, x.split(125))))
        return {"accuracy": (logits.argmax(1) == y).float().mean().item(),
                "loss": F.cross_entropy(logits, y).item()}

    def _forward(self, part: Tensor) -> Tensor:
        with torch.no_grad():  # a setting of each thread
            return self.model(part)

    def accuracies(self, state: State, task: str, count: int | None = None) -> dict[str, float]:
        """On the task, and on what the bases learned (the support set)."""
        return {name: self.measure(state, view, count)["accuracy"] for name, view in
                (("task", task), (SUPPORT, SUPPORT))}

    def unlabelled(self, view: str) -> Tensor:
        """A few of the inputs that nothing is measured on."""
        return self.views[view][-FITTED:]


def run(out_dir: str | Path, console: Console) -> dict[str, Any]:
    """Measure, print tables on `console`, write demo.json and two pictures to `out_dir`; the numbers."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "data": "of the shipped test data the first 1,000 inputs (ViT: 500; its oracle: 2,000): images of Fashion-MNIST, "
                "descriptions of Debian's packages (their oracle: the same 1,000)",
        "share": "(accuracy - B untouched) / (oracle - B untouched); the oracle is B fine-tuned on the task",
        "fit": f"{FITTED} inputs without labels, none of them measured on; at most "
               + ", ".join(f"{count} passes ({kind})" for kind, count in PASSES.items()),
        "recipes": "the MLP's and the text encoder's training recipes were chosen for how well they carry over: "
                   "favourable cases; the ViT's was not tuned",
        "models": {kind: measure_model(kind, Bench(build(kind), *data.views(kind), MEASURED[kind])) for kind in MODELS},
    }
    report.show(results, console)
    pictures = [draw(kind, found, out / f"{kind}-{name}.png") for kind, found in results["models"].items()
                for name, draw in (("accuracy", report.picture_of_accuracy), ("loss", report.picture_of_loss))]
    (out / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"Written to {out}: demo.json, {', '.join(picture.name for picture in pictures)}")
    return results


def measure_model(kind: str, bench: Bench) -> dict[str, Any]:
    """Everything about one network: its alignments, what they keep, and every task."""
    a, b = weights.base(kind, "A"), weights.base(kind, "B")
    say(f"{kind}: inferring symmetries")
    spec = fxr.infer(bench.model, example_inputs(kind))
    found: dict[str, Any] = {"log10 order": spec.log10_order, "methods": {}, "tasks": {},
                             "few": FEW[kind],
                             SUPPORT: {"A": bench.measure(a, SUPPORT), "B": bench.measure(b, SUPPORT)}}
    alignments = {}
    for method in METHODS:
        say(f"{kind}: matching A to B by {method}")
        started = time.perf_counter()
        alignments[method] = fxr.match(spec, a, b, method=method)
        seconds = time.perf_counter() - started
        moved = alignments[method].apply(a)
        found["methods"][method] = {
            "cosine before": cosine(a, b), "cosine after": cosine(moved, b), "seconds": seconds,
            "alignment.objective": alignments[method].objective,
            "A realigned": bench.measure(moved, SUPPORT, FEW[kind]),
            "midpoint": bench.measure(mix(moved, b, 0.5), SUPPORT, FEW[kind]),
        } | equivalence(kind, a, alignments[method], bench.views[SUPPORT][:EVIDENCE])
    support = found[SUPPORT]["B"]["accuracy"]
    say(f"{kind}: fitting to {FITTED} inputs without labels")
    tasks = [task for task in bench.views if task != SUPPORT]
    with warnings.catch_warnings():  # what it says of inputs to keep is seen in the table
        warnings.simplefilter("ignore", fxr.TransportNote)
        fits = list(_workers().map(lambda task: fitted(kind, bench, task, alignments["exact"]), tasks))
    for task, fit in zip(tasks, fits, strict=True):
        say(f"{kind}: carrying the task '{task}' over")
        found["tasks"][task] = measure_task(kind, bench, task, alignments, fit, support)
    say(f"{kind}: loss between the bases")
    found["loss"] = {"steps": STEPS, "count": FEW[kind]}
    for method in DRAWN:
        moved = alignments[method].apply(a)
        points = (bench.measure(mix(moved, b, t), SUPPORT, FEW[kind]) for t in STEPS)
        found["loss"][method] = [point["loss"] for point in points]
    return found


def fitted(kind: str, bench: Bench, task: str, alignment: fxr.Alignment) -> dict[str, fxr.Calibration]:
    """The task carried over by an alignment and fitted to a few inputs; and with as many on which B is kept."""
    states = weights.base(kind, "A"), weights.finetuned(kind, task), weights.base(kind, "B")
    keeps = {f"{FITTED} inputs": None} | ({f"{FITTED} inputs, {FITTED} kept": bench.unlabelled(SUPPORT)} if kind in KEPT else {})
    return {name: fxr.calibrate(bench.model, *states, alignment, bench.unlabelled(task), keep, passes=PASSES[kind])
            for name, keep in keeps.items()}


def measure_task(kind: str, bench: Bench, task: str, alignments: dict[str, fxr.Alignment],
                 fits: dict[str, fxr.Calibration], support: float) -> dict[str, Any]:
    """One task: B untouched, the references, B + pi(tau) at alpha 1 by each method, what was fitted, and curves over
    alpha."""
    a, b, tuned = weights.base(kind, "A"), weights.base(kind, "B"), weights.finetuned(kind, task)
    oracle = weights.oracle(kind, task)
    untouched = {"task": bench.measure(b, task)["accuracy"], SUPPORT: support}
    found: dict[str, Any] = {"B untouched": untouched, "oracle": {"task": oracle},
                             "A fine-tuned": bench.accuracies(tuned, task), "methods": {},
                             "curves": {"alphas": ALPHAS, "count": FEW[kind]}}
    for method, alignment in alignments.items():
        carried = bench.accuracies(fxr.transport(a, tuned, b, alignment, alpha=1.0), task)
        share = (carried["task"] - untouched["task"]) / (oracle - untouched["task"])
        found["methods"][method] = carried | {"share": share}
    for name, fit in fits.items():
        carried = bench.accuracies(fit.state, task)
        share = (carried["task"] - untouched["task"]) / (oracle - untouched["task"])
        found["methods"][name] = carried | {"share": share, "agreement": fit.agreement, "passes": fit.passes}
    for method in CURVES:
        states = (fxr.transport(a, tuned, b, alignments[method], alpha=alpha) for alpha in ALPHAS)
        points = [bench.accuracies(state, task, FEW[kind]) for state in states]
        found["curves"][method] = {name: [point[name] for point in points] for name in ("task", SUPPORT)}
    return found


def equivalence(kind: str, state: State, alignment: fxr.Alignment, x: Tensor) -> dict[str, Any]:
    """Does the alignment keep the function that the state computes? In float64, on test images."""
    model = build(kind)
    model.load_state_dict(state)
    try:
        evidence, kept = fxr.verify(model, x, alignment), True
    except fxr.NotEquivalentError as error:
        if error.evidence is None:
            raise
        evidence, kept = error.evidence, False
    return {"keeps the function": kept, "worst relative error": evidence.max_rel,
            "groups that change it": list(evidence.offending)}


def mix(a: State, b: State, t: float) -> State:
    """The point at t on the straight line from a (0) to b (1)."""
    return {name: torch.lerp(a[name], b[name], t) for name in b}


def cosine(a: State, b: State) -> float:
    """Cosine similarity of two states but for their vectors: gains near one would drown the rest."""
    names = [name for name, value in a.items() if value.ndim > 1]

    def dot(s: State, t: State) -> float:
        return sum((s[name].double() * t[name].double()).sum().item() for name in names)
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)
