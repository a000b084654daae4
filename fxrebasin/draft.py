"""Files that appear under their name whole or not at all: written under another name beside it, then renamed."""
from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from .errors import CheckpointError

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_LIVE: set[str] = set()  # names of the drafts that this process is writing


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A name beside `path` to write a file or folder to: it becomes `path` at the end, or vanishes if anything fails.

    Drafts that a killed process left behind are removed. Raises CheckpointError if the place cannot be written to.
    """
    path = Path(os.path.abspath(path))
    check_place(path)
    sweep(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{_HOST}.{secrets.token_hex(4)}.part")
    _LIVE.add(draft.name)
    try:
        yield draft
        _flush(draft)
        os.replace(draft, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}: choose a place that exists, may be "
                              "written to and has room") from None
    finally:
        _remove(draft)
        _LIVE.discard(draft.name)


def check_place(path: Path) -> None:
    """Raises CheckpointError if `path` is neither a file nor a folder but a device, a pipe or the like."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise CheckpointError(f"cannot write {path}: it is {kind}, which a file would take the place of: give the name "
                              "of a file")


def sweep(path: Path) -> None:
    """Removes the drafts of `path` that no process of this machine is writing any more."""
    own = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(?:\.({_HOST})\.\w+)?\.part")
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            found = own.fullmatch(other.name)
            if found and other.name not in _LIVE and not (_alive(int(found[1])) and int(found[1]) != os.getpid()):
                _remove(other)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _flush(draft: Path) -> None:
    """A name must not outlive a crash that the content does not."""
    for path in (draft, *draft.rglob("*")) if draft.is_dir() else (draft,):
        if not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _remove(draft: Path) -> None:
    with contextlib.suppress(OSError):
        if draft.is_dir() and not draft.is_symlink():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
