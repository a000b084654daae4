"""The entry point: runs one command line, and turns whatever happens into an exit status and a line."""
from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from ..checkpoint import CheckpointNote
from ..errors import NotEquivalentError
from ..transport import TransportNote
from . import carry  # noqa: F401 - its commands
from .command import commands
from .speech import DONE, INTERRUPTED, NO, TERMINATED, WRONG, explain, fail, hush, note


class Terminated(KeyboardInterrupt):
    """SIGTERM: leave as on Ctrl-C, with nothing half-written."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `fxrebasin`: never returns."""

    def terminate(*_: Any) -> None:
        raise Terminated

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line, without the program's name; returns the exit status."""
    hush(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (CheckpointNote, TransportNote):
            warnings.simplefilter("always", kind)
        warnings.showwarning = lambda message, *_: note(str(message))
        try:
            status = commands.main(arguments, prog_name="fxrebasin", standalone_mode=False)
            sys.stdout.flush()
            return status if isinstance(status, int) else DONE
        except click.exceptions.Exit as error:
            return error.exit_code
        except (KeyboardInterrupt, click.Abort) as error:
            terminated = isinstance(error.__cause__ or error, Terminated)
            return fail("interrupted: nothing is half-written", TERMINATED if terminated else INTERRUPTED)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:  # noqa: BLE001 - a defect is a line too
            if os.environ.get("FXREBASIN_DEBUG"):
                traceback.print_exc()
            return fail(explain(error), NO if isinstance(error, NotEquivalentError) else WRONG)
