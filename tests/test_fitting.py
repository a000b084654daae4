"""Names as people's files have them: fitted step by step, said, and undone; what does not fit is refused as
before."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.checkpoint import conversions, load_state, save_state
from fxrebasin.cli.entry import run
from fxrebasin.spec.fitting import FitNote, Fitted, fit


class Encoder(nn.Module):
    """An encoder under the prefix of a base model, a head beside it, embeddings tied to a decoder."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.base = nn.Module()
        self.base.embedding, self.base.layer = nn.Embedding(9, width), nn.Linear(width, 8)
        self.base.norm, self.back = nn.LayerNorm(8), nn.Linear(8, width)
        self.decoder = nn.Linear(width, 9, bias=False)
        self.decoder.weight = self.base.embedding.weight

    def forward(self, ids):
        return self.decoder(self.back(self.base.norm(self.base.layer(self.base.embedding(ids)).relu())))


IDS = torch.arange(6).view(2, 3)
SPEC = fxr.infer(Encoder(), IDS)


def state_of(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    module = Encoder()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.state_dict()


def prefixed(prefix):
    return lambda state: {prefix + k: v for k, v in state.items()}


def without_base(state):
    return {k.removeprefix("base."): v for k, v in state.items()}


def gamma(state):
    return {k.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"): v for k, v in state.items()}


def tied_once(state):
    return {k: v for k, v in state.items() if k != "decoder.weight"}


def tied_the_other_way(state):
    return {k: v for k, v in state.items() if k != "base.embedding.weight"}


def older(state):
    return {**state, "base.embeddings.position_ids": torch.arange(5), "base.attn.masked_bias": torch.tensor(-1e4),
            "base.attn.bias": torch.ones(1, 1, 5, 5)}


def compiled_inside(state):
    return {k.replace("base.layer", "base._orig_mod.layer"): v for k, v in state.items()}


def everything(state):
    return prefixed("module.")(gamma(tied_once(older(state))))


WAYS = {
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "model.": prefixed("model."),
    "lightning": prefixed("net.backbone."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "without base": without_base,
    "gamma": gamma,
    "tied once": tied_once,
    "tied the other way": tied_the_other_way,
    "older": older,
    "compiled inside": compiled_inside,
    "everything": everything,
    "gamma under a prefix": lambda s: prefixed("model.")(gamma(s)),
    "no base, under a prefix": lambda s: prefixed("model.")(without_base(s)),
}


def quietly(act):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitNote)
        return act()


@pytest.mark.parametrize("way", WAYS)
def test_a_file_is_fitted_and_the_fit_is_undone(way):
    own = state_of()
    given = WAYS[way](own)
    found = fit(SPEC, given)
    view = Fitted(found, given)
    assert set(SPEC.names) <= set(view) and all(torch.equal(view[name], own[name]) for name in SPEC.names)
    assert found.steps and all("\n" not in step for step in found.steps)
    back = dict(found.undo((name, own[name]) for name in SPEC.names))
    assert set(back) | set(found.left) == set(given) and not set(back) & set(found.left)
    assert all(torch.equal(back[name], given[name]) for name in back)


@pytest.mark.parametrize("way", WAYS)
def test_all_that_takes_states_takes_them_so(way):
    a, fine, b, pi = state_of(0), state_of(1), state_of(2), SPEC.random(3)
    odd = WAYS[way]
    with pytest.warns(FitNote, match="^the state: "):
        moved = pi.apply(odd(a))
    expected = odd(pi.apply(a))
    assert list(moved) == list(expected) and all(torch.equal(moved[k], v) for k, v in expected.items())
    with pytest.warns(FitNote, match="^the source: "):
        found = fxr.match(SPEC, odd(a), pi.apply(a))
    assert all((found.permutations[g] == p).all() for g, p in pi.permutations.items())
    result = quietly(lambda: fxr.transport(odd(a), odd(fine), odd(b), pi))
    expected = odd(fxr.transport(a, fine, b, pi))
    assert list(result) == list(expected) and all(torch.equal(result[k], v) for k, v in expected.items())
    assert quietly(lambda: fxr.find_equivalence(SPEC, odd(a), moved)) is not None
    merged, wanted = (quietly(lambda: fxr.merge([s, b], spec=SPEC)) for s in (odd(a), a))
    assert all(torch.equal(merged[k], wanted[k]) for k in wanted)
    mixed = quietly(lambda: fxr.transport(a, odd(fine), b, pi))  # each file has a form of its own
    assert list(mixed) == list(b)


def test_verify_takes_a_state_so():
    with pytest.warns(FitNote, match="^the state: "):
        assert fxr.verify(Encoder(), IDS, SPEC.random(1), state=everything(state_of())).equivalent


def test_what_fits_is_taken_as_it_is():
    own = state_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(SPEC.random().apply(own)) == list(own)
    assert fit(SPEC, own).steps == ()


def test_the_report_says_what_was_done():
    steps = fit(SPEC, everything(state_of())).steps
    text = "\n".join(steps)
    for pattern in ("names of wrappers .*: [0-9]+ names, such as 'module.", "gamma, beta and the like renamed: 2 names",
                    "tied, and stored once: 'decoder.weight' is 'base.embedding.weight'",
                    "left as they are, since the model does not have them: .*position_ids"):
        assert re.search(pattern, text), (pattern, text)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: {k: v for k, v in prefixed("module.")(s).items() if k != "module.back.bias"},
            "lacks 'back.bias'",
        ),
        (
            lambda s: {**prefixed("module.")(s), "module.other.weight": torch.zeros(3)},
            "has unexpected 'module.other.weight'",
        ),
        (lambda s: {**s, "base.attn.bias": torch.zeros(6)}, "has unexpected 'base.attn.bias'"),
        (lambda s: {**s, "model.back.bias": torch.zeros(6)}, "has unexpected 'model.back.bias'"),
        (
            lambda s: {"x." + k if "norm" in k else "y." + k: v for k, v in s.items() if k != "back.bias"},
            "lacks 'back.bias'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(fxr.StateError, match=message):
        quietly(lambda: SPEC.random().apply(change(state_of())))


def test_a_broken_tie_survives_a_file_that_leaves_it_out():
    base, fine, new = state_of(0), {k: v.clone() for k, v in state_of(0).items()}, tied_once(state_of(2))
    fine["decoder.weight"] += 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = fxr.transport(base, fine, prefixed("model.")(new), SPEC.identity())
    assert any("is tied to" in str(note.message) for note in said)
    assert torch.allclose(result["model.decoder.weight"], new["base.embedding.weight"] + 1, atol=1e-5)
    assert torch.equal(result["model.base.embedding.weight"], new["base.embedding.weight"])


# == what transformers converts ==============================================================================


def tiny(name: str):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text = {**size, "vocab_size": 32, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = {
        "vit": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**size, image_size=8, patch_size=4)
        ),
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**text, num_local_experts=3)
        ),
        "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
            transformers.Qwen2MoeConfig(
                **text, num_experts=3, moe_intermediate_size=8, shared_expert_intermediate_size=8
            )
        ),
    }
    return made[name]()


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("name", ["vit", "mixtral", "qwen2_moe"])
def test_files_of_save_pretrained_are_converted_and_back(name, prefix, tmp_path, capsys):
    module = tiny(name)
    module.save_pretrained(tmp_path)
    own = module.state_dict()
    given = {prefix + k: v for k, v in load_state(tmp_path).items()}
    wanted = SimpleNamespace(names={k: tuple(v.shape) for k, v in own.items()}, passed=(), ties={})
    found = fit(wanted, {k: v.to("meta") for k, v in given.items()}, conversions(module))
    view = Fitted(found, given)
    assert set(view) == set(own) and all(torch.equal(view[k], v) for k, v in own.items())
    assert any(step.startswith("converted as transformers does") for step in found.steps)
    back = dict(found.undo(own.items()))
    assert back.keys() == given.keys() and all(torch.equal(back[k], v) for k, v in given.items())
    assert not set(own) <= set(Fitted(fit(wanted, given), given)), "nothing to convert"


def test_other_modules_have_nothing_converted():
    assert conversions(Encoder()) is None and conversions(None) is None


def test_a_fine_tuned_head_on_the_command_line(tmp_path, monkeypatch, capsys):
    """A whole folder: converted names, an untied head that the target's file leaves out."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    config = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 16, "bos_token_id": 1, "eos_token_id": 2}
    states = []
    for seed, tied in enumerate((True, False, True)):
        torch.manual_seed(seed)
        module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, tie_word_embeddings=tied))
        module.save_pretrained(f"m{seed}")
        states.append(load_state(f"m{seed}"))
    assert "lm_head.weight" in states[1] and "lm_head.weight" not in states[2]
    assert run(["transport", "m0", "m0", "m1", "m2", "-o", "out", "--method", "identity"]) == 0
    errors = capsys.readouterr().err
    assert "'lm_head.weight' is tied to 'transformer.wte.weight' in the model" in errors
    assert "tied, and stored once" in errors
    out = load_state("out")
    expected = states[2]["transformer.wte.weight"] + states[1]["lm_head.weight"] - states[0]["transformer.wte.weight"]
    assert out.keys() == states[1].keys() and torch.allclose(out["lm_head.weight"], expected, atol=1e-6)


# == by itself ===============================================================================================


@pytest.mark.parametrize("model", [Encoder(), SPEC], ids=["module", "spec"])
@pytest.mark.parametrize("way", WAYS)
def test_a_state_is_fitted_to_a_module_and_back(way, model):
    own, other = state_of(), state_of(1)
    found = fxr.fit(model, WAYS[way](own))
    assert set(found) == set(own) and len(found) == len(own) and not set(found.left) & set(found)
    module = Encoder()
    module.load_state_dict(found)
    assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items())
    back, expected = found.undone(other), WAYS[way](other)
    assert list(back) == list(expected) and all(torch.equal(back[name], tensor) for name, tensor in expected.items())
    assert found.steps and fxr.fit(model, own).steps == ()


@pytest.mark.parametrize("name", ["vit", "mixtral"])
def test_a_saved_folder_is_fitted_to_a_module(name, tmp_path):
    module, other = tiny(name), tiny(name)
    module.save_pretrained(tmp_path)
    other.load_state_dict(fxr.fit(other, tmp_path))
    own = module.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    "change, message",
    [(lambda s: {k: v for k, v in s.items() if k != "back.bias"}, r"x\.safetensors: lacks 'back\.bias': is it a checkpoint"),
     (lambda s: {**s, "more.bias": torch.zeros(2)}, r"x\.safetensors: has unexpected 'more\.bias'")],
)
def test_a_file_of_another_model_is_refused(change, message, tmp_path):
    save_state(change(state_of()), tmp_path / "x.safetensors")
    with pytest.raises(fxr.StateError, match=message):
        fxr.fit(Encoder(), tmp_path / "x.safetensors")
