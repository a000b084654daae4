"""Running statistics: carried in their own units, pooled, measured again; never negative, never NaN."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.spec import roles
from fxrebasin.statistics import measured, statistics_of
from fxrebasin.transport import transported

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()


def state_of(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = network().double().state_dict()
    state["1.running_mean"] = torch.randn(6).double() * 3
    state["1.running_var"] = torch.rand(6).double() * 4 + 0.1
    return state


@pytest.fixture(scope="module")
def spec():
    return fxr.infer(network(), X)


@pytest.mark.parametrize("alpha", [1.0, 0.3, -2.0, 5.0])
def test_the_formula_by_hand(spec, alpha):
    base, fine, new = map(state_of, range(3))
    pi = spec.random(1)
    (p,) = pi.permutations.values()
    result = fxr.transport(base, fine, new, pi, alpha)
    for i, old in enumerate(p):
        factor = float(fine["1.running_var"][old] / base["1.running_var"][old])
        variance = float(new["1.running_var"][i]) * factor ** alpha
        shift = float(fine["1.running_mean"][old] - base["1.running_mean"][old]) / float(base["1.running_var"][old]) ** 0.5
        mean = float(new["1.running_mean"][i]) + alpha * shift * float(new["1.running_var"][i]) ** 0.5
        assert float(result["1.running_var"][i]) == pytest.approx(variance, rel=1e-12)
        assert float(result["1.running_mean"][i]) == pytest.approx(mean, rel=1e-12, abs=1e-12)
        assert float(result["1.running_var"][i]) > 0


def test_variances_stay_positive_and_the_network_finite(spec):
    base, fine, new = ({**state_of(k), "1.running_var": torch.full((6,), v).double()} for k, v in enumerate((4.0, 0.5, 1.0)))
    result = fxr.transport(base, fine, new, spec.identity())
    assert torch.allclose(result["1.running_var"], torch.full((6,), 0.125).double())
    module = network().double()
    module.load_state_dict(result)
    assert torch.isfinite(module(X.double())).all()


@pytest.mark.parametrize("dead", [0.0, 1e-30])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_dead_channel_has_no_factor(spec, which, dead):
    given = list(map(state_of, range(3)))
    given[which]["1.running_var"][2] = dead
    result = fxr.transport(*given, spec.identity())
    for name in ("1.running_mean", "1.running_var"):
        assert torch.isfinite(result[name]).all() and (result["1.running_var"] >= 0).all()
    assert float(result["1.running_var"][2]) == float(given[2]["1.running_var"][2]) or which == 2


def test_statistics_of_the_target(spec):
    base, fine, new = map(state_of, range(3))
    pi = spec.random(1)
    kept, ratio = (fxr.transport(base, fine, new, pi, statistics=s) for s in ("target", "ratio"))
    for name in new:
        assert torch.equal(kept[name], new[name] if "running" in name else ratio[name]), name
    with pytest.raises(fxr.FxrebasinError, match="statistics must be one of 'ratio', 'target', not 'mean'"):
        fxr.transport(base, fine, new, pi, statistics="mean")


def test_a_permuted_base_gives_the_permuted_finetuning(spec):
    base, fine = state_of(0), state_of(1)
    pi = spec.random(3)
    result, expected = fxr.transport(base, fine, pi.apply(base), pi), pi.apply(fine)
    assert all(torch.allclose(result[k], expected[k], rtol=1e-12, atol=1e-12) for k in expected)


class Frozen(nn.Module):
    """A frozen batch norm by hand, and one whose mean has no variance beside it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 6)
        for name in ("running_mean", "running_var", "moving_variance"):
            self.register_buffer(name, torch.rand(6) + 0.5)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        hidden = (self.inner(x) - self.running_mean) / (self.running_var + 1e-5).sqrt()
        return self.out((hidden * (self.moving_variance + 1e-5).rsqrt()).relu())


def test_a_mean_between_two_variances_is_shifted_as_it_is():
    spec = fxr.infer(Frozen(), X)
    assert statistics_of(spec) == {"running_var": None, "moving_variance": None, "running_mean": None}
    base, fine, new = (Frozen().state_dict() for _ in range(3))
    result = fxr.transport(base, fine, new, spec.identity())
    assert torch.equal(result["running_mean"], new["running_mean"] + (fine["running_mean"] - base["running_mean"]))
    assert torch.allclose(result["running_var"], new["running_var"] * fine["running_var"] / base["running_var"])


@pytest.mark.parametrize("statistics", ["ratio", "target"])
def test_part_by_part_is_the_same(spec, statistics):
    base, fine, new = map(state_of, range(3))
    pi = spec.random(2)
    whole = fxr.transport(base, fine, new, pi, 0.7, statistics=statistics)
    parts = dict(transported(base, fine, new, pi, alpha=0.7, statistics=statistics))
    assert parts.keys() == whole.keys() and all(torch.equal(parts[k], v) for k, v in whole.items())


# == pooled, and measured again ==============================================================================


@pytest.mark.parametrize("with_spec", [True, False])
def test_pooled_statistics_are_those_of_all_samples(spec, with_spec):
    data = [torch.randn(500, 6).double() * (k + 1) + 3 * k for k in range(3)]
    states = [{**state_of(k), "1.running_mean": x.mean(0), "1.running_var": x.var(0, unbiased=False)}
              for k, x in enumerate(data)]
    merged = fxr.merge(states, spec=spec if with_spec else None)
    together = torch.cat(data)
    assert torch.allclose(merged["1.running_mean"], together.mean(0))
    assert torch.allclose(merged["1.running_var"], together.var(0, unbiased=False))
    assert torch.allclose(merged["0.weight"], sum(s["0.weight"] for s in states) / 3)


def test_weights_count_in_the_pool():
    a, b = state_of(0), state_of(1)
    merged = fxr.merge([a, b], [3, 1])
    mean = 0.75 * a["1.running_mean"] + 0.25 * b["1.running_mean"]
    variance = sum(w * (s["1.running_var"] + (s["1.running_mean"] - mean) ** 2) for w, s in ((0.75, a), (0.25, b)))
    assert torch.allclose(merged["1.running_mean"], mean) and torch.allclose(merged["1.running_var"], variance)


def far_apart(dtype: torch.dtype, size: float) -> list[dict[str, torch.Tensor]]:
    """Two states: each running variance is small, and the one between their means is size ** 2."""
    return [{"n.weight": torch.full((2,), sign * 0.5, dtype=dtype), "n.steps": torch.tensor(3),
             "n.running_mean": torch.full((2,), sign * size, dtype=dtype),
             "n.running_var": torch.ones(2, dtype=dtype)} for sign in (1, -1)]


@pytest.mark.parametrize("dtype, size, wider", [(torch.float16, 300.0, torch.float32), (torch.float32, 1e20, torch.float64)])
def test_what_leaves_the_range_when_merged_is_refused_by_name(dtype, size, wider):
    states = far_apart(dtype, size)
    for key, state in enumerate(states):
        state["n.running_var"] += key  # else they agree, and are taken as they are
    with pytest.raises(fxr.StateError, match=rf"'n.running_var': merged, it leaves the range of {dtype}: give dtype={wider}"):
        fxr.merge(states)
    merged = fxr.merge(states, dtype=wider)
    assert {tensor.dtype for tensor in merged.values()} == {wider, torch.int64}
    assert torch.allclose(merged["n.running_var"], torch.full((2,), 1.5 + size ** 2, dtype=wider))
    steep = [{"w": torch.full((2,), value, dtype=dtype)} for value in (torch.finfo(dtype).max, 0.0)]
    with pytest.raises(fxr.StateError, match=f"'w': merged, it leaves the range of {dtype}"):
        fxr.merge(steep, [3, -1])
    assert fxr.merge(steep, [3, -1], dtype=wider)["w"].isfinite().all()


def test_a_narrower_dtype_holds_for_what_all_states_share_too():
    states = far_apart(torch.float32, 1.0)
    merged = fxr.merge(states, dtype=torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in merged.items()} == {
        name: torch.int64 if name == "n.steps" else torch.bfloat16 for name in states[0]}
    shared = [{"w": torch.full((2,), 1e6)}] * 2
    with pytest.raises(fxr.StateError, match="'w': merged, it leaves the range of torch.float16"):
        fxr.merge(shared, dtype=torch.float16)
    masks = [{"mask": torch.tensor([-torch.inf, float(k)])} for k in range(2)]
    assert fxr.merge(masks)["mask"].tolist() == [-torch.inf, 0.5]


def test_what_all_states_share_is_taken_as_it_is():
    third = torch.full((3,), 0.1)
    states = [{"pe": third.clone(), "mask": torch.tensor([-torch.inf, 0.0]), "n": torch.tensor(k)} for k in range(3)]
    merged = fxr.merge(states)
    assert torch.equal(merged["pe"], third) and torch.equal(merged["mask"], states[0]["mask"])
    assert int(merged["n"]) == 0 and merged["pe"].data_ptr() != states[0]["pe"].data_ptr()


def test_merging_states_of_different_models():
    with pytest.raises(fxr.StateError, match=r"'w' has shape \(3,\) in the first state, and has shape \(4,\) in another"):
        fxr.merge([{"w": torch.zeros(3)}, {"w": torch.zeros(4)}])
    with pytest.raises(fxr.StateError, match="'w' has shape .* and is not there in another"):
        fxr.merge([{"w": torch.zeros(3)}, {}])


def test_statistics_measured_again():
    model, state = network(), {k: v.float() if v.is_floating_point() else v for k, v in state_of(4).items()}
    before = copy.deepcopy(model.state_dict())
    found = measured(model, state, [X[:8], X[8:]])
    hidden = X @ state["0.weight"].T + state["0.bias"]
    halves = hidden.reshape(2, 8, 6)
    assert torch.allclose(found["1.running_mean"], hidden.mean(0), atol=1e-6)
    assert torch.allclose(found["1.running_var"], halves.var(1).mean(0), atol=1e-6)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and not model[1].training
    merged = fxr.merge([state, state_of(5)], model=model, inputs=[X])
    assert torch.allclose(merged["1.running_mean"], (X @ merged["0.weight"].T + merged["0.bias"]).mean(0), atol=1e-5)
    with pytest.raises(fxr.FxrebasinError, match="no inputs to measure statistics on"):
        measured(model, state, [])


# == deviations ==============================================================================================


class Standardised(nn.Module):
    """A norm written by hand on deviations, one of them under another name."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.inner, self.out = nn.Linear(4, width), nn.Linear(width, 3)
        for name in ("running_mean", "shift"):
            self.register_buffer(name, torch.randn(width))
        for name in ("running_std", "size"):
            self.register_buffer(name, torch.rand(width) + 0.2)

    def forward(self, x):
        hidden = (self.inner(x) - self.running_mean) / (self.running_std + 1e-5)
        return self.out((hidden.relu() + self.shift) / self.size.clamp(min=1e-3).view(1, -1))


def standardised(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {k: v.double() for k, v in Standardised().state_dict().items()}


def test_deviations_are_carried_by_ratio():
    spec = fxr.infer(Standardised(), X)
    assert {spec.role(n) for n in ("running_std", "size")} == {roles.DEVIATION}
    assert spec.role("running_mean") == roles.MEAN and spec.role("shift") == roles.BUFFER
    base, fine, new = map(standardised, range(3))
    fine["size"][0], fine["size"][1] = base["size"][0] * 1e-3, 0.0  # a difference would lead below zero
    assert statistics_of(spec) == {"running_std": None, "size": None, "running_mean": "running_std"}
    pi, alpha = spec.random(1), 0.7
    factor = pi.apply({**base, "size": fine["size"] / base["size"], "running_std": fine["running_std"] / base["running_std"]})
    result = fxr.transport(base, fine, new, pi, alpha)
    dead = pi.apply({**base, "size": fine["size"]})["size"] == 0
    expected = torch.where(dead, new["size"], new["size"] * factor["size"] ** alpha)
    assert torch.allclose(result["size"], expected) and dead.sum() == 1
    assert torch.allclose(result["running_std"], new["running_std"] * factor["running_std"] ** alpha)
    assert all(bool((result[n] > 0).all()) for n in ("running_std", "size"))
    assert not bool((new["size"] + alpha * (pi.apply(fine)["size"] - pi.apply(base)["size"]) > 0).all())  # the control
    assert dict(transported(base, fine, new, pi, alpha=alpha)).keys() == result.keys()


def test_a_permuted_base_with_deviations_gives_the_permuted_finetuning():
    spec = fxr.infer(Standardised(), X)
    base, fine, pi = standardised(0), standardised(1), spec.random(2)
    result, expected = fxr.transport(base, fine, pi.apply(base), pi), pi.apply(fine)
    assert all(torch.allclose(result[name], tensor) for name, tensor in expected.items())


def test_a_divisor_of_either_sign_keeps_it():
    spec = fxr.infer(Standardised(), X)
    base, fine, new = map(standardised, range(3))
    base["size"][0], fine["size"][0], fine["size"][1] = -0.5, -1.0, -1.0  # the second changes its sign: no factor
    result = fxr.transport(base, fine, new, spec.identity())
    assert float(result["size"][0]) == pytest.approx(2 * float(new["size"][0])) and result["size"][1] == new["size"][1]
    merged = fxr.merge([base, fine], spec=spec)["size"]
    assert torch.allclose(merged, (base["size"] + fine["size"]) / 2)


@pytest.mark.parametrize("with_spec", [True, False])
def test_pooled_deviations_are_those_of_all_samples(with_spec):
    data = [torch.randn(400, 6).double() * (k + 1) + 3 * k for k in range(2)]
    states = [{**standardised(k), "running_mean": x.mean(0), "running_std": x.std(0, unbiased=False)}
              for k, x in enumerate(data)]
    merged = fxr.merge(states, spec=fxr.infer(Standardised(), X) if with_spec else None)
    assert torch.allclose(merged["running_std"], torch.cat(data).std(0, unbiased=False))


def test_divisors_that_both_states_share_are_fixed():
    spec = fxr.infer(Standardised(), X)
    one, other = standardised(0), standardised(1)
    assert "size" not in spec.fixed(one, other)
    assert spec.fixed(one, {**other, "size": one["size"]}) == ("size",)
