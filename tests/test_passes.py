"""Passes: the same function before and after, the second time nothing more, and a reason for what is left."""
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, build
from torch import nn

import fxrebasin as fxr
from fxrebasin.capture import capture
from fxrebasin.demo import models
from fxrebasin.evaluate import Trial, draw_inputs, draw_state

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
DECODERS = ("gpt2 gpt_neo gpt_neox gptj codegen llama mistral qwen2 qwen3 gemma gemma2 phi phi3 opt bloom falcon stablelm "
            "starcoder2 olmo olmo2 cohere granite persimmon mpt biogpt nemotron glm smollm3 helium exaone4").split()
ENCODERS = "vit deit dinov2 ijepa bert roberta".split()
TIMM = ("vit_tiny_patch16_224 deit_tiny_patch16_224 cait_xxs24_224 eva02_tiny_patch14_224 "
        "test_vit").split()


def zoo(name):
    from benchmarks import zoo_models
    torch.manual_seed(0)
    if name in TIMM:
        timm = pytest.importorskip("timm")
        return zoo_models._image_model(partial(timm.create_model, name), name)
    pytest.importorskip("transformers")
    return zoo_models._transformer(name)


def holds(model, inputs, spec, seed=0):
    """A state drawn at random beside its canonical form: the relative error in float64, and that of a second time."""
    program = capture(model, inputs)
    state = draw_state(program, seed, model.state_dict())
    state |= {name: value for name, value in model.state_dict().items() if name in spec.passed}
    given = inputs if isinstance(inputs, dict) else dict(zip(program.signature.parameters, inputs))
    trial = Trial(program, state, draw_inputs(program, [given], seed, "ordinary"))
    first = fxr.canonicalize(spec, trial.state)
    second = fxr.canonicalize(spec, first.state)
    again = max(float((second.state[name] - value).abs().max() / (value.abs().max() + 1e-30))
                for name, value in first.state.items() if value.is_floating_point())
    return trial.compare(first.state).relative, again, first


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS, *TIMM])
def test_the_function_stays_and_a_second_time_changes_nothing(name):
    model, inputs = zoo(name)
    spec = fxr.infer(model.eval(), inputs, falsify=False)  # the passes by themselves: nothing is left out by trial
    error, again, canonical = holds(model, inputs, spec)
    assert error < 1e-9 and again < 1e-12
    assert canonical.steps  # and each that was not done says why
    assert all(step.reason or step.into or step.kind in ("key bias", "centre") for step in canonical.steps)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_small_architecture(name):
    model, inputs = build(name)
    spec = fxr.infer(model, inputs, falsify=False)
    error, again, _ = holds(model, inputs, spec)
    assert error < 1e-9 and again < 1e-12


def done(canonical, kind):
    return [step.entry for step in canonical.steps if step.kind == kind and not step.reason]


def reasons(canonical, kind):
    return {step.entry: step.reason for step in canonical.steps if step.kind == kind and step.reason}


def vit():
    torch.manual_seed(0)
    model = models.ViT(dim=12, depth=2, heads=3, patch=7).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.4)
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with pytest.warns(UserWarning, match="size 1"):
        return model, x, fxr.infer(model, x)


def test_a_transformer_in_its_canonical_gauge():
    model, x, spec = vit()
    canonical = fxr.canonicalize(spec, model.state_dict())
    state = canonical.state
    assert len(done(canonical, "gain")) == len(done(canonical, "shift")) == 5 and not any(step.reason for step in canonical.steps)
    for block in ("blocks.0", "blocks.1"):
        assert torch.equal(state[f"{block}.norm1.weight"], torch.ones(12).double())
        assert torch.equal(state[f"{block}.norm1.bias"], torch.zeros(12).double())
        assert not state[f"{block}.attn.qkv.bias"][12:].any() and state[f"{block}.attn.qkv.bias"][:12].any()
        assert state[f"{block}.fc2.weight"].mean(0).abs().max() < 1e-15
    assert state["position"].mean(-1).abs().max() < 1e-15
    before = model(x)
    model.load_state_dict(state)
    assert torch.allclose(model(x), before, rtol=1e-12, atol=1e-12)


def test_each_pass_alone_keeps_the_function_and_only_those_asked_for_run():
    model, x, spec = vit()
    before, own = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    for kind in ("shift", "gain", "key bias", "value bias", "centre"):
        canonical = fxr.canonicalize(spec, own, passes=[kind])
        assert {step.kind for step in canonical.steps} == {kind}
        assert any(not torch.equal(canonical.state[name], own[name]) for name in own)
        model.load_state_dict(canonical.state)
        assert torch.allclose(model(x), before, rtol=1e-12, atol=1e-12)
    with pytest.raises(fxr.FxrebasinError, match="'bias' is no pass: choose among shift, gain"):
        fxr.canonicalize(spec, own, passes=["bias"])
    with pytest.raises(fxr.StateError):
        fxr.canonicalize(spec, {"a": torch.zeros(3)})


def test_dtypes_ties_and_the_given_state_stay():
    model, x, spec = vit()
    half = {name: value.half() for name, value in model.state_dict().items()}
    kept = {name: value.clone() for name, value in half.items()}
    canonical = fxr.canonicalize(spec, half)
    assert all(value.dtype == torch.float16 for value in canonical.state.values()) and list(canonical.state) == list(half)
    assert all(torch.equal(half[name], kept[name]) for name in half)


class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.norm, self.head = (
            nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2))

    def forward(self, x):
        x = self.stem(x)
        x = self.norm(x + self.two(F.relu(self.one(x))))
        return self.head(x + self.two(F.relu(self.one(x))))


def test_a_post_norm_stream_is_refused_with_a_reason():
    torch.manual_seed(0)
    model, x = PostNorm().double().eval(), torch.randn(4, 3, dtype=torch.float64)
    spec = fxr.infer(model, x)
    canonical = fxr.canonicalize(spec, model.state_dict())
    assert "also read by aten.add.Tensor" in reasons(canonical, "gain")["norm.weight"]
    assert "also read by add" in reasons(canonical, "shift")["norm.bias"]
    assert reasons(canonical, "centre")  # two.weight writes to what the head reads, too
    assert not done(canonical, "centre")


class Shared(nn.Module):
    """One norm for two readers, one of which is tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.first = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, ids):
        x = self.embedding(ids)
        return self.norm(x + self.first(self.norm(x))) @ self.embedding.weight.T


def test_a_gain_whose_reader_is_tied_stays():
    torch.manual_seed(0)
    model, ids = Shared().double().eval(), torch.arange(6).view(2, 3)
    canonical = fxr.canonicalize(fxr.infer(model, ids), model.state_dict())
    assert "reads what it scales" in reasons(canonical, "gain")["norm.weight"]
    assert "norm.bias" in reasons(canonical, "shift")
    assert "also read by" in reasons(canonical, "centre")["embedding.weight"]


class Unbiased(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)))


def test_a_shift_that_stays_is_divided_by_its_gain_unless_that_is_ill_conditioned():
    torch.manual_seed(0)
    model, x = Unbiased().double().eval(), torch.randn(4, 3, dtype=torch.float64)
    nn.init.normal_(model.norm.weight), nn.init.normal_(model.norm.bias)
    spec, before = fxr.infer(model, x), model(x)
    canonical = fxr.canonicalize(spec, model.state_dict())
    assert reasons(canonical, "shift") == {"norm.bias": "'head.weight' reads it without a bias"}
    assert done(canonical, "gain") == ["norm.weight"]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(canonical.state)
    assert torch.allclose(model(x), before, rtol=1e-12, atol=1e-12)
    state["norm.weight"][0] = 1e-9
    assert "condition is" in reasons(fxr.canonicalize(spec, state), "gain")["norm.weight"]
    state["norm.bias"].zero_()
    assert done(fxr.canonicalize(spec, state), "gain") == ["norm.weight"]  # nothing is divided


def test_rotary_keys_keep_their_bias_with_the_reason():
    model, inputs = zoo("gpt_neox")
    canonical = fxr.canonicalize(fxr.infer(model, inputs), model.state_dict())
    assert all("stands between it and the scores" in why for why in reasons(canonical, "key bias").values())
    assert len(reasons(canonical, "key bias")) == 2


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x, mask):
        q, k, v = (f(x).view(2, 3, 2, 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(y.transpose(1, 2).reshape(2, 3, 4))


def test_a_mask_that_may_hide_everything_keeps_the_bias_of_values():
    torch.manual_seed(0)
    model = Masked().double().eval()
    inputs = torch.randn(2, 3, 4, dtype=torch.float64), torch.ones(2, 1, 3, 3, dtype=torch.bool)
    canonical = fxr.canonicalize(fxr.infer(model, inputs), model.state_dict())
    assert reasons(canonical, "value bias") == {"v.bias": "a mask may leave a query nothing to look at"}
    assert done(canonical, "key bias") == ["k.bias"]


class TwoReaders(Masked):
    """Two maps read what attention makes, and add one bias."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        q, k, v = (f(x).view(2, 3, 2, 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 3, 4)
        return self.o(y), F.linear(y, self.other, self.o.bias)


def test_a_bias_that_two_maps_add_takes_up_no_bias_of_values():
    torch.manual_seed(0)
    model, x = TwoReaders().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    canonical = fxr.canonicalize(fxr.infer(model, x, falsify=False), model.state_dict())
    assert reasons(canonical, "value bias") == {"v.bias": "'o.bias' is also read elsewhere"}


def test_a_wrong_claim_is_found_by_trial(monkeypatch):
    """What the finder gets wrong does not leave `infer`: here it takes every shift for one that may be dropped."""
    from fxrebasin.passes import shift
    monkeypatch.setattr(shift, "taken", lambda rewrite, state: None)
    model, x, spec = vit()
    canonical = fxr.canonicalize(spec, model.state_dict())
    assert not done(canonical, "shift") and len(done(canonical, "gain")) == 5
    assert set(reasons(canonical, "shift").values()) == {"it changes what the network computes at random numbers"}


def test_what_is_found_goes_through_json():
    _, _, spec = vit()
    again = fxr.Spec.from_json(spec.to_json())
    assert again.rewrites == spec.rewrites and again == spec
    for wrong in ('"entry": "nothing"', '"entry": "blocks.0.fc2.weight"'):
        with pytest.raises(fxr.SpecError):
            fxr.Spec.from_json(spec.to_json().replace('"kind": "shift", "entry": "blocks.0.norm1.bias"', f'"kind": "shift", {wrong}'))
