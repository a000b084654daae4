"""Planted permutations under noise: how much of a known alignment each method recovers.

    python -m benchmarks.planted [--only NAME] [--sigma 0.5,1,2,3] [--methods exact,transfusion] [--seeds 2]
    [--out FILE]

Weights are Gaussian; the target is a random element of the spec applied to them, plus noise of sigma times
their size. Recovered: the share of indices placed right, over groups of a kind (of the residual stream,
heads, units, hidden). `together` plants one permutation for query/key and value/output units of a head, as
the published method assumes. Seconds are those of the processor (one thread). The closed MLP has no anchors:
latents and hidden layers without biases, every axis can be permuted. Writes benchmarks/results/planted.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

import fxrebasin as fxr
from benchmarks.machine import machine
from benchmarks.shapes import build

RESULTS = Path(__file__).parent / "results" / "planted.md"
CASES = ["mlp 784-512-512-512-10", "closed mlp, 3 x 256", "transformer, 4 layers, d=96", "ViT-B/16", "GPT-2 small"]


class Closed(torch.nn.Module):
    """Learned latents through hidden layers without biases: with free outputs, every axis can be permuted."""

    def __init__(self, n: int, d: int, layers: int):
        super().__init__()
        self.latents = torch.nn.Parameter(torch.zeros(n, d))
        self.layers = torch.nn.ModuleList(torch.nn.Linear(d, d, bias=False) for _ in range(layers))

    def forward(self, x):
        h = self.latents
        for layer in self.layers:
            h = torch.relu(layer(h))
        return h * x.mean()


def case(name: str) -> fxr.Spec:
    if name.startswith("closed"):
        return fxr.infer(Closed(256, 256, 3), torch.zeros(2, 3), outputs="free")
    return fxr.infer(*build(name))


def gaussian(spec: fxr.Spec, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items() if name not in spec.ties}
    return {name: drawn[spec.ties.get(name, name)] for name in spec.shapes}


def kind(spec: fxr.Spec, group: fxr.Group) -> str:
    if any(g.name != group.name and set(group.members) & set(g.within) for g in spec.groups.values()):
        return "heads"
    if group.within:
        return "units"
    return "residual" if len(group.sites) > 8 else "hidden"


def together(spec: fxr.Spec, planted: fxr.Alignment) -> fxr.Alignment:
    """The same permutation for all units of a head."""
    first: dict[tuple, np.ndarray] = {}
    chosen = {}
    for name, group in spec.groups.items():
        key = (group.within, group.size) if group.within else (name,)
        chosen[name] = first.setdefault(key, planted.permutations[name])
    return fxr.Alignment(spec, chosen)


def trial(spec, sigma: float, seed: int, method: str, joint: bool) -> dict[str, float]:
    source = gaussian(spec, seed)
    planted = spec.random(seed + 100)
    planted = together(spec, planted) if joint else planted
    noise = gaussian(spec, seed + 200)
    target = {name: tensor + sigma * noise[name] for name, tensor in planted.apply(source).items()}
    for alias, name in spec.ties.items():
        target[alias] = target[name]
    started = time.process_time()
    found = fxr.match(spec, source, target, method=method, seed=seed)
    seconds = time.process_time() - started
    row: dict[str, float] = {"objective": found.objective, "seconds": seconds}
    if set(found.permutations) == set(planted.permutations):
        shares: dict[str, list[float]] = {}
        for name, group in spec.groups.items():
            shares.setdefault(kind(spec, group), []).append(
                float((found.permutations[name] == planted.permutations[name]).mean()))
        row |= {k: float(np.mean(v)) for k, v in shares.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--sigma", default="0.5,1,2,3")
    parser.add_argument("--methods", default="exact,transfusion,git-rebasin,ot,identity")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in CASES:
        if not any(part in name for part in args.only.split(",")):
            continue
        spec = case(name)
        for joint in (False, True) if any(g.within for g in spec.groups.values()) else (False,):
            for sigma in map(float, args.sigma.split(",")):
                for method in args.methods.split(","):
                    rows = [trial(spec, sigma, seed, method, joint) for seed in range(args.seeds)]
                    mean = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
                    shares = " | ".join(f"{100 * mean[k]:.0f} %" if k in mean else "" for k in
                                        ("residual", "hidden", "heads", "units"))
                    lines.append(f"| {name}{', together' * joint} | {sigma:g} | {method} | {shares} | "
                                 f"{mean['objective']:.3f} | {1 / (1 + sigma ** 2) ** 0.5:.3f} | {mean['seconds']:.1f} |")
                    print(lines[-1], file=sys.stderr, flush=True)
    head = ["# Planted permutations under noise", "", f"`python -m benchmarks.planted {' '.join(sys.argv[1:])}`; "
            f"{machine()}; {args.seeds} seed{'s' * (args.seeds > 1)}{' (means)' * (args.seeds > 1)}.", "",
            "Methods run as `fxr.match` runs them: ot takes 3 sweeps, the others stop when nothing improves. Share of "
            "indices placed right (none for methods blind to heads). `expected`: the cosine that the planted answer has (on "
            "average). Seconds of the processor.", "",
            "| case | sigma | method | residual | hidden | heads | units | cosine | expected | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|"]
    args.out.write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main()
