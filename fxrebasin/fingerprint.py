"""What an alignment was matched from and to, in so few numbers that they fit into its file.

A fingerprint is a sample of a state's parameters: a few numbers of a few tensors, each tensor's at unit size,
in half precision. Rounding a state to half precision moves it by less than a hundredth, another training run
by more than one: so it tells the state itself, roundings and fine-tunings of it from any other state,
permuted copies included.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping

import numpy as np
import torch

from .errors import FxrebasinError
from .spec import Spec
from .spec.dtypes import plain
from .spec.roles import PARAMETER

State = Mapping[str, torch.Tensor]
TENSORS, NUMBERS = 12, 8  # sampled tensors; numbers of each
SMALL = 1 << 22  # numbers in a tensor that is gladly read
OTHER = 0.6  # relative distance beyond which a state is another one


def fingerprint(spec: Spec, state: State) -> str:
    """The fingerprint of a state that fits a spec (its tensors may be read when they are asked for)."""
    return base64.b64encode(sample(spec, state).astype("<f2").tobytes()).decode()


def sample(spec: Spec, state: State) -> np.ndarray:
    """Some numbers of some parameters, each tensor's at unit root mean square; empty if they are not at
    hand."""
    found = []
    for name in _chosen(spec):
        tensor = state[name]
        if tensor.device.type == "meta" or not tensor.numel():
            return np.zeros(0)
        flat = plain(tensor).reshape(-1)
        places = (np.arange(NUMBERS) * 0.6180339887498949 + 0.37) % 1 * flat.numel()  # spread evenly
        numbers = flat[torch.from_numpy(places.astype(np.int64)).to(flat.device)].cpu()
        values = torch.view_as_real(numbers).double().sum(-1) if numbers.is_complex() else numbers.double()
        size = float(values.square().mean().sqrt())
        found.append(values.numpy() / size if size > 0 else np.zeros(NUMBERS))
    return np.concatenate(found) if found else np.zeros(0)


def _chosen(spec: Spec) -> list[str]:
    """Matrices before vectors, small ones before large ones, spread over the network."""
    names = [name for name in spec.names if name not in spec.ties and spec.role(name) == PARAMETER]
    several = [name for name in names if len(spec.names[name]) > 1] or names
    small = [name for name in several if math.prod(spec.names[name]) <= SMALL]
    if not small:
        return sorted(several, key=lambda name: math.prod(spec.names[name]))[:TENSORS // 2]
    step = max(1, len(small) // TENSORS)
    return small[::step][:TENSORS]


def numbers_of(text: str) -> np.ndarray:
    """The numbers of a fingerprint. Raises FxrebasinError on anything else."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(np.float64)
    except ValueError:
        raise FxrebasinError("not a fingerprint: match again") from None


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of two samples, relative to their size; 0 where there is nothing to compare."""
    if one.shape != other.shape or not one.size:
        return 0.0
    size = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return float(np.linalg.norm(one - other)) / size if size > 0 else 0.0
