"""Several example runs, and sizes of 1 tried at 2: what is claimed holds for all of them."""

from __future__ import annotations

import warnings
from math import factorial as F

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.capture import joined
from fxrebasin.errors import CaptureError

relu = torch.relu


class Heads(nn.Module):
    """Two heads on one body; with a mask, the second one, which weighs a fixed unit."""

    def __init__(self):
        super().__init__()
        self.body, self.one, self.other = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(7, 3)

    def forward(self, x, mask=None):
        h = relu(self.body(x))
        return self.one(h) if mask is None else self.other(h) * mask + h[..., :1]


X, MASK = torch.randn(4, 5), torch.randn(4, 3)


def test_the_spec_holds_for_all_runs():
    module = Heads()
    assert fxr.infer(module, X).order == F(7)
    assert fxr.infer(module, (X, MASK)).order == F(6)
    for runs in ([X, (X, MASK)], [(X, MASK), X], [{"x": X}, {"x": X[:2], "mask": MASK[:2]}]):
        spec = fxr.infer(module, runs)
        assert spec.order == F(6) and not spec.notes
        state = module.state_dict()
        for name in ("one.weight", "other.weight"):
            assert not torch.equal(spec.random(1).apply(state)[name], state[name])


def test_a_list_of_one_run_is_that_run():
    assert fxr.infer(Heads(), [X]) == fxr.infer(Heads(), X)


def test_tensors_outside_all_runs_are_named_and_stay():
    spec = fxr.infer(Heads(), [X, X[:2]])
    assert any("outside the example run" in note and "'other.weight'" in note for note in spec.notes)
    assert ("other.weight", 1) in spec.pinned and ("one.weight", 1) not in spec.pinned


def test_an_empty_list_is_refused():
    with pytest.raises(CaptureError, match="empty list"):
        fxr.infer(Heads(), [])


def test_runs_of_different_modules_are_not_joined():
    with pytest.raises(CaptureError, match="different tensors"):
        joined([fxr.capture(Heads(), X), fxr.capture(nn.Linear(5, 3), X)])


def test_a_joined_program_computes_every_run():
    module = Heads().double()
    x, mask = X.double(), MASK.double()
    program = joined([fxr.capture(module, x), fxr.capture(module, (x[:2], mask[:2]))])
    assert [output.path for output in program.outputs] == ["output", "output (run 2)"]
    names = {source.name for source in program.sources.values() if source.kind == "input"}
    assert names == {"x", "x (run 2)", "mask (run 2)"}
    from fxrebasin.capture.interpreter import run

    inputs = {"x": x, "x (run 2)": x[:2], "mask (run 2)": mask[:2]}
    one, two = run(program.module, program.sources, module.state_dict(), inputs)
    with torch.no_grad():
        assert torch.allclose(one, module(x)) and torch.allclose(two, module(x[:2], mask[:2]))


def test_experts_in_a_list_are_seen_in_several_runs():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(3)
            )

        def forward(self, x):
            return sum(expert(x) for expert in self.experts)

    single, several = fxr.infer(Mixture(), X), fxr.infer(Mixture(), [X, X[:2]])
    assert single.order == F(3) * F(4) ** 3
    assert several.order == single.order


# ------------------------------------------------------------------------------------------------- sizes of 1


class Chosen(nn.Module):
    """Weights chosen by the largest score, and a mean over the batch: with a batch of 1, each expert's
    units look free."""

    def __init__(self):
        super().__init__()
        self.r = nn.Linear(5, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 5)), nn.Parameter(torch.randn(4, 3, 6))

    def forward(self, x):
        best = self.r(x).argmax(-1)
        u = relu(torch.einsum("tfd,td->tf", self.up[best], x))
        return torch.einsum("tdf,tf->td", self.down[best], u - u.mean(0))


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_a_batch_of_one_is_tried_at_two(no_warnings):
    spec = fxr.infer(Chosen(), X[:1])
    assert spec.order == F(4) * F(6) and not spec.notes
    assert spec.order == fxr.infer(Chosen(), X).order


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = relu(self.up(x.squeeze()))
        return self.down(h if h.ndim == 1 else h + h.mean(0, keepdim=True) * h[:, :1])


def test_the_claim_holds_for_one_and_two(no_warnings):
    assert fxr.infer(Squeezed(), X).order == F(5)
    assert fxr.infer(Squeezed(), X[:1]).order == F(5)


def test_a_size_that_the_module_does_not_take_at_two_is_named():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    with pytest.warns(UserWarning, match="input 'input' has size 1 along dimension 1") as caught:
        spec = fxr.infer(model, torch.randn(1, 1, 6, 6))
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert spec.order == F(6) and sum("size 1 along dimension 1" in note for note in spec.notes) == 1


def test_several_inputs_are_made_larger_together(no_warnings):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x, y):
            if x.shape[0] != y.shape[0]:
                raise ValueError("two batches")
            return self.down(relu(self.up(x)) * y.sum(-1, keepdim=True))

    assert fxr.infer(Pair(), {"x": X[:1], "y": MASK[:1]}).order == F(6)


def test_a_graph_that_was_captured_at_size_one_says_so():
    program = fxr.capture(Chosen(), X[:1])
    with pytest.warns(UserWarning, match="size 1 along dimension 0.*give the module with its inputs"):
        assert fxr.infer(program).notes
