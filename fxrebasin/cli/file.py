"""The files that commands read and write: checkpoints that fit a spec, and places that may be written to."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..alignment import Alignment
from ..checkpoint import State, check_writable, fill_ties, load_state, whole
from ..errors import CheckpointError, StateError
from ..spec import Spec
from .speech import note, some


def read(spec: Spec, paths: Sequence[str], ignore_extra: bool) -> tuple[Spec, list[State]]:
    """The states in some checkpoints of a model, tied names filled in, and the spec that they fit.

    With `ignore_extra`, entries that the model does not have are passed through unchanged, and the spec that
    is returned says so. Raises CheckpointError, or StateError for extra entries; other misfits come up later.
    """
    states = [fill_ties(load_state(path), spec.ties) for path in paths]
    extra: dict[str, None] = {}
    for path, state in zip(paths, states):
        odd = sorted(set(state) - set(spec.names) - set(spec.passed))
        if odd and set(spec.names) <= set(state) and not ignore_extra:  # else it is not of this model at all
            raise StateError(f"{path} has entries that the model does not have: {some(odd)}: give "
                             "--ignore-extra to leave them as they are, or remove them from the checkpoint")
        if odd and ignore_extra:
            note(f"{path}: left as they are, since the model does not have them: {some(odd)}")
            extra.update(dict.fromkeys(odd))
    return replace(spec, passed=(*spec.passed, *extra)) if extra else spec, states


def read_for(alignment: Alignment, paths: Sequence[str], ignore_extra: bool) -> tuple[Alignment, list[State]]:
    """As `read`, for the spec of an alignment: the alignment, of a spec that the states fit."""
    spec, states = read(alignment.spec, paths, ignore_extra)
    return alignment if spec is alignment.spec else Alignment(spec, alignment.permutations), states


def claim(output: str, *inputs: str | None, like: str | None = None, state: bool = False) -> None:
    """Raises CheckpointError, before any work, if `output` cannot be written or would replace an input.

    state  a checkpoint is to be written, in the form of the one at `like`
    """
    path = Path(output)
    for given in filter(None, inputs):
        old, new = Path(given).resolve(), path.resolve()
        if new == old or path.exists() and old.exists() and path.samefile(old):
            raise CheckpointError(f"the output {output} is the input {given}: choose another name")
        if old in new.parents or new in old.parents:
            raise CheckpointError(f"the output {output} lies in the input {given}, or around it: choose "
                                  "another place")
    if state:
        check_writable(output, like)
    elif not path.absolute().parent.is_dir():
        raise CheckpointError(f"cannot write {output}: there is no folder {path.absolute().parent}: make it "
                              "first")
    elif path.is_dir():
        raise CheckpointError(f"cannot write {output}: it is a folder: give the name of a file")


def write_text(path: str, text: str) -> None:
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
