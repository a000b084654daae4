"""Inference on whole architectures: exact orders, functions that stay the same, and reasons for what is pinned."""

from __future__ import annotations

import contextlib
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as fn
from architectures import ARCHITECTURES, HEAVY, LIGHT, NAMES, ViT, build, mlp, randomise, spec_of, state_of
from torch import nn
from torch.func import functional_call

import fxrebasin as fxr
from fxrebasin.match.methods import flattened

TOLERANCE = 1e-9  # relative to the largest output, float64


@contextlib.contextmanager
def fast_path(on: bool):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(on)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def run(module: nn.Module, state, inputs) -> torch.Tensor:
    with torch.no_grad():
        return functional_call(module, state, inputs, tie_weights=False)


def error(module: nn.Module, inputs, alignment: fxr.Alignment) -> float:
    """How far the permuted network's output is from the original's, relative to its largest magnitude."""
    state = module.state_dict()
    before = run(module, state, inputs)
    return ((run(module, alignment.apply(state), inputs) - before).abs().max() / before.abs().max()).item()


def turned(spec: fxr.Spec, group: str) -> fxr.Alignment:
    """One group alone, every element moved, by a different amount in each copy."""
    own = spec.identity().permutations[group].copy()
    for k, row in enumerate(own.reshape(-1, own.shape[-1])):
        row[:] = (row + 1 + k % max(1, row.size - 1)) % row.size
    return fxr.Alignment(spec, {**spec.identity().permutations, group: own})


def shape_of(spec: fxr.Spec) -> Counter:
    return Counter((group.size, group.copies) for group in spec.groups.values())


def double(module: nn.Module) -> nn.Module:
    module = module.double().eval()
    randomise(module)
    return module


# == orders ==================================================================================================


@pytest.mark.parametrize("name", NAMES)
def test_order_is_exact(name):
    spec = spec_of(name)
    assert spec.order == ARCHITECTURES[name].order, f"\n{spec}"
    assert spec.order == math.prod(math.factorial(g.size) ** g.copies for g in spec.groups.values())
    exact = math.log(spec.order) / math.log(10) if spec.order < 10**300 else (
        (spec.order.bit_length() - 900) * math.log10(2) + math.log10(spec.order >> (spec.order.bit_length() - 900)))
    assert spec.log10_order == pytest.approx(exact, rel=1e-12)
    assert not spec.unruled


@pytest.mark.parametrize("name", [name for name in LIGHT if "encoder" in name or name == "multihead_attention"])
def test_fast_path_makes_no_difference(name):
    module, inputs = build(name)
    with fast_path(True):
        assert torch.backends.mha.get_fastpath_enabled()
        fast = fxr.infer(module, inputs)
        assert torch.backends.mha.get_fastpath_enabled(), "infer changed a global setting"
        assert error(module, inputs, fast.random(1)) < TOLERANCE
    with fast_path(False):
        slow = fxr.infer(module, inputs)
        assert not torch.backends.mha.get_fastpath_enabled(), "infer changed a global setting"
        assert error(module, inputs, slow.random(1)) < TOLERANCE
    assert fast.order == slow.order == ARCHITECTURES[name].order


def test_torchvision_resnet18():
    try:
        from torchvision.models import resnet18
    except (ImportError, RuntimeError) as reason:
        pytest.skip(f"torchvision is not importable: {reason}")
    with torch.device("meta"):
        module = resnet18().eval()
    spec = fxr.infer(module, torch.empty(2, 3, 64, 64, device="meta"))
    assert spec.order == ARCHITECTURES["resnet18"].order
    own = spec_of("resnet18")
    assert [g.size for g in spec.groups.values()] == [g.size for g in own.groups.values()]
    assert {name for name in spec.shapes} == set(own.shapes)


# == functions stay the same =================================================================================


@pytest.mark.parametrize("name", NAMES)
def test_random_elements_keep_the_function(name):
    module, inputs = build(name)
    spec = spec_of(name)
    worst = max(error(module, inputs, spec.random(seed)) for seed in range(1 if name in HEAVY else 4))
    print(f"{name}: {worst:.1e}")
    assert worst < TOLERANCE


@pytest.mark.parametrize("name", LIGHT)
def test_each_group_alone_keeps_the_function(name):
    module, inputs = build(name)
    spec, state = spec_of(name), state_of(name)
    errors = {}
    for group in spec.groups:
        move = turned(spec, group)
        moved = move.apply(state)
        assert any(not torch.equal(moved[key], state[key]) for key in spec.shapes), f"{group} moves nothing"
        errors[group] = error(module, inputs, move)
    worst = max(errors, key=errors.get)
    print(f"{name}: {errors[worst]:.1e} by {worst}")
    assert errors[worst] < TOLERANCE


@pytest.mark.parametrize("name", ["vit_fused", "llama", "experts", "lstm", "resnext_block"])
def test_the_measure_sees_a_wrong_permutation(name):
    """What the tests above rely on: one exchanged pair on a pinned axis, or one across a head, is far above tolerance."""
    module, inputs = build(name)
    state, spec = dict(module.state_dict()), spec_of(name)
    before = run(module, state, inputs)
    smallest = math.inf
    for tensor, axis in spec.pinned:
        if spec.shapes[tensor][axis] < 2 or "pos_embed" in tensor and axis == 0:
            continue
        index = torch.arange(spec.shapes[tensor][axis])
        index[:2] = torch.tensor([1, 0])
        if (moved := state[tensor].index_select(axis, index)).equal(state[tensor]):
            continue
        after = run(module, {**state, tensor: moved}, inputs)
        smallest = min(smallest, ((after - before).abs().max() / before.abs().max()).item())
    print(f"{name}: {smallest:.1e}")
    assert 1e-6 < smallest < math.inf


@pytest.mark.parametrize("name", ["vit_fused", "llama", "resnext_block"])
def test_a_group_blind_to_nesting_changes_the_function(name):
    module, inputs = build(name)
    assert error(module, inputs, flattened(spec_of(name)).random(0)) > 1e-3


# == outputs="free" ==========================================================================================


class Features(nn.Module):
    """A backbone: its features are only compared with each other."""

    def __init__(self, network: ViT):
        super().__init__()
        self.network = network

    def forward(self, x):
        return {"features": self.network.features(x), "norm": self.network.features(x).norm(dim=-1)}


def test_free_outputs_move_with_the_network():
    network = ViT()
    network.head = nn.Identity()
    module, x = double(Features(network)), torch.randn(3, 1, 12, 12).double()
    free, pinned = fxr.infer(module, x, outputs="free"), fxr.infer(module, x)
    per_block = ARCHITECTURES["vit_fused"].order // math.factorial(12)
    assert pinned.order == per_block
    assert free.order == ARCHITECTURES["vit_fused"].order
    assert len(free.outputs) == 1 and not pinned.outputs
    move = free.random(3)
    state = module.state_dict()
    before, after = run(module, state, (x,)), run(module, move.apply(state), (x,))
    path = next(iter(free.outputs))
    expected = move.apply_to_output(path, before["features"])
    assert not torch.equal(expected, before["features"])
    assert (after["features"] - expected).abs().max() < 1e-12
    assert (after["norm"] - before["norm"]).abs().max() < 1e-12
    evidence = fxr.verify(module, x, move)
    assert evidence.equivalent and evidence.max_rel < TOLERANCE
    with pytest.raises(fxr.SpecError):
        move.apply_to_output(path, before["features"][:, :5])


def test_free_outputs_of_a_layer():
    module = double(mlp(4, 6, 5))
    spec = fxr.infer(module, torch.randn(3, 4), outputs="free")
    assert spec.order == math.factorial(6) * math.factorial(5)
    assert fxr.infer(module, torch.randn(3, 4)).order == math.factorial(6)
    assert fxr.verify(module, torch.randn(3, 4), spec.random(1)).max_rel < TOLERANCE


def test_unknown_choice_of_outputs():
    with pytest.raises(fxr.FxrebasinError, match="'pinned' or 'free'"):
        fxr.infer(mlp(3, 4, 2), torch.randn(2, 3), outputs="loose")


# == names, registration order, batch size ===================================================================


def reversed_registration(module: nn.Module) -> nn.Module:
    """The same function, with parameters, buffers and submodules registered in reverse (where order is not the forward)."""
    for part in module.modules():
        part._parameters = dict(reversed(part._parameters.items()))
        part._buffers = dict(reversed(part._buffers.items()))
        if not isinstance(part, (nn.Sequential, nn.ModuleList)):
            part._modules = dict(reversed(part._modules.items()))
    return module


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.zzz, self.inner = nn.Identity(), module

    def forward(self, *inputs):
        return self.inner(*inputs) if len(inputs) > 1 else self.inner(inputs[0])


@pytest.mark.parametrize("name", [
    "vgg", "resnet_small", "group_norm_stream", "lstm_bidirectional", "encoder_decoder", "vit_query_norm", "vit_registers",
    "gpt2", "llama", "neox", "attention_experts"])
def test_registration_order_and_batch_size_make_no_difference(name):
    module, inputs = build(name, batch=5)
    module = reversed_registration(module)
    spec = fxr.infer(module, inputs)
    assert shape_of(spec) == shape_of(spec_of(name))
    assert error(module, inputs, spec.random(2)) < TOLERANCE


@pytest.mark.parametrize("name", ["mlp", "vit_fused", "gpt2", "llama", "experts"])
def test_a_prefix_to_all_names_makes_no_difference(name):
    module, inputs = build(name)
    spec, own = fxr.infer(Wrapped(module), inputs), spec_of(name)
    assert shape_of(spec) == shape_of(own)
    assert {(f"inner.{tensor}", axis): reason for (tensor, axis), reason in own.pinned.items()}.keys() == spec.pinned.keys()


class Scrambled(nn.Module):
    """An attention block with names that say nothing, or that lie."""

    def __init__(self, names: dict[str, str], order: tuple[str, ...]):
        super().__init__()
        self.names = names
        sizes = {"embed": (5, 12), "q": (12, 12), "k": (12, 12), "v": (12, 12), "o": (12, 12), "up": (12, 9),
                 "down": (9, 12), "head": (12, 4)}
        for part in order:
            setattr(self, names[part], nn.Linear(*sizes[part]))

    def part(self, name):
        return getattr(self, self.names[name])

    def forward(self, x):
        x = self.part("embed")(x)
        q, k, v = (self.part(n)(x).unflatten(-1, (3, 4)).transpose(1, 2) for n in "qkv")
        x = x + self.part("o")(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.part("head")(x + self.part("down")(self.part("up")(x).relu()))


def test_names_say_nothing():
    parts = ("embed", "q", "k", "v", "o", "up", "down", "head")
    expected = math.factorial(12) * math.factorial(9) * math.factorial(3) * math.factorial(4) ** 6
    lying, empty = dict(zip(parts, reversed(parts))), {p: f"x{i}" for i, p in enumerate(parts)}
    for names, order in ((lying, parts), (empty, parts[::-1])):
        module, x = double(Scrambled(names, order)), torch.randn(2, 6, 5).double()
        spec = fxr.infer(module, x)
        assert spec.order == expected
        assert error(module, (x,), spec.random(1)) < TOLERANCE


def test_the_same_module_gives_the_same_spec():
    assert fxr.infer(*build("vit_fused", seed=1)) == spec_of("vit_fused")


# == what is pinned, and why =================================================================================


@pytest.mark.parametrize("name", NAMES)
def test_every_axis_is_moved_or_pinned_with_a_reason(name):
    spec = spec_of(name)
    moved = {(site.tensor, site.axis) for group in spec.groups.values() for site in group.sites}
    everything = {(tensor, axis) for tensor in spec.layouts for axis in range(len(spec.shapes[tensor]))}
    assert moved | set(spec.pinned) == everything
    assert not moved & set(spec.pinned)
    for where, reason in spec.pinned.items():
        assert reason and "\n" not in reason, where
    assert all(reason and "\n" not in reason for reason in spec.reasons.values())


def test_reasons_name_the_cause():
    pinned = spec_of("mlp").pinned
    assert pinned["0.weight", 1] == "follows an input of the network"
    assert pinned["4.weight", 0] == pinned["4.bias", 0] and "output" in pinned["4.bias", 0]
    kernel = spec_of("lenet").pinned["0.weight", 2]
    assert "conv2d tells its positions apart" in kernel


mystery_library = torch.library.Library("fxrebasin_tests", "DEF")
mystery_library.define("mystery(Tensor x) -> Tensor")
mystery_library.impl("mystery", lambda x: x.flip(-1) * x, "CompositeExplicitAutograd")


class Mystery(nn.Module):
    """An op without a rule between the second and the third layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 7), nn.Linear(7, 8), nn.Linear(8, 9), nn.Linear(9, 2)

    def forward(self, x):
        x = torch.ops.fxrebasin_tests.mystery(self.b(self.a(x).relu()))
        return self.d(self.c(x).relu())


def test_an_unknown_op_pins_what_it_touches_and_is_named():
    module, x = double(Mystery()), torch.randn(4, 3).double()
    spec = fxr.infer(module, x)
    assert spec.order == math.factorial(7) * math.factorial(9)
    for where in (("b.weight", 0), ("b.bias", 0), ("c.weight", 1)):
        assert "fxrebasin_tests.mystery" in spec.pinned[where] and "no rule" in spec.pinned[where]
        assert "test_infer.py" in spec.pinned[where]
    assert list(spec.unruled) == ["fxrebasin_tests.mystery.default"]
    assert "test_infer.py" in spec.unruled["fxrebasin_tests.mystery.default"]
    assert error(module, (x,), spec.random(0)) < TOLERANCE


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.idle, self.extra = nn.Linear(6, 6), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_unused_parameters_are_pinned():
    spec = fxr.infer(Unused(), torch.randn(2, 3))
    assert spec.order == math.factorial(6)
    for where in (("idle.weight", 0), ("idle.weight", 1), ("idle.bias", 0), ("extra", 0)):
        assert spec.pinned[where] == "not used by the forward pass"
    assert "idle.weight" not in spec.permutable


class Equal(nn.Module):
    """Everything has size 6: two branches, a square layer each, and a product of the two."""

    def __init__(self):
        super().__init__()
        self.left, self.right = mlp(6, 6, 6), mlp(6, 6, 6)
        self.out = nn.Linear(6, 6)

    def forward(self, x):
        return self.out(self.left(x) * self.right(x))


def test_sizes_equal_by_accident_are_not_tied():
    assert fxr.infer(mlp(8, 8, 8, 8), torch.randn(8, 8)).order == math.factorial(8) ** 2
    module, x = double(Equal()), torch.randn(6, 6).double()
    spec = fxr.infer(module, x)
    assert spec.order == 2 * math.factorial(6) ** 3  # both interiors, the product's axis, and one branch for the other
    assert error(module, (x,), spec.random(1)) < TOLERANCE


def test_attention_with_all_sizes_equal():
    module, x = double(ViT(d=4, depth=1, heads=2, m=4)), torch.randn(4, 1, 12, 12).double()
    spec = fxr.infer(module, x)
    assert spec.order == math.factorial(4) ** 2 * math.factorial(2) * math.factorial(2) ** 4
    assert error(module, (x,), spec.random(1)) < TOLERANCE


# == the module is left as it was ============================================================================


@pytest.mark.parametrize("name", ["vgg", "gpt2", "lstm", "encoder_pre_norm_batch_first"])
def test_infer_leaves_the_module_untouched(name):
    module, inputs = build(name)
    module.train()
    first = next(module.parameters())
    first.requires_grad_(False)
    next(iter(module.children())).eval()
    calls = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))

    def snapshot():
        tensors = {n: (id(t), t._version, t.requires_grad, t.grad, t.detach().clone())
                   for n, t in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
        return tensors, [(n, m.training, len(m._forward_hooks), set(vars(m))) for n, m in module.named_modules()]

    before, grad, default = snapshot(), torch.is_grad_enabled(), torch.get_default_dtype()
    copies = [x.clone() for x in inputs]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fxr.infer(module, inputs)
    assert torch.equal(torch.rand(3), expected), "the random state moved"
    after = snapshot()
    hook.remove()
    assert before[1] == after[1]
    assert before[0].keys() == after[0].keys()
    for key in before[0]:
        assert before[0][key][:4] == after[0][key][:4], key
        assert torch.equal(before[0][key][4], after[0][key][4]), key
    assert all(torch.equal(a, b) for a, b in zip(copies, inputs))
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == (grad, default)


def test_infer_on_meta_gives_the_same_spec():
    module, inputs = build("llama")
    meta = module.to("meta")
    assert fxr.infer(meta, tuple(x.to("meta") for x in inputs)).groups == spec_of("llama").groups


def test_a_mask_expanded_over_heads_leaves_the_heads_free():
    """nn.TransformerEncoder expands a padding mask over the heads, folds them into the batch, and takes them apart again."""
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    model = Masked(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval().double()
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    spec = fxr.infer(model, (torch.randn(2, 5, 7, dtype=torch.float64), mask))
    f = math.factorial
    assert spec.order == f(12) * (f(20) * f(3) * f(4) ** 3 * f(4) ** 3) ** 2


class Masked(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.inside, self.encoder, self.outside = nn.Linear(7, 12), encoder, nn.Linear(12, 4)

    def forward(self, x, mask):
        return self.outside(self.encoder(self.inside(x), src_key_padding_mask=mask))


def test_a_constant_without_elements():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.none = nn.Linear(3, 5), nn.Linear(5, 2), torch.zeros(4, 0)

        def forward(self, x):
            return self.b(torch.cat([self.a(x).relu(), self.none], 1))

    assert fxr.infer(Model(), torch.randn(4, 3)).order == math.factorial(5)
