"""Every error that fxrebasin raises on purpose.

Each message is one line that says what went wrong, where, why, and what to do about it.
"""
from __future__ import annotations


class FxrebasinError(Exception):
    """The base of all errors here: catch this one to catch them all."""


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

    def __init__(self, message: str, evidence: object = None):
        super().__init__(message)
        self.evidence = evidence


class Note(UserWarning):
    """What a user should know, and is no error: a step that was taken to make a file fit, say."""
