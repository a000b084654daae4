"""What every way of carrying a fine-tuning over is worth: the standing comparison.

    python -m benchmarks.transport [--models mlp text vit] [--draws 3] [--passes 200] [--pairs FOLDER]

Pairs: the demo's MLP and ViT (images, three shifted tasks each), and text encoders (`python -m
fxrebasin.demo.text`; four languages each): the demo's pair in both directions, and with two more bases
whose files are in FOLDER. Inputs are drawn from the second thousand of the shipped test data, without labels;
accuracies are measured on the first thousand. Share: (accuracy - B untouched) / (oracle - B untouched); the
oracle is B fine-tuned on the task itself, as recorded when the networks were made. Rows that draw inputs or
elements are made `--draws` times. Every figure is kept in benchmarks/results/transport.json as it is made, so
that a run that was stopped goes on where it was; the table is benchmarks/results/transport.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fxrebasin as fxr
from benchmarks.machine import machine
from fxrebasin.demo import data, models, weights
from fxrebasin.transport.calibrate import Job
from fxrebasin.transport.fit import Bench, fit_gains, fit_weights
from fxrebasin.transport.samples import samples_of

RESULTS = Path(__file__).parent / "results"
PAIRS = Path(__file__).parent / "pairs"  # task vectors that the demo does not need
FEW, MANY, RANK, LORA_RATE = 64, 1000, 16, 3e-3
PASSES = 200  # what a row that is fitted may spend; --passes says otherwise, and then the row's name says so
State = dict[str, Tensor]


# ---- the pairs ---------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Two bases, A's fine-tunings, and the data of every task: inputs and labels, evaluation first."""

    name: str
    kind: str
    a: State
    b: State
    tuned: dict[str, State]
    oracles: dict[str, float]
    views: dict[str, Tensor]
    labels: dict[str, Tensor]
    support: str
    passes: int = PASSES
    alignments: dict = field(default_factory=dict)

    @cached_property
    def model(self):
        return models.build(self.kind)

    @cached_property
    def spec(self) -> fxr.Spec:
        return fxr.infer(self.model, models.example_inputs(self.kind))

    def alignment(self, method: str) -> tuple[fxr.Alignment, float]:
        """By a method, with the seconds that it took; found once."""
        if method not in self.alignments:
            started = time.perf_counter()
            self.alignments[method] = (
                fxr.match(self.spec, self.a, self.b, method=method),
                time.perf_counter() - started,
            )
        return self.alignments[method]

    @torch.no_grad()
    def accuracy(self, state: State, view: str) -> float:
        self.model.load_state_dict(state)
        parts = [self.model(x).argmax(1) for x in self.views[view][:MANY].split(250)]
        return float((torch.cat(parts) == self.labels[view][:MANY]).float().mean())

    def inputs(self, view: str, count: int, draw: int) -> Tensor:
        """So many of the second thousand (or what there is of it)."""
        rest = self.views[view][MANY:]
        return rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(draw))[:count]]


def images(kind: str) -> Pair:
    pixels, labels = data.shipped_test_images()
    recorded = json.loads((data.SHIPPED / f"{kind}_measured.json").read_text())["accuracy"]
    views = {"support": data.prepare(pixels)} | {task: data.prepare(pixels, task) for task in data.TASKS}
    return Pair(
        kind,
        kind,
        weights.base(kind, "A"),
        weights.base(kind, "B"),
        {task: weights.finetuned(kind, task) for task in data.TASKS},
        {task: recorded[f"B fine-tuned, {task}"][task]["first 2,000"] for task in data.TASKS},
        views,
        dict.fromkeys(views, labels),
        "support",
    )


def text(one: int, two: int, folder: Path) -> Pair | None:
    """The text pair of two seeds, or None where its files are not there."""

    def file(name: str) -> Path:
        return next((f for f in (data.SHIPPED / name, folder / name) if f.exists()), data.SHIPPED / name)

    languages = ("da", "it", "fr", "de")
    needed = [file(f"text_{one}_{language}.safetensors") for language in languages]
    needed += [file(f"text_{seed}.safetensors") for seed in (one, two)] + [file(f"text_{two}_measured.json")]
    if not all(path.exists() for path in needed):
        return None
    a, b = (weights.read(file(f"text_{seed}.safetensors")) for seed in (one, two))
    tuned = {}
    for language, path in zip(languages, needed):
        change = weights.read(path)
        tuned[language] = {name: value + change[name] for name, value in a.items()}
    recorded = json.loads(needed[-1].read_text())["accuracy"]
    arrays = np.load(file("test_texts.npz"), allow_pickle=False)
    views = {lang: torch.from_numpy(arrays[f"{lang}.ids"].astype(np.int64)) for lang in ("en", *languages)}
    labels = {lang: torch.from_numpy(arrays[f"{lang}.labels"].astype(np.int64)) for lang in views}
    oracles = {lang: recorded[f"fine-tuned, {lang}"][lang]["first 1,000"] for lang in languages}
    return Pair(f"text {one} to {two}", "text", a, b, tuned, oracles, views, labels, "en")


# ---- the rows ----------------------------------------------------------------------------------------------

Row = Callable[[Pair, str, int], State]


def plain(method: str) -> Row:
    return lambda pair, task, draw: fxr.transport(pair.a, pair.tuned[task], pair.b, pair.alignment(method)[0])


def published(method: str, aligned: str = "exact") -> Row:
    def row(pair: Pair, task: str, draw: int) -> State:
        return fxr.carry(
            pair.model,
            pair.a,
            pair.tuned[task],
            pair.b,
            pair.alignment(aligned)[0],
            pair.inputs(task, FEW, draw),
            method=method,
            seed=draw,
        )

    return row


def with_inputs(pair: Pair, task: str, draw: int) -> State:
    """`match` with 64 inputs of the support set and of the task."""
    x = torch.cat([pair.inputs(view, FEW // 2, draw) for view in (pair.support, task)])
    pi = fxr.match(pair.spec, pair.a, pair.b, model=pair.model, inputs=[x])
    return fxr.transport(pair.a, pair.tuned[task], pair.b, pi)


def alpha_auto(pair: Pair, task: str, draw: int) -> State:
    return fxr.transport(
        pair.a,
        pair.tuned[task],
        pair.b,
        pair.alignment("exact")[0],
        "auto",
        model=pair.model,
        inputs=pair.inputs(task, FEW, draw),
    )


def calibrated(count: int, kept: int = 0, fit: str = "all", aligned: str = "exact") -> Row:
    def row(pair: Pair, task: str, draw: int) -> State:
        keep = pair.inputs(pair.support, kept, draw) if kept else None
        return fxr.calibrate(
            pair.model,
            pair.a,
            pair.tuned[task],
            pair.b,
            _element(pair, aligned, draw),
            pair.inputs(task, count, draw),
            keep,
            fit=fit,
            passes=pair.passes,
            seed=draw,
        ).state

    return row


def _element(pair: Pair, aligned: str, draw: int) -> fxr.Alignment:
    return pair.spec.random(draw) if aligned == "random" else pair.alignment(aligned)[0]


def _job(pair: Pair, task: str, draw: int, count: int) -> Job:
    job = Job(pair.model, pair.a, pair.tuned[task], pair.b, pair.spec.identity(), "auto", draw)
    job.split(samples_of(pair.inputs(task, count, draw), "inputs"), None)
    job.bench.around = {name: tensor for name, tensor in job.own.items() if name not in job.fitted}
    return job


def spectrum(pair: Pair, task: str, draw: int) -> State:
    """The control: gains on random matrices with the spectrum of tau."""
    job = _job(pair, task, draw, FEW)
    generator = torch.Generator().manual_seed(draw)

    def like(tensor: Tensor) -> Tensor:
        if tensor.ndim < 2:
            return tensor[torch.randperm(len(tensor), generator=generator)]
        flat = tensor.flatten(1)
        values = torch.linalg.svdvals(flat)
        u, v = (torch.linalg.qr(torch.randn(n, len(values), generator=generator))[0] for n in flat.shape)
        return ((u * values) @ v.T).view_as(tensor)

    vector = {name: like(tensor) for name, tensor in job.vector.items()}
    own = {name: job.own[name] for name in job.fitted}
    with torch.enable_grad():
        return job.bench.whole(fit_gains(job.bench, own, vector, 20, 256)[1])


def distilled(count: int) -> Row:
    """All weights from B, with all the passes that calibration has."""

    def row(pair: Pair, task: str, draw: int) -> State:
        job = _job(pair, task, draw, count)
        steps = int(pair.passes / (min(64, len(job.bench.fitted[0])) / 64))
        return job.bench.whole(fit_weights(job.bench, {name: job.own[name] for name in job.fitted}, steps)[0])

    return row


class LowRank(Bench):
    """Weights are B's plus products of rank 16, which are what is fitted."""

    def whole(self, weights: State, around: State | None = None) -> State:
        state = dict(weights)
        for name in [name for name in weights if name.endswith(":a")]:
            name, a, b = name[:-2], state.pop(name), state.pop(f"{name[:-2]}:b")
            state[name] = self.around[name] + (b @ a).view_as(self.around[name])
        return super().whole(state, around)


def lora(pair: Pair, task: str, draw: int) -> State:
    job = _job(pair, task, draw, FEW)
    old, generator = job.bench, torch.Generator().manual_seed(draw)
    bench = LowRank(
        old.run, dict(job.own), old.aliases, old.fitted, old.held, old.teacher, generator=old.generator
    )
    start = {}
    for name in (name for name in job.fitted if job.own[name].ndim > 1):
        flat = job.own[name].flatten(1)
        rank = min(RANK, *flat.shape)
        start[f"{name}:a"] = torch.randn(rank, flat.shape[1], generator=generator) / math.sqrt(flat.shape[1])
        start[f"{name}:b"] = torch.zeros(flat.shape[0], rank)
    steps = int(pair.passes / (min(64, len(old.fitted[0])) / 64))
    return bench.whole(fit_weights(bench, start, steps, LORA_RATE)[0])


ROWS: dict[str, tuple[Row, bool]] = {  # name -> how, and whether it draws anything
    "B + tau (identity)": (plain("identity"), False),
    "random element": (published("random"), True),
    "ot": (plain("ot"), False),
    "git-rebasin": (plain("git-rebasin"), False),
    "transfusion": (plain("transfusion"), False),
    "exact": (plain("exact"), False),
    "exact, with 64 inputs": (with_inputs, True),
    "exact, alpha by 64 inputs": (alpha_auto, True),
    "theseus, 64": (published("theseus"), True),
    "bico, 64": (published("bico"), True),
    "gradfix on tau, 64": (published("gradfix", "identity"), True),
    "gradfix on pi(tau), 64": (published("gradfix"), True),
    "gains, 64": (calibrated(FEW, fit="gains"), True),
    "calibrate, 64": (calibrated(FEW), True),
    "calibrate, 64, keep 64": (calibrated(FEW, FEW), True),
    "calibrate, 1,000": (calibrated(MANY), True),
    "calibrate, 1,000, keep 1,000": (calibrated(MANY, MANY), True),
    "control: gains on tau as it is, 64": (calibrated(FEW, fit="gains", aligned="identity"), True),
    "control: gains on a random element, 64": (calibrated(FEW, fit="gains", aligned="random"), True),
    "control: gains on tau's spectrum, 64": (spectrum, True),
    "distillation from B, 64": (distilled(FEW), True),
    "LoRA-16 from B, 64": (lora, True),
    "distillation from B, 1,000": (distilled(MANY), True),
}


def label(name: str, passes: int) -> str:
    """A row's name in the results."""
    spends = name.split(",")[0] in ("calibrate", "distillation from B", "LoRA-16 from B")
    return f"{name} ({passes} passes)" if spends and passes != PASSES else name


# ---- measuring ---------------------------------------------------------------------------------------------


def measure(pair: Pair, kept: dict, rows: list[str], draws: int, save: Callable[[], None]) -> None:
    """Fills `kept[pair]` with what is not there yet: draws first, so that all rows have one before any has
    two."""
    found = kept.setdefault(pair.name, {})
    untouched = found.setdefault("B untouched", {})
    for task in pair.tuned:
        if task not in untouched:
            untouched[task] = [
                {
                    "task": pair.accuracy(pair.b, task),
                    "support": pair.accuracy(pair.b, pair.support),
                    "oracle": pair.oracles[task],
                    "seconds": 0.0,
                }
            ]
    for draw in range(draws):
        for name, task in ((name, task) for name in rows for task in pair.tuned):
            how, draws_anything = ROWS[name]
            done = found.setdefault(label(name, pair.passes), {}).setdefault(task, [])
            if len(done) > draw or (draw and not draws_anything):
                continue
            started = time.perf_counter()
            state = how(pair, task, draw)
            seconds = time.perf_counter() - started
            done.append(
                {
                    "task": pair.accuracy(state, task),
                    "support": pair.accuracy(state, pair.support),
                    "seconds": round(seconds, 2),
                }
            )
            save()
            print(f"{pair.name}, {task}, {label(name, pair.passes)}: {done[-1]}", file=sys.stderr, flush=True)


def summary(found: dict, name: str) -> tuple[list[float], list[float], float, float, int] | None:
    """Shares of all tasks and draws, support, mean accuracy, seconds, draws."""
    shares, support, accuracy, seconds, draws = [], [], [], [], []
    for rows in found.values():
        for task, (b, *_) in rows["B untouched"].items():
            for one in rows.get(name, {}).get(task, []):
                shares.append((one["task"] - b["task"]) / (b["oracle"] - b["task"]))
                support.append(one["support"])
                accuracy.append(one["task"])
                seconds.append(one["seconds"])
            draws.append(len(rows.get(name, {}).get(task, [])))
    if not shares:
        return None
    return shares, support, statistics.mean(accuracy), statistics.median(seconds), max(draws)


def table(kept: dict, pair: str) -> Iterator[str]:
    found = {pair: kept[pair]}
    yield f"\n## {pair}\n"
    yield "| way | task | support | share, mean | worst task | draws | seconds |"
    yield "|---|---|---|---|---|---|---|"
    b = [one for rows in found.values() for (one, *_) in rows["B untouched"].values()]
    yield (
        f"| B untouched | {statistics.mean(x['task'] for x in b):.3f} | {statistics.mean(x['support'] for x in b):.3f} "
        "| | | | |"
    )
    made_so_far = dict.fromkeys(name for rows in found.values() for name in rows)
    for name in (own for row in ROWS for own in made_so_far if own == row or own.startswith(f"{row} (")):
        if (made := summary(found, name)) is not None:
            shares, support, accuracy, seconds, draws = made
            worst = min(_by_task(found, name))
            yield (
                f"| {name} | {accuracy:.3f} | {statistics.mean(support):.3f} | {statistics.mean(shares):.0%} | {worst:.0%} "
                f"| {draws} | {seconds:.1f} |"
            )
    yield f"| oracle | {statistics.mean(x['oracle'] for x in b):.3f} | | 100% | | | |"


def _by_task(found: dict, name: str) -> Iterator[float]:
    """The mean share of each task of each pair."""
    for rows in found.values():
        for task, (b, *_) in rows["B untouched"].items():
            if done := rows.get(name, {}).get(task):
                yield (statistics.mean(one["task"] for one in done) - b["task"]) / (b["oracle"] - b["task"])


def report(kept: dict, command: str) -> str:
    lines = [
        "# Ways to carry a fine-tuning over",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        f"`{command}`, {machine()}. Seconds are of a machine that others used at the same time, and leave out the "
        "match.",
        "",
    ]
    for pair in kept:
        lines += table(kept, pair)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=("mlp", "text", "vit"), default=["mlp", "text", "vit"])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--pairs", type=Path, default=PAIRS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", fxr.TransportNote)
    file = args.out / "transport.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    pairs = [images(kind) for kind in args.models if kind != "text"]
    if "text" in args.models:
        pairs += [
            pair
            for one, two in ((1, 2), (2, 1), (3, 2), (2, 3), (1, 4), (3, 4))
            if (pair := text(one, two, args.pairs)) is not None
        ]

    for pair in pairs:
        pair.passes = args.passes

    def save() -> None:
        file.write_text(json.dumps(kept, indent=0) + "\n")
        (args.out / "transport.md").write_text(report(kept, "python -m benchmarks.transport"))

    for draws in range(1, args.draws + 1):
        for pair in pairs:
            measure(pair, kept, args.rows, draws, save)
    save()


if __name__ == "__main__":
    main()
