"""Random networks, one after another, each against every property of tests/fuzz_checks.py.

    python -m benchmarks.fuzz --count 10000 [--seed 0] [--minutes 45] [--again]

Writes benchmarks/results/fuzz.md, and what it has counted so far to fuzz.json beside it: a run that was stopped goes
on from there, unless the sources have changed since (or `--again`). Network k of a run is `random_network(seed + k)`;
every fiftieth is captured by `fxr.capture` too, and the specs compared. Exit status 1 if any property failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import torch
from fuzz_checks import PROPERTIES, Examined, examine, sizes
from network_steps import Unfit
from random_networks import Network, random_network

import fxrebasin as fxr
from benchmarks.machine import machine

CAPTURED = 50  # every so many networks go through the real capture, which takes ten times as long
UNREAD = "too large for a readout"
UNMEASURED = ("not finite", "output is zero", "output is huge", "does not depend on the state",
              "rounding is amplified", UNREAD)
RESULTS = HERE / "results"


def sources() -> str:
    """A digest of all that the counts depend on."""
    files = sorted((HERE.parent / "fxrebasin").rglob("*.py"))
    files = [f for f in files if f.relative_to(HERE.parent / "fxrebasin").parts[0] not in ("demo", "show", "cli", "check")]
    files += sorted((HERE.parent / "tests").glob("*network*.py")) + [HERE.parent / "tests" / "fuzz_checks.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Tally:
    """What was counted, and where to go on."""

    def __init__(self, seed: int, digest: str, path: Path):
        self.path = path
        self.data = {"seed": seed, "sources": digest, "done": 0, "seconds": 0.0, "worst": 0.0, "counts": {},
                     "ops": {}, "failures": [], "misfits": {}}

    def resume(self) -> None:
        if self.path.exists():
            data = json.loads(self.path.read_text())
            if all(data.get(key) == self.data[key] for key in ("seed", "sources")):
                self.data = data

    def save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(self.data, indent=1))
        os.replace(draft, self.path)

    def add(self, seed: int, network: Network, found: Examined) -> None:
        data, spec = self.data, found.spec
        counts, ops = Counter(data["counts"]), Counter(data["ops"])
        data["done"] += 1
        if found.error <= 1e-9:
            data["worst"] = max(data["worst"], found.error)
        counts[found.skipped or "measured"] += 1
        counts["steps"] += len(network.steps)
        if spec is not None:
            counts["groups"] += found.groups
            counts["nothing free"] += found.order == 1
            counts["nested"] += any(group.copies > 1 for group in spec.groups.values())
            counts["in several blocks"] += any(len(blocks) > 1 for blocks in spec.layouts.values())
            counts["several members"] += any(len(group.members) > 1 for group in spec.groups.values())
        if found.program is not None:
            ops.update({str(n.target) for n in found.program.module.graph.nodes if "aten" in str(n.target)})
        for name, detail in found.failures.items():
            counts[f"failed: {name}"] += 1
            data["failures"].append([seed, name, detail])
        for op, reason in found.misfits.items():
            data["misfits"].setdefault(op, f"{reason} (seed {seed})")
        data["counts"], data["ops"] = dict(counts), dict(ops)


def compare_captures(network: Network, found: Examined) -> None:
    """The real capture must lead to the same spec as plain tracing."""
    if found.spec is None:
        return
    spec = fxr.infer(network, network.inputs(), falsify=False)
    if sizes(spec) != sizes(found.spec):
        found.failures["capture"] = f"{dict(sizes(found.spec))} traced, {dict(sizes(spec))} captured"


def report(data: dict, command: str) -> str:
    counts, done = Counter(data["counts"]), max(data["done"], 1)
    bad = {name: counts[f"failed: {name}"] for name in [*PROPERTIES, "capture"]}
    skipped = {key: n for key, n in counts.items() if key in UNMEASURED}
    rows = "".join(f"| {name} | {n} |\n" for name, n in bad.items())
    ops = ", ".join(f"{op.removeprefix('aten.').removesuffix('.default')} {n}"
                    for op, n in sorted(data["ops"].items(), key=lambda item: (-item[1], item[0])))
    failures = "".join(f"- seed {seed}, {name}: {detail[:400]}\n" for seed, name, detail in data["failures"])
    misfits = "".join(f"- {reason}\n" for reason in data["misfits"].values())
    return f"""# Random networks

{data["done"]} networks (seeds {data["seed"]} to {data["seed"] + data["done"] - 1}), {bad["soundness"]} unsound. The \
largest relative change of an output under a permutation that a spec allows: {data["worst"]:.1e}, in float64.

Command: `{command}`, {data["seconds"]:.0f} s ({1000 * data["seconds"] / done:.0f} ms a network).
Machine: {machine()}. Sources: {data["sources"]}.

A network has {counts["steps"] / done:.1f} steps and {counts["groups"] / done:.1f} groups on average; \
{100 * counts["nested"] / done:.0f} % have a group within another, \
{100 * counts["in several blocks"] / done:.0f} % a tensor of several blocks, \
{100 * counts["nothing free"] / done:.0f} % nothing that is free. The numbers of {counts["measured"]} were measured; \
left out: {", ".join(f"{n} ({key})" for key, n in skipped.items()) or "none"}.

| property | failures |
|---|---:|
{rows}
*soundness*: a random element of the spec, and each group alone, keep all outputs (1e-9). *free outputs*: outputs
that are left free move as the spec says. *recovery*: a planted permutation is found again, number for number.
*invariance*: groups are the same after reordering the steps, renaming and reordering the parameters, and with a
batch of 3 for 2. *round trip*: JSON. *algebra*: inverse and composition. *capture*: every {CAPTURED}th network,
traced and captured.

{failures or "No failures."}
{"Ops without a rule that fits (they pin what they touch):" if misfits else ""}
{misfits}
Networks with each op: {ops}.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--count", type=int, default=10000, help="networks in all, earlier runs included")
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--again", action="store_true", help="start anew")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally(args.seed, sources(), args.out.with_suffix(".json"))
    if not args.again:
        tally.resume()
    command = f"python -m benchmarks.fuzz --count {args.count} --seed {args.seed}"
    start = last = time.perf_counter()
    while tally.data["done"] < args.count and time.perf_counter() - start < 60 * args.minutes:
        k = tally.data["done"]
        try:
            network, _ = random_network(args.seed + k)
            found = examine(network)
        except Unfit:  # no readout fits in the end
            network, found = Network((), ()), Examined(skipped=UNREAD)
        if k % CAPTURED == 0:
            compare_captures(network, found)
        tally.add(args.seed + k, network, found)
        now = time.perf_counter()
        tally.data["seconds"], last = tally.data["seconds"] + now - last, now
        for name, detail in found.failures.items():
            print(f"seed {args.seed + k}: {name}: {detail}", file=sys.stderr, flush=True)
        if k % 50 == 49:
            tally.save()
            args.out.write_text(report(tally.data, command))
    tally.save()
    args.out.write_text(report(tally.data, command))
    print(f"{tally.data['done']} networks, {len(tally.data['failures'])} failures; written to {args.out}")
    return 1 if tally.data["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
