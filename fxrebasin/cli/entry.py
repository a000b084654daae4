"""Runs one command line, and turns whatever happens into an exit status and a line."""
from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType

import click

from ..errors import NotEquivalentError, Note
from . import DONE, INTERRUPTED, NO, TERMINATED, WRONG
from .group import commands
from .speech import explain, fail, hush, note


class Interrupts:
    """Handles Ctrl-C, and SIGTERM in the same way; remembers which came, since what it breaks into may report something
    else. `seen` is the signal, or None."""

    def __init__(self) -> None:
        self.seen: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.seen = number
        raise KeyboardInterrupt


def run(arguments: Sequence[str] | None = None, interrupts: Interrupts | None = None) -> int:
    """Runs one command line, without the program's name; returns the exit status."""
    interrupts = interrupts or Interrupts()
    hush(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Note)
        warnings.showwarning = lambda message, *_: note(str(message))
        try:
            status = commands.main(arguments, prog_name="fxrebasin", standalone_mode=False)
            sys.stdout.flush()
            return status if isinstance(status, int) else DONE
        except click.exceptions.Exit as error:
            return error.exit_code
        except BaseException as error:  # noqa: BLE001 - a defect is a line too
            return _ended_by(error, interrupts)


def _ended_by(error: BaseException, interrupts: Interrupts) -> int:
    """The exit status for what went wrong, after a line that says so."""
    if interrupts.seen or isinstance(error, (KeyboardInterrupt, click.Abort)):
        return fail("interrupted: nothing is half-written", TERMINATED if interrupts.seen == signal.SIGTERM else INTERRUPTED)
    if isinstance(error, (SystemExit, GeneratorExit)):
        raise error
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough
        return 141
    if os.environ.get("FXREBASIN_DEBUG"):
        traceback.print_exc()
    if isinstance(error, OSError) and error.filename is None:  # files' errors are said where they are read and written
        return fail(f"the answer cannot be written: stdout: {error.strerror or error}: what was to be written to files is "
                    "written", WRONG)
    return fail(explain(error), NO if isinstance(error, NotEquivalentError) else WRONG)

