"""Several task vectors with weights, and an alpha for each tensor."""
from __future__ import annotations

import math

import pytest
import torch
from architectures import spec_of
from test_by_part import states

import fxrebasin as fxr
from fxrebasin.transport import Alphas, WeightedSum, transported


def test_a_sum_of_task_vectors_is_the_sum_of_what_each_gives():
    pi, (a, one, b) = spec_of("gpt2").random(1), states("gpt2")
    two = {name: tensor * 0.9 for name, tensor in one.items()}
    found = dict(transported(a, WeightedSum(a, [one, two], [0.5, -0.3]), b, pi))
    each = [fxr.transport(a, tuned, b, pi, weight) for tuned, weight in ((one, 0.5), (two, -0.3))]
    assert max(float((found[n] - (each[0][n] + each[1][n] - b[n])).abs().max()) for n in b) < 1e-12
    alone = dict(transported(a, WeightedSum(a, [one], [1.0]), b, pi))
    expected = fxr.transport(a, one, b, pi)
    assert max(float((alone[n] - expected[n]).abs().max()) for n in b) < 1e-14


def test_a_sum_in_half_precision_loses_nothing():
    spec = spec_of("mlp")
    base, tuned = ({n: torch.full(s, value).bfloat16() for n, s in spec.names.items()} for value in (1.0078125, 1e-3))
    sums = WeightedSum(base, [tuned, tuned], [0.25, 0.5])
    for name in sums:
        assert torch.equal(sums[name], base[name].double() + 0.75 * (tuned[name].double() - base[name].double()))


def test_alpha_by_pattern():
    pi, (a, ft, b) = spec_of("gpt2").random(1), states("gpt2")
    alphas = Alphas(1.0, (("h.*", 0.5), ("h.1.c_fc", 0.0), ("*.bias", -1.0)))
    found = dict(transported(a, ft, b, pi, alphas))
    for name in b:
        alpha = -1.0 if name.endswith("bias") else 0.0 if name == "h.1.c_fc.weight" else 0.5 if name.startswith("h.") else 1.0
        assert alphas.of(name) == alpha
        assert torch.equal(found[name], fxr.transport(a, ft, b, pi, alpha)[name]), name
    assert Alphas(1.0, (("blocks.*.mlp", 0.5),)).of("blocks.0.mlp.fc1.weight") == 0.5
    assert Alphas(1.0, (("blocks.*.mlp", 0.5),)).of("blocks.0.mlps.weight") == 1.0


def test_statistics_have_their_own_alphas():
    pi, (a, ft, b) = spec_of("vgg").random(1), states("vgg")
    name = next(n for n in b if n.endswith("running_mean"))
    found = dict(transported(a, ft, b, pi, Alphas(1.0, ((name.rpartition(".")[0], 0.25),))))
    assert torch.equal(found[name], fxr.transport(a, ft, b, pi, 0.25)[name])
    other = [n for n in b if n.endswith("running_mean")][1]
    assert torch.equal(found[other], fxr.transport(a, ft, b, pi, 1.0)[other])


@pytest.mark.parametrize("alphas, word", [
    (Alphas(math.nan), "alpha is nan"), (Alphas(1.0, (("h.*", math.inf),)), "alpha is inf"),
    (Alphas(1.0, (("blocks.*", 0.5),)), r"'blocks.\*' fits no tensor of the model, such as"),
    (Alphas(1.0, (("wte", 0.5),)), "'wte.weight' and 'lm_head.weight' can change places or are one tensor")])
def test_alphas_that_say_nothing(alphas, word):
    a, ft, b = states("gpt2")
    with pytest.raises(fxr.StateError, match=word):
        dict(transported(a, ft, b, spec_of("gpt2").random(1), alphas))


def test_sums_that_do_not_fit():
    a, ft, b = states("mlp")
    with pytest.raises(fxr.StateError, match="2 task vectors and 1 weights"):
        WeightedSum(a, [ft, ft], [1.0])
    with pytest.raises(fxr.StateError, match="a weight of a task vector is nan"):
        WeightedSum(a, [ft], [math.nan])
    with pytest.raises(fxr.StateError, match="state 2 lacks '0.bias'"):
        dict(WeightedSum(a, [ft, {n: t for n, t in ft.items() if n != "0.bias"}], [1, 1]))
