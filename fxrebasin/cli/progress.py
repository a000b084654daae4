"""What is said while something takes long: a bar on a terminal, now and then a line elsewhere; on stderr."""
from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from .speech import is_quiet, note

PATIENCE, PAUSE = 2.0, 10.0  # seconds before the first word, and between lines where there is no terminal


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[dict], None]]:
    """For what does not know how long it takes: takes what there is to say, by name. stdout is kept clean."""
    with contextlib.redirect_stdout(sys.stderr):
        if is_quiet():
            yield lambda news: None
            return

        def text(news: dict) -> str:
            return f"{what}: " + ", ".join(f"{key} {value}" for key, value in news.items())

        if not _terminal():
            say = _Seldom()
            yield lambda news: say(lambda: text(news))
            return
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            yield lambda news: status.update(text(news).replace("[", "\\["))


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """For what goes through `total` bytes: takes how many more are done. stdout is kept clean."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        started, done, bar, say = time.monotonic(), 0, None, _Seldom()

        def advance(count: int) -> None:
            nonlocal done, bar
            done += count
            seconds = time.monotonic() - started
            if is_quiet() or seconds < PATIENCE:
                return
            if not _terminal():
                left = seconds * (total - done) / max(done, 1)
                say(lambda: f"{what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, about {left:.0f} s still")
                return
            bar = bar or stack.enter_context(_bar())
            task = bar.task_ids[0] if bar.task_ids else bar.add_task(what, total=total)
            bar.update(task, completed=done)

        yield advance


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


class _Seldom:
    """Says a line at most every now and then, and none at first."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PATIENCE

    def __call__(self, text: Callable[[], str]) -> None:
        if time.monotonic() >= self._next:
            note(text(), "progress")
            self._next = time.monotonic() + PAUSE


def _bar():
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                    console=Console(stderr=True), transient=True)
