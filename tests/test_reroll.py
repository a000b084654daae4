"""Submodules that are alike: whole parameters change places, in lists of experts, heads and branches."""

from __future__ import annotations

import copy
import json
from math import factorial as F

import numpy as np
import pytest
import torch
from scalar_graph import Expansion
from tiny_networks import NETWORKS, WHOLE, Expert, Parts, change, several, x
from torch import nn

import fxrebasin as fxr
from fxrebasin.capture import capture
from fxrebasin.reroll import rerolled

EXACT = 1e-12  # largest error of one evaluation in float64; values are of size one


def made(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 and eval mode, with numbers of its own in every tensor of its state."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.double().eval().state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.7)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return module


def experts(number: int = 3, width: int = 4, hidden: int = 5) -> nn.Module:
    def forward(m, x):
        weights = torch.softmax(m.router(x), -1)
        return sum(weights[:, e:e + 1] * expert(x) for e, expert in enumerate(m.experts))
    return made(Parts(forward, router=nn.Linear(width, number), experts=several(number, lambda: Expert(width, hidden))))


def error(module: nn.Module, inputs: tuple, spec: fxr.Spec, seeds: int = 3) -> float:
    """Largest change of the outputs of the module itself, in float64, under random alignments."""
    state = copy.deepcopy(module.state_dict())
    worst = max(change(copy.deepcopy(module), inputs, spec.random(seed).apply(state)) for seed in range(seeds))
    print(f"largest error {worst:.1e}")
    return worst


class Stacked(nn.Module):
    """A module whose stacked parameters are parameters: for what knows of no permutations from tensor to tensor."""

    def __init__(self, module: nn.Module, spec: fxr.Spec) -> None:
        super().__init__()
        self.parts = lambda: (module, spec)
        self.names = list(spec.layouts)
        state = spec.stacked(module.state_dict())
        self.held = nn.ParameterList(nn.Parameter(state[name]) for name in self.names)

    def forward(self, *inputs):
        module, spec = self.parts()
        state = dict(zip(self.names, self.held))
        for stack, names in reversed(spec.stacks.items()):
            state.update(zip(names, state.pop(stack).unbind(0)))
        return torch.func.functional_call(module, state, inputs)


# == orders ==================================================================================================


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_the_scalar_graph_has_the_order_derived_by_hand(name):
    module, inputs = NETWORKS[name]()
    spec = fxr.infer(module, inputs)
    assert spec.stacks and Expansion(Stacked(module, spec), inputs).order() == WHOLE[name] == spec.order


def test_experts_in_a_loop():
    module, inputs = experts(), (x(6, 4),)
    spec = fxr.infer(module, inputs)
    assert spec.order == F(3) * F(5) ** 3
    assert spec.stacks["experts.*.up.weight"] == tuple(f"experts.{e}.up.weight" for e in range(3))
    assert spec.shapes["experts.*.up.weight"] == (3, 5, 4) and spec.names["experts.1.up.weight"] == (5, 4)
    assert {group.copies for group in spec.groups.values()} == {1, 3}
    assert error(module, inputs, spec) < EXACT
    assert "experts.*.up.weight" in str(spec) and "whole tensors" in str(spec)


def _top_one(m, x):
    value, which = torch.softmax(m.router(x), -1).topk(1, -1)
    total = torch.zeros_like(x)
    for e, expert in enumerate(m.experts):
        total = total + torch.where(which == e, value * expert(x), 0.0)
    return total


def _top_two(m, x):
    value, which = m.router(x).topk(2, -1)
    value, total = value.softmax(-1), torch.zeros_like(x)
    for e, expert in enumerate(m.experts):
        mask = (which == e).to(x.dtype)
        total = total + (mask * value).sum(-1, keepdim=True) * expert(x)
    return total


def _sum_of_list(m, x):
    return torch.stack([g * e(x) for g, e in zip(torch.sigmoid(m.router(x)).split(1, -1), m.experts)]).sum(0)


def _unbound(m, x):
    gates = torch.tanh(m.router(x)).unbind(-1)
    return torch.stack([g[:, None] * e(x) for g, e in zip(gates, m.experts)], 1).mean(1)


def _backwards(m, x):
    gates = torch.softmax(m.router(x), -1)
    return sum(gates[:, -1 - e, None] * m.experts[e](x) for e in (1, 0, 2))


def _scattered(m, x):
    """Experts 0 and 2 alone, so that rows 0 and 2 of the router go with them."""
    gates = torch.softmax(m.router(x), -1)
    return gates[:, :1] * m.experts[0](x) + gates[:, 2:] * m.experts[2](x), gates[:, 1:2] * m.experts[1](x)


@pytest.mark.parametrize("forward, order", [
    (_top_one, F(3)), (_top_two, F(3)), (_sum_of_list, F(3)), (_unbound, F(3)), (_backwards, F(3)), (_scattered, F(2))],
    ids=lambda f: getattr(f, "__name__", ""))
def test_routers(forward, order):
    module = made(Parts(forward, router=nn.Linear(4, 3), experts=several(3, lambda: Expert(4, 2))))
    inputs = (x(6, 4),)
    spec = fxr.infer(module, inputs)
    assert spec.order == order * F(2) ** 3
    assert error(module, inputs, spec, 6) < EXACT


def test_a_list_of_parameters_that_is_stacked():
    def forward(m, x):
        first, second = torch.stack(list(m.first)), torch.stack(list(m.second))
        hidden = torch.relu(torch.einsum("bd,edf->bef", x, first))
        return torch.einsum("be,bef,efd->bd", torch.softmax(m.router(x), -1), hidden, second)

    def parameters(*shape):
        return nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(3))
    module = made(Parts(forward, router=nn.Linear(4, 3), first=parameters(4, 5), second=parameters(5, 4)))
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == F(3) * F(5) ** 3 and set(spec.stacks) == {"first.*", "second.*"}
    assert error(module, (x(6, 4),), spec) < EXACT


@pytest.mark.parametrize("unbound", [False, True])
def test_a_loop_over_packed_experts(unbound):
    def forward(m, x):
        gates, total = torch.softmax(m.router(x), -1), torch.zeros_like(x)
        pairs = zip(m.first, m.second) if unbound else ((m.first[e], m.second[e]) for e in range(3))
        for e, (first, second) in enumerate(pairs):
            total = total + gates[:, e, None] * (torch.relu(x @ first) @ second)
        return total
    module = made(Parts(forward, router=nn.Linear(4, 3), first=(3, 4, 5), second=(3, 5, 4)))
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == F(3) * F(5) ** 3 and not spec.stacks
    assert error(module, (x(6, 4),), spec) < EXACT


def test_experts_in_every_layer():
    def forward(m, x):
        for layer in m.layers:
            x = x + layer(torch.layer_norm(x, (4,)))
        return m.head(x + torch.sin(x) + torch.cos(x))
    module = made(Parts(forward, layers=nn.ModuleList(experts(3, 4, 2) for _ in range(3)), head=nn.Linear(4, 2)))
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == (F(3) * F(2) ** 3) ** 3
    assert error(module, (x(6, 4),), spec) < EXACT


class Branch(nn.Module):
    """Ops for which a rule of vmap would lose the structure: statistics, group norm, attention, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.conv, self.batch, self.group = nn.Conv1d(4, 6, 2, padding=1), nn.BatchNorm1d(6), nn.GroupNorm(2, 6)
        self.q, self.k, self.v = (nn.Linear(6, 2, bias=False) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(2), nn.Linear(2, 3)

    def forward(self, tokens):
        h = torch.relu_(self.batch(self.conv(self.table(tokens).transpose(1, 2))))
        h = self.group(h).transpose(1, 2)
        return self.out(self.norm(nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))))


def test_ops_of_all_kinds_in_a_branch():
    def forward(m, tokens):
        return torch.stack([branch(tokens) for branch in m.branches]).sum(0)
    inputs = torch.tensor([[1, 2, 3], [4, 5, 6]])
    one = fxr.infer(made(Branch()), inputs).order
    module = made(Parts(forward, branches=several(3, Branch)))
    spec = fxr.infer(module, inputs)
    assert one == F(4) * F(2) * F(3) ** 2 * F(2) * F(2) and spec.order == F(3) * one ** 3
    assert error(module, (inputs,), spec) < EXACT


# == what is left alone ======================================================================================


def _told_apart_by_place(m, x):
    return torch.cat([e(x) for e in m.experts], -1) * torch.arange(12.0, dtype=x.dtype)


def _one_differs(m, x):
    return m.experts[0](x) + m.experts[1](x) + m.experts[2](x * 1.5)


def _subtracted(m, x):
    return m.experts[0](x) - m.experts[1](x) - m.experts[2](x)


@pytest.mark.parametrize("forward, order", [
    (_told_apart_by_place, 1), (_one_differs, F(2)), (_subtracted, F(2))], ids=lambda f: getattr(f, "__name__", ""))
def test_experts_that_something_tells_apart(forward, order):
    module = made(Parts(forward, experts=several(3, lambda: Expert(4, 2))))
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == order * F(2) ** 3
    assert error(module, (x(6, 4),), spec) < EXACT


@pytest.mark.parametrize("same", [True, False])
def test_buffers_that_are_no_part_of_the_state(same):
    def forward(m, x):
        return m.first(x) * m.one + m.second(x) * m.two
    one = torch.linspace(1, 2, 4, dtype=torch.float64)
    two = one.clone() if same else one + 1
    module = made(Parts(forward, first=Expert(4, 3), second=Expert(4, 3), one=one, two=two))
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == (2 if same else 1) * F(3) ** 2 and bool(spec.stacks) == same
    assert error(module, (x(6, 4),), spec) < EXACT


def test_only_what_changes_places_is_stacked():
    def forward(m, x):
        mixed = m.experts(x)
        return torch.cat([head(mixed) for head in m.heads], -1)
    module = made(Parts(forward, experts=experts(3, 4, 2), heads=several(2, lambda: Expert(4, 3))))
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == F(3) * F(2) ** 3 * F(4) * F(3) ** 2 and not spec.idle
    assert set(spec.stacks) == {f"experts.experts.*.{part}.{kind}"
                                for part in ("up", "down") for kind in ("weight", "bias")}
    assert error(module, (x(6, 4),), spec) < EXACT
    target = spec.random(1).apply(module.state_dict())
    assert fxr.match(spec, module.state_dict(), target, model=module, inputs=[x(6, 4)]) == spec.random(1)


def test_random_numbers_are_drawn_anew_in_each():
    def forward(m, x):
        return sum(torch.rand_like(x) * expert(x) for expert in m.experts)
    assert fxr.infer(made(Parts(forward, experts=several(2, lambda: Expert(4, 3)))), x(6, 4)).order == F(3) ** 2


def test_tables_that_are_added():
    module = made(Parts(lambda m, x: m.out(x + m.one + m.two), one=(4,), two=(4,), out=nn.Linear(4, 3)))
    assert fxr.infer(module, x(6, 4)).order == 1


def test_experts_that_are_used_twice():
    def forward(m, x):
        first = sum(torch.sigmoid(m.router(x))[:, e, None] * expert(x) for e, expert in enumerate(m.experts))
        return sum(torch.sigmoid(m.router(first))[:, e, None] * expert(first) for e, expert in enumerate(m.experts))
    module = made(Parts(forward, router=nn.Linear(4, 3), experts=several(3, lambda: Expert(4, 2))))
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == F(3) * F(2) ** 3
    assert error(module, (x(6, 4),), spec) < EXACT


def test_names_and_their_order_do_not_matter():
    def forward(m, x):
        return m.a(x) + m.c(x) + m.b(x)

    def renamed(m, x):
        return m.z(x) + (m.first(x) + m.q(x))
    one = made(Parts(forward, a=Expert(4, 2), b=Expert(4, 2), c=Expert(4, 2)))
    other = made(Parts(renamed, q=Expert(4, 2), first=Expert(4, 2), z=Expert(4, 2)))
    specs = [fxr.infer(module, x(6, 4)) for module in (one, other)]
    assert specs[0].order == specs[1].order == F(3) * F(2) ** 3
    assert specs[0].stacks["*.up.bias"] == ("a.up.bias", "b.up.bias", "c.up.bias")


def test_parameters_without_numbers():
    module = experts().to("meta")
    spec = fxr.infer(module, torch.empty(2, 4, device="meta", dtype=torch.float64))
    assert spec.order == F(3) * F(5) ** 3
    moved = spec.random(0).apply(module.state_dict())
    assert all(tensor.device.type == "meta" and tensor.shape == spec.names[name] for name, tensor in moved.items())


def test_every_round_computes_the_same_function():
    for name in sorted(WHOLE):
        module, inputs = NETWORKS[name]()
        program = capture(module, inputs)
        before = list(program.interpret(module.state_dict(), inputs).values())
        for rolled in rerolled(program):
            state = module.state_dict()
            for stack, names in rolled.stacks.items():
                state[stack] = torch.stack([state.pop(part) for part in names])
            assert {key: tuple(t.shape) for key, t in state.items() if t.is_floating_point()} == rolled.program.state
            after = rolled.program.interpret(state, inputs).values()
            assert max(float((a - b).abs().max()) for a, b in zip(before, after)) < EXACT


# == stacked states everywhere ===============================================================================


def test_a_planted_permutation_is_found():
    module, inputs = experts(), (x(6, 4),)
    spec, state = fxr.infer(module, inputs), module.state_dict()
    planted = spec.random(1)
    target = planted.apply(state)
    assert list(target) == list(state) and any(not torch.equal(target[name], state[name]) for name in state)
    assert fxr.match(spec, state, target) == planted
    assert fxr.match(spec, state, target, effort="best") == planted
    assert fxr.find_equivalence(spec, state, target) == planted
    assert fxr.match(spec, state, target, model=module, inputs=[inputs, inputs]) == planted
    assert fxr.find_equivalence(spec, state, made(experts(), 7).state_dict()) is None
    for method in ("transfusion", "git-rebasin", "ot", "identity"):
        found = fxr.match(spec, state, target, method=method)
        assert found.objective <= 1 + 1e-12 and set(found.apply(state)) == set(state)


def test_the_permuted_state_runs_in_the_module():
    module, inputs = experts(), x(6, 4)
    evidence = fxr.verify(module, inputs, fxr.infer(module, inputs).random(3))
    print(evidence)
    assert evidence.max_rel < EXACT


def test_algebra_and_files(tmp_path):
    module = experts()
    spec, state = fxr.infer(module, x(6, 4)), module.state_dict()
    a, b = spec.random(1), spec.random(2)

    def same(one, other):
        return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert same((a @ b).apply(state), a.apply(b.apply(state)))
    assert same(a.inverse().apply(a.apply(state)), state)
    back = spec.unstacked(spec.stacked(state))
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)
    a.save(tmp_path / "a")
    assert same(fxr.Alignment.load(tmp_path / "a").apply(state), a.apply(state))
    back = fxr.Spec.from_json(spec.to_json())
    assert back == spec and back.stacks == spec.stacks and back.names == spec.names


def test_dtypes_stay_with_their_names():
    module = experts()
    spec = fxr.infer(module, x(6, 4))
    state = {name: tensor.to(torch.bfloat16 if ".0." in name else torch.float32)
             for name, tensor in module.state_dict().items()}
    moved = spec.random(1).apply(state)
    assert all(moved[name].dtype == tensor.dtype for name, tensor in state.items())


def test_a_task_vector_is_carried():
    module = experts()
    spec, base = fxr.infer(module, x(6, 4)), module.state_dict()
    finetuned = made(copy.deepcopy(module), 5).state_dict()
    alignment = spec.random(4)
    carried = fxr.transport(base, finetuned, alignment.apply(base), alignment)
    wanted = alignment.apply(finetuned)
    assert max(float((carried[name] - wanted[name]).abs().max()) for name in wanted) < EXACT


def test_many_models():
    module = experts()
    spec, state = fxr.infer(module, x(6, 4)), module.state_dict()
    states = [spec.random(seed).apply(state) for seed in range(3)]
    moved = [a.apply(s) for a, s in zip(fxr.match_many(spec, states), states)]
    assert all(torch.equal(one[name], moved[0][name]) for one in moved for name in state)


def test_tied_experts():
    module = experts()
    module.again = module.experts[1].up
    spec = fxr.infer(module, x(6, 4))
    assert spec.order == F(3) * F(5) ** 3 and spec.ties
    moved = spec.random(1).apply(module.state_dict())
    assert set(moved) == set(module.state_dict())
    names = [name for pair in spec.ties.items() for name in pair]
    assert len(names) == 4 and all(moved[alias] is moved[name] for alias, name in spec.ties.items())
    assert error(module, (x(6, 4),), spec) < EXACT
    assert fxr.Spec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("change_of, message", [
    (lambda state: state.pop("experts.1.up.weight"), "lacks 'experts.1.up.weight'"),
    (lambda state: state.update({"experts.*.up.weight": torch.zeros(3, 5, 4)}), "unexpected 'experts.*.up.weight'"),
    (lambda state: state.update({"experts.2.up.bias": torch.zeros(4)}), "'experts.2.up.bias' has shape (4,)")])
def test_states_that_do_not_fit_are_refused(change_of, message):
    module = experts()
    state = dict(module.state_dict())
    change_of(state)
    with pytest.raises(fxr.StateError, match=r".*") as caught:
        fxr.infer(module, x(6, 4)).check(state)
    assert message in str(caught.value)


HOSTILE = fxr.infer(experts(), x(6, 4)).to_json()


@pytest.mark.parametrize("stacks", [
    None, 3, {"nobody": ["a", "b", "c"]}, *({"experts.*.up.weight": names} for names in (
        3, ["a", "b"], ["a", "b", "b"], ["a", "b", "router.weight"], ["a", "b", 1]))], ids=range(8))
def test_hostile_stacks_are_refused(stacks):
    data = json.loads(HOSTILE)
    data["stacks"] = stacks
    with pytest.raises(fxr.SpecError):
        fxr.Spec.from_json(json.dumps(data))


def test_whole_tensors_move_together():
    """One permutation of experts, the same for every tensor and for the router's rows."""
    module = experts()
    spec, state = fxr.infer(module, x(6, 4)), module.state_dict()
    name = next(group.name for group in spec.groups.values() if group.size == 3)
    still = spec.identity().permutations
    moved = fxr.Alignment(spec, {**still, name: np.array([2, 0, 1])}).apply(state)
    for new, old in enumerate((2, 0, 1)):
        assert torch.equal(moved["router.weight"][new], state["router.weight"][old])
        for part in ("up.weight", "up.bias", "down.weight", "down.bias"):
            assert torch.equal(moved[f"experts.{new}.{part}"], state[f"experts.{old}.{part}"])
