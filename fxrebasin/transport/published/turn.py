"""The task vector of linear maps, turned on both sides by orthogonal maps from A's features to B's."""
from __future__ import annotations

import torch
from torch import Tensor

from .observe import Map, Scene


def procrustes(old: Tensor, new: Tensor) -> Tensor:
    """The orthogonal R with old R^T closest to new; rows are samples, both centred. Where nothing tells old from new,
    the identity (an SVD would turn what the samples do not reach at random)."""
    if torch.equal(old, new):
        return torch.eye(old.shape[1], dtype=torch.float64, device=old.device)
    old, new = ((rows - rows.mean(0)).double() for rows in (old, new))
    u, _, v = torch.linalg.svd(new.T @ old)
    return u @ v


def turned(scene: Scene, turns: dict[Map, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """Changes of the target's tensors: tau of every weight and bias, turned; other tensors are left as they are."""
    changes: dict[str, Tensor] = {}
    for at, (out, into) in turns.items():
        change = _along(scene.vector[at.weight].double(), out, at.sides[0])
        if into is not None:
            change = _along(change, into, at.sides[1])
        changes.setdefault(at.weight, change.to(scene.vector[at.weight].dtype))
        if at.bias is not None:
            changes.setdefault(at.bias, (out @ scene.vector[at.bias].double()).to(scene.vector[at.bias].dtype))
    return changes


def _along(tensor: Tensor, turn: Tensor, axis: int) -> Tensor:
    return torch.tensordot(turn, tensor, dims=([1], [axis])).movedim(0, axis)
