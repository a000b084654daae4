"""Are these the states that the alignment is for, and are they given in the right order?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from ..alignment import Alignment
from ..errors import Note, StateError
from ..fingerprint import OTHER, distance, numbers_of, sample

State = Mapping[str, torch.Tensor]
CLEARLY = 4.0  # times nearer, for one state to be taken for another


class TransportNote(Note):
    """Something about what was carried that its user should know."""


def check_pair(
    alignment: Alignment, base: State, finetuned: State, target: State, *, force: bool = False
) -> None:
    """Raises StateError if the alignment was matched from another base than this, or the fine-tuned state
    lies at its source and the base does not; warns if the fine-tuning is of the target. All of it by a few
    numbers of each state.

    force  warn instead
    """
    spec = alignment.spec
    if alignment.source is None or not all(set(spec.names) <= set(state) for state in (base, finetuned, target)):
        return  # matched from nothing that is known; or refused elsewhere
    old, tuned, new = (sample(spec, state) for state in (base, finetuned, target))
    ends = [None if text is None else numbers_of(text) for text in (alignment.source, alignment.target)]
    problem = _problem(*ends, old, tuned)
    if problem and not force:
        raise StateError(f"{problem}; force=True (--force) carries all the same")
    if problem:
        _say(problem)
    if distance(tuned, old) > CLEARLY * distance(tuned, new) and distance(tuned, old) > OTHER:
        _say("the fine-tuned state is nearer to the target than to the base: are BASE and TARGET swapped?")


def _problem(source, target, old, tuned) -> str:
    """What is wrong with a base and a fine-tuned state, for an alignment of these."""
    away = distance(source, old)
    if target is not None and away > OTHER and distance(target, old) < OTHER:
        return "the base is what the alignment leads to, not what it starts from: are BASE and TARGET swapped? Give them " \
               "the other way round, or the inverse of the alignment"
    if away > OTHER:
        return "the base is not the state that the alignment was matched from: give that one, or match again"
    if away > CLEARLY * distance(source, tuned) and away > 1e-2:
        return "the fine-tuned state is what the alignment was matched from, and the base is not quite: are BASE and " \
               "FINETUNED swapped? Give them the other way round"
    return ""


def _say(text: str) -> None:
    warnings.warn(text, TransportNote, stacklevel=4)
