"""What the sample of a rule may ask for.

    T(2, 3)            random floats
    T.positive(2, 3)   floats in (0.1, 0.9)
    T.complex(2, 3)    random complex numbers
    T.bool(2, 3)       random booleans
    T.index(n, 2, 3)   random integers below n
    T.points(n, 2, 3)  the same, but they point into an axis of size n, and change when that is permuted
    T.fixed([2, 0])    integers that the rule may look at: a constant
    T.keyword(x=1)     keyword arguments
    T.op               the op's name
"""
from __future__ import annotations

import numpy as np
import torch


class Keyword(dict):
    """Keyword arguments within a sample."""


class T:
    """Makes a sample's tensors, the same on every run."""

    def __init__(self, op: str, seed: int = 0):
        self.op = op
        self.rng = np.random.default_rng(seed)
        self.constants: list[torch.Tensor] = []
        self.pointing: dict[int, int] = {}

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.rng.standard_normal(shape)))

    def positive(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.rng.uniform(0.1, 0.9, shape)))

    def complex(self, *shape: int) -> torch.Tensor:
        return torch.complex(self(*shape), self(*shape))

    def index(self, n: int, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.rng.integers(0, n, shape)))

    def points(self, n: int, *shape: int) -> torch.Tensor:
        result = self.index(n, *shape)
        self.pointing[id(result)] = n
        return result

    def bool(self, *shape: int) -> torch.Tensor:
        return self.index(2, *shape).bool()

    def fixed(self, numbers) -> torch.Tensor:
        self.constants.append(torch.tensor(numbers))
        return self.constants[-1]

    @staticmethod
    def keyword(**arguments) -> Keyword:
        return Keyword(arguments)
