"""Matching: the alignment that brings one checkpoint onto another.

The objective is the sum over the state of <target, pi(source)>, the same as least squares, since permutations
keep norms. `exact` starts from what cannot move and ascends by exact steps on nested groups; the published
methods run on the same objective (see `published`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..alignment import Alignment
from ..errors import FxrebasinError, SpecError
from ..spec import Spec
from .activations import add_activations
from .descent import Clock, descend
from .many import match_many, merge
from .problem import Problem
from .published import SWEEPS, flattened, pair_heads, soft_transport, transfusion
from .relaxed import frank_wolfe
from .starts import masked
from .step import Step

METHODS = ("exact", "transfusion", "git-rebasin", "ot", "identity")
FLAT = ("git-rebasin", "ot")  # blind to heads: they work on a coarser spec
EFFORTS = {"fast": 2, "balanced": 20, "best": 100}  # sweeps at most


def match(spec: Spec, source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor],
          method: str = "exact", seed: int = 0, *, effort: str = "balanced", seconds: float | None = None,
          progress: Callable[[dict], None] | None = None, model=None, inputs: Iterable | None = None,
          inputs_weight: float = 1.0, dtype: torch.dtype | None = None,
          checkpoint: str | os.PathLike | None = None) -> Alignment:
    """Finds pi such that pi(source) is close to target.

    source    state of the old base; target: state of the new one. Neither is changed.
    method    "exact" (default), or a published one: "transfusion", "git-rebasin", "ot", "identity"
    seed      decides every random choice; the result depends on nothing else
    effort    "fast", "balanced" or "best": how long "exact" keeps improving
    seconds   stop after this time with the best found so far
    progress  called with a dict of news after every step: stage, done, of, and objective (cosine similarity)
    inputs    batches of unlabelled inputs, each as for `infer`: activations are matched along with the
              weights. Needs `model`, the module. `inputs_weight` is how much they count relative to the
              weights.
    dtype     of the similarities: torch.float32 (the default for states up to that) or torch.float64
    checkpoint  a file that keeps the best alignment of "exact" so far (written at most every few seconds, and
              when the match is interrupted); if it is there already, the match goes on from it

    Returns an Alignment whose `objective` is the cosine similarity of pi(source) and target over permutable
    tensors. The alignments of "git-rebasin" and "ot" belong to a coarser spec, blind to heads: they may
    change the function. Raises StateError if a state does not fit the spec.
    """
    if method not in METHODS:
        raise FxrebasinError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if effort not in EFFORTS:
        raise FxrebasinError(f"unknown effort {effort!r}: choose one of {', '.join(EFFORTS)}")
    spec.check(source, "the source")
    spec.check(target, "the target")
    source, target = spec.stacked(source), spec.stacked(target)
    problem = Problem(flattened(spec) if method in FLAT else spec, source, target, dtype)
    clock = Clock(seconds, progress, problem.cosine, None if checkpoint is None else
                  lambda: _result(problem, method).save(checkpoint))
    if inputs is not None:
        if model is None or method != "exact":
            raise FxrebasinError("matching activations needs the module (`model=`) and the method 'exact'")
        add_activations(problem, spec, model, inputs, source, target, inputs_weight)
    shuffled = [problem.roots[k] for k in np.random.default_rng(seed).permutation(len(problem.roots))]
    if method == "git-rebasin":
        descend(problem, shuffled, clock, SWEEPS)
    elif method == "ot":
        soft_transport(problem, problem.roots)
    elif method == "transfusion":
        transfusion(problem, shuffled, clock)
    elif method == "exact":
        earlier = Alignment.load(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else None
        if earlier is not None and earlier.spec != spec:
            raise SpecError(f"{checkpoint} belongs to another model: remove it, or give another file")
        try:
            _exact(problem, shuffled, clock, effort, seed, earlier)
        finally:
            clock.keep()
    return _result(problem, method)


def _result(problem: Problem, method: str) -> Alignment:
    return Alignment(problem.spec, problem.alignment.permutations, objective=problem.cosine(), method=method)


def _exact(problem: Problem, order: list[str], clock: Clock, effort: str, seed: int,
           earlier: Alignment | None) -> None:
    """Starts, descents, and the best objective ever seen."""
    if earlier is not None:
        problem.reset(earlier)
        descend(problem, order, clock, EFFORTS[effort])
    else:
        descend(problem, order, clock, EFFORTS[effort], masked(problem, clock))
    if effort != "best":
        return
    best, score, identity = problem.alignment, problem.inner(), problem.spec.identity()
    starts: list[tuple[Alignment, Callable[[], object]]] = [
        (identity, lambda: None),  # as published methods start
        (identity, lambda: masked(problem, clock, anchors=False)),  # signed sorted rows
        (identity, lambda: pair_heads(problem)),  # spectral
        (identity, lambda: frank_wolfe(problem, clock)),  # barycentre
        (problem.spec.random(seed), lambda: None)]
    for alignment, start in starts:
        if clock.over():
            break
        problem.reset(alignment)
        start()
        descend(problem, order, clock, EFFORTS[effort])
        if problem.inner() > score + 1e-9 * problem.norm:
            best, score = problem.alignment, problem.inner()
    problem.reset(best)


__all__ = ["METHODS", "Problem", "Step", "match", "match_many", "merge"]
