"""What is said to the user: answers on stdout, everything else on stderr, each a line."""
from __future__ import annotations

import contextlib
import json
from typing import Any

import click

from ..errors import FxrebasinError

_quiet = False


def answer(data: dict[str, Any], text: str, as_json: bool) -> None:
    """One JSON document, or text, on stdout."""
    click.echo(json.dumps(data, allow_nan=False) if as_json else text)


def hush(quiet: bool) -> None:
    """Whether notes and progress are left out from now on."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet


def note(text: str, word: str = "note") -> None:
    """One line on stderr, whatever is in the text; of what is quiet, errors alone."""
    if _quiet and word != "error":
        return
    line = "".join(c if c.isprintable() else " " for c in text)
    with contextlib.suppress(OSError):  # with stderr closed there is nobody to tell
        click.echo(f"fxrebasin: {word}: {' '.join(line.split())}", err=True)


def fail(text: str, status: int) -> int:
    note(text, "error")
    return status


def explain(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "fxrebasin"
        return f"{error.format_message().rstrip('.')}: see `{path} --help`"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, FxrebasinError):
        return f"{error} [{error.link}]"
    if isinstance(error, MemoryError) or "can't allocate" in str(error) or "not enough memory" in str(error):
        return "out of memory: use a machine with more, or a smaller --input"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}: check the path and its permissions"
    return (f"internal error: {type(error).__name__}: {error}: this is a defect of fxrebasin, set "
            "FXREBASIN_DEBUG=1 for the traceback and report it")


def some(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
