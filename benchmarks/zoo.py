"""The zoo: infers the symmetries of many public architectures and checks each against the network itself.

    python -m benchmarks.zoo [--family torchvision|timm|transformers] [--only PATTERN] [--limit N] [--table]

Every model is built with random weights (transformers from tiny configurations, the others in a small
variant at a small image size), in a process of its own with a time limit. A row is written as soon as it is
known: a run that is cut short goes on where it stopped, and `--again` runs anew what `--only` names. What
crashes, hangs or runs out of memory is a row that says so.
`--table` writes results/zoo.md from the rows.

What a row says: times are CPU seconds of one thread; `share` is the part of the state's elements with at
least one axis that some group moves (`share, free`: in the larger group in which the outputs' axes move with
the network, the residual stream of a model without a head; what the forward pass does not use never moves);
`error` is the worst relative change of an output, max |y - y'| / max
|y|, under three random group elements, in float64, with every tensor of the state randomised; `error, free`
is the same for one element of the larger group; where random weights of the usual size make rounding grow
without bound, they are smaller; `control` is the error after half of the tensors that should
have moved were left where they are: if that is small, the others prove little. Beyond 20 million parameters
there is one random element and no `error, free`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import gc
import math
import os
import pickle
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxrebasin as fxr
from fxrebasin.capture import Program, capture

from .machine import processor
from .zoo_models import MOST_PARAMETERS, timm_models, torchvision_models, transformers_models

RESULTS = Path(__file__).with_name("results")
COLUMNS = ("family", "model", "outcome", "parameters", "nodes", "capture_s", "infer_s", "groups",
           "log10_order", "share", "share_free", "error", "error_free", "control", "unruled_axes",
           "unruled_ops", "front_end", "total_s")
SOUND = 1e-9
MANY_PARAMETERS = 20_000_000  # beyond, one random element instead of four


# ----------------------------------------------------------------------------------------------- one model


def measure(build: Callable) -> Iterator[dict[str, Any]]:
    """Rows of what is known so far, each more complete than the one before."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"outcome": "no model: took too long"}
    yield row
    try:
        model, inputs = build()
    except Exception as error:
        yield {**row, "outcome": f"no model: {_line(error)}"}
        return
    model.eval()
    row |= {"parameters": sum(p.numel() for p in model.parameters()), "outcome": "capture took too long"}
    yield row
    start = time.process_time()
    try:
        program = capture(model, inputs)
    except fxr.errors.FxrebasinError as error:
        yield {**row, "outcome": f"not captured: {_line(error)}"}
        return
    row |= {
        "capture_s": time.process_time() - start,
        "nodes": len(program.module.graph.nodes),
        "front_end": program.front_end,
        "outcome": "inference took too long",
    }
    yield row
    gc.collect()  # what capture leaves behind is not inference
    start = time.process_time()
    try:
        spec = fxr.infer(program, falsify=False)
        row["infer_s"] = time.process_time() - start
        free = fxr.infer(program, outputs="free", falsify=False)
    except Exception as error:
        yield {**row, "outcome": f"inference failed: {_line(error)}"}
        return
    row |= {**_counts(spec), "share_free": _share(free), "outcome": "evaluation took too long"}
    yield row
    if row["parameters"] > MOST_PARAMETERS:
        yield {**row, "outcome": "too large to evaluate"}
        return
    try:
        yield {**row, **_errors(model.state_dict(), program, spec, free, inputs)}
    except Exception as error:
        yield {**row, "outcome": f"not evaluated: {_line(error)}"}


def _counts(spec: fxr.Spec) -> dict[str, Any]:
    unruled = [
        reason
        for reason in spec.pinned.values()
        if any(
            f"{op} has no rule" in reason or f"rule for {op} does not fit" in reason for op in spec.unruled
        )
    ]
    return {
        "groups": len(spec.groups),
        "log10_order": spec.log10_order,
        "unruled_axes": len(unruled),
        "unruled_ops": " ".join(spec.unruled),
        "share": _share(spec),
    }


def _share(spec: fxr.Spec) -> float:
    moved = {site.tensor for group in spec.groups.values() for site in group.sites}
    sizes = {name: torch.Size(shape).numel() for name, shape in spec.shapes.items() if name not in spec.ties}
    return sum(sizes[name] for name in moved) / max(1, sum(sizes.values()))


def _errors(state: Mapping[str, Tensor], program: Program, spec: fxr.Spec, free: fxr.Spec, inputs) -> dict[str, Any]:
    """Runs the captured program in float64 on a randomised state, moved and not. Where random weights of the usual size
    make numbers that are not finite, or a network in which rounding alone grows beyond what counts as sound, smaller ones."""
    row: dict[str, Any] = {"outcome": "not evaluated: outputs are not finite"}
    for scale in (1.0, 0.3, 0.1, 0.03):
        numbers = randomised(state, program, scale)
        before = _run(program, numbers, inputs)
        if all(bool(torch.isfinite(y).all()) for y in before.values()):
            row = _compared(program, spec, free, numbers, before, inputs)
            if row["outcome"] == "sound" or (rounding := _rounding(program, numbers, before, inputs)) < SOUND / 100:
                return row
            row = {"outcome": f"not evaluated: rounding alone changes outputs by {rounding:.1e}"}
    return row


def _compared(
    program: Program, spec: fxr.Spec, free: fxr.Spec, state, before: Mapping[str, Tensor], inputs
) -> dict[str, Any]:
    small = sum(tensor.numel() for tensor in state.values()) < MANY_PARAMETERS
    error = 0.0
    for seed in range(3 if small else 1):
        moved = spec.random(seed).apply(state)
        error = max(error, _change(before, _run(program, moved, inputs)))
    half = set(spec.permutable[1::2])
    mixed = {name: state[name] if spec.ties.get(name, name) in half else moved[name] for name in state}
    control = _change(before, _run(program, mixed, inputs))
    error_free = _error_with_free_outputs(program, free, state, before, inputs) if small else None
    return {
        "error": error,
        "error_free": error_free,
        "control": control,
        "outcome": "sound" if max(error, error_free or 0.0) < SOUND else "UNSOUND",
    }


def _rounding(program: Program, state: Mapping[str, Tensor], before: Mapping[str, Tensor], inputs) -> float:
    """How much the outputs change when every number of the state changes in its last digit."""
    generator = torch.Generator().manual_seed(2)

    def nudged(tensor: Tensor) -> Tensor:
        signs = torch.randint(0, 2, tensor.shape, generator=generator).double() * 2 - 1
        return tensor * (1 + signs * torch.finfo(torch.float64).eps)

    changed = {name: nudged(tensor) if name in program.state and name not in program.ties else tensor
               for name, tensor in state.items()}
    changed |= {alias: changed[name] for alias, name in program.ties.items() if alias in changed}
    return _change(before, _run(program, changed, inputs))


def _error_with_free_outputs(program: Program, spec: fxr.Spec, state, before: Mapping[str, Tensor], inputs) -> float:
    """The same where the outputs' own axes move with the network: in a backbone, the residual stream too."""
    alignment = spec.random(3)
    after = _run(program, alignment.apply(state), inputs)
    expected = {
        path: alignment.move(y, spec.outputs[path][1]) if path in spec.outputs else y
        for path, y in before.items()
    }
    return _change(expected, after)


def randomised(state: Mapping[str, Tensor], program: Program, scale: float = 1.0) -> dict[str, Tensor]:
    """Random numbers of sensible size for the whole state, in float64; variances positive; ties kept."""
    generator = torch.Generator().manual_seed(1)
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in program.state:
            result[name] = tensor
        elif name in program.ties:
            result[name] = result[program.ties[name]]
        elif tensor.is_complex():
            result[name] = torch.randn(tensor.shape, generator=generator, dtype=torch.complex128)
        elif name.endswith("running_var"):
            result[name] = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        else:
            noise = torch.randn(tensor.shape, generator=generator).double()
            fan_in = max(1, tensor.numel() // tensor.shape[0]) if tensor.ndim > 1 else 1
            centre = (
                1.0 if tensor.ndim <= 1 and tensor.numel() and bool(tensor.double().mean() > 0.5) else 0.0
            )
            result[name] = scale * (
                centre + noise * (0.3 if tensor.ndim <= 1 else min(1.0, (2.0 / fan_in) ** 0.5))
            )
    return result


def _run(program: Program, state: Mapping[str, Tensor], inputs) -> dict[str, Tensor]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)  # of tensors that the graph makes without naming a dtype
    try:
        return program.interpret(state, inputs)
    finally:
        torch.set_default_dtype(torch.float32)


def _change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The worst max |y - y'| / max |y| of all outputs; infinite if y' is not finite (max() loses NaN)."""
    worst = 0.0
    for path, y in before.items():
        if y.numel():
            y, z = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (y, after[path]))
            size = float(y.abs().max())
            change = float((y - z).abs().max())
            worst = max(worst, (change / size if size else change) if math.isfinite(change) else math.inf)
    return worst


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]


# ---------------------------------------------------------------------------------------------- all models


def isolated(build: Callable, limit: float) -> dict[str, Any]:
    """The last row that `measure` gives in a forked process within `limit` seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            with os.fdopen(write, "wb") as pipe:
                for row in measure(build):
                    pickle.dump(row, pipe)
                    pipe.flush()
        finally:
            os._exit(0)
    os.close(write)
    late: list[float] = []
    signal.signal(signal.SIGALRM, lambda *_: late.append(limit) or os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, limit)
    row: dict[str, Any] = {}
    with os.fdopen(read, "rb") as pipe, contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            row = pickle.load(pipe)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _, status, used = os.wait4(child, 0)
    if os.WIFSIGNALED(status) and not late:
        row["outcome"] = f"crashed with signal {os.WTERMSIG(status)}"
    return {**row, "total_s": used.ru_utime + used.ru_stime}


FAMILIES: dict[str, Callable[[], dict[str, Callable]]] = {
    "torchvision": torchvision_models,
    "timm": timm_models,
    "transformers": transformers_models,
}


def read_rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The last row of each model."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            sys.exit(f"{path} has other columns than this version writes: remove it, or name another with --csv")
        return {(row["family"], row["model"]): row for row in rows}


def run(args) -> None:
    done = read_rows(args.csv)
    capture(nn.Linear(2, 2), torch.zeros(2, 2))  # what is loaded lazily is not any model's time
    todo = [model for model in _chosen(args) if args.again or model[:2] not in done][: args.limit]
    for k, (family, name, build) in enumerate(todo, 1):
        row = {"family": family, "model": name, **isolated(build, args.seconds)}
        row = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        shown = [f"{key}={row[key]}" for key in COLUMNS[2:] if row.get(key) not in (None, "")]
        print(f"[{k}/{len(todo)}] {family} {name}", *shown, flush=True)


def _chosen(args) -> Iterator[tuple[str, str, Callable]]:
    patterns = args.only.split(",") if args.only else ["*"]
    for family in [args.family] if args.family else FAMILIES:
        entries = transformers_models(args.all) if family == "transformers" else FAMILIES[family]()
        for name in [n for p in patterns for n in entries if fnmatch.fnmatch(n, p)]:
            yield family, name, entries[name]


# ----------------------------------------------------------------------------------------------- the table


_HEAD = ("model", "outcome", "capture, s", "inference, s", "groups", "log10 order", "share",
         "share, free", "error", "error, free", "control", "unruled axes")
_SHOWN = ("model", "outcome", "capture_s", "infer_s", "groups", "log10_order", "share", "share_free",
          "error", "error_free", "control", "unruled_axes")


def table(rows: list[dict[str, str]]) -> str:
    built = [row for row in rows if not row["outcome"].startswith("no model")]
    captured = [row for row in rows if row["capture_s"]]
    tested = [row for row in captured if row["error"]]
    sound = [row for row in tested if row["outcome"] == "sound"]
    slow = [row["model"] for row in captured
            if row["infer_s"] and float(row["infer_s"]) > float(row["capture_s"])]
    unruled = [f"{row['model']} ({row['unruled_ops']})" for row in captured if row["unruled_axes"] != "0"]
    explanation = "What a row says: " + " ".join((__doc__ or "").split("What a row says: ")[1].split())
    ops = sorted({op for row in rows for op in row["unruled_ops"].split()})
    text = ["# The zoo: public architectures", "",
            (f"`python -m benchmarks.zoo` on one thread of {processor()}, torch {torch.__version__}, one model at "
             "a time on a shared machine. Rows are kept from run to run (`--again` measures anew). "
             f"{explanation}"), "",
            f"- models built: {len(built)} of {len(rows)}; captured: {len(captured)}; evaluated: {len(tested)}",
            f"- sound (error < {SOUND:g}): {len(sound)} of {len(tested)} evaluated",
            (f"- no axis pinned for lack of a rule: {len(captured) - len(unruled)} of {len(captured)}"
             + "".join(f"; not so: {name}" for name in unruled)),
            f"- inference slower than capture: {len(slow)}" + "".join(f"; {name}" for name in slow),
            "- ops without a fitting rule, pinning or not: " + (", ".join(ops) or "none"), ""]
    for family in FAMILIES:
        members = sorted((row for row in rows if row["family"] == family), key=lambda row: row["model"])
        if members:
            lines = [[row[key].replace("|", "/") for key in _SHOWN] for row in members]
            text += [f"## {family}", "", *map(_line_of, [_HEAD, ["---"] * len(_HEAD), *lines]), ""]
    return "\n".join(text)


def _line_of(cells) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=list(FAMILIES))
    parser.add_argument("--only", help="patterns of model names, separated by commas")
    parser.add_argument("--limit", type=int, help="at most so many models")
    parser.add_argument("--all", action="store_true", help="every type of transformers, not the chosen ones")
    parser.add_argument("--again", action="store_true", help="also models that have a row already")
    parser.add_argument("--seconds", type=float, default=180, help="time limit for each model")
    parser.add_argument("--csv", type=Path, default=RESULTS / "zoo.csv")
    parser.add_argument("--table", action="store_true", help="write the table from the rows and run nothing")
    parser.add_argument(
        "--prelude", help="a Python file to run first (default: the environment variable ZOO_PRELUDE)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table:
        args.csv.with_suffix(".md").write_text(
            table(list(read_rows(args.csv).values()))
        )
        return
    if prelude := args.prelude or os.environ.get("ZOO_PRELUDE"):
        runpy.run_path(prelude)
    run(args)


if __name__ == "__main__":
    sys.exit(main())
