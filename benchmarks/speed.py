"""Time of a match against the time of its matrix products alone, side by side in one run, and peak memory.

    python -m benchmarks.speed [--only NAME] [--sigma 0.5] [--effort balanced]

One sweep's products: for every group and every tensor that it moves, (n x rest) @ (rest x n), timed on contiguous operands
of these shapes. The assignment solver's compiled code is loaded beforehand. Planted Gaussian weights; one thread. Memory: the peak of the process above what it held with both states
loaded, in units of the largest group's similarity matrix (float32). Writes benchmarks/results/speed.md.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

import fxrebasin as fxr
from benchmarks.machine import machine
from benchmarks.planted import gaussian
from benchmarks.shapes import build
from fxrebasin.match import Problem
from fxrebasin.match.assignment import assign
from fxrebasin.match.problem import _views

RESULTS = Path(__file__).parent / "results" / "speed.md"
CASES = ["transformer, 4 layers, d=96", "ViT-B/16", "GPT-2 small", "Llama-7B, 4 layers"]


def products(problem: Problem) -> tuple[float, float]:
    """Seconds and floating-point operations of one sweep's matrix products."""
    seconds = work = 0.0
    for nest in problem.nests.values():
        for piece in problem.pieces_of(nest):
            group = nest.owner(piece.factors)
            chain = [f for g in nest.chains[group.name] for f in g.members]
            for target, source in _views(piece, nest.extras(group), chain):
                a, b = target.contiguous(), source.contiguous()
                started = time.perf_counter()
                torch.matmul(a, b.transpose(-1, -2))
                seconds += time.perf_counter() - started
                work += 2 * a.numel() * b.shape[-2]
    return seconds, work


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, sigma: float, effort: str) -> str:
    model, inputs = build(name)
    spec = fxr.infer(model, inputs)
    source = gaussian(spec, 0)
    planted = spec.random(1)
    target = planted.apply(source)
    generator = torch.Generator().manual_seed(2)
    for tensor in {id(t): t for t in target.values()}.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=sigma)
    states = 2 * sum(4 * math.prod(shape) for shape in spec.shapes.values())
    before = peak()
    started = time.perf_counter()
    found = fxr.match(spec, source, target, effort=effort)
    seconds = time.perf_counter() - started
    extra = peak() - before
    right = sum(int((found.permutations[n] == p).sum()) for n, p in planted.permutations.items())
    share = right / sum(p.size for p in planted.permutations.values())
    gemm, work = products(Problem(spec, source, target))
    largest = 4 * max(g.size ** 2 for g in spec.groups.values())
    return (f"| {name} | {sigma:g} | {effort} | {100 * share:.1f} % | {found.objective:.3f} | {seconds:.1f} | {gemm:.1f} | "
            f"{seconds / gemm:.2f} | {work / gemm / 1e9:.0f} | {states / 2 ** 30:.2f} | {extra / 2 ** 30:.2f} | "
            f"{largest / 2 ** 30:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--effort", default="balanced")
    args = parser.parse_args()
    torch.set_num_threads(1)
    assign(np.eye(300))
    lines = []
    for name in CASES:
        if any(part in name for part in args.only.split(",")):
            lines.append(measure(name, args.sigma, args.effort))
            print(lines[-1], file=sys.stderr, flush=True)
    RESULTS.write_text("\n".join([
        "# Time against the matrix products", "", f"`python -m benchmarks.speed {' '.join(sys.argv[1:])}`; {machine()}.", "",
        "| case | sigma | effort | recovered | cosine | match, s | one sweep's products, s | ratio | GFLOP/s | both states, GiB "
        "| peak above them, GiB | largest similarity, GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|", *lines]) + "\n")


if __name__ == "__main__":
    main()
