"""A permutation along axes of several tensors, or along the outer or inner part of them."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

MANY = 8  # axes of one size beyond which not every combination is tried


@dataclass(frozen=True)
class Line:
    """A part of a tensor's axis on which a permutation can act: the axis is outer x size x inner."""

    tensor: str
    axis: int
    outer: int
    size: int
    inner: int

    def __str__(self) -> str:
        part = "" if self.outer == self.inner == 1 else f" (as {self.outer} x {self.size} x {self.inner})"
        return f"axis {self.axis}{part} of {self.tensor}"

    def apart(self, other: Line) -> bool:
        """Whether permutations along both do not disturb each other."""
        return ((self.tensor, self.axis) != (other.tensor, other.axis)
                or self.inner >= other.inner * other.size
                or other.inner >= self.inner * self.size)

    def move(self, labels: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The labels of a tensor, permuted along the line."""
        shape = labels.shape
        own = (self.outer, self.size, self.inner)
        parts = labels.reshape(shape[:self.axis] + own + shape[self.axis + 1:])
        return np.take(parts, p, axis=self.axis + 1).reshape(shape)

    def first(self, shape: tuple[int, ...]) -> np.ndarray:
        """Which elements of a tensor lie at the first index."""
        index = np.arange(self.outer * self.size * self.inner) // self.inner % self.size == 0
        return np.broadcast_to(index.reshape([-1 if d == self.axis else 1 for d in range(len(shape))]), shape)


def lines_of(name: str, shape: tuple[int, ...]) -> list[Line]:
    """Every way to see one axis of a tensor as outer x size x inner."""
    return [Line(name, d, n // size // inner, size, inner) for d, n in enumerate(shape)
            for size in range(2, n + 1) if n % size == 0
            for inner in range(1, n // size + 1) if n // size % inner == 0]


@dataclass(frozen=True)
class Probe:
    """A candidate freedom: the same permutation along all `lines`; if `frame`, only where those are at their
    first index."""

    lines: tuple[Line, ...]
    frame: tuple[Line, ...] = ()

    def __str__(self) -> str:
        words = " with ".join(map(str, self.lines))
        return words + (f", differently along {' and '.join(map(str, self.frame))}" if self.frame else "")

    def labels(self, name: str, shape: tuple[int, ...], p: np.ndarray) -> np.ndarray | None:
        """Where each element of a tensor comes from; None if the frame itself would move."""
        moved = labels = np.arange(math.prod(shape)).reshape(shape)
        for line in self.lines:
            if line.tensor == name:
                moved = line.move(moved, p)
        for line in self.frame:
            if line.tensor == name:
                inside = line.first(shape)
                if not np.array_equal(inside.reshape(-1)[moved], inside):
                    return None
                moved = np.where(inside, moved, labels)
        return moved


def subsets(lines: list[Line]) -> Iterable[tuple[Line, ...]]:
    """Sets of lines that are apart, small ones first; of many lines, the small ones alone."""
    sizes = range(1, len(lines) + 1) if len(lines) <= MANY else (1, 2) if len(lines) <= 2 * MANY else (1,)
    return (chosen for k in sizes for chosen in itertools.combinations(lines, k)
            if all(a.apart(b) for a, b in itertools.combinations(chosen, 2)))


def generators(size: int) -> list[np.ndarray]:
    """A transposition and a cycle: together all permutations."""
    swap = np.arange(size)
    swap[:2] = 1, 0
    return [swap, np.roll(np.arange(size), 1)][: size - 1]


def result_probes(name: str, shape: tuple[int, ...], probe: Probe) -> Iterator[Probe]:
    """How a result might move when the arguments move by `probe`: not at all, or along up to three lines."""
    lines = lines_of(name, shape)
    frames = [(x,) for x in lines if x.size == probe.frame[0].size] if probe.frame else [()]
    yield Probe(())
    for chosen in subsets([x for x in lines if x.size == probe.lines[0].size]):
        if len(chosen) <= 3:
            yield from (Probe(chosen, frame) for frame in frames
                        if all(x.apart(y) for x in frame for y in chosen))
