"""Scores over alpha and on the way from one state to another."""
from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from architectures import build, spec_of
from safetensors.torch import save_file
from test_by_part import states
from torch import nn
from torch.func import functional_call

import fxrebasin as fxr
from fxrebasin.checkpoint import save_state
from fxrebasin.cli import DONE, WRONG, run
from fxrebasin.curves import Curve, barrier, between, repaired, sweep


def test_the_line_and_the_sphere():
    a, b = {"w": torch.tensor([[3.0, 0.0]]), "v": torch.tensor([1.0])}, {"w": torch.tensor([[0.0, 1.0]]), "v": torch.tensor([3.0])}
    assert torch.equal(between(a, b, 0.5)["w"], torch.tensor([[1.5, 0.5]]))
    half = between(a, b, 0.5, "slerp")
    assert torch.allclose(half["w"], 2 * torch.tensor([[0.5, 0.5]]).sqrt()) and half["v"] == 2  # length 2, 45 degrees
    for way in ("line", "slerp"):
        assert all(torch.allclose(between(a, b, end, way)[n], state[n]) for end, state in ((0.0, a), (1.0, b)) for n in a)
    flipped = {"w": -a["w"], "v": a["v"]}
    assert torch.allclose(between(a, flipped, 0.25, "slerp")["w"], 0.5 * a["w"])  # no plane to turn in
    counters = between({"n": torch.tensor(1)}, {"n": torch.tensor(5)}, 0.5)
    assert int(counters["n"]) == 5
    with pytest.raises(fxr.StateError, match="only one of the two states has 'x'"):
        between(a, b | {"x": a["v"]}, 0.5)


def test_barriers_by_hand():
    assert Curve((0.0, 0.5, 1.0), (1.0, 0.2, 0.6)).barrier == pytest.approx(0.6)
    assert Curve((0.0, 0.5, 1.0), (1.0, 2.0, 0.6), lower=True).barrier == pytest.approx(1.2)
    assert Curve((0.0, 0.5, 1.0), (1.0, 0.9, 0.6)).barrier == 0
    assert Curve((0.0, 1.0, 2.0), (1.0, math.nan, 3.0)).best == (2.0, 3.0)
    assert Curve((0.0, 1.0), (1.0, 3.0), lower=True).best == (0.0, 1.0)
    with pytest.raises(fxr.FxrebasinError, match="no score along the curve is a number"):
        Curve((0.0,), (math.nan,)).best  # noqa: B018


def test_a_permuted_copy_has_a_barrier_that_goes_when_it_is_aligned():
    module, inputs = build("mlp")
    a, pi = module.state_dict(), spec_of("mlp").random(1)
    b, wanted = pi.apply(a), module(*inputs).detach()

    def score(state):
        return float((functional_call(module, {k: v.double() for k, v in state.items()}, inputs) - wanted).norm())

    assert barrier(a, b, score, 5, lower=True).barrier > 0.1
    for way in ("line", "slerp"):
        assert barrier(pi.apply(a), b, score, 5, way, lower=True).barrier < 1e-9


def test_a_sweep_is_transport_at_every_alpha():
    pi, (a, ft, b) = spec_of("mlp").random(1), states("mlp")
    curve = sweep(a, ft, b, pi, lambda state: state["0.weight"].sum(), (0.0, 0.5, -1.0))
    assert curve.scores == tuple(float(fxr.transport(a, ft, b, pi, alpha)["0.weight"].sum()) for alpha in curve.places)
    with pytest.raises(fxr.FxrebasinError, match="the score is a dict, not a number"):
        sweep(a, ft, b, pi, dict, (0.0,))


def test_repair_gives_units_the_spread_between():
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(),  # noqa: E731
                                 nn.Linear(16, 3)).double().eval()
    a, b, x = make().state_dict(), make().state_dict(), torch.randn(64, 6, dtype=torch.float64)
    module, middle = make(), between(a, b, 0.5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = repaired(module, a, b, middle, 0.5, x)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())

    def first(state):
        return nn.functional.linear(x, state["0.weight"], state["0.bias"])

    for get in (lambda z: z.mean(0), lambda z: z.std(0, correction=0)):
        expected = (get(first(a)) + get(first(b))) / 2
        assert torch.allclose(get(first(found)), expected, rtol=1e-12, atol=1e-12)
    spread = (first(a).std(0, correction=0) + first(b).std(0, correction=0)) / 2
    assert float((first(middle).std(0, correction=0) / spread).mean()) < 0.9  # what there was to repair
    assert not torch.allclose(found["3.running_var"], middle["3.running_var"])
    ends = repaired(module, a, b, dict(a), 0.0, x)
    assert all(torch.allclose(ends[n], a[n]) for n in a if "running" not in n)


NET = """
import torch
from torch import nn
torch.manual_seed(0)
def net(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 4)
def score(state): return -float(state["0.weight"].square().sum())
def broken(state): raise ValueError("no")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "curvenet.py").write_text(NET)
    sys.modules.pop("curvenet", None)
    for name in ("a", "ft", "b"):
        save_state(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict(), f"{name}.safetensors")
    save_file({"x": torch.randn(20, 4)}, "inputs.safetensors")
    return tmp_path


def test_on_the_command_line(folder, capsys):
    files = "a.safetensors ft.safetensors b.safetensors"
    line = f"sweep curvenet:net {files} --score curvenet:score --alphas -1:1:0.5 -o s.png"
    assert run(line.split()) == DONE
    text = capsys.readouterr().out
    assert "best at alpha" in text and (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    assert run(f"{line} --json".split()) == DONE
    assert json.loads(capsys.readouterr().out)["alpha"] == [-1, -0.5, 0, 0.5, 1]
    ends = "a.safetensors b.safetensors --score curvenet:score --points 3"
    assert run(f"barrier curvenet:net {ends} --json".split()) == DONE
    assert list(json.loads(capsys.readouterr().out)["barriers"]) == [
        "as it is, line", "as it is, slerp", "aligned, line", "aligned, slerp"]
    assert run(f"barrier curvenet:net {ends} --json --inputs inputs.safetensors".split()) == DONE
    assert len(json.loads(capsys.readouterr().out)["barriers"]) == 8
    for wrong, word in ((line.replace("-1:1:0.5", "1:2"), "neither START:STOP:STEP"), (line.replace("s.png", "s.txt"), "must end in"),
                        (line.replace(":score", ":broken"), "curvenet:broken failed: ValueError: no"),
                        (line.replace(":score", ":nothing"), "has no 'nothing'"), (line.replace("s.png", "a.safetensors"), "is the input")):
        assert run(wrong.split()) == WRONG
        output = capsys.readouterr()
        assert output.out == "" and word in output.err
