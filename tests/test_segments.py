"""Residual segments: one permutation for each stretch of a stream, and the module that has maps on its skips."""
import math

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build
from torch import nn

import fxrebasin as fxr
from fxrebasin.rewrite import maps_of

F = math.factorial


def called(module, inputs):
    with torch.no_grad():
        return module(*inputs)


def difference(one, other) -> float:
    return float((one - other).abs().max() / one.abs().max())


class Stream(nn.Module):
    def __init__(self, depth=2, width=6, hidden=5):
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(),
                                                  nn.Linear(hidden, width)) for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def stream(depth=2):
    torch.manual_seed(0)
    return Stream(depth).double().eval(), torch.randn(3, 4, dtype=torch.float64)


def test_each_stretch_has_a_group_of_its_own():
    model, x = stream(depth=3)
    shared, segmented = fxr.infer(model, x), fxr.infer(model, x, residual="segmented")
    assert shared.order == F(6) * F(5) ** 3 and not shared.skips
    assert segmented.order == F(6) ** 4 * F(5) ** 3 and [skip.size for skip in segmented.skips] == [6, 6, 6]
    assert fxr.Spec.from_json(segmented.to_json()) == segmented


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("lstm", "gru")])
def test_the_rewritten_module_is_the_function(name):
    model, inputs = build(name)
    try:
        spec = fxr.infer(model, inputs, residual="segmented")
    except fxr.CaptureError:
        pytest.skip("not captured")
    alignment = spec.random(seed=3)
    rewritten = alignment.to_module(model, model.state_dict(), inputs)
    before, after = called(model, inputs), called(rewritten, inputs)
    assert difference(before, after) < 1e-9
    assert set(maps_of(alignment)) == {name for name, _ in rewritten.named_buffers() if name.startswith("skips.")}


@pytest.mark.parametrize("name, skips", [("gpt2", 4), ("llama", 4), ("resnet18", 5)])
def test_residual_architectures_have_their_segments(name, skips):
    """ResNet-18: five of its eight skips are identities, three are convolutions with weights of their own."""
    model, inputs = build(name)
    spec = fxr.infer(model, inputs, residual="segmented")
    assert len(spec.skips) == skips and spec.log10_order > fxr.infer(model, inputs).log10_order + 1
    assert fxr.verify(model, inputs, spec.random(1), draws=2).equivalent


def test_without_its_maps_the_module_is_another_function():
    """The control: what a plain checkpoint can hold of a segmented alignment is not the function."""
    model, x = stream()
    alignment = fxr.infer(model, x, residual="segmented").random(seed=0)
    before = called(model, (x,))
    rewritten = alignment.to_module(model, model.state_dict())
    assert difference(before, called(rewritten, (x,))) < 1e-12
    state = rewritten.state_dict() | {name: torch.arange(6) for name in maps_of(alignment)}
    rewritten.load_state_dict(state)
    assert difference(before, called(rewritten, (x,))) > 1e-2


def test_shared_is_where_the_maps_cancel():
    model, x = stream()
    shared, segmented = fxr.infer(model, x), fxr.infer(model, x, residual="segmented")
    pi = shared.random(seed=4)
    stretches = {group.name for group in segmented.groups.values() if group.size == 6}
    (one,) = (p for name, p in pi.permutations.items() if shared.groups[name].size == 6)
    same = fxr.Alignment(segmented, {name: one if name in stretches else pi.permutations[name]
                                     for name in segmented.groups})
    assert all(np.array_equal(m, np.arange(6)) for m in maps_of(same).values())
    moved, expected = same.apply(model.state_dict()), pi.apply(model.state_dict())
    assert all(torch.equal(moved[name], expected[name]) for name in moved)
    other = segmented.random(seed=4)
    assert any(not np.array_equal(m, np.arange(6)) for m in maps_of(other).values())


def test_the_rewritten_module_saves_exports_compiles_and_trains(tmp_path):
    model, x = stream()
    alignment = fxr.infer(model, x, residual="segmented").random(seed=1)
    rewritten = alignment.to_module(model, model.state_dict())
    expected = called(model, (x,))
    assert dict(rewritten.named_parameters()).keys() == dict(model.named_parameters()).keys()
    torch.save(rewritten.state_dict(), tmp_path / "state.pt")
    again = fxr.infer(model, x, residual="segmented").random(seed=9).to_module(model, model.state_dict())
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert difference(expected, called(again, (x,))) < 1e-12
    exported = torch.export.export(rewritten, (x,)).module()
    assert difference(expected, called(exported, (x,))) < 1e-12
    compiled = torch.compile(rewritten, backend="aot_eager")
    assert difference(expected, called(compiled, (x,))) < 1e-12
    rewritten(x).square().sum().backward()
    gradients = {name: p.grad for name, p in rewritten.named_parameters()}
    model(x).square().sum().backward()
    moved = alignment.apply({name: p.grad for name, p in model.named_parameters()})
    assert all(difference(moved[name], gradients[name]) < 1e-9 for name in moved)
    text = rewritten.print_readable(print_output=False)
    assert text.count("aten.index_select.default(") == 2 and "self.skips" in text


def test_matching_and_transport_take_segments():
    """A stretch that was re-ordered by itself is found again; the shared spec cannot."""
    model, x = stream()
    spec = fxr.infer(model, x, residual="segmented")
    planted = spec.random(seed=2)
    state = model.state_dict()
    target = planted.apply(state)
    assert fxr.match(spec, state, target) == planted
    assert fxr.match(fxr.infer(model, x), state, target).objective < 0.95
    tuned = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    carried = fxr.transport(state, tuned, target, planted)
    expected = planted.apply(tuned)
    assert all(torch.allclose(carried[name], expected[name], rtol=0, atol=1e-12) for name in carried)


def test_a_wrong_alignment_of_segments_is_refused():
    model, x = stream()
    spec = fxr.infer(model, x, residual="segmented")

    class Spoiled(fxr.Alignment):
        def apply(self, state):
            moved = super().apply(state)
            return moved | {"blocks.1.1.weight": moved["blocks.1.1.weight"].roll(1, 1)}

    wrong = Spoiled(spec, spec.random(0).permutations)
    with pytest.raises(fxr.NotEquivalentError, match="changes the function"):
        fxr.verify(model, x, wrong)


def test_segments_can_be_named():
    model, x = stream(depth=3)
    every = fxr.infer(model, x, residual="segmented").skips
    one = fxr.infer(model, x, residual=[every[1].add])
    assert one.order == F(6) ** 2 * F(5) ** 3 and [skip.add for skip in one.skips] == [every[1].add]
    assert one.random(0).to_module(model, model.state_dict()) is not None


@pytest.mark.parametrize("residual, message", [
    (["add_99"], "'add_99' is no residual add of this graph that a map could stand at: choose among add, add_1"),
    ("segments", "residual is 'shared', 'segmented' or names of residual adds")])
def test_what_cannot_be_segmented_is_refused(residual, message):
    model, x = stream()
    with pytest.raises(fxr.FxrebasinError, match=message):
        fxr.infer(model, x, residual=residual)


def test_another_module_is_refused():
    model, x = stream()
    alignment = fxr.infer(model, x, residual="segmented").random(0)
    other = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.raises(fxr.FxrebasinError):
        alignment.to_module(other, model.state_dict(), x)
