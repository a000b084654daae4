"""Transport: target + alpha * pi(finetuned - base), and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from architectures import NESTED, build, mlp, spec_of, state_of
from torch.func import functional_call

import fxrebasin as fxr


def tuned(state, size: float = 0.1, seed: int = 5):
    noise = torch.Generator().manual_seed(seed)
    shared: dict[int, torch.Tensor] = {}
    for k, v in state.items():
        if v.is_floating_point():
            step = size * torch.randn(v.shape, generator=noise, dtype=v.dtype)
            shared.setdefault(v.data_ptr(), v + step)
    return {k: shared.get(v.data_ptr(), v) for k, v in state.items()}


def states(name: str):
    base = state_of(name)
    return base, tuned(base), state_of(name, seed=1)


# == the formula =============================================================================================


@pytest.mark.parametrize("alpha", [1.0, 0.5, -2.0])
def test_formula_by_hand(alpha):
    """An MLP of one hidden layer, with explicit loops."""
    module = mlp(2, 3, 2).double()
    spec = fxr.infer(module, torch.randn(4, 2).double())
    base, new = module.state_dict(), mlp(2, 3, 2).double().state_dict()
    fine = tuned(base)
    (group,) = spec.groups
    p = [2, 0, 1]
    result = fxr.transport(base, fine, new, fxr.Alignment(spec, {group: np.array(p)}), alpha)
    for i in range(3):
        assert float(result["0.bias"][i]) == float(new["0.bias"][i]) + alpha * float(fine["0.bias"][p[i]] - base["0.bias"][p[i]])
        for j in range(2):
            assert float(result["0.weight"][i, j]) == (
                float(new["0.weight"][i, j]) + alpha * float(fine["0.weight"][p[i], j] - base["0.weight"][p[i], j]))
            assert float(result["2.weight"][j, i]) == (
                float(new["2.weight"][j, i]) + alpha * float(fine["2.weight"][j, p[i]] - base["2.weight"][j, p[i]]))
    for j in range(2):
        assert float(result["2.bias"][j]) == float(new["2.bias"][j]) + alpha * float(fine["2.bias"][j] - base["2.bias"][j])


@pytest.mark.parametrize("name", ["vgg", "gpt2", *NESTED])
def test_formula_from_its_parts(name):
    base, fine, new = states(name)
    spec = spec_of(name)
    pi = spec.random(3)
    vector = fxr.task_vector(base, fine)
    carried = pi.apply({k: vector[k] for k in spec.shapes})
    result = fxr.transport(base, fine, new, pi, 0.7)
    assert list(result) == list(new)
    for k in (k for k in spec.shapes if "running" not in k):  # statistics have units of their own: test_statistics.py
        assert torch.equal(result[k], new[k] + 0.7 * carried[k]), k


@pytest.mark.parametrize("name", ["vgg", "vit_fused", "llama"])
def test_transport_to_a_permuted_copy_is_the_permuted_finetuning(name):
    """Where the target is pi(base), carrying the fine-tuning over gives pi(finetuned), and its function."""
    module, inputs = build(name)
    base = module.state_dict()
    fine, spec = tuned(base, 0.02), spec_of(name)
    pi = spec.random(4)
    target = pi.apply(base)
    result = fxr.transport(base, fine, target, fxr.match(spec, base, target))
    expected = pi.apply(fine)
    gap = max(float((result[k] - expected[k]).abs().max()) for k in spec.shapes)
    print(f"{name}: {gap:.1e}")
    assert gap < 1e-15 * 16
    with torch.no_grad():
        one, two, old = (functional_call(module, s, inputs, tie_weights=False) for s in (result, fine, base))
    assert (one - two).abs().max() < 1e-12 < 1e-3 < (two - old).abs().max()


@pytest.mark.parametrize("name", ["mlp", "vgg", "gpt2", "neox"])
def test_alpha_zero_gives_the_target_back(name):
    base, fine, new = states(name)
    result = fxr.transport(base, fine, new, spec_of(name).random(1), alpha=0.0)
    assert all(torch.equal(result[k], new[k]) for k in new) and list(result) == list(new)
    assert not any(result[k].data_ptr() == new[k].data_ptr() for k in new)


def test_the_identity_adds_the_plain_task_vector():
    base, fine, new = states("vit_fused")
    result = fxr.transport(base, fine, new, spec_of("vit_fused").identity())
    assert all(torch.equal(result[k], new[k] + (fine[k] - base[k])) for k in new)


def test_transport_changes_none_of_its_arguments():
    base, fine, new = states("gpt2")
    before = [{k: v.clone() for k, v in s.items()} for s in (base, fine, new)]
    result = fxr.transport(base, fine, new, spec_of("gpt2").random(0))
    for tensor in result.values():
        tensor.zero_()
    for old, state in zip(before, (base, fine, new)):
        assert all(torch.equal(old[k], state[k]) for k in state)


# == dtypes, ties, counters ==================================================================================


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_target_decides_the_dtype_and_the_sum_is_wide(dtype):
    base, fine, new = states("mlp")
    low = {k: v.to(dtype) for k, v in new.items()}
    pi = spec_of("mlp").random(2)
    result = fxr.transport(base, fine, low, pi)
    carried = pi.apply(fxr.task_vector(base, fine))
    for k in low:
        assert result[k].dtype == dtype
        assert torch.equal(result[k], (low[k].double() + carried[k]).to(dtype))


def test_low_precision_differences_are_formed_in_float32():
    """In bfloat16 the difference itself would be rounded: 1.0078125 - 0.0009765625 has no bfloat16."""
    spec = spec_of("mlp")
    base = {k: torch.full_like(v, 1.0078125).bfloat16() for k, v in state_of("mlp").items()}
    fine = {k: torch.full_like(v, 0.0009765625).bfloat16() for k, v in base.items()}
    vector = fxr.task_vector(base, fine)
    assert all(v.dtype == torch.float32 and bool((v == 0.0009765625 - 1.0078125).all()) for v in vector.values())
    new = {k: torch.ones_like(v, dtype=torch.float32) for k, v in base.items()}
    result = fxr.transport(base, fine, new, spec.random(0))
    assert all(bool((v == 1.0 + (0.0009765625 - 1.0078125)).all()) for v in result.values())


@pytest.mark.parametrize("name", ["gpt2", "gpt2_conv1d"])
def test_ties_stay_tied(name):
    base, fine, new = states(name)
    assert fine["wte.weight"] is fine["lm_head.weight"]
    result = fxr.transport(base, fine, new, spec_of(name).random(2))
    assert result["wte.weight"] is result["lm_head.weight"]


def test_counters_come_from_the_target():
    base, fine, new = (dict(s) for s in states("vgg"))
    counters = [k for k in new if k.endswith("num_batches_tracked")]
    for value, state in enumerate((base, fine, new)):
        for k in counters:
            state[k] = torch.tensor(10 + value)
    result = fxr.transport(base, fine, new, spec_of("vgg").random(2))
    assert counters and all(int(result[k]) == 12 and result[k].dtype == torch.int64 for k in counters)


# == wrong requests ==========================================================================================


def without(state):
    return {k: v for k, v in state.items() if k != "2.bias"}


def misshaped(state):
    return {**state, "2.bias": torch.zeros(3)}


def infinite(state):
    return {**state, "2.bias": torch.full_like(state["2.bias"], math.inf)}


def extra(state):
    return {**state, "more": torch.zeros(3)}


@pytest.mark.parametrize("change, message", [(without, "lacks '2.bias'"), (misshaped, r"'2.bias' has shape \(3,\)"),
                                             (infinite, "'2.bias' holds NaN or infinity"), (extra, "unexpected 'more'")])
@pytest.mark.parametrize("which, name", [(0, "the base"), (1, "the fine-tuned state"), (2, "the target")])
def test_states_that_do_not_fit(which, name, change, message):
    given = list(states("mlp"))
    given[which] = change(given[which])
    with pytest.raises(fxr.StateError, match=f"{name}(:| has)? {message}") as caught:
        fxr.transport(*given, spec_of("mlp").identity())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_alpha_must_be_finite(alpha):
    with pytest.raises(fxr.StateError, match="alpha is .*: give a finite number"):
        fxr.transport(*states("mlp"), spec_of("mlp").identity(), alpha=alpha)


def test_task_vectors_of_different_models():
    base, fine, _ = states("mlp")
    with pytest.raises(fxr.StateError, match="lacks '2.bias': it is not a fine-tuning of this base"):
        fxr.task_vector(base, without(fine))
    with pytest.raises(fxr.StateError, match=r"'2.bias' has shape \(3,\) in the fine-tuned state and \(48,\) in its base"):
        fxr.task_vector(base, misshaped(fine))
