"""The command line: what it answers, with which exit status, and what it leaves behind."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import fxrebasin as fxr
from fxrebasin.checkpoint import load_state, save_state
from fxrebasin.cli import DONE, INTERRUPTED, NO, WRONG, command, main, model, run

NET = '''
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n=8):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, n), nn.Linear(n, n), nn.Linear(n, 3)
    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(50, 8), nn.Linear(8, 8)
    def forward(self, ids, scale):
        return self.out(torch.relu(self.table(ids))) * scale

def pair():
    print("user code prints")
    return Net(), torch.zeros(2, 4)
class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
    def forward(self, x):
        return x * self.w
def bad(): raise ValueError("two\\nlines")
def leaves(): raise SystemExit(7)
def number(): return 3
def slow():
    print("started", flush=True)
    time.sleep(60)
thing = 3
'''


@pytest.fixture(scope="module")
def spec(folder):
    return model.spec_of("clinet:pair", ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A module, a state `a`, a permuted one `b`, a fine-tuned `ft`, another network `n`, an alignment."""
    path, here, before = tmp_path_factory.mktemp("cli"), os.getcwd(), list(sys.path)
    os.chdir(path)
    (path / "clinet.py").write_text(NET)
    (path / "broken.py").write_text("import torch\n1 / 0\n")
    sys.path.insert(0, str(path))
    from clinet import Net

    torch.manual_seed(0)
    a, spec = Net().state_dict(), fxr.infer(Net(), torch.zeros(2, 4))
    pi = spec.random(1)
    save_state(a, "a.safetensors")
    save_state(pi.apply(a), "b.safetensors")
    save_state({k: v + 0.1 * torch.randn_like(v) for k, v in a.items()}, "ft.pt")
    save_state(Net().state_dict(), "n.pt")
    save_state({"w": torch.ones(3)}, "w.pt")
    pi.save("pi.safetensors")
    (path / "damaged.safetensors").write_bytes((path / "a.safetensors").read_bytes()[:-3])
    (path / "model").mkdir()
    (path / "model" / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    yield path
    os.chdir(here)
    sys.path[:] = before
    sys.modules.pop("clinet", None)


@pytest.fixture
def out(folder, capsys):
    """Runs a command line; (status, stdout, stderr)."""

    def call(line: str):
        status = run(line.split())
        return status, *capsys.readouterr()

    return call


# ---- answers -----------------------------------------------------------------------------------------------


def test_inspect(out, spec):
    status, text, errors = out("inspect clinet:pair")
    assert status == DONE and text == f"{spec}\n" and errors == "user code prints\n"
    assert out("inspect clinet:Net --input 2x4")[1] == text


def test_json_is_one_document_and_nothing_else(out, spec):
    for line in (
        "inspect clinet:pair --json",
        "match clinet:pair a.safetensors b.safetensors -o j1.safetensors --json",
        "transport clinet:pair a.safetensors ft.pt b.safetensors -o j2.safetensors --json",
        "verify clinet:pair a.safetensors b.safetensors --json",
        "verify clinet:pair a.safetensors n.pt --json",
        "verify clinet:pair --alignment pi.safetensors --json",
    ):
        status, text, _ = out(line)
        assert status in (DONE, NO) and text.count("\n") == 1
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert fxr.Spec.from_json(out("inspect clinet:pair --json")[1]) == spec


def test_inspect_writes_pictures(out, spec, folder):
    status, text, _ = out("inspect clinet:pair --dot g.dot --html g.html")
    assert status == DONE and "g.dot, g.html" in text
    assert (folder / "g.dot").read_text() == spec.to_dot()
    page = (folder / "g.html").read_text()
    assert page.startswith("<!doctype html>") and "clinet:pair" in page and "a.weight" in page


def test_inspect_takes_an_alignment_file(out, spec):
    status, text, _ = out("inspect pi.safetensors")
    moved = sum(fxr.Alignment.load("pi.safetensors").moved.values())
    assert status == DONE and f"{moved} of 16 elements moved" in text and "a.weight" in text
    data = json.loads(out("inspect pi.safetensors --json")[1])
    assert data["alignment"]["moved"] == moved and fxr.Spec.from_json(json.dumps(data)) == spec


def test_match_stops_in_time_and_keeps_its_best(out, folder):
    line = "match clinet:pair a.safetensors b.safetensors -o kept.st --seconds 5 --checkpoint best.st"
    assert out(line)[0] == DONE and fxr.Alignment.load("best.st") == fxr.Alignment.load("kept.st")
    assert "is the input" in out(line.replace("best.st", "a.safetensors"))[2]


def test_quiet(out):
    assert out("inspect clinet:Net --input 1x4")[2]
    status, text, errors = out("inspect clinet:Net --input 1x4 --quiet")
    assert status == DONE and text and errors == ""
    assert out("inspect clinet:Net --input 1x4")[2]  # of that line alone


def test_outputs_free(out):
    assert len(json.loads(out("inspect clinet:pair --json --outputs free")[1])["groups"]) == 3


def test_inputs_by_name_and_type(out):
    status, text, _ = out("inspect clinet:Words --input ids=2x5:int64:50 --input 1")
    assert status == DONE and "table.weight:1" in text
    words, inputs = model.load_model("clinet:Words", ["scale=2x5x8:float64", "2x5:int:50"])
    assert (
        inputs["scale"].dtype == torch.float64
        and inputs["ids"].dtype == torch.int64
        and inputs["ids"].max() > 9
    )
    assert words(**inputs).shape == (2, 5, 8)


def test_match_apply_and_verify(out, spec, folder):
    status, text, _ = out("match clinet:pair a.safetensors b.safetensors -o m.safetensors")
    assert status == DONE and "1.0000 aligned" in text and "written: m.safetensors" in text
    assert out("apply m.safetensors a.safetensors -o moved.safetensors")[0] == DONE
    assert (folder / "moved.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()
    status, text, _ = out("verify clinet:pair a.safetensors b.safetensors -o e.safetensors")
    assert status == DONE and text.startswith("equivalent: ")
    assert (
        fxr.Alignment.load("e.safetensors")
        == fxr.Alignment.load("m.safetensors")
        == fxr.Alignment.load("pi.safetensors")
    )
    assert out("verify clinet:pair a.safetensors n.pt -o none.safetensors")[:2] == (
        NO,
        "NOT equivalent: no alignment was found that makes a.safetensors equal n.pt\n",
    )
    assert not (folder / "none.safetensors").exists()


def test_verify_an_alignment(out, spec, monkeypatch):
    for line in (
        "verify clinet:pair --alignment pi.safetensors",
        "verify clinet:pair n.pt --alignment pi.safetensors",
    ):
        status, text, _ = out(line)
        error = float(re.search(r"(\S+) relative", text)[1])
        assert status == DONE and text.startswith("equivalent: ") and error < 1e-14
    wrong = fxr.Evidence(1.0, float("inf"), "y", {"y": (1.0, float("inf"))})

    def refuse(*_, **__):
        raise fxr.NotEquivalentError("differs", wrong)

    monkeypatch.setattr(command, "verify", refuse)
    status, text, errors = out("verify clinet:pair --alignment pi.safetensors")
    assert (status, text) == (NO, f"{wrong}\n") and "error" not in errors
    status, text, _ = out("verify clinet:pair --alignment pi.safetensors --json")
    assert status == NO and json.loads(text)["max_rel"] == "inf" and json.loads(text)["equivalent"] is False


def test_verify_sees_through_inputs_that_are_all_zero(folder):
    found = command.telling(torch.zeros(3, 4))
    assert found.unique().numel() == 12
    kept = torch.arange(3.0)
    assert command.telling(kept) is kept and command.telling(torch.zeros(2, dtype=torch.int64)).max() == 0


def test_transport(out, folder):
    assert (
        out("transport clinet:pair a.safetensors ft.pt b.safetensors -o t.safetensors --alpha 0.5")[0] == DONE
    )
    assert (
        out(
            "transport clinet:pair a.safetensors ft.pt b.safetensors -o t2.safetensors --alpha 0.5 "
            "--alignment pi.safetensors"
        )[0]
        == DONE
    )
    assert (folder / "t.safetensors").read_bytes() == (folder / "t2.safetensors").read_bytes()
    a, ft, b = map(load_state, ("a.safetensors", "ft.pt", "b.safetensors"))
    expected = fxr.transport(a, ft, b, fxr.Alignment.load("pi.safetensors"), 0.5)
    found = load_state("t.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_transport_with_inputs_is_fitted_to_them(out, folder):
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    save_state({"x": x}, "inputs.safetensors")
    np.savez("keep.npz", x=x.numpy() + 3)
    plain = "transport clinet:pair a.safetensors ft.pt b.safetensors"
    status, text, _ = out(f"{plain} -o f1.safetensors --inputs inputs.safetensors --keep keep.npz --json")
    found = json.loads(text)
    assert status == DONE and found["losses"][found["start"]] <= found["losses"]["the target itself"]
    states = [load_state(f) for f in ("a.safetensors", "ft.pt", "b.safetensors")]
    from clinet import Net
    pi = fxr.match(fxr.infer(Net(), x[:2]), states[0], states[2])
    expected = fxr.calibrate(Net(), *states, pi, x, x + 3).state
    written = load_state("f1.safetensors")
    assert all(torch.allclose(written[k], expected[k], atol=1e-5) for k in expected)
    status, text, _ = out(f"{plain} -o f2.safetensors --inputs inputs.safetensors --alpha auto --json")
    assert status == DONE and json.loads(text)["alpha"] == fxr.choose_alpha(Net(), *states, pi, x).value


def test_inputs_that_do_not_go_together_or_do_not_fit(out, folder):
    save_state({"x": torch.randn(48, 4)}, "in1.safetensors")
    save_state({"x": torch.randn(48, 5)}, "in2.safetensors")
    save_state({"x": torch.randn(48, 4), "y": torch.randn(48, 4)}, "in3.safetensors")
    plain = "transport clinet:pair a.safetensors ft.pt b.safetensors -o no.safetensors"
    for options, message in (
            ("--keep in1.safetensors", "--keep needs inputs of the task"),
            ("--alpha auto", "--alpha auto needs inputs of the task"),
            ("--alpha all", "'all' is neither a number nor auto"),
            ("--inputs in1.safetensors --alpha 0.5", "leave --alpha out"),
            ("--inputs in1.safetensors --keep in1.safetensors --alpha auto", "has no use for --keep"),
            ("--inputs in2.safetensors", "does not run on the inputs"),
            ("--inputs in3.safetensors", "'y', which is no argument of Net.forward: it takes x"),
            ("--inputs none.npz", "cannot read the inputs none.npz")):
        status, _, said = out(f"{plain} {options}")
        assert status == WRONG and message in said, said
    assert not Path("no.safetensors").exists()


def test_several_fine_tunings_and_an_alpha_for_each_tensor(out, folder):
    a, ft, b = map(load_state, ("a.safetensors", "ft.pt", "b.safetensors"))
    pi = fxr.Alignment.load("pi.safetensors")
    rest = "a.safetensors b.safetensors --alignment pi.safetensors -o"
    line = f"transport {rest} sum.safetensors --tau ft.pt:0.5 --tau n.pt:-0.25"
    assert out(line)[0] == DONE and out(f"transport clinet:pair {rest} sum2.safetensors --tau ft.pt")[0] == DONE
    each = fxr.transport(a, ft, b, pi, 0.5), fxr.transport(a, load_state("n.pt"), b, pi, -0.25)
    found = load_state("sum.safetensors")
    assert max(float((found[k] - (each[0][k] + each[1][k] - b[k])).abs().max()) for k in b) < 1e-6
    whole = fxr.transport(a, ft, b, pi)
    assert all(torch.equal(tensor, whole[k]) for k, tensor in load_state("sum2.safetensors").items())
    three = "transport a.safetensors ft.pt b.safetensors --alignment pi.safetensors"
    status, text, _ = out(f"{three} -o p.safetensors --alpha 2 --alpha b=-0.5 --alpha *.bias=0")
    assert status == DONE and "alpha 2, b=-0.5, *.bias=0" in text
    for name, tensor in load_state("p.safetensors").items():
        alpha = 0.0 if name.endswith("bias") else -0.5 if name.startswith("b.") else 2.0
        assert torch.equal(tensor, fxr.transport(a, ft, b, pi, alpha)[name])
    for line, word in ((f"{three} -o x.pt --alpha q.*=1", "'q.*' fits no tensor"),
                       (f"{three} -o x.pt --alpha b=x", "neither a number"),
                       (f"{three} -o x.pt --tau ft.pt", "is neither a folder nor"),
                       ("transport b.safetensors -o x.pt --tau ft.pt", "give MODEL BASE TARGET"),
                       (f"transport {rest} ft.pt --tau ft.pt", "is the input ft.pt"),
                       (f"transport {rest} x.pt --tau gone.pt:1", "no such file")):
        status, text, errors = out(line)
        assert status == WRONG and text == "" and word in errors and not (folder / "x.pt").exists()


def test_an_adapter_is_carried(out, folder):
    spec, pi = fxr.Alignment.load("pi.safetensors").spec, fxr.Alignment.load("pi.safetensors")
    a, b = map(load_state, ("a.safetensors", "b.safetensors"))
    prefix = "base_model.model.b."
    tensors = {f"{prefix}lora_A.weight": torch.randn(2, 8), f"{prefix}lora_B.weight": torch.randn(8, 2)}
    fxr.Adapter({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["b"]}, tensors).save("lora")
    (folder / "lora" / "README.md").write_text("# An adapter\n")
    line = "transport a.safetensors lora b.safetensors --alignment pi.safetensors"
    assert out(f"{line} -o carried")[0] == DONE
    found, expected = fxr.Adapter.load("carried"), fxr.transport_adapter(a, "lora", b, pi)
    assert all(torch.equal(found.tensors[k], expected.tensors[k]) for k in tensors)
    assert found.config["base_model_name_or_path"] == "b.safetensors" and found.config["r"] == 2
    assert (folder / "carried" / "README.md").read_text().startswith("# An adapter\n\n## Made by fxrebasin")
    assert out(f"{line} -o full.safetensors --full")[0] == DONE
    whole = fxr.transport(a, fxr.merge_adapter(a, fxr.Adapter.load("lora"), spec), b, pi)
    assert all(torch.equal(tensor, whole[k]) for k, tensor in load_state("full.safetensors").items())
    rest = "transport a.safetensors b.safetensors --alignment pi.safetensors --tau lora --tau ft.pt:0.5 -o both.st"
    assert out(rest.replace("both.st", "both.safetensors"))[0] == DONE
    status, _, errors = out("transport a.safetensors ft.pt b.safetensors --alignment pi.safetensors -o x.pt --full")
    assert status == WRONG and "--full is for adapters" in errors
    assert "not empty" in out(f"{line} -o carried")[2]
    assert "lies in the input" in out(f"{line} -o lora/x")[2]


@pytest.mark.parametrize("more, name", [("", "forced"), ("--full", "forced.safetensors")])
def test_an_adapter_is_carried_from_its_own_base_alone(out, folder, more, name):
    a, b = map(load_state, ("a.safetensors", "b.safetensors"))
    fxr.match(fxr.Alignment.load("pi.safetensors").spec, a, b).save("matched.safetensors")
    tensors = {"base_model.model.b.lora_A.weight": torch.randn(2, 8), "base_model.model.b.lora_B.weight": torch.randn(8, 2)}
    adapter = fxr.Adapter({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["b"]}, tensors)
    adapter.save(f"lora-of-{name}")
    line = f"transport n.pt lora-of-{name} b.safetensors --alignment matched.safetensors -o {name} {more}"
    status, _, errors = out(line)
    assert status == WRONG and "not the state that the alignment was matched from" in errors and not (folder / name).exists()
    assert out(f"{line} --force")[0] == DONE and (folder / name).exists()


def test_transport_with_an_alignment_needs_no_model(out, folder):
    rest = "a.safetensors ft.pt b.safetensors --alignment pi.safetensors -o"
    assert out(f"transport {rest} m1.safetensors")[0] == DONE
    assert out(f"transport clinet:pair {rest} m2.safetensors")[0] == DONE
    assert (folder / "m1.safetensors").read_bytes() == (folder / "m2.safetensors").read_bytes()
    for line, word in (
        (f"transport clinet:Words {rest} x.pt --input 2x2:int --input 8", "is for another model than"),
        (f"transport clinet:Net {rest} x.pt", "give --input"),
        (f"transport {rest} x.pt --effort best", "--effort says how to match, and --alignment is given"),
        (f"transport a.safetensors {rest} x.pt extra", "give MODEL BASE FINETUNED TARGET"),
        ("transport a.safetensors ft.pt b.safetensors -o x.pt", "give MODEL BASE FINETUNED TARGET"),
    ):
        status, text, errors = out(line)
        assert status == WRONG and text == "" and word in errors and not (folder / "x.pt").exists()


def test_entries_that_the_model_does_not_have(out, folder):
    """As in old transformers checkpoints, which store tables that are buffers no longer."""
    old = {"embeddings.position_ids": torch.arange(4), "rotary.inv_freq": torch.ones(2),
           "c.old": torch.ones(1), "b.old": torch.zeros(1)}
    states = {file.split(".")[0]: load_state(file) for file in ("a.safetensors", "b.safetensors", "ft.pt")}
    for name, state in states.items():
        save_state(state | (old if name != "ft" else {}), f"old_{name}.safetensors")
    files = "old_a.safetensors old_b.safetensors"
    for line in (f"match clinet:pair {files} -o old_pi.st", "apply pi.safetensors old_a.safetensors -o x.st",
                 "transport clinet:pair old_a.safetensors ft.pt old_b.safetensors -o x.safetensors",
                 f"verify clinet:pair {files}",
                 "verify clinet:pair old_a.safetensors --alignment pi.safetensors"):
        status, text, errors = out(line)
        assert status == WRONG and text == "" and "give --ignore-extra" in errors
        assert "'b.old', 'c.old', 'embeddings.position_ids' and 1 more" in errors
        status, text, errors = out(f"{line} --ignore-extra")
        assert status == DONE and "left as they are" in errors
    assert out("apply old_pi.st old_a.safetensors -o moved_old.safetensors")[0] == DONE  # its spec knows them
    assert (folder / "moved_old.safetensors").read_bytes() == (folder / "old_b.safetensors").read_bytes()
    carried = fxr.transport(states["a"], states["ft"], states["b"], fxr.Alignment.load("pi.safetensors"))
    found, expected = load_state("x.safetensors"), carried | old
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_with_more_than_the_model_gives_its_weights(folder, capsys):
    (folder / "more").mkdir()
    made, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    save_state(made.state_dict() | {"position_ids": torch.arange(4)}, folder / "more" / "model.safetensors")
    model._load_own(other, folder / "more")
    assert torch.equal(made.weight, other.weight) and capsys.readouterr().err == ""
    model._load_own(torch.nn.Linear(3, 3), folder / "more")
    assert "random weights are used instead of its own" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["identity", "git-rebasin", "transfusion"])
def test_methods(out, method):
    line = f"match clinet:pair a.safetensors b.safetensors -o {method}.st --method {method} "
    line += "--seed 3 --effort fast --json"
    status, text, _ = out(line)
    assert status == DONE and json.loads(text)["method"] == method and json.loads(text)["seed"] == 3
    assert fxr.Alignment.load(f"{method}.st").method == method


def test_notes_go_to_stderr(out, folder):
    torch.save({"state_dict": load_state("a.safetensors"), "epoch": 1}, "nested.pt")
    status, text, errors = out("apply pi.safetensors nested.pt -o nested_out.pt")
    assert (
        status == DONE
        and "note: nested.pt: took the state under 'state_dict'; 'epoch' left aside\n" in errors
    )
    assert "note" not in text and list(torch.load("nested_out.pt", weights_only=True)) == ["state_dict"]
    assert (
        "nothing in this model can be permuted" in out("match clinet:Fixed w.pt w.pt -o w.st --input 2x3")[2]
    )
    assert "size 1" in out("inspect clinet:Net --input 1x4")[2]


def test_help_and_version(out):
    assert out("--version")[:2] == (DONE, f"fxrebasin, version {fxr.__version__}\n")
    assert out("")[:2] == out("--help")[:2]
    for name in command.commands.commands:
        status, text, _ = out(f"{name} --help")
        assert status == DONE and text.startswith(f"Usage: fxrebasin {name} ")


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, word",
    [
        ("blah", "No such command"),
        ("inspect", "Missing argument 'MODEL'"),
        ("inspect clinet:pair --odd", "--odd"),
        ("inspect clinet", "neither a folder nor package.module:callable"),
        ("inspect clinet.py:pair", "write clinet:pair"),
        ("inspect nowhere:pair", "No module named 'nowhere'"),
        ("inspect broken:pair", "division by zero (broken.py:2)"),
        ("inspect clinet:nothing", "has no 'nothing'"),
        ("inspect clinet:thing", "is a int"),
        ("inspect clinet:bad", "two lines"),
        ("inspect clinet:leaves", "SystemExit: 7"),
        ("inspect clinet:number", "returned a int"),
        ("inspect clinet:Net", "give --input"),
        ("inspect clinet:Net --input 2x5", "does not run on the example inputs"),
        ("inspect clinet:Net --input 2y5", "is not [name=]"),
        ("inspect clinet:Net --input 2x4:odd", "'odd' is no dtype"),
        ("inspect clinet:Net --input 0x4", "elements"),
        ("inspect clinet:Net --input 99999x99999x99999", "elements"),
        ("inspect clinet:Net --input y=2x4 --input 2x4 --input 2x4", "fewer inputs"),
        ("inspect timm:no_such_model", "timm"),
        ("inspect torchvision:no_such_model", "torchvision"),
        ("inspect . --input 2x4", "config.json"),
        ("inspect model", "NoSuchModel" if find_spec("transformers") else "needs the transformers package"),
        ("inspect clinet:pair --dot none/g.dot", "no folder"),
        ("inspect clinet:pair --html .", "it is a folder"),
        ("match clinet:pair a.safetensors b.safetensors", "Missing option '-o'"),
        ("match clinet:pair a.safetensors gone.pt -o x.out", "no such file"),
        ("match clinet:pair a.safetensors damaged.safetensors -o x.out", "truncated"),
        ("match clinet:pair a.safetensors w.pt -o x.out", "the target lacks"),
        ("match clinet:pair a.safetensors b.safetensors -o x.out --method odd", "'odd' is not one of"),
        ("match clinet:pair a.safetensors b.safetensors -o none/x.out", "no folder"),
        ("match clinet:pair a.safetensors b.safetensors -o a.safetensors", "is the input a.safetensors"),
        (
            "match clinet:pair a.safetensors b.safetensors -o ./x/../b.safetensors",
            "is the input b.safetensors",
        ),
        ("apply pi.safetensors a.safetensors -o pi.safetensors", "is the input pi.safetensors"),
        ("apply pi.safetensors a.safetensors -o .", "or around it"),
        ("apply pi.safetensors pi.safetensors -o x.safetensors", "is an alignment, not a checkpoint"),
        ("apply a.safetensors a.safetensors -o x.safetensors", "is not an alignment"),
        ("apply pi.safetensors w.pt -o x.pt", "lacks"),
        ("transport clinet:pair a.safetensors ft.pt b.safetensors -o x.pt --alpha nan", "alpha is nan"),
        ("transport clinet:pair a.safetensors w.pt b.safetensors -o x.pt", "lacks"),
        ("transport clinet:pair a.safetensors ft.pt b.safetensors -o ft.pt", "is the input ft.pt"),
        ("verify clinet:pair a.safetensors", "give two checkpoints"),
        ("verify clinet:pair a.safetensors b.safetensors --alignment pi.safetensors", "give two checkpoints"),
        ("verify clinet:Words --input 2x2:int --input 8 --alignment pi.safetensors", "lacks"),
    ],
)
def test_wrong_requests(out, folder, line, word):
    before = sorted(folder.rglob("*"))
    status, text, errors = out(line)
    own = [error for error in errors.splitlines() if error != "user code prints"]
    assert status == WRONG and text == ""
    assert len(own) == 1 and own[0].startswith("fxrebasin: error: ") and word in own[0], errors
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts] == [
        p for p in before if "__pycache__" not in p.parts
    ]


def test_links_to_an_input_are_the_input(out, folder):
    if not (folder / "link.safetensors").exists():
        os.link(folder / "a.safetensors", folder / "link.safetensors")
    status, _, errors = out("apply pi.safetensors a.safetensors -o link.safetensors")
    assert status == WRONG and "is the input a.safetensors" in errors


def test_a_defect_is_one_line_too(out, monkeypatch):
    for error, word in (
        (ZeroDivisionError("odd\nthing"), "this is a defect of fxrebasin"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (PermissionError(13, "Permission denied", "x"), "x: Permission denied"),
    ):

        def failing(*_, error=error, **__):
            raise error

        monkeypatch.setattr(model, "infer", failing)
        status, text, errors = out("inspect clinet:Net --input 2x4")
        assert status == WRONG and text == "" and errors.count("\n") == 1 and word in errors


# ---- interruption ------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_nothing(out, folder, monkeypatch):
    from fxrebasin.checkpoint import writer

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_tensor", interrupted)
    before = sorted(os.listdir(folder))
    status, text, errors = out("apply pi.safetensors a.safetensors -o interrupted.safetensors")
    assert status == INTERRUPTED and text == "" and "interrupted" in errors
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("sent, expected", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(folder, sent, expected):
    process = subprocess.Popen(
        [sys.executable, "-m", "fxrebasin", "inspect", "clinet:slow", "--html", "slow.html"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    assert process.stderr.readline() == "started\n"
    time.sleep(0.2)
    process.send_signal(sent)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == expected and text == "" and "Traceback" not in errors
    assert not list(folder.glob("*slow*"))


def test_main_exits_with_the_status(folder, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for line, status in (("--version", DONE), ("inspect clinet:number", WRONG)):
            with pytest.raises(SystemExit) as caught:
                main(line.split())
            assert caught.value.code == status
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_import_is_quick_and_lean():
    heavy = "matplotlib", "jinja2", "networkx.algorithms", "rich.table", "transformers", "click"
    code = (
        "import sys; before = set(sys.modules); import torch; torch_too = set(sys.modules); "
        "import fxrebasin; "
        f"print([m for m in {heavy} if m in set(sys.modules) - torch_too])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env=_environment())
    assert done.stdout == "[]\n", done.stdout + done.stderr


def _environment():
    root = str(Path(fxr.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
