"""Identity beyond the state dict: what lies in the memory of a parameter, and what forward writes to."""

from __future__ import annotations

import functools
import types
from math import factorial as F

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxrebasin as fxr
from fxrebasin.capture.memory import place_of, steps

relu = torch.relu
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Parameters w (6, 5) and o (6, 3), whatever `setup` adds, and a function of both. `branch`: on the
    input's numbers, so that the module is recorded."""

    def __init__(self, setup, function, branch: bool = False):
        super().__init__()
        self.w, self.o = (nn.Parameter(torch.randn(6, n, dtype=torch.float64)) for n in (5, 3))
        self.function, self.branch = function, branch
        setup(self)

    def forward(self, x):
        return self.function(self, x) if not self.branch or x.sum() > -1e9 else x


def change(make, spec: fxr.Spec, calls: int = 1) -> float:
    """How far outputs are off after a random element, loaded as people load a state; over several calls."""
    worst = 0.0
    for seed in range(3):
        torch.manual_seed(seed)
        one, two = make(), make()
        one.load_state_dict({name: torch.randn_like(t) if t.is_floating_point() else t
                             for name, t in one.state_dict().items()})
        held = {name: t.clone() for name, t in one.state_dict().items()}
        two.load_state_dict(spec.random(seed).apply(held))
        with torch.no_grad():
            for _ in range(calls):
                x = torch.randn_like(X)
                worst = max(worst, float((one(x.clone()) - two(x.clone())).abs().max()))
    return worst


def attribute(value):
    return lambda net: setattr(net, "v", value(net))


def closure(net):
    weight = net.w.data
    net.v = lambda: weight[0]


def whole(net, x):
    return relu(x @ net.w.t()) @ net.o


def halves(net, x):
    return relu(x @ net.w.t()).sum(-1, keepdim=True) + relu(x @ net.v.t()) @ net.o[:3]


def scaled(part):
    return lambda net, x: whole(net, x) * part(net.v).sum()


def flat(net):
    memory = torch.randn(48, dtype=torch.float64)
    net.w, net.o = nn.Parameter(memory[:30].view(6, 5)), nn.Parameter(memory[30:].view(6, 3))
    net.v = memory


def overlapping(net):
    memory = torch.randn(60, dtype=torch.float64)
    net.w, net.o = nn.Parameter(memory[:30].view(6, 5)), nn.Parameter(memory[20:38].view(6, 3))


ALIASES = {
    "rows": (attribute(lambda n: n.w.data[:3]), halves, F(3) * F(3)),
    "transposed": (attribute(lambda n: n.w.data.t()), lambda n, x: relu(x @ n.v) @ n.o, F(6)),
    "flattened": (attribute(lambda n: n.w.data.view(-1)), scaled(lambda v: v[:5]), F(5)),
    "all of it": (attribute(lambda n: n.w.detach()), lambda n, x: relu(x @ n.v.t()) @ n.o, F(6)),
    "in a list": (attribute(lambda n: [n.w.data[0]]), scaled(lambda v: v[0]), F(5)),
    "in a dict": (attribute(lambda n: {"a": [n.w.data[0]]}), scaled(lambda v: v["a"][0]), F(5)),
    "in an object": (attribute(lambda n: types.SimpleNamespace(a=n.w.data[0])), scaled(lambda v: v.a), F(5)),
    "closure": (closure, scaled(lambda v: v()), F(5)),
    "partial": (attribute(lambda n: functools.partial(torch.mul, n.w.data[0])), scaled(lambda v: v(1.0)),
                F(5)),
    "array": (attribute(lambda n: n.w.detach().numpy()), scaled(lambda v: torch.from_numpy(v)[0]), F(5)),
    "array read": (attribute(lambda n: n.w.detach().numpy()),
                   scaled(lambda v: torch.tensor(float(v[0].sum()))), 1),
    "diagonal": (attribute(lambda n: n.w.data.diagonal()), scaled(lambda v: v), 1),
    "windows": (attribute(lambda n: n.w.data.unfold(0, 2, 1)), scaled(lambda v: v[:, 0, 0] * v[:, 0, 1]), 1),
    "of both": (flat, scaled(lambda v: v.cos()[:1]), 1),
    "buffer": (lambda n: n.register_buffer("v", n.w.data[:3]), halves, F(3) * F(3)),
    "hidden buffer": (lambda n: n.register_buffer("v", n.w.data[:3], persistent=False), halves, F(3) * F(3)),
    "overlapping": (overlapping, whole, 1),
}


@pytest.mark.parametrize("branch", [False, True], ids=["exported", "recorded"])
@pytest.mark.parametrize("case", ALIASES)
def test_what_lies_in_a_parameters_memory_is_made_of_it(case, branch):
    setup, function, order = ALIASES[case]

    def make():
        return Net(setup, function, branch)
    spec = fxr.infer(make(), X, falsify=False)
    assert change(make, spec) < 1e-9
    assert spec.order == order


def test_a_weight_and_its_transpose_are_reordered_together():
    def make():
        model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 5, bias=False)).double()
        model[2].weight = nn.Parameter(model[0].weight.data.t())
        return model
    spec = fxr.infer(make(), X)
    assert spec.order == F(6) and change(make, spec) < 1e-9
    assert any("2.weight lies in the memory of 0.weight" in note for note in spec.notes)


def test_what_overlaps_in_no_clear_way_is_pinned_with_the_reason():
    spec = fxr.infer(Net(overlapping, whole), X)
    assert spec.pinned["w", 0].startswith("shares part of its memory with")
    assert any(note.startswith("w shares part of its memory with o") for note in spec.notes)


def test_the_columns_of_one_buffer_are_separate():
    def setup(net):
        memory = torch.randn(6, 8, dtype=torch.float64)
        net.w, net.o = nn.Parameter(memory[:, :5]), nn.Parameter(memory[:, 5:])
    spec = fxr.infer(Net(setup, whole), X)
    assert spec.order == F(6) and not spec.notes


def test_aliases_on_the_meta_device_are_seen():
    with torch.device("meta"):
        net = Net(attribute(lambda n: n.w.data[:3]), halves)
    assert fxr.infer(net, X.to("meta")).order == F(3) * F(3)


KINDS = ("t", "slice", "select", "split", "flatten", "unsqueeze", "expand")
SHAPES = ((6, 5), (2, 3, 4), (1, 6), (12,), (4, 2, 3, 2))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(KINDS), max_size=4), st.integers(0, 2**16), st.sampled_from(SHAPES),
       st.booleans())
def test_steps_make_the_view(kinds, seed, shape, turned):
    base = torch.arange(float(np.prod(shape))).view(shape)
    base = base.T.contiguous().T if turned and base.ndim == 2 else base
    view, rng = base, np.random.default_rng(seed)
    for kind in kinds:
        d = int(rng.integers(view.ndim)) if view.ndim else 0
        if kind == "unsqueeze":
            view = view.unsqueeze(d)
        elif view.ndim == 0:
            continue
        elif kind == "t":
            view = view.transpose(d, int(rng.integers(view.ndim)))
        elif kind == "slice":
            start = int(rng.integers(view.shape[d]))
            view = view[(slice(None),) * d + (slice(start, None, int(rng.integers(1, 3))),)]
        elif kind == "select":
            view = view.select(d, int(rng.integers(view.shape[d])))
        elif kind == "split" and view.shape[d] % 2 == 0:
            view = view.unflatten(d, (2, view.shape[d] // 2))
        elif kind == "flatten" and view.is_contiguous():
            view = view.view(-1)
        elif kind == "expand" and view.shape[d] == 1:
            view = view.expand(*(3 if k == d else size for k, size in enumerate(view.shape)))
    found = steps(place_of(base), place_of(view))
    if found is not None:
        made = base
        for op, args in found:
            made = op(made, *args)
        assert made.shape == view.shape and torch.equal(made, view)
    if set(kinds) <= {"t", "slice", "select", "unsqueeze"}:
        assert found is not None


# -------------------------------------------------------------------------------------------- what is written


class Kept(nn.Module):
    """A hidden layer of 6 units, a vector v of as many, and something that is kept from call to call as c."""

    def __init__(self, kept, function, branch: bool = False):
        super().__init__()
        self.fc, self.v = nn.Linear(5, 6).double(), nn.Parameter(torch.randn(6, dtype=torch.float64))
        self.function, self.branch = function, branch
        kept(self)

    def forward(self, x):
        if self.branch and x.sum() < -1e9:
            return x
        h = relu(self.fc(x))
        y = h.sum(-1) + (self.c * self.v).sum() if isinstance(self.c, torch.Tensor) else h.sum(-1)
        more = self.function(self, h.mean(0))
        return y if more is None else y + more


def buffer(*shape, persistent=True, **options):
    options = {"dtype": torch.float64, **options}
    return lambda net: net.register_buffer("c", torch.zeros(shape or (6,), **options), persistent=persistent)


def plain(value):
    return lambda net: setattr(net, "c", value())


def assign(net, mean):
    net.c = mean


def of_a_list(net, mean):
    result = sum((kept * net.v).sum() for kept in net.c)
    net.c.append(mean)
    return result


def first_slot(net, mean):
    net.c[:1] = mean[:1]


WRITTEN = {
    "copy_": (buffer(), lambda n, m: (n.c.copy_(m), None)[1], F(6)),
    "+=": (buffer(), lambda n, m: (n.c.add_(m), None)[1], F(6)),
    "average": (buffer(), lambda n, m: (n.c.lerp_(m, 0.1), None)[1], F(6)),
    "hidden": (buffer(persistent=False), lambda n, m: (n.c.lerp_(m, 0.1), None)[1], F(6)),
    "out=": (buffer(), lambda n, m: (torch.mul(m, 2.0, out=n.c), None)[1], F(6)),
    "index_put_": (buffer(), lambda n, m: (n.c.index_put_((torch.tensor([0, 2]),), m[:2]), None)[1], F(4)),
    "slice": (buffer(), first_slot, F(5) * F(5)),
    "assigned": (buffer(), assign, F(6)),
    "attribute": (plain(lambda: torch.zeros(6, dtype=torch.float64)), assign, F(6)),
    "attribute at first None": (plain(lambda: None), assign, 1),
    "list": (plain(list), of_a_list, 1),
    "parameter": (lambda n: setattr(n, "c", nn.Parameter(torch.zeros(6, dtype=torch.float64))),
                  lambda n, m: (n.c.data.copy_(m), None)[1], F(6)),
    "place": (buffer(1, dtype=torch.long), lambda n, m: (n.c.copy_(m.argmax()[None]), n.v[n.c].sum())[1], 1),
}


@pytest.mark.parametrize("branch", [False, True], ids=["exported", "recorded"])
@pytest.mark.parametrize("case", WRITTEN)
def test_what_is_written_and_where_are_ordered_alike(case, branch):
    kept, function, order = WRITTEN[case]

    def make():
        return Kept(kept, function, branch)
    spec = fxr.infer(make(), X, falsify=False)
    assert change(make, spec, calls=3) < 1e-9
    assert spec.order == order
    assert any(note.startswith("forward ") for note in spec.notes)


def test_an_attribute_that_is_only_looked_at_from_outside_pins_nothing():
    class Logged(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            self.last = relu(self.up(x))
            return self.down(self.last)
    assert fxr.infer(Logged(), X.float()).order == F(6)


def test_the_module_stays_as_it_was():
    for case in ("rows", "array", "of both"):
        net = Net(*ALIASES[case][:2])
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        fxr.capture(net, X)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    for case in ("copy_", "attribute", "list", "parameter"):
        net = Kept(*WRITTEN[case][:2])
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        fxr.capture(net, X)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert not isinstance(net.c, list) or not net.c


def test_what_is_made_anew_at_each_call_and_never_read_before_pins_nothing():
    with torch.device("meta"):
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3))
    spec = fxr.infer(model, torch.randn(2, 5, device="meta"))
    assert spec.order == F(6) and not any("assigns" in note for note in spec.notes)
