"""Adapters: merging the carried one into the target is carrying the merged task vector, in float64 to 1e-12."""
from __future__ import annotations

import copy
import importlib
import json
import math

import pytest
import torch
from architectures import Conv1D, build, spec_of
from tiny_networks import Expert, Parts, several
from torch import nn

import fxrebasin as fxr
from fxrebasin import Adapter

EXACT = 1e-12


def drawn(like, seed: int) -> dict[str, torch.Tensor]:
    """Another state of the same model; ties stay tied."""
    generator, done = torch.Generator().manual_seed(seed), {}
    for tensor in like.values():
        if tensor.data_ptr() not in done:
            done[tensor.data_ptr()] = (torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                                       if tensor.is_floating_point() else tensor.clone())
    return {name: done[tensor.data_ptr()] for name, tensor in like.items()}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 31 * sum(shape)), dtype=torch.float64)


def lora(layers: dict[str, tuple], rank: int = 3, more: dict | None = None, **config) -> Adapter:
    """An adapter as PEFT writes it, for layers given with the shapes of their two factors."""
    tensors = {}
    for k, (name, (a, b)) in enumerate(layers.items()):
        kind = ("lora_embedding_A", "lora_embedding_B") if name.endswith("wte") else ("lora_A.weight", "lora_B.weight")
        for role, shape, seed in zip(kind, (a, b), (2 * k, 2 * k + 1)):
            tensors[f"base_model.model.{name}.{role}"] = random(*shape, seed=seed)
    return Adapter({"peft_type": "LORA", "r": rank, "lora_alpha": 5, **config}, tensors | (more or {}))


def gap(one, other) -> float:
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one if one[k].is_floating_point())


def carried_and_merged(spec, base, adapter, target, alignment, alpha: float = 1.0):
    """The target with the carried adapter, and what carrying the merged task vector gives."""
    carried = fxr.transport_adapter(base, adapter, target, alignment, alpha)
    assert {k: v.shape for k, v in carried.tensors.items()} == {k: v.shape for k, v in adapter.tensors.items()}
    return (fxr.merge_adapter(target, carried, spec),
            fxr.transport(base, fxr.merge_adapter(base, adapter, spec), target, alignment, alpha))


# == the identity, by hand ===================================================================================

LAYERS = {
    "mlp": {"0": ((3, 10), (32, 3)), "2": ((3, 32), (48, 3))},
    "lenet": {"3": ((3, 6, 5, 5), (16, 3, 1, 1)), "7": ((3, 256), (120, 3))},
    "vit_fused": {"blocks.0.attn.qkv": ((3, 12), (36, 3)), "blocks.1.attn.proj": ((3, 12), (12, 3))},
    "gpt2": {"wte": ((3, 11), (12, 3)), "h.0.c_attn": ((3, 12), (36, 3)), "h.1.c_proj": ((3, 12), (12, 3))},
    "gpt2_conv1d": {"h.0.c_attn": ((3, 12), (36, 3)), "h.1.c_proj": ((3, 12), (12, 3)), "h.1.out": ((3, 20), (12, 3))},
    "llama": {"layers.0.q_proj": ((3, 10), (24, 3)), "layers.1.down_proj": ((3, 14), (10, 3))},
}


def by_hand(name: str, tensors: dict, layer: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What a layer's factors add to its weight, with explicit indices."""
    weight = tensors[f"{layer}.weight"]
    if weight.ndim == 4:
        return torch.stack([sum(b[o, r, 0, 0] * a[r] for r in range(3)) for o in range(len(weight))])
    if name == "gpt2_conv1d" or layer == "wte":
        return torch.stack([sum(a[r, i] * b[:, r] for r in range(3)) for i in range(len(weight))])
    return torch.stack([sum(b[o, r] * a[r] for r in range(3)) for o in range(len(weight))])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_merged_after_is_merged_before(name, rslora):
    module, spec = build(name)[0], spec_of(name)
    base, pi = module.state_dict(), spec.random(3)
    target = drawn(base, 4)
    adapter = lora(LAYERS[name], use_rslora=rslora)
    merged = fxr.merge_adapter(base, adapter, spec)
    scaling = 5 / (math.sqrt(3) if rslora else 3)
    keys = list(adapter.tensors)
    for k, layer in enumerate(LAYERS[name]):
        a, b = (adapter.tensors[key] for key in keys[2 * k:2 * k + 2])
        expected = base[f"{layer}.weight"] + scaling * by_hand(name, base, layer, a, b)
        assert float((merged[f"{layer}.weight"] - expected).abs().max()) < EXACT
    for alpha in (1.0, -0.5):
        one, other = carried_and_merged(spec, base, adapter, target, pi, alpha)
        assert gap(one, other) < EXACT < 1e-2 < gap(one, target)


def test_a_square_weight_is_turned_as_its_bias_says_not_as_the_file_does():
    """The flag in the file is that of the last layer that PEFT came to."""
    name, spec = "gpt2_conv1d", spec_of("gpt2_conv1d")
    base = build(name)[0].state_dict()
    adapters = [lora({"h.1.c_proj": ((3, 12), (12, 3))}, fan_in_fan_out=flag) for flag in (False, True)]
    one, other = (fxr.transport_adapter(base, adapter, base, spec.random(1)).tensors for adapter in adapters)
    assert gap(one, other) == 0
    straight = lora({"h.1.c_proj": ((3, 12), (12, 3))}, fan_in_fan_out=True)
    spec, base = spec_of("gpt2"), build("gpt2")[0].state_dict()
    assert gap(*carried_and_merged(spec, base, straight, drawn(base, 1), spec.random(1))) < EXACT


def test_biases_and_tensors_that_are_replaced():
    spec, base = spec_of("gpt2"), build("gpt2")[0].state_dict()
    target = drawn(base, 4)
    prefix = "base_model.model."
    more = {f"{prefix}h.0.c_attn.lora_B.bias": random(36), f"{prefix}h.0.c_fc.base_layer.bias": random(20),
            f"{prefix}ln_f.weight": random(12), f"{prefix}h.1.out.weight": random(12, 20),
            f"{prefix}wpe.token_adapter.trainable_tokens_delta": random(2, 12)}
    adapter = lora({"h.0.c_attn": ((3, 12), (36, 3)), "h.0.c_fc": ((3, 12), (20, 3))}, more=more,
                   trainable_token_indices={"wpe": [1, 5]}, bias="all")
    merged = fxr.merge_adapter(base, adapter, spec)
    assert torch.equal(merged["ln_f.weight"], more[f"{prefix}ln_f.weight"])
    assert torch.equal(merged["wpe.weight"][5], more[f"{prefix}wpe.token_adapter.trainable_tokens_delta"][1])
    assert torch.equal(merged["wpe.weight"][4], base["wpe.weight"][4])
    one, other = carried_and_merged(spec, base, adapter, target, spec.random(2))
    assert gap(one, other) < EXACT


def test_a_base_layer_that_is_stored_becomes_the_targets():
    """As PEFT does with embeddings that have an adapter."""
    spec, base = spec_of("gpt2"), build("gpt2")[0].state_dict()
    target = drawn(base, 4)
    key = "base_model.model.wte.base_layer.weight"
    adapter = lora({"wte": ((3, 11), (12, 3))}, more={key: base["wte.weight"].clone()})
    carried = fxr.transport_adapter(base, adapter, target, spec.random(2))
    assert torch.equal(carried.tensors[key], target["wte.weight"])


def test_a_head_that_the_bases_lack_is_carried_as_it_is():
    spec = spec_of("mlp")
    base = {k: v for k, v in build("mlp")[0].state_dict().items() if not k.startswith("4.")}
    head = {"base_model.model.4.weight": random(5, 48), "base_model.model.4.bias": random(5)}
    pi = spec.random(2)
    carried = fxr.transport_adapter(base, lora({"0": ((3, 10), (32, 3))}, more=head), base, pi)
    whole = {n: torch.zeros(s, dtype=torch.float64) for n, s in spec.names.items()}
    expected = pi.apply(whole | {"4.weight": head["base_model.model.4.weight"]})
    assert torch.equal(carried.tensors["base_model.model.4.weight"], expected["4.weight"])


# == experts =================================================================================================


def test_packed_experts():
    """(experts, out, in), and two parameters of one module: PEFT nests their wrappers, the last one outermost."""
    spec, base = spec_of("experts"), build("experts")[0].state_dict()
    spec = fxr.infer(Inside(build("experts")[0]), torch.randn(3, 6, dtype=torch.float64))
    base = {f"inner.{name}": tensor for name, tensor in base.items()}
    adapter = lora({"inner.base_layer": ((8, 6), (5, 8)), "inner": ((8, 5), (6, 8))}, rank=2,
                   target_parameters=["inner.w1", "inner.w2"])
    a, b = (adapter.tensors[f"base_model.model.inner.base_layer.lora_{x}.weight"] for x in "AB")
    expected = torch.stack([5 / 2 * sum(torch.outer(b[:, r * 4 + e], a[e * 2 + r]) for r in range(2)) for e in range(4)])
    merged = fxr.merge_adapter(base, adapter, spec)
    assert float((merged["inner.w1"] - base["inner.w1"] - expected).abs().max()) < EXACT
    assert gap(*carried_and_merged(spec, base, adapter, drawn(base, 1), spec.random(1))) < EXACT


class Inside(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_where_no_adapter_of_the_same_rank_exists_it_is_refused():
    """The hidden units of each expert are permuted in its own way: rows of (experts, hidden) do not move as one."""
    spec = fxr.infer(Inside(build("experts")[0]), torch.randn(3, 6, dtype=torch.float64))
    base = {f"inner.{name}": tensor for name, tensor in build("experts")[0].state_dict().items()}
    adapter = lora({"inner": ((2, 5), (4, 2))}, rank=2, target_parameters=["inner.b1"])
    with pytest.raises(fxr.StateError, match="no adapter of the same rank .*'inner.b1'.*: .* give --full"):
        fxr.transport_adapter(base, adapter, base, spec.random(1))
    kept = fxr.transport_adapter(base, adapter, base, spec.identity())
    assert gap(kept.tensors, adapter.tensors) == 0


def listed(number: int = 3, width: int = 4, hidden: int = 5):
    def forward(m, x):
        weights = torch.softmax(m.router(x), -1)
        return sum(weights[:, e:e + 1] * expert(x) for e, expert in enumerate(m.experts))
    return Parts(forward, router=nn.Linear(width, number),
                 experts=several(number, lambda: Expert(width, hidden))).double()


def test_experts_in_a_list_change_places():
    module = listed()
    spec = fxr.infer(module, torch.randn(6, 4, dtype=torch.float64))
    base = drawn(module.state_dict(), 0)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and n.startswith("experts")}
    adapter = lora({n: ((3, m.in_features), (m.out_features, 3)) for n, m in linear.items()})
    assert gap(*carried_and_merged(spec, base, adapter, drawn(base, 1), spec.random(5))) < EXACT
    part = lora({n: ((3, m.in_features), (m.out_features, 3)) for n, m in linear.items() if n.startswith("experts.0.")},
                target_modules=["down"])
    moved = next(pi for pi in map(spec.random, range(20)) if pi.apply(tagged(spec))["router.bias"][0] != 0)
    carried = fxr.transport_adapter(base, part, base, moved)
    there = {key.split(".")[3] for key in carried.tensors}
    assert len(there) == 1 and there != {"0"} and len(carried.tensors) == len(part.tensors)
    assert set(carried.config["target_modules"]) == {key[17:].partition(".lora_")[0] for key in carried.tensors}
    expected = fxr.transport(base, fxr.merge_adapter(base, part, spec), base, moved)
    assert gap(fxr.merge_adapter(base, carried, spec), expected) < EXACT


def tagged(spec):
    """A state whose router tells where each expert came from."""
    state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in spec.names.items()}
    return state | {"router.bias": torch.arange(3.0, dtype=torch.float64)}


def test_experts_that_are_treated_differently_cannot_change_places():
    module = listed()
    spec = fxr.infer(module, torch.randn(6, 4, dtype=torch.float64))
    base = drawn(module.state_dict(), 0)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and n.startswith("experts")}
    adapter = lora({n: ((3, m.in_features), (m.out_features, 3)) for n, m in linear.items()},
                   alpha_pattern={r"experts\.1\..*": 7})
    with pytest.raises(fxr.StateError, match="differently, and the alignment exchanges the two: give --full"):
        fxr.transport_adapter(base, adapter, base, spec.random(5))


# == DoRA ====================================================================================================


def dora(base) -> Adapter:
    more = {"base_model.model.0.lora_magnitude_vector": random(32).abs(),
            "base_model.model.2.lora_magnitude_vector": random(48).abs()}
    return lora(LAYERS["mlp"], more=more, use_dora=True)


def test_dora_holds_where_the_target_is_the_permuted_base_and_says_where_not():
    spec, base = spec_of("mlp"), build("mlp")[0].state_dict()
    pi = spec.random(3)
    merged = fxr.merge_adapter(base, dora(base), spec)["0.weight"]
    assert torch.allclose(merged.norm(dim=1), dora(base).tensors["base_model.model.0.lora_magnitude_vector"])
    one, other = carried_and_merged(spec, base, dora(base), pi.apply(base), pi)
    assert gap(one, other) < EXACT
    carried = fxr.transport_adapter(base, dora(base), {n: 3 * t for n, t in pi.apply(base).items()}, pi)
    exact = fxr.transport_adapter(base, dora(base), pi.apply(base), pi)
    key = "base_model.model.2.lora_magnitude_vector"
    assert torch.allclose(carried.tensors[key], 3 * exact.tensors[key]) and "exact only where" in carried.notes[0]
    with pytest.raises(fxr.StateError, match="leave alpha at 1"):
        fxr.transport_adapter(base, dora(base), base, pi, alpha=0.5)


# == refusals ================================================================================================


@pytest.mark.parametrize("change, word", [
    ({"peft_type": "IA3"}, "is a IA3: only LoRA"),
    ({"use_qalora": True}, "'use_qalora', which is more than"),
    ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base's own weights"),
])
def test_adapters_that_are_more_than_a_sum(change, word):
    spec, base = spec_of("mlp"), build("mlp")[0].state_dict()
    with pytest.raises(fxr.StateError, match=word) as caught:
        fxr.transport_adapter(base, lora(LAYERS["mlp"], **change), base, spec.identity())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers, more, word", [
    ({"9": ((3, 10), (32, 3))}, {}, "'9', which the model does not have"),
    ({"0": ((3, 11), (32, 3))}, {}, "do not add to a tensor of shape"),
    ({"0": ((3, 10), (32, 4))}, {}, "do not add to a tensor of shape"),
    ({}, {}, "holds no tensors"),
    ({}, {"base_model.model.0.lora_A.weight": torch.zeros(3, 10)}, "lacks one of its two factors"),
    ({}, {"base_model.model.0.lora_C.weight": torch.zeros(3, 10)}, "none of the tensors of a LoRA"),
    ({}, {"base_model.model.0.bias": torch.zeros(3)}, r"has shape \(3,\), and the model has \(32,\)"),
    ({}, {"base_model.model.0.token_adapter.trainable_tokens_delta": torch.zeros(1, 10)}, "do not say which"),
])
def test_adapters_of_other_models(layers, more, word):
    spec, base = spec_of("mlp"), build("mlp")[0].state_dict()
    with pytest.raises(fxr.StateError, match=word) as caught:
        fxr.transport_adapter(base, lora(layers, more=more), base, spec.identity())
    assert "\n" not in str(caught.value)


def test_a_grouped_convolution_has_no_weight_that_it_adds_to():
    spec, base = spec_of("resnext_block"), build("resnext_block")[0].state_dict()
    name, shape = next((n, s) for n, s in spec.names.items() if len(s) == 4 and s[2] == 3)
    layer = {name.removesuffix(".weight"): ((3, 3 * shape[1], 3, 3), (shape[0], 1, 1, 1))}
    with pytest.raises(fxr.StateError, match="convolutions in groups"):
        fxr.transport_adapter(base, lora(layer), base, spec.identity())


# == files ===================================================================================================


def test_folders(tmp_path):
    spec, base = spec_of("mlp"), build("mlp")[0].state_dict()
    adapter = lora(LAYERS["mlp"], target_modules=["0", "2"])
    adapter.save(tmp_path / "in")
    carried = fxr.transport_adapter(base, tmp_path / "in", base, spec.random(1))
    carried.save(tmp_path / "out")
    again = Adapter.load(tmp_path / "out")
    assert again.config == carried.config == json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert gap(again.tensors, carried.tensors) == 0
    (tmp_path / "in" / "adapter_config.json").write_text("{")
    for folder, word in (("in", "is not JSON"), ("nowhere", "is not an adapter")):
        with pytest.raises(fxr.CheckpointError, match=word):
            Adapter.load(tmp_path / folder)
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    with pytest.raises(fxr.CheckpointError, match="has no adapter_model.safetensors"):
        Adapter.load(tmp_path / "out")


# == PEFT itself =============================================================================================


def peft():
    """The package, where it and what it needs can be imported."""
    try:
        importlib.import_module("transformers").PreTrainedModel
        return importlib.import_module("peft")
    except (ImportError, AttributeError) as error:
        pytest.skip(f"peft cannot be imported: {error}")


class Gpt(nn.Module):
    """GPT-2 of the architectures with the transposed layers that PEFT knows by their class."""

    def __init__(self, inner: nn.Module, conv1d: type):
        super().__init__()
        self.inner = inner
        for name, layer in list(inner.named_modules()):
            if isinstance(layer, Conv1D):
                parent, _, own = name.rpartition(".")
                new = conv1d(layer.weight.shape[1], layer.weight.shape[0])
                new.weight, new.bias = layer.weight, layer.bias
                setattr(inner.get_submodule(parent), own, new)

    def forward(self, ids):
        return self.inner(ids)


def known_to_peft(name: str):
    module, inputs = build(name)
    if name == "gpt2_conv1d":
        module = Gpt(module, importlib.import_module("transformers.pytorch_utils").Conv1D).double()
    elif name == "experts":
        module = Inside(module)
    return module, inputs


TRIED = [
    ("mlp", dict(target_modules=["0", "2", "4"], bias="all", use_rslora=True)),
    ("lenet", dict(target_modules=["0", "3", "7"], modules_to_save=["9"])),
    ("vit_fused", dict(target_modules=["qkv", "proj", "patch_embed"], lora_bias=True)),
    ("gpt2_conv1d", dict(target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True, bias="lora_only")),
    ("gpt2_conv1d", dict(target_modules=["c_proj", "lm_head"], trainable_token_indices={"wpe": [1, 5]})),
    ("llama", dict(target_modules=["q_proj", "up_proj"], rank_pattern={"layers.0.q_proj": 2}, alpha_pattern={"up_proj": 9})),
    ("experts", dict(target_modules=[], target_parameters=["inner.w1", "inner.w2"])),
]


@pytest.mark.parametrize("name, options", TRIED, ids=lambda value: value if isinstance(value, str) else "-".join(value))
@pytest.mark.filterwarnings("ignore")
def test_peft_merges_the_carried_adapter_to_the_carried_task_vector(tmp_path, name, options):
    library = peft()
    module, inputs = known_to_peft(name)
    spec = fxr.infer(copy.deepcopy(module), inputs)
    base, pi = {n: t.clone() for n, t in module.state_dict().items()}, spec.random(3)
    target = drawn(module.state_dict(), 4)
    wrapped = library.get_peft_model(copy.deepcopy(module), library.LoraConfig(r=4, init_lora_weights=False, **options))
    for k, parameter in enumerate(p for p in wrapped.double().parameters() if p.requires_grad):
        parameter.data = random(*parameter.shape, seed=k)
    wrapped.save_pretrained(tmp_path / "in")
    merged = wrapped.merge_and_unload().state_dict()
    assert gap(fxr.merge_adapter(base, Adapter.load(tmp_path / "in"), spec), merged) < EXACT
    fxr.transport_adapter(base, tmp_path / "in", target, pi).save(tmp_path / "out")
    other = copy.deepcopy(module)
    other.load_state_dict(target)
    loaded = library.PeftModel.from_pretrained(other, tmp_path / "out").double()
    expected = fxr.transport(base, merged, target, pi)
    assert gap(loaded.merge_and_unload().state_dict(), expected) < EXACT < 1e-2 < gap(expected, target)
