"""States that are carried part by part: the same numbers, and no more than one part at hand."""
from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from architectures import LIGHT, build, spec_of
from test_adapter import drawn, listed
from tiny_networks import WHOLE, NETWORKS

import fxrebasin as fxr
from fxrebasin.parts import Parts, applied, origin
from fxrebasin.transport import by_part, transported


class Watched(Mapping):
    """A state that counts how often each tensor is read."""

    def __init__(self, state):
        self.state, self.reads = state, dict.fromkeys(state, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return self.state[name].clone()

    def __contains__(self, name):
        return name in self.state

    def __iter__(self):
        return iter(self.state)

    def __len__(self):
        return len(self.state)


def states(name: str):
    base = build(name)[0].state_dict()
    for key, tensor in base.items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(7)
    made = [drawn(base, seed) for seed in (1, 2, 3)]
    return [{k: v.abs() + 0.5 if k.endswith("running_var") else v for k, v in state.items()} for state in made]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


@pytest.mark.parametrize("name", LIGHT)
def test_part_by_part_is_all_at_once(name, monkeypatch):
    spec, (a, ft, b) = spec_of(name), states(name)
    pi = spec.random(2)
    assert same(dict(applied(pi, a)), pi.apply(a))
    expected = fxr.transport(a, ft, b, pi, 0.7)
    assert same(dict(transported(a, ft, b, pi, alpha=0.7)), expected)
    monkeypatch.setattr(by_part, "LARGE", 20)
    assert same(dict(transported(a, ft, b, pi, alpha=0.7)), expected)


def test_each_input_is_read_once(monkeypatch):
    monkeypatch.setattr(by_part, "LARGE", 20)
    for name in ("vgg", "llama", "experts"):
        pi, watched = spec_of(name).random(1), [Watched(state) for state in states(name)]
        dict(transported(*watched, pi))
        assert all(set(w.reads.values()) == {1} for w in watched), name
        once = Watched(states(name)[0])
        dict(applied(pi, once))
        assert set(once.reads.values()) == {1}


@pytest.mark.parametrize("name", sorted(WHOLE)[:4])
def test_stacks_are_parts(name):
    module, inputs = NETWORKS[name]()
    spec = fxr.infer(module, inputs)
    state, pi = drawn(module.state_dict(), 1), spec.random(3)
    parts = Parts(pi)
    assert spec.stacks and max(len(names) for names in parts.names.values()) > 1
    assert sorted(n for names in parts.names.values() for n in names) == sorted(spec.names)
    assert same(dict(applied(pi, state)), pi.apply(state))


def test_names_that_a_file_leaves_out_are_filled_in():
    spec = spec_of("gpt2")
    state = build("gpt2")[0].state_dict()
    for gone in ("wte.weight", "lm_head.weight"):
        found = dict(applied(spec.random(1), {k: v for k, v in state.items() if k != gone}))
        assert same(found, spec.random(1).apply(state))
    with pytest.raises(fxr.StateError, match="a state lacks 'ln_f.bias'"):
        dict(applied(spec.random(1), {k: v for k, v in state.items() if k != "ln_f.bias"}))


@pytest.mark.parametrize("name", ["vit_fused", "llama", "experts", "resnext_block", "group_norm_stream"])
def test_origins_are_where_apply_takes_from(name):
    """A tensor that says where along an axis each of its numbers is, moved, says where it came from."""
    spec = spec_of(name)
    pi, moves, refused = spec.random(2), 0, 0
    for tensor, shape in spec.names.items():
        for axis, size in enumerate(shape):
            marked = torch.arange(size, dtype=torch.float64).reshape([-1 if d == axis else 1 for d in range(len(shape))])
            came = pi.move(marked.expand(shape).clone(), spec.layout(tensor)).movedim(axis, 0).reshape(size, -1)
            found = origin(pi, tensor, (axis,))
            if found is None:
                refused += 1
                assert not torch.equal(came, came[:, :1].expand_as(came))
            else:
                moves += int((found != range(size)).sum())
                assert torch.equal(came, torch.from_numpy(found).double()[:, None].expand_as(came))
    assert moves and bool(refused) == (name in ("experts", "resnext_block"))


def test_a_list_of_experts_is_carried():
    module = listed()
    spec = fxr.infer(module, torch.randn(6, 4, dtype=torch.float64))
    a, ft, b = (drawn(module.state_dict(), seed) for seed in range(3))
    assert same(dict(transported(a, ft, b, spec.random(5), alpha=2.0)), fxr.transport(a, ft, b, spec.random(5), 2.0))


@pytest.mark.parametrize("statistics", ["ratio", "target"])
def test_part_by_part_in_another_dtype(statistics, monkeypatch):
    """Also what is carried in slabs, and what stays the target's."""
    spec, (a, ft, b) = spec_of("vgg"), states("vgg")
    pi, how = spec.random(2), {"statistics": statistics, "dtype": torch.float64}
    expected = fxr.transport(a, ft, b, pi, **how)
    assert {v.dtype for v in expected.values() if v.is_floating_point()} == {torch.float64}
    monkeypatch.setattr(by_part, "LARGE", 20)
    assert same(dict(transported(a, ft, b, pi, **how)), expected)
