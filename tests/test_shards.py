"""Shards as tasks: the same bytes as one process writes, whoever does them, and whoever is lost on the way."""
from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from test_faults import folder, network, one_line, spec  # noqa: F401

import fxrebasin as fxr
from fxrebasin.checkpoint import plan
from fxrebasin.cli import DONE, run
from fxrebasin.cli.carry import _apply
from fxrebasin.cli.file import opened
from fxrebasin.shards import divisible, shares, write_shards


def content(place: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(place).iterdir() if p.name != "README.md"}


def slowly(make, alignment):
    """So that a worker can be lost meanwhile."""
    time.sleep(2.0)
    yield from make(alignment)


def written(executor, output: str, seconds: bool = False) -> dict[str, bytes]:
    with opened(fxr.Alignment.load("pi.safetensors"), ("in",), False) as (pi, (stored,)):
        made = plan(output, stored.form.blank(), stored.form)
        assert divisible(made, stored.fit)
        make = partial(_apply, stored)
        write_shards(partial(slowly, make) if seconds else make, pi, stored.fit, made, executor)
    return content(output)


def test_threads_processes_and_one_process_write_the_same_bytes(folder):  # noqa: F811
    assert run("apply pi.safetensors in -o one".split()) == DONE
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, get_context("spawn")) as processes:
        assert written(threads, "two") == written(processes, "three") == content("one")
    line = "transport in other other --alignment pi.safetensors --alpha 0.5 -o"
    assert run([*line.split(), "four"]) == run([*line.split(), "five", "--workers", "2"]) == DONE
    assert content("four") == content("five") and not list(folder.glob(".*"))


def test_a_task_has_only_what_its_shard_needs(folder):  # noqa: F811
    with opened(fxr.Alignment.load("pi.safetensors"), ("in",), False) as (pi, (stored,)):
        found = dict(shares(pi, stored.fit, plan("out", stored.form.blank(), stored.form)))
    assert [sorted(part.spec.names) for part in found.values()] == [["0.bias", "0.weight"], ["2.bias", "2.weight"]]


def test_a_worker_that_fails_is_one_line_and_leaves_nothing(folder):  # noqa: F811
    with ThreadPoolExecutor(1) as executor, pytest.raises(fxr.FxrebasinError, match="a worker failed .*KeyError"):
        with opened(fxr.Alignment.load("pi.safetensors"), ("in",), False) as (pi, (stored,)):
            write_shards(lambda alignment: {}["x"], pi, stored.fit, plan("out", stored.form.blank(), stored.form), executor)
    assert not (folder / "out").exists() and not list(folder.glob(".*"))


def test_specs_and_alignments_travel(spec):  # noqa: F811
    import pickle

    pi = spec.random(3)
    again = pickle.loads(pickle.dumps(pi))
    assert again == pi and again.spec == spec


def test_a_dask_cluster_that_loses_a_worker_writes_the_same_bytes(folder, capsys):  # noqa: F811
    distributed = pytest.importorskip("distributed")
    assert run("apply pi.safetensors in -o one".split()) == DONE
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
                                  host="127.0.0.1") as cluster, distributed.Client(cluster) as client:
        pids = client.run(os.getpid)
        victim = next(iter(pids.values()))
        threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
        assert written(client.get_executor(pure=False), "two", seconds=True) == content("one")
        assert victim not in client.run(os.getpid).values()
        line = f"transport in other other --alignment pi.safetensors -o three --dask {cluster.scheduler_address}"
        assert run(line.split()) == run("transport in other other --alignment pi.safetensors -o four".split()) == DONE
    assert content("three") == content("four")


def test_engines_that_are_not_there(folder, capsys):  # noqa: F811
    errors = one_line(capsys, "apply pi.safetensors in -o out --workers 2 --dask tcp://127.0.0.1:1")
    assert "give one" in errors
