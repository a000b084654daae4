"""Who does the work: this process, a pool of processes (--workers), or a Dask cluster (--dask)."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import click

from ..errors import FxrebasinError


def engine_options(command: Callable) -> Callable:
    """--workers and --dask, as `engine` takes them."""
    dask = click.option(
        "--dask", metavar="ADDRESS",
        help="Write the shards on the Dask cluster whose scheduler is there, such as tcp://host:8786; its workers "
             "must see the files under the same paths.")
    workers = click.option("--workers", type=click.IntRange(1), metavar="N",
                           help="Write the shards in so many processes; each needs the memory that one does.")
    return workers(dask(command))


@contextlib.contextmanager
def engine(workers: int | None, dask: str | None) -> Iterator[Executor | None]:
    """The executor that is asked for, if any. Raises FxrebasinError if there is none to be had."""
    if workers and dask:
        raise click.UsageError("--workers and --dask are two ways of the same: give one")
    if dask:
        with _client(dask) as client:
            yield client.get_executor(pure=False)
    elif workers and workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield pool
    else:
        yield None


def _client(address: str):
    try:
        from distributed import Client
    except ImportError:
        raise FxrebasinError("--dask needs dask.distributed: pip install 'fxrebasin[dask]'") from None
    try:
        return Client(address, timeout=20)
    except (OSError, ValueError, TimeoutError) as error:
        raise FxrebasinError(f"no Dask scheduler answers at {address} ({type(error).__name__}): start one, or "
                             "correct the address") from None
