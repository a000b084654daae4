"""Theseus: activations at both sides of every linear map, aligned by orthogonal Procrustes; tau -> R_out tau R_in^T.

Source: "Transporting Task Vectors across Different Architectures without Training", ICML 2026, arXiv 2602.12952.
Taken simply: every map has turns of its own, and activations are centred.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .observe import Map, Scene, chunks, entering, need_maps, rows, see, thinned
from .turn import procrustes, turned


@torch.no_grad()
def carried(scene: Scene) -> dict[str, Tensor]:
    """Changes of the target's tensors."""
    need_maps(scene, "theseus")
    sights = [activations(scene, state) for state in (scene.base, scene.target)]
    return turned(scene, {at: (procrustes(*(sight[at][1] for sight in sights)),
                               None if entering(at) is None else procrustes(*(sight[at][0] for sight in sights)))
                          for at in scene.maps})


def activations(scene: Scene, state) -> dict[Map, tuple[Tensor | None, Tensor]]:
    """Map -> rows that enter it and rows that leave it."""
    keep = {node for at in scene.maps for node in (at.node, entering(at)) if node is not None}
    found: dict[Map, tuple[list, list]] = {at: ([], []) for at in scene.maps}
    for part in chunks(scene.goal, scene.program):
        seen, _ = see(scene.program, state, part, keep)
        for at, (ins, outs) in found.items():
            if entering(at) is not None:
                ins.append(rows(seen[entering(at)], at.channels))
            outs.append(rows(seen[at.node], at.channels))
    return {at: (thinned(torch.cat(ins)) if ins else None, thinned(torch.cat(outs)))
            for at, (ins, outs) in found.items()}
