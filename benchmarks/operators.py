"""PyTorch's own operator samples, each as three small networks whose spec is tried on random elements.

    python -m benchmarks.operators [--most 6] [--only REGEX] [--minutes 60] [--again]

Writes benchmarks/results/operators.md and operators.csv (a row for each op), and what it has counted so far to
operators.json beside them: a run that was stopped goes on from there, unless the sources have changed since (or
`--again`; `--only` takes up the ops that match again and keeps all other rows). Every op runs in a process of its own: where
torch itself crashes, the op is named and left out. Exit status 1 if a spec was unsound. Needs the package expecttest.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import torch
from operator_cases import WRAPS, cases
from operator_checks import ELEMENTS, examine

from benchmarks.fuzz import sources
from benchmarks.machine import machine

RESULTS = HERE / "results"
SECONDS = 30  # for one case
KINDS = ("cases", "free", "sound", "refused", "unsound", "unmeasured")


def collection() -> dict[str, object]:
    """Name -> operator of torch.testing's collection; importing it takes some seconds."""
    from torch.testing._internal.common_methods_invocations import op_db
    return {op.name + f".{op.variant_test_name}" * bool(op.variant_test_name): op for op in op_db}


def examined(op, most: int) -> dict:
    """Counts for one op, and what was wrong."""
    counts, found = Counter(), []
    signal.signal(signal.SIGALRM, _late)
    for case in cases(op, most):
        signal.alarm(SECONDS)
        try:
            outcome = examine(case)
        except TimeoutError:
            counts["late"] += 1
            continue
        finally:
            signal.alarm(0)
        if outcome.kind == "unusable":
            counts["unusable"] += 1
            continue
        counts["cases"] += 1
        counts["free"] += outcome.order > 1
        counts[outcome.kind] += 1
        if outcome.kind in ("unsound", "refused"):
            found.append([str(case), outcome.kind, outcome.detail])
    return {"counts": dict(counts), "found": found}


def _late(*_) -> None:
    raise TimeoutError


def _in_child(op, most: int, pipe) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        pipe.send(examined(op, most))
    except Exception as error:  # noqa: BLE001  the samples themselves may fail
        pipe.send({"counts": {}, "found": [], "failed": f"{type(error).__name__}: {error}"[:200]})


def in_own_process(op, most: int) -> dict:
    """`examined` in a child: a crash of torch is a result too."""
    ours, theirs = multiprocessing.Pipe(False)
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(op, most, theirs))
    child.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        child.join()
        return {"counts": {}, "found": [], "failed": f"torch ends the process (exit status {child.exitcode})"}
    child.join()
    return result


def load(path: Path, digest: str, most: int, only: str | None) -> dict:
    """What earlier runs have counted, as far as it still holds."""
    data = {"sources": digest, "most": most, "seconds": 0.0, "ops": {}}
    if path.exists():
        earlier = json.loads(path.read_text())
        if only or (earlier["sources"], earlier["most"]) == (digest, most):
            data = {**earlier, "sources": digest if earlier["sources"] == digest else f"{earlier['sources']}, {digest} for some"}
    if only:
        data["ops"] = {name: row for name, row in data["ops"].items() if not re.search(only, name)}
    return data


def write(data: dict, path: Path, command: str) -> None:
    path.parent.mkdir(exist_ok=True)
    for name, text in ((".json", json.dumps(data, indent=0, sort_keys=True)), (".md", report(data, command))):
        draft = path.with_suffix(name + ".part")
        draft.write_text(text)
        os.replace(draft, path.with_suffix(name))
    with path.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["op", *KINDS])
        table.writerows([name, *(row["counts"].get(kind, 0) for kind in KINDS)] for name, row in sorted(data["ops"].items()))


def report(data: dict, command: str) -> str:
    total = sum((Counter(row["counts"]) for row in data["ops"].values()), Counter())
    rows = sorted(data["ops"].items())
    reached = [name for name, row in rows if row["counts"].get("cases")]
    failed = [f"- {name}: {row['failed']}" for name, row in rows if "failed" in row]
    unsound = [f"- {case}: {detail}" for _, row in rows for case, kind, detail in row["found"] if kind == "unsound"]
    refused = Counter(detail.splitlines()[0][:110] for _, row in rows for _, kind, detail in row["found"] if kind == "refused")
    empty = [name for name, row in rows if not row["counts"].get("cases") and "failed" not in row]
    return f"""# Operators

{len(rows)} operators of torch.testing's collection, {len(reached)} of them with cases: {total["cases"]} cases, \
**{total["unsound"]} unsound**, {total["sound"]} sound ({total["free"]} with anything free), {total["refused"]} refused, \
{total["unmeasured"]} whose numbers show nothing. torch itself refuses the arguments of {total["unusable"]} more (variants \
mostly); {total["late"]} took longer than {SECONDS} s.

Command: `{command}`, {data["seconds"]:.0f} s.
Machine: {machine()}. Sources: {data["sources"]}.

A case is a sample wrapped as {", ".join(f"*{wrap}*" for wrap in WRAPS)} (tests/operator_cases.py): at most {data["most"]} samples of an
op, the first of them with its variants too. {ELEMENTS} random elements of the inferred spec (of the rules' claim alone, before
anything is tried) each, on the example's inputs, on others, and on another batch, in float64. The row of each op
stands in operators.csv.

## Unsound

{chr(10).join(unsound) or "None."}

## Crashes and failures of torch itself

{chr(10).join(failed) or "None."}

## Refused by the capture

{chr(10).join(f"- {n} x {text}" for text, n in refused.most_common(12)) or "None."}

## Without a case

Sparse, nested, integer-free or too large samples: {", ".join(empty) or "none"}.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators")
    parser.add_argument("--most", type=int, default=6, help="samples of an op")
    parser.add_argument("--only", help="take up the ops whose names match")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--again", action="store_true", help="start anew")
    parser.add_argument("--out", type=Path, default=RESULTS / "operators.md")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    data = load(Path(os.devnull) if args.again else args.out.with_suffix(".json"), sources(), args.most, args.only)
    command = f"python -m benchmarks.operators --most {args.most}"
    examined(collection()["abs"], 1)  # what is imported on first use is imported here, once, and not in every child
    start = last = time.perf_counter()
    for name, op in collection().items():
        if name in data["ops"] or args.only and not re.search(args.only, name):
            continue
        if time.perf_counter() - start > 60 * args.minutes:
            break
        row = data["ops"][name] = in_own_process(op, args.most)
        now = time.perf_counter()
        data["seconds"], last = data["seconds"] + now - last, now
        for case, kind, detail in row["found"]:
            if kind == "unsound":
                print(f"{case}: {detail}", file=sys.stderr, flush=True)
        if "failed" in row:
            print(f"{name}: {row['failed']}", file=sys.stderr, flush=True)
        write(data, args.out, command)
    write(data, args.out, command)
    unsound = sum(row["counts"].get("unsound", 0) for row in data["ops"].values())
    print(f"{len(data['ops'])} operators, {unsound} unsound; written to {args.out}")
    return 1 if unsound else 0


if __name__ == "__main__":
    sys.exit(main())
