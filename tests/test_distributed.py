"""Folders of torch.distributed.checkpoint: what the library writes is read, what is written the library reads,
and a pickle that would run code does not."""

from __future__ import annotations

import pickle
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as multiprocessing
from test_faults import network, spec  # noqa: F401

import fxrebasin as fxr
from fxrebasin.checkpoint import CheckpointNote, Stored, form_of, load_state, save_state
from fxrebasin.cli import DONE, WRONG, run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def put(state, folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def got(state, folder: Path, outer: str | None = None):
    """What the library itself reads, into tensors of the shapes of `state`."""
    blank = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load({outer: blank} if outer else blank, checkpoint_id=folder, no_dist=True)
    return blank


def same(one, other) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def ordered(state):
    return dict(sorted(state.items()))


STATE = {
    "a": torch.randn(5, 3),
    "half": torch.randn(4).bfloat16(),
    "n": torch.tensor(7),
    "none": torch.empty(0, 2),
}


def _rank(rank: int, folder: Path) -> None:
    """Writes 5 and 4 rows as two processes hold them."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{folder}.meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    numbers = {"rows": (torch.arange(15.0).reshape(5, 3), 0), "columns": (torch.arange(8).reshape(2, 4), 1)}
    state = {name: distribute_tensor(tensor, mesh, [Shard(axis)]) for name, (tensor, axis) in numbers.items()}
    dcp.save({"model": state}, checkpoint_id=folder)
    dist.destroy_process_group()


def test_what_one_process_wrote_is_read_and_written_again(tmp_path):
    folder = put(STATE, tmp_path / "in")
    assert same(load_state(folder), STATE) and same(load_state(folder / ".metadata"), STATE)
    (folder / "notes.txt").write_text("kept")
    save_state(STATE, tmp_path / "out", like=folder)
    assert same(got(STATE, tmp_path / "out"), STATE) and same(load_state(tmp_path / "out"), STATE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "notes.txt",
    ]
    assert form_of(tmp_path / "out") == form_of(folder).__class__(
        **{**vars(form_of(folder)), "folder": tmp_path / "out"}
    )


def test_what_two_processes_wrote_in_parts_is_put_together(tmp_path):
    folder = tmp_path / "in"
    multiprocessing.spawn(_rank, (folder,), nprocs=2)
    assert len(list(folder.glob("*.distcp"))) == 2
    found = load_state(folder)
    wanted = {"rows": torch.arange(15.0).reshape(5, 3), "columns": torch.arange(8).reshape(2, 4)}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted) and set(found) == set(wanted)
    save_state(found, tmp_path / "out", like=folder)
    assert same(got(wanted, tmp_path / "out", "model"), wanted)
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(fxr.CheckpointError, match="names the file '__1_0.distcp', which is not there"):
        load_state(folder)


@pytest.mark.parametrize("outer", [("model",), ("app", "model"), ("state_dict",)])
def test_a_model_beside_its_optimizer_is_taken_alone(tmp_path, outer):
    state = {"step": 3, "optim": {"lr": 0.1, "exp_avg": [torch.ones(2)]}, outer[-1]: STATE}
    folder = put({outer[0]: state} if len(outer) > 1 else state, tmp_path / "in")
    with pytest.warns(CheckpointNote, match=re.escape(f"took the state under {'.'.join(outer)!r}")):
        assert same(load_state(folder), STATE)
    save_state(STATE, tmp_path / "out", like=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointNote)
        assert same(load_state(tmp_path / "out"), STATE)
    blank = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    inner = {outer[-1]: blank}
    dcp.load({outer[0]: inner} if len(outer) > 1 else inner, checkpoint_id=tmp_path / "out", no_dist=True)
    assert same(blank, STATE)


class Harm:
    def __reduce__(self):
        return eval, ("open('harm', 'w').close()",)


@pytest.mark.parametrize("place", ["whole", "planner", "tensor"])
def test_a_pickle_that_would_run_code_does_not(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    folder = put(STATE, tmp_path / "in")
    found = pickle.loads((folder / ".metadata").read_bytes())
    if place == "planner":
        found.planner_data["a"] = (Harm(),)
    elif place == "tensor":
        found.state_dict_metadata["a"] = Harm()
    (folder / ".metadata").write_bytes(pickle.dumps(Harm() if place == "whole" else found))
    with pytest.raises(fxr.CheckpointError, match=r"names builtins.eval, which could run any code"):
        load_state(folder)
    assert not Path("harm").exists()
    pickle.loads((folder / ".metadata").read_bytes())  # the harm is real
    assert Path("harm").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda m: m.storage_data[_index(m, "a")].__setattr__("relative_path", "../x"),
            "not one of its own folder",
        ),
        (lambda m: m.storage_data.pop(_index(m, "a")), "does not say where a part of 'a' lies"),
        (lambda m: m.storage_data[_index(m, "a")].__setattr__("offset", 7), "truncated or damaged"),
        (
            lambda m: m.state_dict_metadata["a"].__setattr__("size", torch.Size([6, 3])),
            "parts of 'a' are missing",
        ),
        (
            lambda m: m.state_dict_metadata["a"].properties.__setattr__("dtype", torch.float64),
            "not what .metadata says",
        ),
        (lambda m: m.state_dict_metadata["a"].__setattr__("chunks", []), "is damaged"),
        (lambda m: m.__setattr__("storage_data", None), "not the index of a distributed checkpoint"),
    ],
)
def test_an_index_that_says_what_is_not_so(tmp_path, change, message):
    folder = put(STATE, tmp_path / "in")
    found = pickle.loads((folder / ".metadata").read_bytes())
    change(found)
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(fxr.CheckpointError, match=message):
        load_state(folder)


def _index(found, name: str):
    return next(index for index in found.storage_data if index.fqn == name)


def test_a_flipped_bit_and_a_cut_file_are_seen(tmp_path):
    folder = put({"a": torch.arange(1000.0)}, tmp_path / "in")
    data = (folder / "__0_0.distcp").read_bytes()
    at = data.index(torch.arange(500.0, 503.0).numpy().tobytes())
    for broken in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:-30], b""):
        (folder / "__0_0.distcp").write_bytes(broken)
        with pytest.raises(fxr.CheckpointError, match="truncated or damaged"):
            load_state(folder)
    full = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(full[: len(full) // 2])
    with pytest.raises(fxr.CheckpointError, match="truncated or damaged"):
        load_state(folder)


def test_the_command_line_takes_and_makes_them(tmp_path, monkeypatch, capsys, spec):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    pi = spec.random(1)
    pi.save("pi.safetensors")
    states = [network().state_dict() for _ in range(3)]
    for name, state in zip(("base", "tuned", "new"), states):
        put({"model": state}, tmp_path / name)
    assert run("apply pi.safetensors base -o moved".split()) == DONE
    assert same(got(states[0], tmp_path / "moved", "model"), pi.apply(states[0]))
    assert run("transport base tuned new --alignment pi.safetensors -o carried".split()) == DONE
    assert same(got(states[0], tmp_path / "carried", "model"), fxr.transport(*states, pi))
    assert run("transport base tuned new --alignment pi.safetensors -o carried.safetensors".split()) == DONE
    assert same(ordered(load_state("carried.safetensors")), ordered(fxr.transport(*states, pi)))
    capsys.readouterr()
    assert run("apply pi.safetensors base -o base".split()) == WRONG
    assert run("apply pi.safetensors base -o base/__0_0.distcp".split()) == WRONG
    assert same(load_state(put({"model": states[0]}, tmp_path / "base")), states[0])


def test_tensors_are_read_one_at_a_time(tmp_path, monkeypatch):
    folder = put(STATE, tmp_path / "in")
    shutil.copytree(folder, tmp_path / "copy")
    with Stored(folder) as stored:
        assert stored.form.kind == "distributed" and stored.size == 5 * 3 * 4 + 8 + 8
        (folder / "__0_0.distcp").write_bytes(b"")
        with pytest.raises(fxr.CheckpointError):
            stored["a"]
