"""Random networks of PyTorch's own operators, one after another, each tried on random elements of its spec.

    python -m benchmarks.operator_fuzz --count 10000 [--seed 0] [--minutes 45] [--again]

Writes benchmarks/results/operator_fuzz.md, and what it has counted so far to operator_fuzz.json beside it: a run that was
stopped goes on from there, unless the sources have changed since (or `--again`). A network during which the process ended
(a crash of torch) is counted as such and passed over. Exit status 1 if a spec was unsound. Needs the package expecttest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import torch
from operator_checks import examined
from operator_networks import Vocabulary, composed, inputs

from benchmarks.fuzz import sources
from benchmarks.machine import machine

RESULTS = HERE / "results"


def load(path: Path, seed: int, again: bool) -> dict:
    data = {"seed": seed, "sources": sources(), "done": 0, "seconds": 0.0, "counts": {}, "ops": {}, "unsound": [], "begun": None}
    if path.exists() and not again:
        earlier = json.loads(path.read_text())
        if all(earlier[key] == data[key] for key in ("seed", "sources")):
            data = earlier
            if data["begun"] is not None and data["begun"] >= data["seed"] + data["done"]:
                data["counts"]["crash"] = data["counts"].get("crash", 0) + 1
                data["done"] = data["begun"] - data["seed"] + 1
    return data


def save(data: dict, path: Path, command: str) -> None:
    path.parent.mkdir(exist_ok=True)
    for name, text in ((".json", json.dumps(data, indent=0, sort_keys=True)), (".md", report(data, command))):
        draft = path.with_suffix(name + ".part")
        draft.write_text(text)
        os.replace(draft, path.with_suffix(name))


def report(data: dict, command: str) -> str:
    counts, done = Counter(data["counts"]), max(data["done"], 1)
    unsound = "\n".join(f"- seed {seed}: {detail}" for seed, detail in data["unsound"])
    return f"""# Random networks of operators

{data["done"]} networks (seeds {data["seed"]} to {data["seed"] + data["done"] - 1}), **{counts["unsound"]} unsound**, \
{counts["sound"]} sound ({counts["free"]} with anything free), {counts["refused"]} refused by the capture, {counts["unmeasured"]} \
whose numbers show nothing, {counts["crash"]} during which torch ended the process. {len(data["ops"])} operators took part; a \
network has {counts["steps"] / done:.1f} steps on average.

Command: `{command}`, {data["seconds"]:.0f} s ({1000 * data["seconds"] / done:.0f} ms a network).
Machine: {machine()}. Sources: {data["sources"]}.

The vocabulary is torch.testing's collection of operators, with odd arguments (tests/operator_networks.py). Three random
elements of the inferred spec (of the rules' claim alone, before anything is tried) each, on the example's inputs and on others,
in float64.

{unsound or "None was unsound."}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator_fuzz")
    parser.add_argument("--count", type=int, default=10000, help="networks in all, earlier runs included")
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--again", action="store_true", help="start anew")
    parser.add_argument("--out", type=Path, default=RESULTS / "operator_fuzz.md")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    path = args.out.with_suffix(".json")
    data, vocabulary = load(path, args.seed, args.again), Vocabulary()
    command = f"python -m benchmarks.operator_fuzz --count {args.count} --seed {args.seed}"
    start = last = time.perf_counter()
    while data["done"] < args.count and time.perf_counter() - start < 60 * args.minutes:
        seed = data["begun"] = args.seed + data["done"]
        save(data, args.out, command)
        network = composed(seed, vocabulary)
        outcome = examined(network, inputs(), [lambda: inputs(1)])
        counts = Counter(data["counts"])
        counts.update({outcome.kind: 1, "free": outcome.order > 1, "steps": len(network.steps)})
        data["counts"], data["ops"] = dict(counts), dict(Counter(data["ops"]) + Counter({step.op for step in network.steps}))
        if outcome.kind == "unsound":
            data["unsound"].append([seed, outcome.detail])
            print(f"seed {seed}: {outcome.detail}\n{network}", file=sys.stderr, flush=True)
        now = time.perf_counter()
        data["seconds"], last, data["done"] = data["seconds"] + now - last, now, data["done"] + 1
    save(data, args.out, command)
    print(f"{data['done']} networks, {len(data['unsound'])} unsound; written to {args.out}")
    return 1 if data["unsound"] else 0


if __name__ == "__main__":
    sys.exit(main())
