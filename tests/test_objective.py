"""What a match maximises: it depends neither on the scale of a state or of its parts, nor on statistics and constants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import spec_of, state_of
from counted import counted
from torch import nn

import fxrebasin as fxr
from fxrebasin.match import METHODS, Problem
from fxrebasin.match.methods import METHODS as REGISTRY
from fxrebasin.match.methods import Method, method_named

GAINED = ("vit_fused", "vit_separate", "llama", "neox", "gpt2_conv1d", "encoder_pre_norm_batch_first")


def noisy(state, sigma, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return {k: v + sigma * v.square().mean().sqrt() * torch.randn(v.shape, generator=noise, dtype=v.dtype)
            for k, v in state.items() if v.is_floating_point()}


# == scale ===================================================================================================


@pytest.mark.parametrize("method", ["exact", "transfusion", "git-rebasin", "ot"])
@pytest.mark.parametrize("dtype, scales", [(torch.float32, (1e-36, 1e-25, 1e20, 1e30)), (torch.bfloat16, (1e-25, 1e20)),
                                           (torch.float16, (2e-3, 1e3)), (torch.float64, (1e-290, 1e-150, 1e250))])
def test_weights_of_any_scale_match_as_at_one(method, dtype, scales):
    spec = spec_of("mlp")
    one = {k: v.to(dtype) for k, v in state_of("mlp").items()}
    other = {k: v.to(dtype) for k, v in noisy(spec.random(3).apply(state_of("mlp")), 0.5).items()}
    at_one = fxr.match(spec, one, other, method)
    for scale in scales:
        for source, target in (((scale, scale), (1, scale), (scale, 1))):
            a, b = ({k: (v.double() * s).to(dtype) for k, v in state.items()} for state, s in ((one, source), (other, target)))
            found = fxr.match(spec, a, b, method)
            assert all(np.array_equal(found.permutations[n], p) for n, p in at_one.permutations.items()), (scale, source, target)
            assert found.objective == pytest.approx(at_one.objective, abs=1e-3 if dtype.itemsize == 2 else 1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
def test_equivalence_is_found_at_any_scale(scale):
    spec = spec_of("mlp")
    a = {k: v.float() * scale for k, v in state_of("mlp").items()}
    b = spec.random(3).apply(a)
    assert fxr.find_equivalence(spec, a, b) == spec.random(3)


@pytest.mark.parametrize("name", ["mlp", "resnet_small", "vit_separate"])
def test_each_tensor_may_have_a_scale_of_its_own(name):
    """Far apart, and differently in the two states."""
    spec, a = spec_of(name), state_of(name)
    planted = spec.random(1)
    b = noisy(planted.apply(a), 0.5)
    rng = np.random.default_rng(0)
    names = [n for n in spec.layouts if spec.role(n) == "parameter" and n not in spec.ties]
    moved = [{k: v * 10 ** rng.uniform(-9, 9) if k in names else v for k, v in s.items()} for s in (a, b)]
    assert fxr.match(spec, *moved) == planted


# == gains ===================================================================================================


def rescaled(spec: fxr.Spec, state, seed: int):
    """The same function: gains multiplied by random positive numbers, and what reads them divided by these."""
    noise = torch.Generator().manual_seed(seed)
    result = dict(state)
    for gain in dict.fromkeys(f.gain for f in spec.folds):
        by = torch.exp(torch.randn(state[gain].shape, generator=noise, dtype=torch.float64))
        result[gain] = state[gain] * by
        bias = gain.removesuffix("weight") + "bias"
        if bias in result:
            result[bias] = state[bias] * by
        for fold in (f for f in spec.folds if f.gain == gain):
            shape = [-1 if d == fold.axis else 1 for d in range(state[fold.tensor].ndim)]
            result[fold.tensor] = result[fold.tensor] / by.reshape(shape)
    return result


@pytest.mark.parametrize("name", GAINED)
def test_a_gain_and_its_readers_are_one_thing(name):
    """A network written with other gains is the same function, and matches alike."""
    spec, a = spec_of(name), state_of(name)
    planted = spec.random(4)
    b = noisy(planted.apply(a), 0.3)
    module, inputs = __import__("architectures").build(name)
    with torch.no_grad():
        before = module(*inputs)
        module.load_state_dict(rescaled(spec, module.state_dict(), 1))
        assert (module(*inputs) - before).abs().max() < 1e-9, "the gains are not what the readers read"
    one = fxr.match(spec, a, b)
    other = fxr.match(spec, rescaled(spec, a, 1), rescaled(spec, b, 2))
    weights = [n for n in spec.layouts if not n.endswith("bias")]
    parts = [counted(spec, rescaled(spec, s, k), rescaled(spec, s, k))[0] for s, k in ((a, 1), (b, 2))]
    for part, state in zip(parts, (a, b)):
        plain = counted(spec, state, state)[0]
        assert all(torch.allclose(part[n], plain[n], atol=1e-9) for n in weights)
    assert one == other == planted


def test_gains_are_folded_where_linear_maps_alone_read_them():
    folds = {f.gain: [] for name in GAINED for f in spec_of(name).folds}
    assert folds and not spec_of("mlp").folds
    llama = spec_of("llama")
    assert {f.tensor for f in llama.folds if f.gain == "layers.0.input_layernorm.weight"} == {
        f"layers.0.{k}_proj.weight" for k in "qkv"}
    post = spec_of("encoder_post_norm_batch_first")  # the residual stream reads these too
    assert {f.tensor for f in post.folds} == {"head.weight"}
    gpt = spec_of("gpt2")  # the head is tied to the embedding, which reads ids
    assert not any(f.tensor in ("wte.weight", "lm_head.weight") for f in gpt.folds)


class Shifted(nn.Module):
    """A gain stored less one; a gate between a gain and its reader; a gain read by two maps; a map that two gains reach."""

    def __init__(self):
        super().__init__()
        self.inside, self.outside = nn.Linear(3, 8), nn.Linear(8, 2, bias=False)
        self.plus, self.gated, self.twice, self.one, self.other = (nn.Parameter(torch.rand(8)) for _ in range(5))
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(8, 8, bias=False) for _ in range(5))

    def forward(self, x):
        h = self.inside(x).tanh()
        y = self.a(h * (1 + self.plus)) + self.b((h * self.gated).relu())
        y = y + self.c(h * self.twice) + self.d((self.twice * h).unsqueeze(1)).squeeze(1)
        return self.outside(y + self.e(h * self.one) + self.e(h * self.other))


def test_what_else_may_be_a_gain():
    spec = fxr.infer(Shifted(), torch.randn(2, 3))
    assert {(f.tensor, f.gain, f.plus) for f in spec.folds} == {
        ("a.weight", "plus", 1.0), ("c.weight", "twice", 0.0), ("d.weight", "twice", 0.0)}
    assert fxr.Spec.from_json(spec.to_json()).folds == spec.folds


def test_random_numbers_are_no_scale():
    """A gain of both signs would spoil what it is multiplied into, and is left alone."""
    spec = spec_of("llama")
    state = dict(state_of("llama"))
    gain = spec.folds[0].gain
    state[gain] = torch.linspace(-1, 1, state[gain].numel(), dtype=torch.float64)
    pieces = {p.tensor: p for p in Problem(spec, state, state).pieces}
    readers = [f.tensor for f in spec.folds if f.gain == gain]
    assert gain in pieces and all(not pieces[r].folded for r in readers)
    others = [f for f in spec.folds if f.gain != gain]
    assert others and all(f.gain not in pieces and pieces[f.tensor].folded for f in others)


@pytest.mark.parametrize("fold", [["head.weight", 0, "norm.weight", 0.0], ["head.weight", 7, "norm.weight", 0.0],
                                  ["none", 1, "norm.weight", 0.0], ["head.weight", 1, "norm.weight", "x"],
                                  ["head.weight", 1, "norm.weight", float("inf")], "head"])
def test_folds_in_a_file_that_make_no_sense(fold):
    text = spec_of("vit_fused").to_json()
    data = __import__("json").loads(text)
    data["folds"] = [fold]
    with pytest.raises(fxr.SpecError, match="not a spec"):
        fxr.Spec.from_json(__import__("json").dumps(data))


def test_shapes_alone_make_a_problem_too():
    spec = spec_of("vit_fused")
    meta = {name: torch.empty(shape, device="meta") for name, shape in spec.shapes.items()}
    assert {p.tensor for p in Problem(spec, meta, meta).pieces} == set(spec.permutable)


# == what is no parameter ====================================================================================


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(4, 24, 5, padding=2), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 24, 5, padding=2),
                                  nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 4, 1))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("method", ["exact", "transfusion", "git-rebasin"])
@pytest.mark.parametrize("spoiled", ["disturbed", "drawn anew", "constant"])
def test_statistics_do_not_decide(method, spoiled):
    """Running means and variances are as large as activations; the weights alone find the planted permutation."""
    spec = fxr.infer(Normed().eval(), torch.randn(2, 4, 12))
    draw = torch.Generator().manual_seed(0)

    def statistics():
        return {k: torch.rand(24, generator=draw) * 400 + 20 if "var" in k else torch.randn(24, generator=draw) * 20
                for k in spec.layouts if "running" in k}
    torch.manual_seed(0)
    a = {k: v.clone() for k, v in Normed().state_dict().items()} | statistics()
    planted = spec.random(1)
    moved = planted.apply(a)
    spoil = {"drawn anew": statistics(), "constant": {k: torch.full((24,), 5.0) for k in statistics()},
             "disturbed": {k: moved[k] * (1 + 0.3 * torch.randn(24, generator=draw)) for k in statistics()}}[spoiled]
    b = noisy(moved, 0.5) | spoil | {k: v for k, v in moved.items() if not v.is_floating_point()}
    assert fxr.match(spec, a, b, method) == planted


def test_buffers_count_where_nothing_else_tells():
    """Weights that are kept as buffers."""
    net = nn.Sequential(nn.Linear(4, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False))
    for layer in (net[0], net[2]):
        weight = layer.weight.detach()
        del layer.weight
        layer.register_buffer("weight", weight)
    spec = fxr.infer(net, torch.randn(2, 4))
    assert all(spec.role(name) != "parameter" for name in spec.layouts)
    assert fxr.match(spec, net.state_dict(), spec.random(2).apply(net.state_dict())) == spec.random(2)


def test_statistics_tell_equal_units_apart_where_equality_is_asked_for():
    """Two channels of equal weights and other statistics: an equivalence has to keep them apart."""
    torch.manual_seed(0)
    spec = fxr.infer(Normed().eval(), torch.randn(2, 4, 12))
    a = dict(Normed().state_dict())
    a["body.0.weight"][1], a["body.0.bias"][1] = a["body.0.weight"][0], a["body.0.bias"][0]
    a["body.3.weight"][:, 1] = a["body.3.weight"][:, 0]
    a["body.1.running_mean"] = torch.randn(24)
    for seed in range(4):
        b = spec.random(seed).apply(a)
        found = fxr.find_equivalence(spec, a, b)
        assert found is not None and all(torch.equal(found.apply(a)[k], b[k]) for k in b)


# == methods =================================================================================================


def test_every_method_is_registered_under_the_name_that_users_type():
    assert set(METHODS) >= {"exact", "transfusion", "git-rebasin", "ot", "identity", "random"}
    for name in METHODS:
        assert isinstance(method_named(name), Method) and method_named(name) is REGISTRY[name]
    for wrong in ("magic", "", "Exact", "git_rebasin"):
        with pytest.raises(fxr.FxrebasinError, match="choose one of exact, transfusion, git-rebasin, ot, identity, random"):
            method_named(wrong)


def test_the_random_control_is_an_element_of_the_group():
    spec, a, b = spec_of("vit_fused"), state_of("vit_fused"), state_of("vit_fused", seed=1)
    found = fxr.match(spec, a, b, "random", seed=5)
    assert found == spec.random(5) and abs(found.objective) < 0.2


@pytest.mark.parametrize("method", ["transfusion", "git-rebasin", "ot"])
def test_published_methods_maximise_what_they_were_published_with(method):
    """The weights as they are; what is reported is the figure of all methods."""
    spec, a, b = spec_of("llama"), state_of("llama"), state_of("llama", seed=1)
    found = fxr.match(spec, a, b, method)
    assert found == fxr.match(spec, a, b, method, objective="plain")
    problem = Problem(found.spec, a, b)
    problem.reset(found)
    assert found.objective == pytest.approx(problem.cosine(), abs=1e-12)
    plain, other = (Problem(found.spec, a, b, objective="plain") for _ in range(2))
    plain.reset(found)
    other.reset(fxr.match(spec, a, b, method, objective="scaled"))
    assert plain.cosine() > other.cosine() - 0.01, "the other objective serves it better"


def test_unknown_objectives_are_named():
    with pytest.raises(fxr.FxrebasinError, match="unknown objective .x.: choose one of scaled, half, folded, plain, all, raw"):
        fxr.match(spec_of("mlp"), state_of("mlp"), state_of("mlp"), objective="x")


@pytest.mark.parametrize("objective, expected", [("scaled", 1.0), ("half", 2.0), ("folded", 4.0)])
def test_an_objective_says_how_much_the_size_of_a_block_counts(objective, expected):
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False))
    spec = fxr.infer(model, torch.randn(4, 3))
    state = {"0.weight": torch.ones(5, 3), "2.weight": torch.full((2, 5), 4.0)}
    problem = Problem(spec, state, state, objective=objective)
    sizes = {p.tensor: float(p.sides()[0].square().mean().sqrt()) for p in problem.pieces}
    assert sizes["2.weight"] / sizes["0.weight"] == pytest.approx(expected, rel=1e-6)
