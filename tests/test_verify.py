"""Verification: what is equivalent passes with figures, what is not is named; exact equivalence of two checkpoints."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from architectures import LIGHT, NESTED, build, mlp, spec_of, state_of
from torch import nn

import fxrebasin as fxr
from fxrebasin.match.methods import flattened
from fxrebasin.verify import TOLERANCE


def widened(spec: fxr.Spec, factor: str) -> fxr.Spec:
    """The spec, edited by hand: a pinned factor becomes a group of its own."""
    sites = [fxr.Site(tensor, d, b) for tensor, blocks in spec.layouts.items() for b, block in enumerate(blocks)
             for d, axis in enumerate(block) if factor in axis.factors]
    group = fxr.Group(factor, spec.sizes[factor], 1, (), (factor,), tuple(sites))
    return dataclasses.replace(spec, groups={**spec.groups, factor: group},
                               reasons={k: v for k, v in spec.reasons.items() if k != factor})


def swapped(spec: fxr.Spec, group: str) -> fxr.Alignment:
    """One pair of elements of one group exchanged."""
    own = spec.identity().permutations[group].copy()
    own[..., [0, 1]] = own[..., [1, 0]]
    return fxr.Alignment(spec, {**spec.identity().permutations, group: own})


# == what passes =============================================================================================


@pytest.mark.parametrize("name", LIGHT)
def test_true_alignments_pass_with_figures(name):
    module, inputs = build(name)
    evidence = fxr.verify(module, inputs, spec_of(name).random(9))
    print(f"{name}: {evidence.max_rel:.1e}")
    assert evidence.equivalent and evidence.max_rel < TOLERANCE and evidence.offending == ()
    assert evidence.where in evidence.outputs and evidence.tolerance == TOLERANCE == 1e-9
    assert evidence.outputs[evidence.where][1] == evidence.max_rel
    assert str(evidence).startswith("equivalent") and "\n" not in evidence.headline


def test_figures_are_what_is_measured():
    """Recomputed here, for every output."""
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = mlp(3, 50, 40), nn.Linear(40, 2), nn.Linear(40, 5)

        def forward(self, x):
            h = self.body(x).relu()
            return {"small": self.a(h) * 1e-3, "large": self.b(h) * 1e3}

    module, x = Two().double(), torch.randn(16, 3).double()
    spec = fxr.infer(module, x)
    a = spec.random(0)
    evidence = fxr.verify(module, x, a)
    with torch.no_grad():
        before = module(x)
        after = torch.func.functional_call(module, a.apply(module.state_dict()), (x,))
    for key, value in before.items():
        path = next(p for p in evidence.outputs if key in p)
        gap = float((after[key] - value).abs().max())
        assert evidence.outputs[path] == (gap, gap / float(value.abs().max()))
    assert evidence.max_abs == max(e[0] for e in evidence.outputs.values()) > 0
    assert evidence.max_rel == max(e[1] for e in evidence.outputs.values())


def test_float32_models_are_verified_in_float64_and_left_alone():
    module = mlp(4, 30, 3).train()
    x = torch.randn(5, 4)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    evidence = fxr.verify(module, x, fxr.infer(module, x).random(0))
    assert evidence.max_rel < 1e-14
    assert module.training and all(p.dtype == torch.float32 for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_another_state_can_be_given():
    module, inputs = build("mlp")
    zeros = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
    wrong = swapped(widened(spec_of("mlp"), "4.weight:0"), "4.weight:0")
    assert fxr.verify(module, inputs, wrong, state=zeros, draws=0).max_abs == 0.0
    with pytest.raises(fxr.NotEquivalentError, match=r"\(weights random 0, inputs ordinary\)"):
        fxr.verify(module, inputs, wrong, state=zeros)
    with pytest.raises(fxr.NotEquivalentError):
        fxr.verify(module, inputs, wrong)


# == what does not pass ======================================================================================


@pytest.mark.parametrize("name, factor", [("mlp", "4.weight:0"), ("mlp", "0.weight:1"), ("lenet", "3.weight:2"),
                                          ("vit_fused", "head.weight:0"), ("gpt2", "wpe.weight:0.0")])
def test_the_offending_group_is_named(name, factor):
    module, inputs = build(name)
    spec = widened(spec_of(name), factor)
    wrong = swapped(spec, factor)
    right = spec.random(1)
    both = fxr.Alignment(spec, {**right.permutations, factor: wrong.permutations[factor]})
    for alignment in (wrong, both):
        with pytest.raises(fxr.NotEquivalentError) as caught:
            fxr.verify(module, inputs, alignment)
        evidence, message = caught.value.evidence, str(caught.value)
        assert evidence.offending == (factor,)
        assert repr(factor) in message and "\n" not in message and "do not use it" in message
        assert not evidence.equivalent and evidence.max_rel > 1e-4
        assert str(evidence).startswith("NOT equivalent") and factor in str(evidence)


def test_heads_permuted_unit_by_unit_are_named():
    """One flat permutation for the axis of heads and units, as a method blind to heads makes it."""
    module, inputs = build("vit_separate")
    spec = flattened(spec_of("vit_separate"))
    values = next(g for g in spec.groups.values() if any("v.weight" in s.tensor for s in g.sites) and g.size == 12
                  and not any("mlp" in s.tensor for s in g.sites))
    across = spec.identity().permutations[values.name].copy()
    across[[0, 5]] = across[[5, 0]]  # units of the first and the second head
    within = spec.identity().permutations[values.name].copy()
    within[[0, 3]] = within[[3, 0]]  # units of the first head
    still = spec.identity().permutations
    with pytest.raises(fxr.NotEquivalentError) as caught:
        fxr.verify(module, inputs, fxr.Alignment(spec, {**still, values.name: across}))
    assert caught.value.evidence.offending == (values.name,)
    assert fxr.verify(module, inputs, fxr.Alignment(spec, {**still, values.name: within})).equivalent


def test_all_offending_groups_are_named():
    module, inputs = build("mlp")
    spec = widened(widened(spec_of("mlp"), "4.weight:0"), "0.weight:1")
    wrong = fxr.Alignment(spec, {**spec.identity().permutations, **{
        name: swapped(spec, name).permutations[name] for name in ("4.weight:0", "0.weight:1")}})
    with pytest.raises(fxr.NotEquivalentError) as caught:
        fxr.verify(module, inputs, wrong)
    assert set(caught.value.evidence.offending) == {"4.weight:0", "0.weight:1"}


def test_one_output_of_several():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(6, 5)

        def forward(self, x):
            h = self.body(x).relu()
            return {"left": self.a(h), "right": self.b(h)}

    module, x = Two().double(), torch.randn(8, 3).double()
    wrong = swapped(widened(fxr.infer(module, x), "b.weight:0"), "b.weight:0")
    with pytest.raises(fxr.NotEquivalentError) as caught:
        fxr.verify(module, x, wrong)
    evidence = caught.value.evidence
    assert "right" in evidence.where and "right" in str(caught.value)
    left = next(p for p in evidence.outputs if "left" in p)
    assert evidence.outputs[left] == (0.0, 0.0) and evidence.outputs[evidence.where][0] == evidence.max_abs > 0


def test_the_tolerance_is_kept():
    module, inputs = build("mlp")
    a = spec_of("mlp").random(0)
    measured = fxr.verify(module, inputs, a).max_rel
    assert 0 < measured < 1e-14
    with pytest.raises(fxr.NotEquivalentError) as caught:
        fxr.verify(module, inputs, a, tolerance=measured / 2)
    assert caught.value.evidence.max_rel == measured
    assert fxr.verify(module, inputs, a, tolerance=measured).equivalent


def test_inputs_that_do_not_fit():
    module, _ = build("mlp")
    with pytest.raises(fxr.CaptureError, match="does not run on the example inputs") as caught:
        fxr.verify(module, torch.randn(3, 4), spec_of("mlp").random(0))
    assert "\n" not in str(caught.value)


def test_an_alignment_of_another_model():
    module, inputs = build("mlp")
    with pytest.raises(fxr.StateError):
        fxr.verify(module, inputs, spec_of("lenet").random(0))


# == exact equivalence =======================================================================================


@pytest.mark.parametrize("name", ["mlp", "vgg", "lstm", "gpt2", *NESTED])
def test_find_equivalence_finds_what_was_planted(name):
    spec, a = spec_of(name), state_of(name)
    planted = spec.random(6)
    assert fxr.find_equivalence(spec, a, planted.apply(a)) == planted
    assert fxr.find_equivalence(spec, a, a) == spec.identity()


@pytest.mark.parametrize("name", ["mlp", "vit_fused", "llama"])
def test_find_equivalence_refuses_what_differs(name):
    spec, a = spec_of(name), state_of(name)
    b = spec.random(6).apply(a)
    for key in (list(spec.shapes)[0], list(spec.shapes)[-1]):
        nudged = {k: v.clone() for k, v in b.items()}
        nudged[key].view(-1)[1] = torch.nextafter(nudged[key].view(-1)[1], torch.tensor(9.0).double())
        assert fxr.find_equivalence(spec, a, nudged) is None
    exchanged = {k: v.clone() for k, v in b.items()}  # the same numbers in every tensor, two of them exchanged
    flat = exchanged[spec.permutable[0]].view(-1)
    flat[[0, -1]] = flat[[-1, 0]]
    assert fxr.find_equivalence(spec, a, exchanged) is None
    assert fxr.find_equivalence(spec, a, state_of(name, seed=1)) is None


def test_find_equivalence_of_a_pinned_axis():
    """Permuted outputs are another function."""
    spec, a = spec_of("mlp"), dict(state_of("mlp"))
    order = torch.tensor([1, 0, 2, 3, 4])
    b = {**a, "4.weight": a["4.weight"][order], "4.bias": a["4.bias"][order]}
    assert fxr.find_equivalence(spec, a, b) is None


def test_find_equivalence_where_numbers_repeat():
    """Biases of zero and norms of one, as at initialisation, and duplicated units."""
    spec, a = spec_of("vit_fused"), {k: v.clone() for k, v in state_of("vit_fused").items()}
    for k, v in a.items():
        if v.ndim == 1:
            v.fill_(1.0 if "norm" in k and k.endswith("weight") else 0.0)
    a["blocks.0.mlp.0.weight"][3] = a["blocks.0.mlp.0.weight"][4]
    a["blocks.0.mlp.2.weight"][:, 3] = a["blocks.0.mlp.2.weight"][:, 4]
    b = spec.random(2).apply(a)
    found = fxr.find_equivalence(spec, a, b)
    assert found is not None and all(torch.equal(found.apply(a)[k], b[k]) for k in a)


def test_find_equivalence_checks_its_states():
    spec, a = spec_of("mlp"), dict(state_of("mlp"))
    with pytest.raises(fxr.StateError, match="the second state lacks"):
        fxr.find_equivalence(spec, a, {k: v for k, v in a.items() if k != "0.bias"})
    with pytest.raises(fxr.StateError, match="the first state"):
        fxr.find_equivalence(spec, {**a, "0.bias": torch.full((32,), np.nan)}, a)
