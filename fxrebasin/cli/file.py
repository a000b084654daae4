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

from .. import __version__
from ..alignment import Alignment
from ..checkpoint import State, Stored, check_folder, check_writable, files_of, fill_ties, load_state
from ..draft import check_place, whole
from ..errors import CheckpointError, StateError
from ..spec import Spec
from .speech import note, some


def read(spec: Spec, paths: Sequence[str], ignore_extra: bool) -> tuple[Spec, list[State]]:
    """The states in some checkpoints of a model, tied names filled in, and the spec that they fit.

    With `ignore_extra`, entries that the model does not have are passed through unchanged, and the spec that
    is returned says so. Raises CheckpointError, or StateError for extra entries; other misfits come up later.
    """
    states = [fill_ties(load_state(path), spec.ties) for path in paths]
    return fitted(spec, dict(zip(paths, states)), ignore_extra), states


def fitted(spec: Spec, states: Mapping[str, Collection[str]], ignore_extra: bool) -> Spec:
    """The spec that checkpoints fit, given by path and the names in them. Raises StateError for extra entries."""
    extra: dict[str, None] = {}
    for path, names in states.items():
        odd = sorted(set(names) - set(spec.names) - set(spec.passed))
        if odd and set(spec.names) <= set(names) and not ignore_extra:  # else it is not of this model at all
            raise StateError(f"{path} has entries that the model does not have: {some(odd)}: give "
                             "--ignore-extra to leave them as they are, or remove them from the checkpoint")
        if odd and ignore_extra:
            note(f"{path}: left as they are, since the model does not have them: {some(odd)}")
            extra.update(dict.fromkeys(odd))
    return replace(spec, passed=(*spec.passed, *extra)) if extra else spec


@contextlib.contextmanager
def opened(alignment: Alignment, paths: Sequence[str], ignore_extra: bool) -> Iterator[tuple[Alignment, list[Stored]]]:
    """Checkpoints of a model, of which tensors are read when they are asked for, and the alignment for them.

    Names and shapes are looked at here. Raises CheckpointError, or StateError where they do not fit.
    """
    with contextlib.ExitStack() as stack:
        stored = [stack.enter_context(Stored(path)) for path in paths]
        blank = {path: fill_ties(each.form.blank(), alignment.spec.ties) for path, each in zip(paths, stored)}
        spec = fitted(alignment.spec, blank, ignore_extra)
        for path, state in blank.items():
            spec.check(state, path)
        yield alignment if spec is alignment.spec else Alignment(spec, alignment.permutations), stored


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
