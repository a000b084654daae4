"""Checkpoints in shards, carried shard by shard: tasks of any executor of `concurrent.futures`.

Each task reads what its shard needs from the files of the inputs, writes the shard, and returns how many
bytes that were. A shard has one writer, and appears under its name whole: a task that is run again, since its
worker was lost, writes the same bytes. All workers must see the files under the same paths.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .alignment import Alignment
from .checkpoint import Plan, Writer, whole
from .errors import FxrebasinError
from .parts import Parts
from .spec.fitting import Fit
from .statistics import statistics_of

# Tensors of the model, for a part of the alignment.
Make = Callable[[Alignment], Iterable[tuple[str, Tensor]]]


def divisible(plan: Plan, fit: Fit) -> bool:
    """Whether a checkpoint is made of several files, each of which can be written on its own."""
    several = plan.as_folder and plan.kind != "distributed" and len(set(plan.files.values())) > 1
    return (several and all(link.read is None for link in fit.links)
            and set(plan.tensors) == {file for link in fit.links for file in link.files})


def write_shards(make: Make, alignment: Alignment, fit: Fit, plan: Plan, executor: Executor, card: str = "",
                 advance: Callable[[int], None] = lambda count: None) -> list[str]:
    """Writes a checkpoint that is `divisible`, a task for each file; returns what was left out (`Writer.left`).

    make  picklable, as `fit` and `plan` are. Raises FxrebasinError where a task fails
    """
    with whole(plan.path) as draft:
        writer = Writer(plan, draft)
        tasks = [executor.submit(write_shard, make, part, fit, _only(plan, file), draft, file)
                 for file, part in shares(alignment, fit, plan)]
        try:
            for task in as_completed(tasks):
                advance(_result(task))
        finally:
            for task in tasks:
                task.cancel()
        for left in draft.glob(".*.part"):  # of workers that were lost
            left.unlink()
        writer.leave(plan.tensors)
        writer.finish(card)
        return writer.left


def write_shard(make: Make, alignment: Alignment, fit: Fit, plan: Plan, draft: Path, file: str) -> int:
    """The task: writes one file into the draft of a folder; returns its bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they have been said
        with whole(draft / file) as place:
            writer = Writer(plan, draft, only=place)
            try:
                for name, tensor in fit.undo(make(alignment)):
                    writer.put(name, tensor)
            finally:
                writer.close()
    return sum(tensor.numel() * tensor.itemsize for tensor in plan.tensors.values())


def shares(alignment: Alignment, fit: Fit, plan: Plan) -> Iterator[tuple[str, Alignment]]:
    """Each file of a plan, and the part of the alignment that its tensors need."""
    parts, passed = Parts(alignment), set(alignment.spec.passed)
    together = {parts.part_of[name] for name in statistics_of(alignment.spec)}  # told in units of each other
    names: dict[str, list[str]] = {}
    for link in fit.links:
        names.setdefault(plan.files[link.files[0]], []).append(link.names[0])
    for file, own in names.items():
        found = {parts.part_of[name] for name in own if name in parts.part_of}
        found |= together if found & together else set()
        yield file, parts.alignment(*(part for part in parts.names if part in found),
                                    passed=[name for name in own if name in passed])


def _only(plan: Plan, file: str) -> Plan:
    files = {name: each for name, each in plan.files.items() if each == file}
    return replace(plan, files=files, tensors={name: plan.tensors[name] for name in files})


def _result(task) -> int:
    try:
        return task.result()
    except FxrebasinError:
        raise
    except Exception as error:  # noqa: BLE001 - executors have errors of their own
        raise FxrebasinError(f"a worker failed ({type(error).__name__}: {error}): was it out of memory, and does it "
                             "see the files under the same paths? Use fewer workers, or none") from error
