"""Matching: the alignment that brings one checkpoint onto another.

The objective is the sum over the parameters of <target, pi(source)>, each at unit size (see `evidence`): the
same as least squares, since permutations keep norms. `exact` starts from what cannot move and ascends by exact
steps on nested groups; the published methods run on the same objective (`methods/`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..alignment import Alignment
from ..errors import FxrebasinError, SpecError
from ..fingerprint import fingerprint
from ..spec import Spec
from ..spec.fitting import fitted
from ..spec.roles import note_outside
from .many import match_many, merge
from .methods import EFFORTS, METHODS, Search, flattened, method_named
from .objective.activations import add_activations
from .objective.evidence import OBJECTIVES
from .objective.problem import Problem
from .prepared import Prepared, prepared
from .solve.descent import Clock
from .solve.step import Step


def match(spec: Spec, source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor],
          method: str = "exact", seed: int = 0, *, effort: str = "balanced", seconds: float | None = None,
          progress: Callable[[dict], None] | None = None, model=None, inputs: Iterable | None = None,
          inputs_weight: float = 1.0, dtype: torch.dtype | None = None, objective: str | None = None,
          checkpoint: str | os.PathLike | None = None) -> Alignment:
    """Finds pi such that pi(source) is close to target.

    source    state of the old base; target: state of the new one. Neither is changed.
    method    "exact" (default), or a published one: "transfusion", "git-rebasin", "ot"; or a control: "identity",
              and "random", an element drawn from the whole group
    seed      decides every random choice; the result depends on nothing else
    effort    "fast", "balanced" or "best": how long "exact" keeps improving
    seconds   stop after this time with the best found so far
    progress  called with a dict of news after every step: stage, done, of, and objective (cosine similarity)
    inputs    batches of unlabelled inputs, each as for `infer`: activations are matched along with the
              weights. Needs `model`, the module. `inputs_weight` is how much they count relative to the
              weights.
    dtype     of the similarities: torch.float32 (the default for states up to that) or torch.float64
    objective  what the search maximises: "scaled" (the default of "exact"): parameters, norm gains multiplied
              into the linear maps that read them, every block of a tensor at unit root mean square; "half" and
              "folded": the same with blocks at the root of their size, and at their size; "plain" (that
              of published methods, as they have it): parameters as they are; "all": every tensor at unit root
              mean square, statistics and constants included; "raw": every tensor as it is
    checkpoint  a file that keeps the best alignment of "exact" so far (written at most every few seconds, and
              when the match is interrupted); if it is there already, the match goes on from it

    Returns an Alignment whose `objective` is the cosine similarity of pi(source) and target over all that
    counts in "scaled", whatever was maximised: 1 where they are equal, and near 0 for unrelated states. The
    alignments of "git-rebasin" and "ot" belong to a coarser spec, blind to heads: they may change the function.
    Raises StateError if a state does not fit the spec.
    """
    chosen = method_named(method)
    if effort not in EFFORTS:
        raise FxrebasinError(f"unknown effort {effort!r}: choose one of {', '.join(EFFORTS)}")
    objective = chosen.objective if objective is None else objective
    if objective not in OBJECTIVES:
        raise FxrebasinError(f"unknown objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
    source, target = fitted(spec, source, "the source")[0], fitted(spec, target, "the target")[0]
    note_outside(spec, "match")
    infinite = spec.check_together({"the source": source, "the target": target})
    ends = {"source": fingerprint(spec, source), "target": fingerprint(spec, target)}
    source, target = spec.stacked(source), spec.stacked(target)
    ready = prepared(flattened(spec) if chosen.flat else spec, source, target, infinite)

    problem = Problem(ready.spec, ready.source, ready.target, dtype, objective)

    def result() -> Alignment:
        return ready.alignment(problem.alignment, objective=ready.cosine(problem), method=method, **ends)

    keeps = checkpoint is not None and chosen.inputs
    clock = Clock(seconds, progress, problem.cosine,
                  (lambda: result().save(checkpoint)) if keeps else None)
    if inputs is not None:
        if model is None or not chosen.inputs:
            raise FxrebasinError("matching activations needs the module (`model=`) and the method 'exact'")
        add_activations(problem, spec, model, inputs, source, target, inputs_weight)
    order = [problem.roots[k] for k in np.random.default_rng(seed).permutation(len(problem.roots))]
    earlier = _earlier(ready, checkpoint) if keeps else None
    try:
        chosen.run(problem, Search(order, clock, effort, seed, earlier))
    finally:
        clock.keep()
    return result()


def _earlier(ready: Prepared, checkpoint: str | os.PathLike) -> Alignment | None:
    """What an earlier match left there, to go on from."""
    if not Path(checkpoint).exists():
        return None
    earlier = Alignment.load(checkpoint)
    if earlier.spec != ready.whole:
        raise SpecError(f"{checkpoint} belongs to another model: remove it, or give another file")
    return ready.part(earlier)


__all__ = ["METHODS", "Problem", "Step", "match", "match_many", "merge", "prepared"]
