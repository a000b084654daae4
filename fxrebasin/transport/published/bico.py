"""BiCo: input activations and output gradients of every linear map, each aligned by orthogonal Procrustes.

Source: "Bilinear Coordinate Alignment for Training-Free Task-Vector Transfer", arXiv 2605.28444.
Taken simply: the loss is the distance to the fine-tuned model's outputs instead of one with labels; gradients are not
centred, since their mean is what a step follows.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .observe import Map, Scene, chunks, entering, need_maps, rows, see, thinned
from .theseus import activations
from .turn import procrustes, turned


def carried(scene: Scene) -> dict[str, Tensor]:
    """Changes of the target's tensors."""
    need_maps(scene, "bico")
    states = scene.base, scene.target
    with torch.no_grad():
        sights = [activations(scene, state) for state in states]
    slopes = [gradients(scene, state) for state in states]
    return turned(scene, {at: (procrustes(*(slope[at] for slope in slopes)),
                               None if entering(at) is None else procrustes(*(sight[at][0] for sight in sights)))
                          for at in scene.maps})


def gradients(scene: Scene, state) -> dict[Map, Tensor]:
    """Map -> gradients of the loss with respect to what leaves it, in rows."""
    found: dict[Map, list[Tensor]] = {at: [] for at in scene.maps}
    state = {name: tensor.requires_grad_(tensor.is_floating_point()) for name, tensor in
             ((name, tensor.clone()) for name, tensor in state.items())}
    for part in chunks(scene.goal, scene.program):
        with torch.enable_grad():
            seen, outputs = see(scene.program, state, part, {at.node for at in scene.maps})
            slopes = torch.autograd.grad(part.distance(outputs), [seen[at.node] for at in scene.maps],
                                         allow_unused=True)
        for at, slope in zip(scene.maps, slopes, strict=True):
            found[at].append(rows(torch.zeros_like(seen[at.node]) if slope is None else slope, at.channels))
    return {at: thinned(torch.cat(parts)) for at, parts in found.items()}
