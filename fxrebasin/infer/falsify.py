"""The claim is tried before it is returned: a random element of the group, at random weights and inputs.

A rule that is wrong about its op shows at nearly every state, if units are on, scores apart and masks open;
each draw is another one in this respect, and rounding is told from change by the network's own noise. What
breaks is found group by group, and pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..capture import Program, culprits, multiplications
from ..evaluate import Trial, draw_inputs, draw_state
from ..passes import canonicalize
from ..rewrite import beside, mapped
from ..spec import Rewrite, Spec

DRAWS = (("ordinary", 0), ("ordinary", 1), ("duplicates", 2), ("ordinary", 3), ("zeros", 4), ("large", 5))
# Multiplications in one run of a network that is tried; and for each operation, as a tracer takes its time.
LARGEST = 100_000_000
FOR_EACH = 800_000
# Shaken runs before a change counts: scores that are equal at zeros are told apart in each of them at random.
PATIENT = 32
WHY = "a reordering changes what the network computes at random numbers"
PASS_WHY = "it changes what the network computes at random numbers"


def falsified(
    program: Program, spec: Spec, given: Mapping[str, Tensor], like: Mapping[str, Any] | None
) -> Spec:
    """The spec without the groups that change the function, with `evidence` that says what was tried.

    given  example inputs by path; like: a state dict of the module, which tells what kind of numbers its
           tensors hold
    """
    if not spec.groups and not _open(spec):
        return replace(spec, evidence="nothing is claimed")
    draws, reason = _affordable(program)
    tried: list[str] = []
    for kind, seed in draws:
        try:
            trial, kind = _trial(program, given, like, kind, seed)
            spec = _surviving(trial, spec, seed, program)
            spec = spec if tried else _rewritten(trial, spec)
        except Exception as error:  # noqa: BLE001 - operations raise anything at numbers they do not take
            reason = f"{kind} numbers: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        tried.append(kind)
    return replace(spec, evidence=_said(tried, reason))


def _trial(
    program: Program, given: Mapping[str, Tensor], like: Mapping[str, Any] | None, kind: str, seed: int
) -> tuple[Trial, str]:
    """A trial, and the kind of inputs that it has: the example's own where the network does not take random
    ones."""
    state = draw_state(program, seed, like)
    try:
        return Trial(program, state, draw_inputs(program, [given], seed, kind), seed), kind
    except Exception:  # noqa: BLE001
        if any(tensor.is_meta for tensor in given.values()):
            raise
        return Trial(program, state, given, seed), "the example's inputs"


def _surviving(trial: Trial, spec: Spec, seed: int, program: Program) -> Spec:
    """The spec without the groups that break the function at one state."""
    state = {name: trial.state[name] for name in program.state}
    rewritten = mapped(program, spec) if spec.skips else None
    while spec.groups:
        element = spec.random(seed)

        def unchanged(moving: Sequence[str], element=element, spec=spec) -> bool:
            still = spec.identity().permutations
            some = type(element)(spec, {**still, **{name: element.permutations[name] for name in moving}})
            moved = some.apply_to_output if spec.outputs else None
            if not beside(trial, some, some.apply(state), rewritten, moved).breaks:
                return True
            trial.limits(PATIENT)  # what rounding alone does, equal scores and all
            return not beside(trial, some, some.apply(state), rewritten, moved).breaks

        broken = culprits(list(spec.groups), unchanged)
        if not broken:
            return spec
        spec = without(spec, broken)
    return spec


def _open(spec: Spec) -> list[int]:
    """The passes' steps that are claimed."""
    return [k for k, rewrite in enumerate(spec.rewrites) if not rewrite.reason]


def _refused(spec: Spec, gone: Sequence[int]) -> Spec:
    """The spec without some steps of its passes."""
    return replace(spec, rewrites=tuple(Rewrite(each.kind, each.entry, PASS_WHY) if k in gone and not each.reason else each
                                        for k, each in enumerate(spec.rewrites)))


def _rewritten(trial: Trial, spec: Spec) -> Spec:
    """The spec without the steps of its passes that break the function at one state."""
    steps = _open(spec)
    state = {name: value for name, value in trial.state.items() if name in spec.names or name in spec.passed}

    def unchanged(some: Sequence[int]) -> bool:
        only = _refused(spec, [k for k in steps if k not in some])
        return not trial.compare(canonicalize(only, state).state).breaks

    return _refused(spec, culprits(steps, unchanged)) if steps else spec


def without(spec: Spec, broken: Sequence[str]) -> Spec:
    """The spec with some groups pinned: what is left is a part of the group that it was."""
    gone = {factor for name in broken for factor in spec.groups[name].members}
    groups = {name: group for name, group in spec.groups.items() if name not in broken}
    moved = {(site.tensor, site.axis) for group in groups.values() for site in group.sites}
    pinned = {
        (site.tensor, site.axis): WHY
        for name in broken
        for site in spec.groups[name].sites
        if (site.tensor, site.axis) not in moved
    }
    notes = [
        f"{name!r}: {WHY}: it is pinned; this is a mistake in a rule, and worth a report with the module"
        for name in broken
    ]
    return replace(
        spec,
        groups=groups,
        pinned={**spec.pinned, **pinned},
        notes=(*spec.notes, *notes),
        reasons={**spec.reasons, **dict.fromkeys(gone, WHY)},
    )


def _affordable(program: Program) -> tuple[Sequence[tuple[str, int]], str]:
    """As many draws as cost less than the capture, about; and why there are not more."""
    nodes = len(program.module.graph.nodes)
    work = multiplications(program)
    if work <= max(LARGEST, FOR_EACH * nodes) / 10:
        return DRAWS, ""
    if work <= max(LARGEST, FOR_EACH * nodes):
        return DRAWS[:1], "for more it is too large"
    return (), "it is too large"


def _said(tried: Sequence[str], reason: str) -> str:
    if not tried:
        return f"not tried at random numbers: {reason}"
    kinds = ", ".join(dict.fromkeys(tried))
    return (
        f"a random element was tried at {len(tried)} draws of random weights and inputs ({kinds}), in float64"
        + (f"; {reason}" if reason else "")
    )
