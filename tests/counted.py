"""What a match maximises, written out anew in numpy: which numbers count, and at what size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

import fxrebasin as fxr

State = Mapping[str, torch.Tensor]


def is_scale(gain: np.ndarray) -> bool:
    return bool(gain.any()) and abs(gain.mean()) > 0.5 * abs(gain).mean()


def counted(spec: fxr.Spec, *states: State) -> list[dict[str, torch.Tensor]]:
    """States of the same names and shapes in which everything stands at the size at which it counts: gains are
    multiplied into what reads them, blocks have unit root mean square, and what does not count is zero."""
    states = [{n: t.double().numpy() for n, t in spec.stacked(s).items() if n in spec.layouts} for s in states]
    gains = {f.gain: f.plus for f in spec.folds}
    folded = {g for g, plus in gains.items() if all(is_scale(s[g] + plus) for s in states)}
    return [_one(spec, state, folded) for state in states]


def _one(spec: fxr.Spec, state: dict[str, np.ndarray], folded: set[str]) -> dict[str, torch.Tensor]:
    sized = {}
    for name, array in state.items():
        array = array.copy()
        for fold in spec.folds:
            if fold.tensor == name and fold.gain in folded:
                shape = [-1 if d == fold.axis else 1 for d in range(array.ndim)]
                array *= (state[fold.gain] + fold.plus).reshape(shape)
        if name in folded or name not in spec.permutable or spec.role(name) != "parameter":
            array[...] = 0
        for block in spec.layouts[name]:
            place = np.ix_(*(axis.positions.ravel() for axis in block))
            size = math.sqrt((array[place] ** 2).mean()) if array[place].size else 0
            array[place] = array[place] / size if size else 0
        sized[name] = torch.from_numpy(array)
    return sized


def cosine(alignment: fxr.Alignment, source: State, target: State) -> float:
    """The objective of an alignment."""
    a, b = (np.concatenate([t.numpy().ravel() for t in one.values()])
            for one in counted(alignment.spec, alignment.apply(source), target))
    return float(a @ b / math.sqrt((a @ a) * (b @ b))) if a.any() and b.any() else 0.0
