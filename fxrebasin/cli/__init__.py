"""The command line.

Exit status: 0 done; 1 the answer is no; 2 the request is wrong, said in one line on stderr; 130 interrupted.
Answers go to stdout, everything else to stderr. Files appear whole or not at all, and never in place of
an input.

To be read in this order: `speech` (what is said, and where), `progress` (while it takes long), `example` (inputs for a
model), `model` (what MODEL is), `file` (what is read and written), `option` (what commands share), `command` and `carry`
(the commands), `entry`.

This file loads nothing that takes long, so that an interruption is one from the first moment.
"""
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

DONE, NO, WRONG, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
_STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `fxrebasin`: never returns."""
    _open_streams()
    in_main_thread = _handle(_leave)
    from .entry import Interrupts, run

    interrupts = Interrupts()
    if in_main_thread:
        _handle(interrupts)
    status = run(arguments, interrupts)
    if in_main_thread:
        _handle(_leave)  # what is left to do is to end
    _close_streams()
    # An interrupt that falls into code compiled from text, as that of data classes is, is remembered by the interpreter, which
    # would end `python -m` by it and not with this status. The next such code makes it forget.
    exec("")
    sys.exit(status)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line, without the program's name; returns the exit status."""
    from .entry import run

    return run(arguments)


def _handle(handler) -> bool:
    """Installs a handler for Ctrl-C and for being told to end; False where that cannot be done."""
    try:
        for number in _STATUS:
            signal.signal(number, handler)
    except ValueError:  # not in the main thread
        return False
    return True


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing has begun, or everything is done: leave at once."""
    try:
        os.write(2, b"fxrebasin: error: interrupted: nothing is half-written\n")
    except OSError:
        pass
    os._exit(_STATUS[number])


def _open_streams() -> None:
    """Where stdout or stderr are closed, files that are opened must not take their places."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            closed = os.open(os.devnull, os.O_RDONLY)  # nothing can be written to it, which is then said
            if closed != number:
                os.dup2(closed, number)
                os.close(closed)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _close_streams() -> None:
    """What could not be written is not tried again at the end."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


__all__ = ["DONE", "INTERRUPTED", "NO", "TERMINATED", "WRONG", "main", "run"]
