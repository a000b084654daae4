"""The files that commands read and write: checkpoints that fit a spec, and places that may be written to."""
from __future__ import annotations

import contextlib
import hashlib
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import __version__
from ..alignment import Alignment
from ..checkpoint import State, Stored, check_folder, check_writable, files_of, load_state
from ..draft import check_place, whole
from ..errors import CheckpointError, StateError
from ..spec import Spec
from ..spec.fitting import Fit, Fitted, fit
from ..transport.mismatched import mismatched_names
from .model import conversions_of
from .speech import note, some


class Checkpoint(Fitted):
    """A checkpoint under the names of a model, of which tensors are read when they are asked for."""

    def __init__(self, fit: Fit, stored: Stored):
        super().__init__(fit, stored)
        self.stored, self.form = stored, stored.form


def read(spec: Spec, paths: Sequence[str], ignore_extra: bool, model: str | None = None) -> tuple[Spec, list[State]]:
    """The states in some checkpoints, under the names of MODEL, and the spec that they fit.

    With `ignore_extra`, entries that the model does not have are passed through unchanged, and the spec that
    is returned says so. Raises CheckpointError, or StateError for extra entries; other misfits come up later.
    """
    given = {path: load_state(path) for path in dict.fromkeys(paths)}
    fits = {path: fitted(spec, path, state, model) for path, state in given.items()}
    states = {path: dict(Fitted(fits[path], state)) for path, state in given.items()}
    return with_extra(spec, fits, states, ignore_extra), [states[path] for path in paths]


def fitted(spec: Spec, path: str, state: Mapping[str, Tensor], model: str | None) -> Fit:
    """How a checkpoint fits a spec; every step is said. What a library converts is asked only where names differ."""
    found = fit(spec, state)
    if not set(spec.names) <= set(Fitted(found, state)) and (convert := conversions_of(model, path)) is not None:
        found = fit(spec, state, convert)
    for step in found.steps:
        note(f"{path}: {step}")
    return found


def with_extra(spec: Spec, fits: Mapping[str, Fit], states: Mapping[str, Collection[str]], ignore_extra: bool) -> Spec:
    """The spec that checkpoints fit, given by path and the names in them. Raises StateError for extra entries."""
    extra: dict[str, None] = {}
    for path, names in states.items():
        extra.update(dict.fromkeys(fits[path].left))
        odd = sorted(set(names) - set(spec.names) - set(spec.passed))
        if set(odd) == set(fits[path].left):
            continue
        if set(spec.names) <= set(names) and not ignore_extra:  # else it is not of this model at all
            raise StateError(f"{path} has entries that the model does not have: {some(odd)}: give "
                             "--ignore-extra to leave them as they are, or remove them from the checkpoint")
        if ignore_extra:
            note(f"{path}: left as they are, since the model does not have them: {some(odd)}")
            extra.update(dict.fromkeys(odd))
    return replace(spec, passed=(*spec.passed, *extra)) if extra else spec


@contextlib.contextmanager
def opened(alignment: Alignment, paths: Sequence[str], ignore_extra: bool,
           model: str | None = None, mismatched: str | None = None) -> Iterator[tuple[Alignment, list[Checkpoint]]]:
    """Checkpoints under the names of MODEL, of which tensors are read when they are asked for, and the alignment
    for them.

    mismatched  what to do where the second has other shapes than the first

    Names and shapes are looked at here. Raises CheckpointError, or StateError where they do not fit.
    """
    with contextlib.ExitStack() as stack:
        stored = {path: stack.enter_context(Stored(path)) for path in dict.fromkeys(paths)}
        blank = {path: each.form.blank() for path, each in stored.items()}
        fits = {path: fitted(alignment.spec, path, blank[path], model) for path in stored}
        own = {path: dict(Fitted(fits[path], blank[path])) for path in stored}
        spec = with_extra(alignment.spec, fits, own, ignore_extra)
        if mismatched is not None:
            old, new = (own[path] for path in paths[:2])
            own[paths[1]] = new | {name: old[name] for name in mismatched_names(spec, old, new, mismatched)}
        for path, state in own.items():
            spec.check(state, path)
        yield (alignment if spec is alignment.spec else alignment.of(spec),
               [Checkpoint(fits[path], stored[path]) for path in paths])


def claim(output: str, *inputs: str | None, like: str | None = None, folder: bool = False) -> None:
    """Raises CheckpointError, before any work, if `output` cannot be written or would replace an input.

    like    a checkpoint is to be written, in the form of this one
    folder  a new folder is to be written; else a file
    """
    path = Path(output)
    for given in filter(None, inputs):
        old, new = Path(given).resolve(), path.resolve()
        if new == old or any(path.exists() and file.exists() and path.samefile(file) for file in _files_of(given)):
            raise CheckpointError(f"the output {output} is the input {given}: choose another name")
        if old in new.parents or new in old.parents:
            raise CheckpointError(f"the output {output} lies in the input {given}, or around it: choose "
                                  "another place")
    if like is not None:
        check_writable(output, like)
    elif folder:
        check_folder(output)
    elif not path.absolute().parent.is_dir():
        raise CheckpointError(f"cannot write {output}: there is no folder {path.absolute().parent}: make it "
                              "first")
    elif path.is_dir():
        raise CheckpointError(f"cannot write {output}: it is a folder: give the name of a file")
    else:
        check_place(path)


def _files_of(given: str) -> list[Path]:
    """The files that an input is made of."""
    path = Path(given)
    try:
        return [path, *files_of(path)]
    except (CheckpointError, OSError):  # said when it is read
        return [path]


def card(what: str, spec: Spec, figures: Mapping[str, Any]) -> str:
    """A section for the model card of what was made: what was done, by which command, and what was measured."""
    command = " ".join(shlex.quote(part) for part in ("fxrebasin", *sys.argv[1:]))
    rows = "".join(f"| {name} | {value} |\n" for name, value in figures.items())
    digest = hashlib.sha256(spec.to_json().encode()).hexdigest()[:16]
    return (f"## Made by fxrebasin\n\n{what}\n\n```sh\n{command}\n```\n\n| | |\n|---|---|\n"
            f"| fxrebasin | {__version__} |\n| symmetries (SHA-256 of the spec) | {digest} |\n{rows}")


def write_text(path: str, text: str) -> None:
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
