"""What goes wrong around files: every case ends in one line, and nothing is damaged or half-written."""
from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save as pack
from safetensors.torch import load_file, save_file
from torch import nn

import fxrebasin as fxr
from fxrebasin.checkpoint import Stored, load_state, save_state, whole
from fxrebasin.cli import DONE, WRONG, run
from fxrebasin.errors import CheckpointError

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fxr.__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def spec():
    return fxr.infer(network(), torch.zeros(2, 4))


@pytest.fixture
def folder(tmp_path, spec, monkeypatch):
    """A folder of shards `in`, as transformers writes it, another `other`, and an alignment."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name in ("in", "other"):
        state, here = network().state_dict(), tmp_path / name
        here.mkdir()
        shards = {"model-00001-of-00002.safetensors": list(state)[:2], "model-00002-of-00002.safetensors": list(state)[2:]}
        for file, names in shards.items():
            save_file({n: state[n] for n in names}, here / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": 4 * 67, "total_parameters": 67, "made": "here"},
                 "weight_map": {n: file for file, names in shards.items() for n in names}}
        (here / "model.safetensors.index.json").write_text(json.dumps(index))
        (here / "config.json").write_text("{}")
    spec.random(1).save(tmp_path / "pi.safetensors")
    return tmp_path


def one_line(capsys, line: str, status: int = WRONG) -> str:
    """Runs a command line that must be refused; what it says."""
    assert run(line.split()) == status
    text, errors = capsys.readouterr()
    assert text == "" and errors.count("\n") == 1 and errors.startswith("fxrebasin: error: "), errors
    return errors


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "fxrebasin", *arguments], env=ENVIRONMENT, capture_output=True, text=True,
                          timeout=120, check=False, **options)


# == a folder goes out as it came in =========================================================================


def test_all_that_a_folder_holds_goes_out(folder, capsys):
    source = folder / "in"
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    (source / "LICENSE").write_text("as you like")
    (source / "modeling_own.py").write_text("x = 1\n")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "2_Dense").mkdir()
    (source / "2_Dense" / "model.safetensors").write_bytes(b"another module's")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"old")
    (source / "tf_model.h5").write_bytes(b"old")
    (source / ".cache").mkdir()
    assert run("apply pi.safetensors in -o out".split()) == DONE
    out, note = folder / "out", capsys.readouterr().err
    gone = {"onnx/model.onnx", "tf_model.h5", ".cache"}
    held = {str(p.relative_to(source)) for p in source.rglob("*")}
    assert {str(p.relative_to(out)) for p in out.rglob("*")} == held - gone
    assert "left out of out" in note and "tf_model.h5" in note and "model.onnx" in note
    assert (out / "2_Dense" / "model.safetensors").read_bytes() == b"another module's"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == json.loads((source / "model.safetensors.index.json").read_text())
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# Model\n\n## Made by fxrebasin\n") and "elements moved" in card


def test_shards_are_those_of_the_target_and_the_same_bytes_as_at_once(folder, spec):
    pi = fxr.Alignment.load("pi.safetensors")
    states = [load_state(name) for name in ("in", "other", "other")]
    assert run("transport in other other --alignment pi.safetensors -o out --alpha 0.5".split()) == DONE
    expected = fxr.transport(*states, pi, 0.5)
    found = load_state("out")
    assert list(found) == list(expected) and all(torch.equal(found[n], expected[n]) for n in found)
    for file in (folder / "other").glob("*.safetensors"):
        save_file(load_file(folder / "out" / file.name), folder / "again", metadata={"format": "pt"})
        assert (folder / "again").read_bytes() == (folder / "out" / file.name).read_bytes()


def test_a_single_file_beside_shards_is_read_as_transformers_reads_it(folder):
    save_file(network().state_dict(), folder / "in" / "model.safetensors", metadata={"format": "pt"})
    one = load_file(folder / "in" / "model.safetensors")
    assert all(torch.equal(one[n], t) for n, t in load_state("in").items())
    assert run("apply pi.safetensors in -o out".split()) == DONE
    assert sorted(os.listdir("out")) == ["README.md", "config.json", "model.safetensors"]


def test_links_out_of_the_folder_stay_links(folder):
    (folder / "secret").write_text("not yours")
    (folder / "in" / "notes.txt").symlink_to(folder / "secret")
    (folder / "in" / "all").symlink_to(folder)
    (folder / "in" / "README.md").symlink_to(folder / "secret")
    (folder / "in" / "same.json").symlink_to("config.json")
    os.mkfifo(folder / "in" / "pipe")
    assert run("apply pi.safetensors in -o out".split()) == DONE
    out = folder / "out"
    assert (out / "notes.txt").is_symlink() and (out / "all").is_symlink() and not (out / "pipe").exists()
    assert os.readlink(out / "same.json") == "config.json" and (out / "same.json").read_text() == "{}"
    assert "not yours" not in (out / "README.md").read_text() and (folder / "secret").read_text() == "not yours"


# == places that are no files ================================================================================


def test_outputs_onto_devices_pipes_and_inputs(folder, capsys):
    os.mkfifo("pipe.safetensors")
    os.symlink("/dev/null", "null.safetensors")
    save_state(network().state_dict(), "a.safetensors")
    os.link("in/model-00001-of-00002.safetensors", "shard.safetensors")
    index = "in/model.safetensors.index.json"
    for source, output, word in (
            ("a.safetensors", "pipe.safetensors", "it is a pipe"), ("a.safetensors", "null.safetensors", "it is a device"),
            ("a.safetensors", "/dev/null", "it is a device"), ("a.safetensors", "a.safetensors", "is the input"),
            ("in", "shard.safetensors", "is the input in"), ("in", "in/x.safetensors", "lies in the input"),
            (index, "in/model-00001-of-00002.safetensors", "is the input"), (index, "shard.safetensors", "is the input")):
        before = {p: p.lstat().st_mtime_ns for p in folder.rglob("*")}
        assert word in one_line(capsys, f"apply pi.safetensors {source} -o {output}")
        assert before == {p: p.lstat().st_mtime_ns for p in folder.rglob("*")}
    assert "it is a device" in one_line(capsys, "inspect test_faults:made --dot /dev/null")
    assert Path("/dev/null").is_char_device()


def made():
    return network(), torch.zeros(2, 4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_may_not_be_written_to(folder, capsys):
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o555)
    for name in ("x.safetensors", "x.pt", "folder"):
        assert "may not be written to" in one_line(capsys, f"apply pi.safetensors in -o closed/{name}")


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
from fxrebasin.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("line", ["apply pi.safetensors in -o out", "apply pi.safetensors in -o out.safetensors",
                                  "apply pi.safetensors in -o out.pt", "inspect test_faults:made --html out.html",
                                  "match test_faults:made in other -o out.pi"])
def test_no_room_is_one_line_for_every_format(folder, line):
    """A limit on the size of files stands for a full disk."""
    before = sorted(os.listdir(folder))
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}",
                                 "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", FULL, *line.split()], env=environment, capture_output=True, text=True,
                          timeout=120, check=False)
    errors = [text for text in done.stderr.splitlines() if not {"note:", "warning:"} & set(text.split()[:2])]
    assert done.returncode == WRONG and done.stdout == "" and len(errors) == 1, done.stderr
    assert errors[0].startswith("fxrebasin: error: cannot write ") and "room" in errors[0], errors
    assert sorted(os.listdir(folder)) == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300


# == streams and signals =====================================================================================


def shell(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", line], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def test_a_closed_stdout_is_said_and_what_was_asked_for_is_written(folder):
    for k, streams in enumerate((">&-", ">/dev/full")):
        done = shell(f"{sys.executable} -m fxrebasin apply pi.safetensors in -o out{k} {streams}")
        assert done.returncode == WRONG and done.stderr.count("\n") == 1 and "answer cannot be written" in done.stderr
        assert load_state(f"out{k}")
    assert shell(f"{sys.executable} -m fxrebasin apply pi.safetensors in -o out2 2>&-").returncode == DONE


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="how far a process is cannot be seen")
def test_ctrl_c_is_ctrl_c_from_the_first_moment(folder):
    """Also where what it breaks into makes something else of it."""
    for k, seconds in enumerate((0.0, 0.2, 0.6, 1.2)):
        process = subprocess.Popen([sys.executable, "-m", "fxrebasin", "apply", "pi.safetensors", "in", "-o", f"out{k}"],
                                   env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():  # earlier it is the interpreter's own
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
        assert process.returncode in (DONE, 130), (seconds, process.returncode, errors)
        assert "Traceback" not in errors and "damaged" not in errors, (seconds, errors)
        if process.returncode == DONE:
            assert load_state(f"out{k}")
    assert not list(folder.glob(".*"))


def test_an_interrupt_within_code_compiled_from_text_ends_with_its_status(folder):
    """As that of a data class is, in an import: `python -m` ended by the signal instead, though a status was asked for."""
    (folder / "late.py").write_text("""
from fxrebasin.cli import entry, main

def broken(*_, **__):
    exec("raise KeyboardInterrupt")

entry.commands.main = broken
main([])
""")
    done = subprocess.run([sys.executable, "-m", "late"], env=ENVIRONMENT, cwd=folder, capture_output=True, text=True,
                          timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "fxrebasin: error: interrupted: nothing is half-written\n")


def test_an_interrupt_that_comes_out_as_another_error_is_still_one(folder, monkeypatch, capsys):
    from fxrebasin.checkpoint import stored
    from fxrebasin.cli import entry

    interrupts = entry.Interrupts()

    def broken(*_):
        with pytest.raises(KeyboardInterrupt):
            interrupts(signal.SIGINT, None)
        raise CheckpointError("in is truncated or damaged: copy or download it again")

    monkeypatch.setattr(stored, "read_tensor", broken)
    assert entry.run("apply pi.safetensors in -o out".split(), interrupts) == 130
    assert "damaged" not in capsys.readouterr().err


# == drafts ==================================================================================================


def test_stale_drafts_block_nothing_and_are_swept(folder):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    for pid in (os.getpid(), int(gone.stdout)):
        (folder / f".out.{pid}.part").mkdir()
        (folder / f".out.{pid}.part" / "half").write_text("x")
        (folder / f".out.safetensors.{pid}.part").write_text("x")
    (folder / ".out.safetensors.1.part").write_text("another's: process 1 is alive")
    assert run("apply pi.safetensors in -o out".split()) == DONE
    assert run("apply pi.safetensors in -o out.safetensors".split()) == DONE
    assert [p.name for p in folder.glob(".*")] == [".out.safetensors.1.part"]


def test_a_draft_in_work_is_not_swept_by_another(tmp_path):
    with whole(tmp_path / "x") as outer:
        outer.write_text("outer")
        with whole(tmp_path / "x") as inner:
            inner.write_text("inner")
            assert outer.exists() and inner != outer
        assert (tmp_path / "x").read_text() == "inner"
    assert (tmp_path / "x").read_text() == "outer" and os.listdir(tmp_path) == ["x"]


# == damaged content =========================================================================================


def test_a_torch_file_with_a_wrong_checksum_is_refused(tmp_path):
    save_state({"a": torch.arange(400.0)}, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    place = content.index(torch.arange(100.0, 104.0).numpy().tobytes())
    content[place] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    for read in (load_state, Stored):  # at once, and as the command line reads
        with pytest.raises(CheckpointError, match="is damaged: the checksum of 'archive/data/0' is wrong: copy or"):
            read(tmp_path / "x.pt")
    content[place] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    assert torch.equal(load_state(tmp_path / "x.pt")["a"], torch.arange(400.0))
    assert zipfile.ZipFile(tmp_path / "x.pt").testzip() is None


def rewritten(path: Path, change) -> None:
    """The alignment file at `path` with its tensors and metadata changed, and a spec that is JSON."""
    with safe_open(path, framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    content = json.loads(metadata["spec"])
    change(content, tensors)
    path.write_bytes(pack(tensors, metadata=metadata | {"spec": json.dumps(content)}))


def emptied(content, tensors):
    content["groups"] = {}


def emptied_wholly(content, tensors):
    content["groups"] = {}
    tensors.clear()


def with_more(content, tensors):
    tensors["group.9"] = tensors["group.0"]


def with_less(content, tensors):
    tensors.pop("group.0")


@pytest.mark.parametrize("change", [emptied, emptied_wholly, with_more, with_less])
def test_alignments_that_say_less_or_more_than_their_spec(folder, capsys, change):
    rewritten(folder / "pi.safetensors", change)
    assert "cannot read the alignment" in one_line(capsys, "apply pi.safetensors in -o out")


def test_a_file_that_shrinks_while_it_is_read(folder):
    with Stored("in") as stored:
        file = folder / "in" / "model-00002-of-00002.safetensors"
        os.truncate(file, file.stat().st_size - 4)
        with pytest.raises(CheckpointError, match="has become shorter"):
            dict(stored)


@pytest.mark.parametrize("seed", range(8))
def test_mutated_files_are_read_or_refused_in_one_line(folder, capsys, seed):
    """More of them in benchmarks/faults.py."""
    from benchmarks.faults import mutated

    save_state(load_state("in"), "in.pt")
    files = ["in/model-00001-of-00002.safetensors", "in/model.safetensors.index.json", "in.pt", "pi.safetensors"]
    for file in files:
        good = Path(file).read_bytes()
        for k in range(6):
            Path(file).write_bytes(mutated(good, 1000 * seed + k))
            status = run(["apply", "pi.safetensors", "in.pt" if file == "in.pt" else "in", "-o", "out.safetensors"])
            errors = capsys.readouterr().err
            assert status in (DONE, WRONG) and "internal" not in errors and "Traceback" not in errors, (file, k, errors)
            assert status == DONE or errors.count("fxrebasin: error:") == 1
            Path("out.safetensors").unlink(missing_ok=True)
        Path(file).write_bytes(good)
    assert not list(folder.glob(".*"))


def test_killed_at_any_moment_nothing_is_damaged(folder):
    """More of it in benchmarks/faults.py."""
    expected = fxr.Alignment.load("pi.safetensors").apply(load_state("in"))
    for k, seconds in enumerate((1.4, 1.8, 2.2)):
        process = subprocess.Popen([sys.executable, "-m", "fxrebasin", "apply", "pi.safetensors", "in", "-o", f"out{k}"],
                                   env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
        if Path(f"out{k}").exists():
            assert all(torch.equal(t, expected[n]) for n, t in load_state(f"out{k}").items())
