"""What a rule does not claim: permutations that the op honours and the spec does not hold."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch

from ..alignment import Alignment
from ..errors import SpecError
from ..spec import Group, Spec
from .case import ERRORS, EXACT, Case, difference
from .probe import Line, Probe, generators, lines_of, result_probes, subsets


def missing_freedoms(cases: list[Case], spec: Spec) -> Iterator[str]:
    """Permutations along axes that the op honours and the spec does not hold.

    For each size, the smallest sets of lines of the arguments along which every permutation, made on all of
    them at once, permutes the results along lines of theirs or leaves them alone; then the same for one index
    of a frame.
    """
    case = cases[0]
    lines = [line for name, tensor in case.tensors.items() for line in lines_of(name, tuple(tensor.shape))]
    for size in sorted({line.size for line in lines}):
        honoured: list[Probe] = []
        for chosen in subsets([line for line in lines if line.size == size]):
            if any(set(probe.lines) <= set(chosen) for probe in honoured):
                continue
            probe = Probe(chosen)
            found = [_follows(case, probe) for case in cases] if _follows(case, probe) else [None]
            if not all(found):
                continue
            honoured.append(probe)
            if not _holds(spec, case, probe):
                yield f"{probe} (size {size}; in the results: {found[0]})"
                continue
            yield from _framed(cases, spec, probe, lines)


def _framed(cases: list[Case], spec: Spec, probe: Probe, lines: list[Line]) -> Iterator[str]:
    """Freedoms of a probe to differ from index to index of something else that all its tensors have."""
    tensors = list(dict.fromkeys(line.tensor for line in probe.lines))
    for size in sorted({line.size for line in lines}):
        options = [[x for x in lines if x.tensor == name and x.size == size
                    and all(x.apart(y) for y in probe.lines)] for name in tensors]
        for frame in itertools.islice(itertools.product(*options), 64):
            framed = Probe(probe.lines, frame)
            if not _holds(spec, cases[0], framed) and all(_follows(case, framed) for case in cases):
                yield str(framed)


def _follows(case: Case, probe: Probe) -> str | None:
    """How the results move with the arguments, in words; None if they do not just move."""
    names = [f"result {k}" for k in range(len(case.shapes))]
    candidates = None
    for p in generators(probe.lines[0].size):
        moved = {}
        for name, tensor in case.tensors.items():
            labels = probe.labels(name, tuple(tensor.shape), p)
            if labels is None:
                return None
            moved[name] = tensor.reshape(-1)[torch.from_numpy(labels)]
        try:
            after = case.run(moved)
        except ERRORS:
            return None
        if any(difference(_sorted(a), _sorted(b)) > EXACT for a, b in zip(case.before, after)):
            return None  # numbers have changed, not only places: most probes end here
        if candidates is None:
            candidates = [list(result_probes(name, shape, probe)) for name, shape in zip(names, case.shapes)]
        for k, name in enumerate(names):
            candidates[k] = [c for c in candidates[k] if _moved_alike(c, name, case.before[k], after[k], p)]
            if not candidates[k]:
                return None
    return "; ".join(str(c[0]) for c in candidates or () if c[0].lines) or "nothing moves"


def _sorted(tensor: torch.Tensor) -> torch.Tensor:
    flat = torch.view_as_real(tensor.resolve_conj()).sum(-1) if tensor.is_complex() else tensor
    return flat.reshape(-1).sort().values


def _moved_alike(probe: Probe, name: str, before: torch.Tensor, after: torch.Tensor, p: np.ndarray) -> bool:
    labels = probe.labels(name, tuple(before.shape), p)
    return labels is not None and difference(before.reshape(-1)[torch.from_numpy(labels)], after) <= EXACT


def _holds(spec: Spec, case: Case, probe: Probe) -> bool:
    """Whether the spec's group has the probe's permutations of the arguments."""
    for p in generators(probe.lines[0].size):
        labels = {name: probe.labels(name, tuple(t.shape), p) for name, t in case.tensors.items()}
        moved = {name: places for name, places in labels.items() if places is not None}
        moved.update({f"axis of {name}": np.arange(size) for name, size in case.points.items()})
        if all(places is not None for places in labels.values()) and alignment_of(spec, moved) is None:
            return False
    return True


def alignment_of(spec: Spec, moved: dict[str, np.ndarray]) -> Alignment | None:
    """The alignment that moves labels 0 .. n-1 of every tensor as given, or None if the spec has none.

    moved: tensor name -> in its shape, which element each element comes from
    """
    permutations = {}
    for group in spec.groups.values():
        permutation = _permutation_of(spec, group, moved)
        if permutation is None:
            return None
        permutations[group.name] = permutation
    try:
        alignment = Alignment(spec, permutations)
    except SpecError:
        return None
    for name, labels in moved.items():
        numbers = torch.arange(labels.size).reshape(labels.shape)
        if not np.array_equal(alignment.move(numbers, spec.layout(name)).numpy(), labels):
            return None
    return alignment


def _permutation_of(spec: Spec, group: Group, moved: dict[str, np.ndarray]) -> np.ndarray | None:
    """What a group's permutations are if they move the labels at its first site as given; None if the labels
    of its block come from elsewhere."""
    site = group.sites[0]
    block, shape = spec.layouts[site.tensor][site.block], spec.shapes[site.tensor]
    factors = [factor for axis in block for factor in axis.factors]
    sizes = [spec.sizes[factor] for factor in factors]
    numbers = np.zeros(sizes, dtype=np.int64)  # the label of each element of the block
    before = 0
    for axis, n in zip(block, shape):
        shown = axis.positions.shape
        after = len(factors) - before - len(shown)
        numbers = numbers * n + axis.positions.reshape((1,) * before + shown + (1,) * after)
        before += len(shown)
    source = moved[site.tensor].reshape(-1)[numbers]  # and where it comes from
    where = np.full(math.prod(shape), -1)
    where[numbers.reshape(-1)] = np.arange(numbers.size)
    if (where[source] < 0).any():
        return None
    index = dict(zip(factors[::-1], np.unravel_index(where[source], sizes)[::-1]))  # of one that is there twice, the first
    flat = np.ravel_multi_index([index[m] for m in group.members], [spec.sizes[m] for m in group.members])
    wanted = [factors.index(factor) for factor in (*group.within, *group.members)]
    order = wanted + [k for k in range(len(factors)) if k not in wanted]
    return flat.transpose(order).reshape(*spec.frame(group), group.size, -1)[..., 0]
