"""Every error that fxrebasin raises on purpose.

Each message is one line that says what went wrong, where, why, and what to do about it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verify import Evidence


# Headings of docs/errors.md -> words by which a message that belongs there is known. The first that fits counts; a message
# that none fits belongs to the heading of its class.
CAUSES = {
    "runs-that-fail": ("does not run on the example inputs", "does not run on the inputs"),
    "branches-on-values": ("module without this line",),
    "no-example-inputs": ("comes without example inputs", "cannot be captured without shapes", "for which there is no example"),
    "the-text-of-an-input": ("--input '", "takes fewer inputs than were given"),
    "symbolic-sizes": ("has a symbolic size",),
    "no-tensor-returned": ("returns no tensor",),
    "lazy-modules": ("has no shape yet",),
    "numbers-read-outside-the-graph": ("does not compute what the module does", "does not give the same twice",
                                       "keeps numbers from one call to the next"),
    "model-names": ("is neither a folder nor package.module:callable", "check the name", "cannot import"),
    "missing-entries": (" lacks ", "is it a checkpoint of this model?", "the state has no "),
    "extra-entries": ("has unexpected", "has entries that the model does not have"),
    "another-size": ("is it a checkpoint of another size?",),
    "quantised-checkpoints": ("not a floating-point tensor",),
    "nan-or-infinity": ("NaN or infinity", "is infinite at other places"),
    "numbers-that-symmetries-rest-on": ("holds other numbers than the model had",),
    "not-a-fine-tuning-of-this-base": ("it is not a fine-tuning of this base", "it is a fine-tuning of another base"),
    "another-model": ("belongs to another model", "is for another model than"),
    "files-of-another-version": ("again with this version",),
    "outputs-over-inputs": ("choose another name", "choose another place"),
    "unknown-names": ("choose one of",),
}


class FxrebasinError(Exception):
    """The base of all errors here: catch this one to catch them all.

    `anchor` is the heading of docs/errors.md that says more, as a link to it ends; tracebacks print it.
    """

    def __init__(self, *args: object):
        super().__init__(*args)
        if hasattr(self, "add_note"):  # Python 3.11 and later
            self.add_note(f"see {self.link}")

    @property
    def anchor(self) -> str:
        text = str(self)
        causes = (anchor for anchor, words in CAUSES.items() if any(word in text for word in words))
        return next(causes, type(self).__name__.lower())

    @property
    def link(self) -> str:
        """Where the documentation says what the error means and what to do."""
        return f"docs/errors.md#{self.anchor}"


class CaptureError(FxrebasinError):
    """A module cannot be captured as a graph, or the example inputs do not fit it."""


class StateError(FxrebasinError):
    """A state dict does not fit: missing, extra or misshaped tensors, a wrong dtype, NaN or infinity."""


class CheckpointError(FxrebasinError):
    """A checkpoint file cannot be read: truncated, of an unknown format, or unsafe to load."""


class SpecError(FxrebasinError):
    """A spec is malformed, or does not belong to the model, state or alignment it is used with."""


class NotEquivalentError(FxrebasinError):
    """Two states that should compute the same function do not.

    `evidence` holds what was measured (see `fxrebasin.verify`).
    """

    def __init__(self, message: str, evidence: Evidence | None = None):
        super().__init__(message)
        self.evidence = evidence


class Note(UserWarning):
    """What a user should know, and is no error: a step that was taken to make a file fit, say."""
