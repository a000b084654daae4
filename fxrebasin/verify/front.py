"""`verify`: the network beside its permuted self, on the user's state and inputs and on many drawn ones."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from ..alignment import Alignment
from ..capture import Program, multiplications, node_at, path_in_run, tensor_of
from ..errors import CaptureError, NotEquivalentError, StateError
from ..evaluate import Comparison, Outcome, Trial, draw_inputs, draw_state, given_inputs
from ..evaluate.ops import compares
from ..infer.runs import captured, inputs_in
from ..rewrite import beside, mapped
from ..spec import Spec
from ..spec.fitting import fitted
from .blame import Blame, blame
from .evidence import TOLERANCE, Evidence, Run, place
from .module import agree_as_they_are, as_outcome, Module, rounding_of

# (weights, inputs) in the order in which they are drawn; random weights with ordinary inputs show most.
DRAWS = (("random", "ordinary"), ("own", "ordinary"), ("random", "ordinary"), ("random", "duplicates"),
         ("random", "ordinary"), ("random", "large"), ("random", "ordinary"), ("own", "large"),
         ("random", "ordinary"), ("random", "zeros"), ("random", "ordinary"), ("random", "ordinary"))
MOST = 64  # draws
COSTS = ((300_000_000, 12), (3_000_000_000, 6), (10_000_000_000, 2))  # products in a run, at most -> draws


def verify(model: nn.Module | ExportedProgram | Program, example_inputs: Any, alignment: Alignment, *,
           state: Mapping[str, Tensor] | None = None, tolerance: float | None = None,
           draws: int | None = None) -> Evidence:
    """Whether an alignment keeps the function: the captured program in float64, casts to fewer bits lifted,
    at a state and at what `alignment.apply` makes of it.

    model           the module; or what was captured from it already, which is then not compared with the
                    module
    example_inputs  as for `infer`
    state           to use instead of the model's own
    tolerance       the largest error allowed on this state and these inputs, relative to the largest
                    magnitude of an output. By default the network's own rounding noise decides, element by
                    element
    draws           how many states and inputs are drawn besides: weights that are shut, masked or not chosen
                    on the example show on others. By default 12, more where few are
                    chosen of many, fewer for large networks; 0 for none

    The module itself is run, too, in its own precision, with both states: it must be what was captured.

    Returns Evidence. Raises NotEquivalentError, with the groups and the sites that break the function and the
    evidence as `.evidence`, if an output changes by more than rounding; CaptureError if the module cannot be
    captured, does not run on the inputs, or is not what was captured; StateError if the state does not fit.
    """
    if not isinstance(model, nn.Module) and state is None:
        state = model.state_dict if isinstance(model, ExportedProgram) else None
    own = dict(model.state_dict() if isinstance(model, nn.Module) and state is None else state or {})
    if state is not None and isinstance(spec := getattr(alignment, "spec", None), Spec):
        own = dict(fitted(spec, own, "the state")[0])
    moved = _applied(alignment, own)
    if isinstance(model, Program):
        program, given = model, _given(model, example_inputs)
    else:
        program, given, _ = captured(model, example_inputs)
    _check_constants(program, own)
    judge = _Judge(program, alignment, given, own, tolerance)
    evidence = judge.first(moved)
    if isinstance(model, nn.Module):
        runs = example_inputs if isinstance(example_inputs, list) else [example_inputs]
        evidence = judge.module(evidence, model, runs, moved)
    for weights, kind, seed in _planned(program if draws is None else draws):
        evidence = judge.drawn(evidence, weights, kind, seed)
    if not evidence.equivalent:
        raise NotEquivalentError(
            "nothing can be said of the alignment: in every run all outputs are NaN, "
            "infinite, or nothing but rounding; give inputs and a state that show more",
            evidence,
        )
    return evidence


def _given(program: Program, example_inputs: Any) -> dict[str, Tensor]:
    """The inputs of all example runs by path."""
    if example_inputs is None:
        return inputs_in(program)
    runs = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    return {path_in_run(path, k): tensor for k, run in enumerate(runs)
            for path, tensor in given_inputs(program, run).items()}


def _planned(draws: Program | int) -> Iterator[tuple[str, str, int]]:
    """(weights, kind of inputs, seed) of each draw."""
    for k in range(draws if isinstance(draws, int) else _count(draws)):
        weights, kind = DRAWS[k % len(DRAWS)]
        yield weights, kind, k - k // 2 if kind == "ordinary" else k


def _count(program: Program) -> int:
    """How many draws a program gets. What is chosen by score shows only when it is chosen, so that small
    programs with many rows to choose from get more: of 64 experts, two for each of two tokens, any two are
    met in 40 draws as good as surely."""
    nodes = program.module.graph.nodes
    cost = multiplications(program)
    count = next((draws for most, draws in COSTS if cost <= most), 1)
    return count if count < COSTS[0][1] else min(MOST, max(count, *map(_to_meet_all, nodes)))


def _to_meet_all(node: fx.Node) -> int:
    """How many draws it takes until each of the scores that a node ranks has been taken, nearly surely."""
    if node.op != "call_function" or not compares(node):
        return 0
    scores = tensor_of(node_at(node, 0))
    taken = [value for value in tree_leaves(node.meta["val"]) if isinstance(value, Tensor)]
    return math.ceil(2.5 * max(scores.shape, default=0) / max(1, taken[-1].numel()))


class _Judge:
    """Compares a program with its permuted self on one state and set of inputs after the other."""

    def __init__(self, program: Program, alignment: Alignment, inputs: Mapping[str, Tensor], own: Mapping[str, Any],
                 tolerance: float | None):
        self.program, self.alignment, self.inputs, self.own = program, alignment, inputs, own
        self.tolerance = tolerance
        self.move = alignment.apply_to_output if alignment.spec.outputs else None
        self.rewritten = mapped(program, alignment.spec) if alignment.spec.skips else None
        self.before: Outcome | None = None  # on the state and the inputs given

    def first(self, moved: Mapping[str, Any]) -> Evidence:
        """On the state and the inputs given."""
        trial = Trial(self.program, self.own, self.inputs)
        self.before = trial.before
        comparison = self._beside(trial, moved)
        run = Run.of(comparison, "own", "given", "float64", trial.shows)
        if self.tolerance is not None:
            run = replace(run, holds=run.holds and run.max_rel <= self.tolerance)
        evidence = _evidence(comparison, trial, run, self.tolerance)
        return evidence if run.holds else self._refused(evidence, trial, _applied(self.alignment, trial.state))

    def drawn(self, evidence: Evidence, weights: str, kind: str, seed: int) -> Evidence:
        """On a state and inputs of our own."""
        inputs = draw_inputs(self.program, [self.inputs], seed, kind)
        state = self.own if weights == "own" else draw_state(self.program, seed, self.own)
        label = weights if weights == "own" else f"random {seed}"
        try:
            trial = Trial(self.program, state, inputs)
        except CaptureError as error:
            return replace(evidence, notes=(*evidence.notes, f"weights {label}, inputs {kind}: {error}"))
        moved = _applied(self.alignment, trial.state)
        comparison = self._beside(trial, moved)
        run = Run.of(comparison, label, kind, "float64", trial.shows)
        if run.holds:
            return replace(evidence, runs=(*evidence.runs, run))
        worse = _evidence(comparison, trial, run, self.tolerance)
        return self._refused(replace(worse, runs=(*evidence.runs, run), notes=evidence.notes), trial, moved)

    def _beside(self, trial: Trial, moved: Mapping[str, Any]) -> Comparison:
        return beside(trial, self.alignment, moved, self.rewritten, self.move)

    def module(self, evidence: Evidence, model: nn.Module, runs: Sequence[Any], moved: Mapping[str, Any]) -> Evidence:
        """The module itself, in its own precision. Raises CaptureError if it is not what was captured."""
        if self.rewritten is not None:
            return _noted(evidence, "it cannot hold the maps on its skips, only its graph can")
        trial = Trial(self.program, self.own, self.inputs, size=rounding_of(self.program), before=self.before)
        with Module.of(model, runs) as module:
            try:
                before, after = module.outputs(self.own), module.outputs(moved)
                again = module.outputs(self.own, seed=1)
            except Exception as error:  # noqa: BLE001 - the user's code can raise anything
                return _noted(evidence, (str(error).splitlines() or [type(error).__name__])[0])
        exact = trial.before.outputs
        if not set(before) & set(exact) or set(before) != set(after):
            return _noted(evidence, "its outputs have other names each time")
        if any(not torch.equal(before[path].nan_to_num(), again[path].nan_to_num()) for path in before):
            return _noted(evidence, "its outputs differ from call to call, as random numbers make them")
        captured = trial.beside(as_outcome(before, exact))
        if captured.breaks:
            if agree_as_they_are(self.program, self.own, self.inputs, before):
                return _noted(evidence, "in its own precision rounding decides what it gives (among scores that are equal "
                                        "there, say), as it does for its graph, with which it agrees")
            raise CaptureError(_other(model, captured))
        comparison = self._module_gaps(trial, after, exact)
        run = Run.of(comparison, "own", "given", "own", trial.shows)
        evidence = replace(evidence, runs=(*evidence.runs, run))
        if run.holds:
            return evidence
        errors = {path: (gap.absolute, gap.relative) for path, gap in comparison.gaps.items()}
        evidence = replace(evidence, max_abs=run.max_abs, max_rel=run.max_rel, where=run.where, outputs=errors)
        raise NotEquivalentError(
            f"the alignment changes the function: output {run.where!r} of the module itself "
            f"differs by {run.max_rel:.1e} relative in its own precision, though that of the "
            "captured graph does not: the module does something that the graph does not show; "
            "do not use the alignment for transport",
            evidence,
        )

    def _module_gaps(self, trial: Trial, after: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> Comparison:
        if self.move is None:
            return trial.beside(as_outcome(after, exact))
        moved = {path: self.move(path, value) for path, value in exact.items()}
        return trial.beside(as_outcome(after, moved), self.move)

    def _refused(self, evidence: Evidence, trial: Trial, moved: Mapping[str, Any]) -> Evidence:
        """Raises NotEquivalentError, with what breaks the function."""
        found = Blame((), ()) if self.rewritten is not None else blame(trial, self.alignment, moved, self.move)
        evidence = replace(evidence, offending=found.groups, sites=found.sites)
        run = evidence.runs[-1]
        on = "" if (run.weights, run.inputs) == ("own", "given") else f" (weights {run.weights}, inputs {run.inputs})"
        raise NotEquivalentError(
            f"the alignment changes the function: output {evidence.where!r} differs by "
            f"{evidence.max_rel:.1e} relative in float64{on}, caused by {_words(found)}: do not "
            "use it for transport",
            evidence,
        )


def _applied(alignment: Alignment, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the alignment makes of a state. Raises StateError if that is no state of the same kind."""
    moved = alignment.apply(state)
    for name, value in state.items():
        other = moved.get(name)
        if isinstance(value, Tensor) and not (isinstance(other, Tensor) and other.shape == value.shape):
            raise StateError(
                f"the alignment makes of {name!r} "
                f"{f'shape {tuple(other.shape)}' if isinstance(other, Tensor) else 'nothing'}, not shape "
                f"{tuple(value.shape)}: its `apply` does not return a state of this model"
            )
    return moved


def _check_constants(program: Program, state: Mapping[str, Any]) -> None:
    """Raises StateError if the state has other numbers than the program where these are part of the
    program."""
    for source in program.sources.values():
        value = state.get(source.name) if source.kind == "constant" else None
        if isinstance(value, Tensor) and source.value is not None and not value.is_meta and not (
                value.shape == source.value.shape and bool((value == source.value.to(value.device)).all())):
            raise StateError(f"the state's {source.name!r} holds other numbers than the module's: its whole numbers and "
                             "truth values belong to the function; load the state into the module first")


def _evidence(comparison: Comparison, trial: Trial, run: Run, tolerance: float | None) -> Evidence:
    errors = {path: (gap.absolute, gap.relative) for path, gap in comparison.gaps.items()}
    return Evidence(comparison.absolute, comparison.relative, comparison.where, errors,
                    TOLERANCE if tolerance is None else tolerance, noise=trial.noise, runs=(run,))


def _noted(evidence: Evidence, why: str) -> Evidence:
    return replace(evidence, notes=(*evidence.notes, f"the module itself was not compared with its graph: {why}"))


def _other(model: nn.Module, captured: Comparison) -> str:
    gap = captured.gaps[captured.where]
    return (
        f"{type(model).__name__} is not what was captured: output {captured.where!r} differs by {gap.relative:.1e} "
        "relative on the example inputs, in its own precision: it may read numbers out of its tensors, or keep what "
        "earlier calls left behind; capture the part of the module that does not"
    )


def _words(found: Blame) -> str:
    names = ", ".join(map(repr, found.groups[:3]))
    groups = f"group{'s' if len(found.groups) > 1 else ''} {names}" if names else ""
    more = f" and {len(found.groups) - 3} more" if len(found.groups) > 3 else ""
    sites = ", ".join(place(site) for site in found.sites[:3])
    sites += f" and {len(found.sites) - 3} more" if len(found.sites) > 3 else ""
    if groups:
        return f"{groups}{more} at {sites}" if sites else groups + more
    return f"{sites}, which no group moves so" if sites else "no single group, only several together"
