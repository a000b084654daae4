"""GradFix: of the task vector, only the entries that go down the target's gradient.

Source: "Gradient-Sign Masking for Task Vector Transport Across Pre-Trained Models", ICLR 2026, arXiv 2510.09658.
Taken simply: the sign is the majority's over batches of inputs, and the loss is the distance to the fine-tuned model's
outputs instead of one with labels.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .observe import Scene, chunks, see


def carried(scene: Scene) -> dict[str, Tensor]:
    """Changes of the target's tensors."""
    used = {source.name for source in scene.program.sources.values() if source.kind == "state"}
    names = [name for name in scene.moved if name in used]
    votes = {name: torch.zeros_like(scene.moved[name]) for name in names}
    for part in chunks(scene.goal, scene.program):
        state = dict(scene.target) | {name: scene.target[name].clone().requires_grad_() for name in names}
        with torch.enable_grad():
            _, outputs = see(scene.program, state, part, set())
            slopes = torch.autograd.grad(part.distance(outputs), [state[name] for name in names], allow_unused=True)
        for name, slope in zip(names, slopes, strict=True):
            if slope is not None:
                votes[name] -= slope.sign()
    return {name: torch.where(votes[name] * scene.moved[name] > 0, scene.moved[name], 0.0) for name in names}
