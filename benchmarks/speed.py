"""Time of a match against the time of its matrix products alone, side by side in one run, and peak memory.

    python -m benchmarks.speed [--only NAME] [--sigma 0.5] [--effort balanced] [--out FILE]

One sweep's products: for every group and every tensor that it moves, (n x rest) @ (rest x n), timed on
contiguous operands of these shapes, before the match and (but for Llama) after it; the mean counts. Seconds
are those of the processor (one thread), so that other work on the machine does not count, as far as it leaves
the caches alone. The assignment solver's compiled code is loaded beforehand. Planted Gaussian weights,
float32. Memory: the most that the process held during the match above what it held with both states loaded,
and in units of the largest group's similarity matrix (float32). For a stack of fewer layers than the model
has, the time of the whole is projected by the operations of its products. Writes benchmarks/results/speed.md.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import fxrebasin as fxr
from benchmarks.machine import machine
from benchmarks.planted import gaussian
from benchmarks.shapes import build
from fxrebasin.match import Problem
from fxrebasin.match.solve.assignment import assign
from fxrebasin.match.solve.heap import give_back
from fxrebasin.match.objective.similarity import operands

RESULTS = Path(__file__).parent / "results" / "speed.md"
CASES = {"transformer, 4 layers, d=96": None, "ViT-B/16": None, "GPT-2 small": None,
         "Llama-7B, 4 layers": "Llama-7B"}  # name -> the whole model, where it is a part of one


def products(problem: Problem) -> float:
    """Seconds of one sweep's matrix products."""
    seconds = 0.0
    for piece in problem.pieces:
        piece.part = sys.maxsize  # as a whole
    for nest in problem.nests.values():
        for piece in problem.pieces_of(nest):
            group = nest.owner(piece.factors)
            for target, source in operands(piece, nest.extras(group), nest.chain(group)):
                a, b = target.contiguous(), source.contiguous()
                started = time.process_time()
                torch.bmm(a, b.transpose(-1, -2))
                seconds += time.process_time() - started
    return seconds


def work(spec: fxr.Spec) -> int:
    """Floating-point operations of one sweep's matrix products."""
    meta = {name: torch.empty(shape, device="meta") for name, shape in spec.shapes.items()}
    return sum(2 * target.numel() * source.shape[-2] for problem in [Problem(spec, meta, meta)]
               for nest in problem.nests.values() for piece in problem.pieces_of(nest)
               for group in [nest.owner(piece.factors)]
               for target, source in operands(piece, nest.extras(group), nest.chain(group)))


def held(what: str) -> int:
    """Bytes of this process: VmRSS, now, or VmHWM, the most since `forget`."""
    return 1024 * int(re.search(rf"{what}:\s*(\d+)", Path("/proc/self/status").read_text()).group(1))


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def planted(spec: fxr.Spec, sigma: float):
    """Source, target and the alignment between them; not more than one tensor besides at any time."""
    source = gaussian(spec, 0)
    answer = spec.random(1)
    target = answer.apply(source)
    generator = torch.Generator().manual_seed(2)
    for tensor in {id(t): t for t in target.values()}.values():
        for part in tensor.view(-1).split(2 ** 24):
            part.add_(torch.randn(part.shape, generator=generator), alpha=sigma)
    return source, target, answer


def measure(name: str, whole: str | None, sigma: float, effort: str) -> tuple[str, str]:
    torch.set_num_threads(1)
    assign(np.random.default_rng(0).normal(size=(300, 300)))
    spec = fxr.infer(*build(name))
    source, target, answer = planted(spec, sigma)
    states = 2 * sum(4 * math.prod(shape) for key, shape in spec.shapes.items() if key not in spec.ties)
    gemm = [products(Problem(spec, source, target))]
    give_back()  # what the heap holds free would be used unseen
    forget()
    before, started = held("VmRSS"), time.process_time()
    found = fxr.match(spec, source, target, effort=effort)
    seconds, peak = time.process_time() - started, held("VmHWM")
    gemm = np.mean(gemm + [products(Problem(spec, source, target))] * (whole is None))
    right = sum(int((found.permutations[n] == p).sum()) for n, p in answer.permutations.items())
    share = right / sum(p.size for p in answer.permutations.values())
    largest = 4 * max(g.size ** 2 for g in spec.groups.values())
    note = ""
    if whole:
        times = work(fxr.infer(*build(whole))) / work(spec)
        note = (f"{name}: {whole} has {times:.2f} times the operations, so that a match would take "
                f"{seconds * times / 60:.0f} min.")
    above = peak - before
    return (f"| {name} | {sigma:g} | {effort} | {100 * share:.1f} % | {found.objective:.3f} | {seconds:.1f} | "
            f"{gemm:.1f} | {seconds / gemm:.2f} | {work(spec) / gemm / 1e9:.0f} | {states / 2 ** 30:.2f} | "
            f"{above / 2 ** 30:.2f} | {largest / 2 ** 30:.3f} | {above / largest:.1f} | {peak / 2 ** 30:.1f} |"), note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines, notes = [], []
    for name, whole in CASES.items():
        if any(part in name for part in args.only.split(",")):
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # a case leaves holes in memory
                line, note = fresh.submit(measure, name, whole, args.sigma, args.effort).result()
            lines.append(line)
            notes += [note, ""] * bool(note)
            print(line, note, file=sys.stderr, flush=True)
    args.out.write_text("\n".join([
        "# Time against the matrix products", "",
        f"`python -m benchmarks.speed {' '.join(sys.argv[1:])}`; {machine()}. Seconds of the processor.", "",
        "| case | sigma | effort | recovered | cosine | match, s | one sweep's products, s | ratio | GFLOP/s "
        "| both states, GiB | peak above them, GiB | largest similarity, GiB | peak, in similarities "
        "| process at its peak, GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|", *lines, "", *notes]) + "\n")


if __name__ == "__main__":
    main()
