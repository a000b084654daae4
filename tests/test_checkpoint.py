"""Checkpoint files: round trips, folders in shards, and every refusal in one line."""
import json
import os
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fxrebasin.checkpoint import CheckpointNote, fill_ties, form_of, load_state, save_state, whole
from fxrebasin.errors import CheckpointError


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tied = torch.randn(4, 3, generator=generator)
    return {
        "tied.a": tied,
        "tied.b": tied,
        "slice": torch.randn(1000, generator=generator)[10:20],
        "turned": torch.randn(3, 5, generator=generator).T,
        "count": torch.tensor(3),
        "none": torch.zeros(0, 2),
        "half": torch.randn(4, generator=generator).half(),
        "brain": torch.randn(4, generator=generator).bfloat16(),
    }


def same(a, b) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def refusal(path, function=load_state, *args) -> str:
    """The message of the CheckpointError that `function(path)` must raise: a line that names the path."""
    with pytest.raises(CheckpointError) as caught:
        function(path, *args)
    text = str(caught.value)
    assert "\n" not in text and os.path.basename(path) in text and ": " in text
    return text


def nothing_left(folder, *allowed) -> bool:
    return sorted(os.listdir(folder)) == sorted(allowed)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.bin", "x.ckpt"])
def test_round_trip(tmp_path, name):
    save_state(sample(), tmp_path / name)
    assert same(load_state(tmp_path / name), sample())
    assert nothing_left(tmp_path, name)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_torch_file_keeps_ties_and_holds_no_more_than_its_tensors(tmp_path):
    save_state({"a": torch.zeros(1_000_000)[:3]} | sample(), tmp_path / "x.pt")
    loaded = load_state(tmp_path / "x.pt")
    assert loaded["tied.a"].data_ptr() == loaded["tied.b"].data_ptr()
    assert (tmp_path / "x.pt").stat().st_size < 10_000


def test_a_tied_state_in_safetensors_loads_strictly(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
            self.b.weight = self.a.weight

    save_state(Tied().state_dict(), tmp_path / "x.safetensors")
    model = Tied()
    model.load_state_dict(load_file(tmp_path / "x.safetensors"), strict=True)
    assert model.a.weight is model.b.weight


def test_overlapping_views_are_written_apart(tmp_path):
    (whole_,) = torch.arange(10.0).split(10)
    state = {"all": whole_, "head": whole_[:4], "middle": whole_[2:6]}
    save_state(state, tmp_path / "x.safetensors")
    assert same(load_state(tmp_path / "x.safetensors"), state)


def test_the_content_decides_not_the_name(tmp_path):
    save_state(sample(), tmp_path / "x.safetensors")
    save_state(sample(), tmp_path / "y.pt")
    os.rename(tmp_path / "x.safetensors", tmp_path / "x.pt")
    os.rename(tmp_path / "y.pt", tmp_path / "y")
    assert same(load_state(tmp_path / "x.pt"), load_state(tmp_path / "y"))


def test_old_torch_files(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert same(load_state(tmp_path / "x.pt"), {"a": torch.ones(3)})


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_nested_states_are_unwrapped_with_a_note(tmp_path, key):
    torch.save({"epoch": 3, key: {"a": torch.ones(3)}}, tmp_path / "x.pt")
    with pytest.warns(CheckpointNote, match=f"under '{key}'; 'epoch' left aside"):
        loaded = load_state(tmp_path / "x.pt")
    assert same(loaded, {"a": torch.ones(3)})
    save_state(loaded, tmp_path / "y.pt", like=tmp_path / "x.pt")
    assert list(torch.load(tmp_path / "y.pt", weights_only=True)) == [key]


# ---- like --------------------------------------------------------------------------------------------------


def test_like_keeps_dtypes_metadata_and_kind(tmp_path):
    save_file(
        {"a": torch.ones(3).half(), "n": torch.tensor(1)},
        tmp_path / "x",
        metadata={"format": "pt", "made": "here"},
    )
    save_state({"a": torch.full((3,), 2.0), "n": torch.tensor(5)}, tmp_path / "y", like=tmp_path / "x")
    assert same(load_state(tmp_path / "y"), {"a": torch.full((3,), 2.0).half(), "n": torch.tensor(5)})
    assert form_of(tmp_path / "y").metadata["y"] == {"format": "pt", "made": "here"}
    save_state(load_state(tmp_path / "y"), tmp_path / "z.pt", like=tmp_path / "x")  # an ending decides
    assert form_of(tmp_path / "z.pt").kind == "torch"


def test_a_value_too_large_for_the_dtype_is_refused(tmp_path):
    save_file({"a": torch.ones(3).half()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="'a' has values too large for torch.float16"):
        save_state({"a": torch.full((3,), 1e6)}, tmp_path / "y.safetensors", like=tmp_path / "x.safetensors")
    assert nothing_left(tmp_path, "x.safetensors")


def test_ties_that_the_file_leaves_out(tmp_path):
    save_file({"wte": torch.ones(3, 2)}, tmp_path / "x.safetensors")
    ties = {"head": "wte"}
    state = fill_ties(load_state(tmp_path / "x.safetensors"), ties)
    assert state["head"] is state["wte"]
    assert fill_ties({"head": state["wte"]}, ties)["wte"] is state["wte"]  # left out the other way round
    assert fill_ties({}, ties) == {}
    save_state(state, tmp_path / "y.safetensors", like=tmp_path / "x.safetensors")
    assert list(load_state(tmp_path / "y.safetensors")) == ["wte"]
    save_state(
        state | {"head": torch.zeros(3, 2)}, tmp_path / "z.safetensors", like=tmp_path / "x.safetensors"
    )
    assert sorted(load_state(tmp_path / "z.safetensors")) == ["head", "wte"]  # no tie: nothing may be lost


def sharded(folder, kind):
    """A folder as transformers writes it; its state."""
    folder.mkdir()
    ending, prefix = (".safetensors", "model") if kind == "safetensors" else (".bin", "pytorch_model")
    parts = [{"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).half()}, {"c": torch.zeros(4)}]
    names = [f"{prefix}-{k + 1:05}-of-00002{ending}" for k in range(2)]
    for part, name in zip(parts, names):
        save_file(part, folder / name, metadata={"format": "pt"}) if kind == "safetensors" else torch.save(
            part, folder / name
        )
    index = {
        "metadata": {"total_size": 44},
        "weight_map": {k: name for part, name in zip(parts, names) for k in part},
    }
    (folder / f"{prefix}{ending}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "script.py").write_text("")
    return parts[0] | parts[1]


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_folders_in_shards(tmp_path, kind):
    state = sharded(tmp_path / "in", kind)
    assert same(load_state(tmp_path / "in"), state)
    index = next((tmp_path / "in").glob("*.index.json"))
    assert same(load_state(index), state)
    doubled = {name: tensor * 2 for name, tensor in state.items()}
    save_state(doubled, tmp_path / "out", like=tmp_path / "in")
    assert same(load_state(tmp_path / "out"), doubled)
    assert json.loads((tmp_path / "out" / index.name).read_text()) == json.loads(index.read_text())
    assert set(os.listdir(tmp_path / "out")) == set(os.listdir(tmp_path / "in"))
    assert nothing_left(tmp_path, "in", "out")
    save_state(doubled, tmp_path / "one.safetensors", like=tmp_path / "in")
    assert same(load_state(tmp_path / "one.safetensors"), doubled)


def test_shards_that_are_links_as_in_a_cache(tmp_path):
    state = sharded(tmp_path / "in", "safetensors")
    for shard in (tmp_path / "in").glob("*.safetensors"):
        os.rename(shard, tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    assert same(load_state(tmp_path / "in"), state)


def test_a_folder_with_one_file(tmp_path):
    (tmp_path / "in").mkdir()
    save_state(sample(), tmp_path / "in" / "adapter.safetensors")
    save_state(load_state(tmp_path / "in"), tmp_path / "out", like=tmp_path / "in")
    assert os.listdir(tmp_path / "out") == ["adapter.safetensors"]
    save_state(sample(), tmp_path / "in" / "other.safetensors")
    assert "2 files that could be one" in refusal(tmp_path / "in")


# ---- refusals ----------------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["zip", "old", "pickle", "pickle2", "nested"])
def test_code_in_a_pickle_is_not_run(tmp_path, writer):
    harm, file = tmp_path / "harm", tmp_path / "x.pt"
    content = {"state_dict": {"a": Hostile(harm)}} if writer == "nested" else {"a": Hostile(harm)}
    if writer.startswith("pickle"):
        file.write_bytes(pickle.dumps(content, protocol=2 if writer == "pickle2" else None))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer != "old")
    text = refusal(file)
    assert "was not loaded" in text and "state_dict" in text
    assert not harm.exists()
    pickle.loads(pickle.dumps(Hostile(harm)))  # it would have run
    assert harm.exists()


def test_every_truncation_is_refused(tmp_path):
    for ending in (".safetensors", ".pt"):
        file = tmp_path / f"x{ending}"
        save_state(sample(), file)
        content = file.read_bytes()
        for size in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
            file.write_bytes(content[:size])
            text = refusal(file)
            assert "is empty" in text if size == 0 else "truncated" in text or "damaged" in text


def test_damaged_files_are_refused_or_read_but_nothing_else(tmp_path):
    file = tmp_path / "x"
    for ending in (".safetensors", ".pt"):
        save_state({"a": torch.ones(4)}, tmp_path / f"y{ending}")
        content = (tmp_path / f"y{ending}").read_bytes()
        for seed in range(100):
            damaged, rng = bytearray(content), random.Random(seed)
            for _ in range(3):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            file.write_bytes(damaged)
            try:
                load_state(file)
            except CheckpointError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content, word",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"GGUF" + bytes(100), "unknown format"),
        (b"hello", "unknown format"),
        (bytes(200), "unknown format"),
    ],
)
def test_unknown_files(tmp_path, content, word):
    (tmp_path / "x").write_bytes(content)
    assert word in refusal(tmp_path / "x")


def test_files_of_other_things(tmp_path):
    file = tmp_path / "x.pt"
    for content, word in (
        ([torch.ones(2)], "holds a list"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
        ({1: torch.ones(2)}, "1 is a Tensor"),
        ({}, "no tensors"),
        (nn.Linear(2, 2), "Linear"),
    ):
        torch.save(content, file)
        assert word in refusal(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    assert "TorchScript" in refusal(file)
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    refusal(tmp_path / "x.npz")
    assert "no such file" in refusal(tmp_path / "nowhere.pt")
    (tmp_path / "empty").mkdir()
    assert "found none" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"]
)
def test_an_index_that_points_outside_its_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    save_state({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a file of its own folder"):
        load_state(tmp_path / "in")


def test_damaged_shards(tmp_path):
    sharded(tmp_path / "in", "safetensors")
    index = tmp_path / "in" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for text, word in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", 'no "weight_map"'),
        ("{}", 'no "weight_map"'),
        (json.dumps({"weight_map": {"a": 3}}), 'no "weight_map"'),
        (json.dumps({"weight_map": {**good["weight_map"], "d": "lost.safetensors"}}), "which is not there"),
        (json.dumps({"weight_map": {**good["weight_map"], "d": good["weight_map"]["a"]}}), "disagree on 'd'"),
    ):
        index.write_text(text)
        with pytest.raises(CheckpointError) as caught:
            load_state(tmp_path / "in")
        assert word in str(caught.value) and "\n" not in str(caught.value)


# ---- whole or not at all -----------------------------------------------------------------------------------


def test_places_that_cannot_be_written(tmp_path):
    state = {"a": torch.ones(2)}
    assert "no folder" in refusal(tmp_path / "none" / "x.pt", lambda path: save_state(state, path))
    assert "ends in .safetensors" in refusal(tmp_path / "x", lambda path: save_state(state, path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "not empty" in refusal(tmp_path / "full", lambda path: save_state(state, path))
    assert "no tensors" in str(pytest.raises(CheckpointError, save_state, {}, tmp_path / "x.pt").value)
    meta = {"a": torch.ones(2, device="meta")}
    assert "no data" in str(pytest.raises(CheckpointError, save_state, meta, tmp_path / "x.pt").value)
    assert nothing_left(tmp_path, "full")


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("torch")]
)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "folder"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name, failure):
    from fxrebasin.checkpoint import writer

    sharded(tmp_path / "in", "torch" if name == "x.pt" else "safetensors")
    if name != "folder":
        save_state({"a": torch.zeros(2)}, tmp_path / name)
    before = sorted(os.listdir(tmp_path))

    def failing(*given):
        for path in given:
            if hasattr(path, "write"):
                path.write(b"half")
        assert len(os.listdir(tmp_path)) == len(before) + 1  # a draft
        raise failure

    monkeypatch.setattr(writer, "write_tensor", failing)
    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises((CheckpointError, KeyboardInterrupt, RuntimeError)):
        save_state({"a": torch.ones(2)}, tmp_path / name, like=tmp_path / "in")
    assert sorted(os.listdir(tmp_path)) == before
    if name != "folder":
        assert same(load_state(tmp_path / name), {"a": torch.zeros(2)})


def test_whole_replaces_at_the_end(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")
    with whole(file) as draft:
        draft.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and nothing_left(tmp_path, "x")
