"""What `infer` does to its own claim: wrong rules are found and pinned, right ones are left alone."""

from __future__ import annotations

import dataclasses
from math import factorial

import pytest
import torch
from architectures import ARCHITECTURES, HEAVY, build
from torch import nn

import fxrebasin as fxr
from fxrebasin.infer.falsify import WHY
from fxrebasin.rules import RULES


class Net(nn.Module):
    """Linear maps around a function of the hidden layer, and a branch of its own beside it."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function
        self.other_up, self.other_down = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.down(self.function(self.up(x))) + self.other_down(torch.relu(self.other_up(x)))


def pointwise(monkeypatch, op: str) -> None:
    """A rule that claims that an op treats every number alike."""
    monkeypatch.setitem(RULES, op, dataclasses.replace(RULES["aten.sin.default"], op=op))


WRONG = {
    "aten.cumsum.default": lambda h: h.cumsum(-1),
    "aten.flip.default": lambda h: h.flip(-1),
    "aten.roll.default": lambda h: h.roll(1, -1),
    "aten.tril.default": lambda h: torch.tril(h),
    "aten.logcumsumexp.default": lambda h: torch.logcumsumexp(h, -1),
    "aten.index_fill.int_Scalar": lambda h: h.index_fill(-1, torch.tensor([2]), 0.0),
}


@pytest.mark.parametrize("op", WRONG)
def test_a_wrong_rule_is_found_and_only_its_group_is_pinned(monkeypatch, op):
    model, x = Net(WRONG[op]), torch.randn(7, 5)
    pointwise(monkeypatch, op)
    believed = fxr.infer(model, x, falsify=False)
    assert believed.order == factorial(6) * factorial(4), "the wrong rule is not used"
    spec = fxr.infer(model, x)
    assert spec.order == factorial(4)
    assert spec.pinned["up.weight", 0] == spec.pinned["up.bias", 0] == spec.pinned["down.weight", 1] == WHY
    assert sum("worth a report" in note for note in spec.notes) == 1
    assert WHY in spec.reasons.values()
    spec.random(0).apply(model.state_dict())
    assert fxr.Spec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("chosen", [1, 2])
def test_equal_scores_at_zeros_raise_no_false_alarm(chosen):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(5, 6, bias=False)
            self.up, self.down = nn.Parameter(torch.randn(6, 3, 5)), nn.Linear(3, 4)

        def forward(self, x):
            scores = self.router(x)
            place = scores.topk(2, -1).indices[:, 1] if chosen == 2 else scores.argmax(-1)
            return self.down(torch.einsum("bd,bfd->bf", x + 1, self.up[place]))
    spec = fxr.infer(Experts(), torch.randn(16, 5))
    assert spec.order == factorial(6) * factorial(3) and not spec.notes


def test_falsify_false_turns_it_off():
    model, x = Net(torch.tanh), torch.randn(7, 5)
    assert "random element" not in fxr.infer(model, x, falsify=False).evidence
    assert "random element was tried at 6 draws" in fxr.infer(model, x).evidence


@pytest.mark.parametrize("name", [name for name in list(ARCHITECTURES)[::4] if name not in HEAVY])
def test_right_claims_are_left_alone(name):
    model, inputs = build(name)
    spec = fxr.infer(model, inputs)
    assert spec.order == ARCHITECTURES[name].order
    assert "tried at 6 draws" in spec.evidence and not any("worth a report" in note for note in spec.notes)


def saturated(h):
    return torch.sigmoid(1e3 * h)


def not_a_number(h):
    return torch.log(h)


def nearly_tied(h):
    return torch.softmax(1e4 * (1 + 1e-12 * h), -1)


def cancelled(h):
    return (h + 1e8) - 1e8


def infinite(h):
    return 1 / torch.relu(h)


@pytest.mark.parametrize(
    "function",
    [saturated, not_a_number, nearly_tied, cancelled, infinite, nn.Dropout(0.5)],
    ids=lambda function: getattr(function, "__name__", type(function).__name__),
)
def test_rounding_saturation_and_nan_raise_no_false_alarm(function):
    spec = fxr.infer(Net(function), torch.randn(7, 5))
    assert spec.order == factorial(6) * factorial(4) and not any(
        "worth a report" in note for note in spec.notes
    )


def test_a_module_on_the_meta_device_is_tried_where_its_constants_are_known():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    spec = fxr.infer(model, torch.randn(2, 5, device="meta"))
    assert spec.order == factorial(6)
    assert "not compared at other numbers: the module is on the meta device" in spec.evidence
    assert "random element was tried" in spec.evidence


def test_what_is_too_large_is_said():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 30_000), nn.ReLU(), nn.Linear(30_000, 30_000))
    spec = fxr.infer(model, torch.randn(2, 5, device="meta"))
    assert "not tried at random numbers: it is too large" in spec.evidence


def test_outputs_that_move_are_moved_before_they_are_compared(monkeypatch):
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), torch.randn(7, 5)
    spec = fxr.infer(model, x, outputs="free")
    assert spec.order == factorial(6) * factorial(4) and not spec.notes


def test_a_captured_program_is_tried_too(monkeypatch):
    model, x = Net(WRONG["aten.cumsum.default"]), torch.randn(7, 5)
    program = fxr.capture(model, x)
    pointwise(monkeypatch, "aten.cumsum.default")
    assert fxr.infer(program, falsify=False).order == factorial(6) * factorial(4)
    assert fxr.infer(program).order == factorial(4)
