"""Programs in float64, random states and inputs, and differences told from rounding."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxrebasin as fxr
from fxrebasin.evaluate import KINDS, Trial, draw_inputs, draw_state, evaluate, given_inputs
from fxrebasin.evaluate.gap import gap_between
from fxrebasin.evaluate.grouped import grouped_product

D = torch.float64


class Net(nn.Module):
    """5 -> hidden -> 4; what lies between is given."""

    def __init__(self, between=torch.relu, last=lambda y: y, hidden: int = 12, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, hidden), nn.Linear(hidden, 4)
        self.between, self.last = between, last
        self.to(dtype)

    def forward(self, x):
        return self.last(self.b(self.between(self.a(x))))


def trial_of(module: nn.Module, x, state=None, seed: int = 0) -> Trial:
    program = fxr.capture(module.eval(), x)
    return Trial(program, module.state_dict() if state is None else state, given_inputs(program, x), seed)


def permuted(module: nn.Module, seed: int = 0) -> dict:
    order = torch.randperm(module.a.out_features, generator=torch.Generator().manual_seed(seed + 1))
    state = module.state_dict()
    return state | {"a.weight": state["a.weight"][order], "a.bias": state["a.bias"][order],
                    "b.weight": state["b.weight"][:, order]}


def spoiled(module: nn.Module) -> dict:
    state = permuted(module)
    return state | {"b.weight": state["b.weight"][:, [1, 0, *range(2, module.a.out_features)]]}


def through(dtype):
    return lambda h: torch.relu(h).to(dtype).to(h.dtype)


def autocast(h):
    with torch.autocast("cpu", torch.bfloat16):
        return (torch.relu(h) @ torch.eye(h.shape[-1])).float()


# == float64 =================================================================================================


@pytest.mark.parametrize(
    "between",
    [
        through(torch.bfloat16),
        through(torch.float16),
        autocast,
        lambda h: torch.relu(h).half().type_as(h),
        lambda h: torch.relu(h).float().bfloat16().double().to(h.dtype),
        lambda h: (
            torch.relu(h)
            * torch.softmax(h, -1, dtype=torch.bfloat16).sum(-1, keepdim=True, dtype=torch.float16)
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_are_lifted(between, dtype):
    module, x = Net(between, dtype=dtype), torch.randn(3, 5, dtype=dtype)
    trial = trial_of(module, x)
    assert trial.before.outputs["output"].dtype == D
    right = trial.compare(permuted(module))
    assert not right.breaks and right.relative < 1e-14, right
    assert trial.compare(spoiled(module)).breaks


def test_float64_agrees_with_the_module():
    module, x = Net(dtype=D), torch.randn(3, 5, dtype=D)
    program = fxr.capture(module, x)
    with torch.no_grad():
        assert torch.equal(evaluate(program, module.state_dict(), {"x": x}).outputs["output"], module(x))


def test_complex_parameters_are_widened():
    module = nn.Module()
    module.w = nn.Parameter(torch.randn(6, 5, dtype=torch.complex64))
    module.forward = lambda x: (x.to(torch.complex64) @ module.w.t()).abs().square().sum(-1)
    trial = trial_of(module, torch.randn(3, 5))
    right = trial.compare({"w": module.w[[2, 1, 0, 5, 4, 3]]})
    assert not right.breaks and right.relative < 1e-14
    assert trial.compare({"w": module.w.conj().resolve_conj() * 1j}).breaks is False
    assert trial.compare({"w": module.w[:, [1, 0, 2, 3, 4]]}).breaks


def test_bits_are_read_as_they_are_stored():
    module, x = Net(last=lambda y: y * (y.detach().view(torch.int32) >= 0)), torch.randn(3, 5)
    trial = trial_of(module, x)
    assert not trial.compare(permuted(module)).breaks and trial.compare(spoiled(module)).breaks
    kept = trial.before.outputs["output"]
    assert torch.equal(kept > 0, F.relu(kept) > 0) and bool((kept >= 0).all())


@pytest.mark.parametrize("a, b, ends", [((6, 4), (2, 4, 3), (2, 6)), ((2, 3, 4), (2, 4, 3), None),
                                        ((4, 6), (6, 3), (2, 6)), ((2, 3, 4), (4, 6), (2, 6))])
def test_grouped_products(a, b, ends):
    """Against the operation itself, in the widest type that it takes."""
    torch.manual_seed(0)
    bounds = None if ends is None else torch.tensor(ends, dtype=torch.int32) * 4
    one, other = (torch.randn((*shape[:-2], 4 * shape[-2], 4 * shape[-1])) for shape in (a, b))
    expected = torch._grouped_mm(one, other, offs=bounds)
    ours = grouped_product(one.double(), other.double(), bounds)
    torch.testing.assert_close(ours.float(), expected, rtol=1e-5, atol=1e-5)


def test_a_grouped_product_runs_in_float64():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Parameter(torch.randn(2, 8, 8)), nn.Parameter(torch.randn(2, 8, 8))

        def forward(self, x):
            ends = torch.tensor([2, 6], dtype=torch.int32)
            return torch._grouped_mm(torch._grouped_mm(x, self.up, offs=ends).relu(), self.down, offs=ends)

    module = Grouped().bfloat16()  # the only type that it is captured with
    trial = trial_of(module, torch.randn(6, 8).bfloat16())
    order = torch.randperm(8)
    right = {"up": module.up[..., order].detach(), "down": module.down[:, order].detach()}
    assert trial.compare(right).relative < 1e-14 and not trial.compare(right).breaks
    assert trial.compare(right | {"up": module.up.detach()}).breaks


def test_nothing_is_written_to():
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("k", torch.ones(1))

        def forward(self, x):
            self.k.add_(1)
            x.mul_(2).add_(1)
            return super().forward(x) * self.k

    module, x = Counting(), torch.randn(3, 5)
    kept, state = x.clone(), {k: v.clone() for k, v in module.state_dict().items()}
    trial = trial_of(module, x)
    assert not trial.compare(permuted(module)).breaks and trial.compare(spoiled(module)).breaks
    assert torch.equal(x, kept) and all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_what_is_missing_is_said():
    module, x = Net(), torch.randn(3, 5)
    program = fxr.capture(module, x)
    with pytest.raises(fxr.StateError, match="the state has no 'a.bias'"):
        evaluate(program, {k: v for k, v in module.state_dict().items() if k != "a.bias"}, {"x": x})
    with pytest.raises(fxr.CaptureError, match="input x has no value"):
        evaluate(program, module.state_dict(), {})
    with pytest.raises(fxr.CaptureError, match="linear.default does not run .*do the inputs and the state fit") as caught:
        evaluate(program, module.state_dict(), {"x": torch.randn(3, 6)})
    assert "\n" not in str(caught.value)


# == rounding ================================================================================================


@pytest.mark.parametrize(
    "last",
    [
        lambda y: y.masked_fill(torch.tensor([True, False, False, False]), -math.inf),
        lambda y: y.masked_fill(torch.tensor([True, False, False, False]), -1e9),
        lambda y: y + torch.tensor([torch.finfo(torch.float32).min, 0.0, 0.0, 0.0]),
        lambda y: y * torch.tensor([1e9, 1.0, 1e-6, 1e-9]),  # one large element beside small ones
        lambda y: torch.log(y),
        lambda y: y.argmax(-1),
        lambda y: y > 0,
        lambda y: y.topk(2).indices,
        lambda y: (
            (y.sum(-1, keepdim=True) - y[:, :1] - y[:, 1:2] - y[:, 2:3] - y[:, 3:]) * 1e9
            + y.sum(-1, keepdim=True)
        ),
        lambda y: (y * 50).softmax(-1).round(),
        lambda y: y - y,
    ],
)
def test_right_and_wrong(last):
    """A change of one small element is seen beside large, masked and infinite ones; rounding is not one."""
    module, x = Net(last=last), torch.randn(7, 5)
    trial = trial_of(module, x)
    for seed in range(5):
        assert not trial.compare(permuted(module, seed)).breaks
    is_blind = not bool(last(torch.randn(9, 4)).any())
    assert trial.compare(spoiled(module)).breaks != is_blind


def test_cancellation_counts_as_rounding_where_it_is():
    """Sums that all but cancel: their last digits are noise, those of the output beside them are not."""
    nothing = lambda y: y.sum(-1) - y[:, 0] - y[:, 1] - y[:, 2] - y[:, 3]
    module = Net(last=lambda y: torch.stack([y[:, 0] + 1e7 * nothing(y), y[:, 1]], -1))
    trial = trial_of(module, torch.randn(7, 5))
    right = trial.compare(permuted(module))
    assert not right.breaks and right.relative > 1e-11
    small = module.state_dict() | {"b.bias": module.b.bias.detach() + torch.tensor([0., 1e-7, 0, 0])}
    assert trial.compare(small).breaks
    unseen = module.state_dict() | {"b.bias": module.b.bias.detach() + torch.tensor([1e-10, 0., 0, 0])}
    assert not trial.compare(unseen).breaks


def test_equal_scores_are_left_open():
    """Which of two equal scores is the larger one is rounding; which of two others is not."""
    module = Net(last=lambda y: torch.stack([y[:, 0], y[:, 1:].sum(-1)], -1).argmax(-1))
    with torch.no_grad():
        module.b.weight[0], module.b.bias[0] = module.b.weight[1:].sum(0), module.b.bias[1:].sum()
    trial = trial_of(module, torch.randn(50, 5))
    assert not any(trial.compare(permuted(module, seed)).breaks for seed in range(5))


def test_gaps():
    before = torch.tensor([1.0, -1e9, math.inf, math.nan, 0.0], dtype=D)
    limit = torch.full((5,), 1e-12, dtype=D)
    same = gap_between(before, before.clone(), limit)
    assert (same.absolute, same.relative, same.excess, same.elements, same.of) == (0, 0, 0, 0, 5)
    for place, value in ((2, -math.inf), (2, 0.0), (3, 0.0), (0, math.nan), (0, 1 + 1e-11)):
        after = before.clone()
        after[place] = value
        gap = gap_between(before, after, limit)
        assert gap.excess > 1 and gap.elements == 1 and gap.place == (place,)
    after = before.clone()
    after[1] += 1.0
    assert gap_between(before, after, limit).relative == pytest.approx(1e-9)  # relative to itself
    after[1], after[0] = before[1], 1.5
    assert gap_between(before, after, limit).relative == 0.5  # the masked one is not its measure
    truths = torch.tensor([True, False])
    assert gap_between(truths, ~truths, torch.zeros(2, dtype=D)).elements == 2
    assert gap_between(truths, ~truths, torch.tensor([math.inf, 0.0])).elements == 1


# == draws ===================================================================================================


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 6), nn.BatchNorm1d(6)
        self.out, self.head = nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mask", torch.full((6,), -math.inf).where(torch.arange(6) < 2, torch.zeros(())))
        self.register_buffer("signs", torch.tensor([1., -1., 1., 1., -1., 1.]))
        self.scale = nn.Parameter(torch.tensor(7.0))

    def forward(self, ids, keep, x, pos):
        h = self.table(ids).sum(1) * self.signs + x + pos[:, None]
        h = self.out(self.norm(h)).relu() * keep + self.mask.softmax(-1)
        return self.head(h * self.scale)


def kinds() -> tuple[fxr.capture, dict, dict]:
    module = Kinds().eval()
    inputs = {"ids": torch.tensor([[0, 1], [2, 0], [1, 1]]), "keep": torch.tensor([[True] + [False] * 5] * 3),
              "x": torch.randn(3, 6), "pos": torch.tensor([3, 4, 5])}
    program = fxr.capture(module, inputs)
    return program, module.state_dict(), given_inputs(program, inputs)


def test_drawn_states():
    program, own, _ = kinds()
    for seed in range(4):
        state = draw_state(program, seed, own)
        assert set(state) == set(own) and all(state[k].shape == v.shape for k, v in own.items())
        assert bool((state["norm.running_var"] > 0).all()) and bool((state["norm.weight"] > 0).all())
        assert state["head.weight"] is state["table.weight"]
        assert torch.equal(state["mask"], own["mask"].double()) and torch.equal(state["signs"], own["signs"].double())
        assert torch.equal(state["norm.num_batches_tracked"], own["norm.num_batches_tracked"])
        assert 0.5 * 7 <= float(state["scale"]) <= 1.5 * 7
        assert all(v.dtype == D for k, v in state.items() if k in program.state)
        assert len(torch.unique(state["out.bias"])) == 6
    again, other = draw_state(program, 3, own), draw_state(program, 0, own)
    assert all(torch.equal(state[k], again[k]) for k in state) and not torch.equal(other["out.bias"], state["out.bias"])
    assert bool((draw_state(program, 0)["norm.running_var"] > 0).all())  # by what it is to the operation
    kept = draw_state(program, 0, own, keep=("out.bias",))
    assert torch.equal(kept["out.bias"], own["out.bias"].double())


def test_drawn_states_do_not_stay_shut():
    """Biases far below zero are not of the kind of the state, they are its accident."""
    module = Net()
    module.a.bias.data -= 9
    program = fxr.capture(module, torch.randn(3, 5))
    on = torch.stack([(evaluate_hidden(program, draw_state(program, s, module.state_dict())) > 0).double().mean()
                      for s in range(8)])
    assert float(on.min()) > 0.2 and float(on.max()) < 0.8


def evaluate_hidden(program, state):
    x = torch.randn(64, 5, dtype=D, generator=torch.Generator().manual_seed(1))
    return x @ state["a.weight"].t() + state["a.bias"]


def test_signals_neither_die_nor_grow():
    module = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(12)))
    program = fxr.capture(module, torch.randn(3, 32))
    x = {"input": torch.randn(3, 32)}
    sizes = [float(evaluate(program, draw_state(program, seed, module.state_dict()), x).outputs["output"].std())
             for seed in (0, 4, 8)]
    assert all(0.05 < size < 20 for size in sizes), sizes


def test_drawn_inputs():
    program, _, given = kinds()
    drawn = [draw_inputs(program, [given], seed, kind) for seed in range(6) for kind in KINDS]
    for inputs in drawn:
        assert {k: (v.shape, v.dtype) for k, v in inputs.items() if k != "x"} == {
            k: (v.shape, v.dtype) for k, v in given.items() if k != "x"}
        assert bool(((inputs["ids"] >= 0) & (inputs["ids"] < 9)).all())  # what the table has
        assert bool(((inputs["pos"] >= 3) & (inputs["pos"] <= 5)).all())  # what was seen
    ids = torch.cat([inputs["ids"].reshape(-1) for inputs in drawn])
    assert len(torch.unique(ids)) == 9
    assert any(bool(inputs["keep"].all()) for inputs in drawn) and not all(bool(inputs["keep"].all()) for inputs in drawn)
    zeros, twins, large = (draw_inputs(program, [given], 0, kind)["x"] for kind in KINDS[1:])
    assert not zeros.any() and float(large.abs().max()) > 100
    assert len(torch.unique(twins, dim=0)) < 3
    with pytest.raises(ValueError, match="unknown kind of inputs"):
        draw_inputs(program, [given], 0, "small")


def test_added_masks_are_drawn_as_masks():
    module = nn.Module()
    module.w = nn.Parameter(torch.randn(6))
    module.forward = lambda x, mask: (x * module.w + mask).softmax(-1)
    mask = torch.tensor([[0., -1e9, -1e9, 0., 0., 0.]])
    program = fxr.capture(module, (torch.rand(2, 6), mask))
    drawn = [draw_inputs(program, [given_inputs(program, (torch.rand(2, 6), mask))], seed) for seed in range(6)]
    values = torch.unique(torch.cat([inputs["mask"] for inputs in drawn]))
    assert values.tolist() == mask.unique().tolist()
    assert bool((drawn[0]["mask"] == 0).all()) and all(bool((d["x"] >= 0).all()) for d in drawn)
