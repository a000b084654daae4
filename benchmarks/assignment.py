"""The assignment solvers side by side in one run: python benchmarks/assignment.py [--quick]

Writes benchmarks/results/assignment.md. The problems are similarities of synthetic weight
matrices with n rows of width 768, float32: `noisy copy s` sets a matrix against a shuffled copy plus noise of
s times its size, `independent` two unrelated matrices; `decaying` gives the columns the sizes k^-0.7, a
spectrum that falls off like that of trained weights. `sweeps` imitates a coordinate descent: 16 problems that
change less and less, prices carried over (scipy solves each afresh). `heads` is a batch of 64 x 64.
Every figure is processor time, the best of three runs on one thread (one run if it takes above a second).
"""
from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

from fxrebasin.match.solve.assignment import assign, assign_many
from fxrebasin.match.solve.auction import certify

WIDTH = 768


def similarity(n: int, sigma: float, decay: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(1, WIDTH + 1) ** -decay).astype(np.float32)
    rows, noise = rng.standard_normal((2, n, WIDTH), dtype=np.float32) * spectrum
    copy = noise if np.isinf(sigma) else rows[rng.permutation(n)] + np.float32(sigma) * noise
    return copy @ rows.T


PROBLEMS = {
    "noisy copy 1": (1.0, 0.0), "noisy copy 8": (8.0, 0.0), "noisy copy 3, decaying": (3.0, 0.7),
    "independent": (np.inf, 0.0), "independent, decaying": (np.inf, 0.7),
}


def best_time(call):
    """(result, milliseconds): the best of three runs, or the first if it takes more than a second."""
    times = []
    while len(times) < 3 and not (times and times[0] > 1000):
        start = time.process_time()
        result = call()
        times.append(1e3 * (time.process_time() - start))
    return result, min(times)


def single(n: int, name: str) -> str:
    scores = similarity(n, *PROBLEMS[name])
    runs = [best_time(lambda: assign(scores, solver=solver)) for solver in ("scipy", "numpy", "fast")]
    (exact, _), *others = runs
    return line(f"{name}, n={n}", [ms for _, ms in runs],
                max(abs(found.value / exact.value - 1) for found, _ in others),
                max(certify(scores, found.columns, found.prices) for found, _ in others))


def sweeps(n: int, steps: int = 16) -> str:
    start, change = similarity(n, np.inf, 0.5), similarity(n, np.inf, 0.5, seed=1)
    problems = [start + np.float32(0.6 ** step) * change for step in range(steps)]

    def warm(solver):
        results, prices = [], None
        for scores in problems:
            results.append(assign(scores, solver=solver, prices=prices))
            prices = results[-1].prices
        return results

    runs = [best_time(lambda: warm(solver)) for solver in ("scipy", "numpy", "fast")]
    (exact, _), *others = runs
    return line(f"{steps} warm sweeps, n={n}", [ms for _, ms in runs],
                max(abs(a.value / b.value - 1) for found, _ in others for a, b in zip(found, exact)),
                max(a.gap for found, _ in others for a in found))


def heads(m: int) -> str:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((m, 64, 64), dtype=np.float32) for _ in range(2))
    scores = left @ right
    (_, slow), slow_ms = best_time(lambda: assign_many(scores, solver="scipy"))
    (_, fast), fast_ms = best_time(lambda: assign_many(scores, solver="fast"))
    return line(f"heads, {m} of n=64", [slow_ms, None, fast_ms], np.abs(fast / slow - 1).max(), None)


def line(name: str, ms: list[float | None], difference: float, gap: float | None) -> str:
    figures = [*(t and f"{t:.0f}" for t in ms), *(t and f"{ms[0] / t:.1f}" for t in ms[1:]),
               f"{difference:.0e}", None if gap is None else f"{gap:.0e}"]
    text = f"| {name} | " + " | ".join(figure or "" for figure in figures) + " |"
    print(text, file=sys.stderr, flush=True)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small problems only, and write nothing")
    quick = parser.parse_args().quick
    start = time.process_time()
    assign(similarity(300, np.inf), solver="fast")
    assign_many(np.zeros((1, 4, 4), np.float32), solver="fast")
    loading = time.process_time() - start
    rows = [single(n, name) for n in ((512,) if quick else (1024, 3072, 4096)) for name in PROBLEMS]
    rows += [sweeps(256 if quick else 1024), heads(500 if quick else 20000)]
    if quick:
        return
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":")[1].strip() for text in lines if text.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    Path(__file__).with_name("results").joinpath("assignment.md").write_text("\n".join([
        "# Assignment: scipy, the auction in numpy, the auction in numba (fast)", "",
        f"`python benchmarks/assignment.py`, processor time of one thread of {cpu}, load "
        f"{os.getloadavg()[0]:.1f} at the end, numpy {np.__version__}. Loading numba and its compiled code "
        f"took {loading:.1f} s, once, before these times. `difference` is the largest relative difference of "
        "the values from scipy's, `gap` the largest relative gap proved by the prices.", "",
        "| problem | scipy, ms | numpy, ms | fast, ms | scipy / numpy | scipy / fast | difference | gap |",
        "|---|---|---|---|---|---|---|---|",
        *rows, ""]))


if __name__ == "__main__":
    main()
