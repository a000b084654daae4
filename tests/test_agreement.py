"""Numbers that are read out of a parameter as the module is captured: seen, or found at a second random
state."""

from __future__ import annotations

import copy
import math
import random
from math import factorial as F

import numpy as np
import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.errors import CaptureError

relu = torch.relu
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Parameters w (6, 5), o (6, 3) and g (6), all ones, and a function of them."""

    def __init__(self, function):
        super().__init__()
        self.w, self.o = (nn.Parameter(torch.randn(6, n, dtype=torch.float64)) for n in (5, 3))
        self.g = nn.Parameter(torch.ones(6, dtype=torch.float64))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def scaled(gain, net, x):
    return relu(x @ net.w.t() * gain) @ net.o


def row(of):
    """A gain made of the first column of w by Python."""
    return lambda net, x: scaled(torch.tensor(of(net.w[:, 0]), dtype=torch.float64), net, x)


def first(of):
    """A factor made of one number of w by Python."""
    return lambda net, x: scaled(of(net.w[0, 0].detach()), net, x)


def digits(tensor):
    return [float(sum(map(ord, repr(number)[:9]))) + k for k, number in enumerate(tensor)]


# What leaves the graph -> the order that is left: 720 if nothing has to be read, 120 if one number is, 1 if
# a column is.
READS = {
    "data": (lambda n, x: relu(x @ n.w.t()).sum(-1, keepdim=True) + relu(x @ n.w.data.t()) @ n.o, F(6)),
    "data alone": (lambda n, x: relu(x @ n.w.data.t()) @ n.o, F(6)),
    "data of a unit": (lambda n, x: scaled(1.0, n, x) * relu(x @ n.w.t()).data[:, :1], F(5)),
    "data written": (lambda n, x: relu(x @ n.w.data.clone().clamp_(min=0).t()) @ n.o, F(6)),
    "deepcopy": (lambda n, x: scaled(copy.deepcopy(n.w)[:, 0], n, x), F(6)),
    "deepcopy of a tensor": (lambda n, x: scaled(copy.deepcopy(n.w.detach())[:, 0], n, x), F(6)),
    "tensor": (first(lambda t: torch.tensor([t])), F(5)),
    "new_tensor": (first(lambda t: X.new_tensor([t])), F(5)),
    "as_tensor": (first(lambda t: torch.as_tensor([t])), F(5)),
    "item": (first(lambda t: t.item()), F(5)),
    "float": (first(math.exp), F(5)),
    "format": (first(lambda t: float(f"{t:.3f}")), F(5)),
    "branch": (first(lambda t: 2.0 if t > 0 else 3.0), F(5)),
    "numpy scalar": (first(lambda t: float(np.exp(t.numpy()))), F(5)),
    "tolist": (row(lambda t: t.tolist()), 1),
    "list of numbers": (row(lambda t: [float(number) for number in t]), 1),
    "numpy": (lambda n, x: scaled(torch.from_numpy(n.w.detach().numpy()[:, 0].copy()), n, x), 1),
    "array": (lambda n, x: scaled(torch.as_tensor(np.asarray(n.w.detach())[:, 0].copy()), n, x), 1),
    "dlpack": (lambda n, x: scaled(torch.from_dlpack(n.w.detach())[:, 0], n, x), 1),
    "repr": (row(digits), 1),
    "sorted": (
        lambda n, x: (
            scaled(1.0, n, x) + relu(x @ n.w.t())[:, sorted(range(6), key=lambda k: float(n.w[k, 0]))] @ n.o
        ),
        1,
    ),
    "equal numbers": (lambda n, x: scaled(torch.tensor(n.g.tolist(), dtype=torch.float64), n, x), 1),
    "equal numbers as array": (lambda n, x: scaled(torch.from_numpy(n.g.detach().numpy()), n, x), 1),
}


def change(function, spec: fxr.Spec) -> float:
    worst = 0.0
    for seed in range(4):
        torch.manual_seed(seed)
        net = Net(function)
        state = {name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()}
        results = []
        for held in (state, spec.random(seed).apply(state)):
            net.load_state_dict(held)
            with torch.no_grad():
                results.append(net(X))
        worst = max(worst, float((results[0] - results[1]).abs().max()))
    return worst


@pytest.mark.parametrize("case", READS)
def test_what_python_reads_is_pinned_and_nothing_else(case):
    function, order = READS[case]
    spec = fxr.infer(Net(function), X, falsify=False)
    assert change(function, spec) < 1e-9
    assert spec.order == order


class Unseen(nn.Module):
    """Reads w through an array in its memory, which no tracer can see."""

    def __init__(self, structure: bool = False):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(4, 5))
        self.o, self.p = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(4, 3))
        self.numbers, self.structure = self.w.detach().numpy(), structure

    def forward(self, x):
        y = relu(x @ self.w.t()) @ self.o + relu(x @ self.b.t()) @ self.p
        return (
            y * float(self.numbers[0, 0]) if not self.structure else y.roll(int(self.numbers[0, 0] > 0), -1)
        )


def test_a_read_that_no_tracer_sees_is_found_and_pinned_by_name():
    torch.manual_seed(0)
    spec = fxr.infer(Unseen(), X.float())
    assert spec.order == F(4) and "b.weight" not in spec.pinned
    assert spec.pinned["w", 0] == "its numbers were read outside the graph as the module was captured"
    assert any(note.startswith("forward reads the numbers of w outside the graph") for note in spec.notes)
    assert "graph and module agree at other numbers, but for those of w" in spec.evidence


CHOICES = {
    "a place": lambda h, w: h[:, int(w.argmax())].unsqueeze(-1),
    "item": lambda h, w: h[:, w.argmax().item()].unsqueeze(-1),
    "a branch": lambda h, w: h[:, :1] if w.sum() > 0 else h[:, 1:2],
    "an order": lambda h, w: h[:, sorted(range(6), key=w.tolist().__getitem__)[0] :][:, :1],
    "how many": lambda h, w: h[:, : 1 + int(10 * w.abs().sum()) % 3].sum(-1, keepdim=True),
}


class Chosen(nn.Module):
    def __init__(self, choice):
        super().__init__()
        self.a, self.w, self.o = nn.Linear(5, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 3)
        self.choice = choice

    def forward(self, x):
        h = relu(self.a(x))
        return self.o(h) + self.choice(h, self.w)


@pytest.mark.parametrize("case", CHOICES)
def test_a_way_chosen_by_the_state_holds_for_its_numbers_alone(case):
    torch.manual_seed(0)
    model = Chosen(CHOICES[case])
    spec = fxr.infer(model, X.float())
    assert any(note.startswith("forward chooses its way by the numbers of w") for note in spec.notes)
    assert spec.pinned["w", 0] and not spec.assumptions
    state = model.state_dict()
    moved = spec.random(0).apply(state)
    assert torch.equal(moved["w"], state["w"])
    with torch.no_grad():
        expected = model(X.float())
        model.load_state_dict(moved)
        torch.testing.assert_close(model(X.float()), expected)
    with pytest.raises(fxr.StateError, match="'w' .parameter. holds other numbers"):
        spec.random(0).apply({**state, "w": 1.5 * state["w"]})


@pytest.mark.parametrize("case, function", {"float": lambda w: float(w[0]), "norm": lambda w: w.norm().item()}.items())
def test_a_number_read_that_chooses_nothing_is_assumed_to_choose_nothing(case, function):
    spec = fxr.infer(Chosen(lambda h, w: function(w) * h.sum(-1, keepdim=True)), X.float())
    assert spec.assumptions == ("forward reads numbers of w, and goes the same way for those of any state",)
    state = Chosen(None).state_dict()
    assert set(spec.random(0).apply({**state, "w": 1.5 * state["w"]})) == set(state)


def test_agreement_is_said():
    assert "graph and module agree at a second random state" in fxr.infer(Net(READS["data"][0]), X).evidence


def test_what_cannot_be_compared_is_said():
    class Draws(Unseen):
        def forward(self, x):
            return super().forward(x) * torch.rand(())

    program = fxr.capture(Draws(), X.float())
    assert (
        program.agreement
        == "graph and module were not compared at other numbers: forward draws random numbers"
    )
    large = nn.Sequential(nn.Linear(5, 30_000), nn.Linear(30_000, 10_000, bias=False))
    assert "too large" in fxr.capture(large, X.float()).agreement


def test_numbers_from_elsewhere_are_refused():
    class Draws(Unseen):
        def forward(self, x):
            return x @ self.w.t() * random.random()

    memory = {}

    class Remembers(Unseen):
        def forward(self, x):
            y = x @ self.w.t() + memory.get("last", 0.0)
            memory["last"] = y.detach()
            return y

    with pytest.raises(
        CaptureError, match="does not give the same twice: it keeps numbers where the module does not"
    ):
        fxr.capture(Draws(), X.float())
    with pytest.raises(CaptureError):
        fxr.capture(Remembers(), X.float())


def test_assigning_data_is_a_write():
    class Assigns(Unseen):
        def forward(self, x):
            self.w.data = self.w.data * self.w.data[:1]
            return relu(x @ self.w.t()) @ self.o

    spec = fxr.infer(Assigns(), X.float())
    assert spec.order == F(5) and any(note.startswith("forward writes to w") for note in spec.notes)


def test_assigning_data_of_another_shape_is_refused_with_the_way_out():
    class Assigns(Unseen):
        def forward(self, x):
            self.w.data = self.w.data[:4]
            return x @ self.w.t()

    with pytest.raises(CaptureError, match=r"data of another shape .* for \(6, 5\); use a tensor of its own"):
        fxr.capture(Assigns(), X.float())


@pytest.mark.parametrize("even", [False, True])
def test_a_tensor_that_the_graph_has_lost_sight_of_is_found(even):
    class Wrapped(Unseen):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(6) if even else torch.randn(6))

        def forward(self, x):
            if x.sum() < -1e9:
                return x
            return relu(x @ self.w.t()) * nn.Parameter(self.g * 2) @ self.o  # a leaf, which no tracer follows

    spec = fxr.infer(Wrapped(), X.float())
    assert spec.order == 1
    assert any("reads the numbers of g outside the graph" in note for note in spec.notes)


def test_a_module_that_differs_by_its_inputs_numbers_is_recorded_not_refused():
    class Branch(Unseen):
        def forward(self, x):
            return super(Unseen, self).forward(x) if x.sum() > 1e9 else relu(x @ self.b.t()) @ self.p

    spec = fxr.infer(Branch(), X.float())
    assert spec.order == F(4) and any("only the branch" in note for note in spec.notes)


def test_comparing_leaves_module_and_random_numbers_as_they_were():
    module = Unseen()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fxr.capture(module, X.float())
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
