"""Alignments as values: a group that acts on states, exactly; files that are whole or refused."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from architectures import NESTED, build, mlp, spec_of, state_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors import safe_open
from torch import nn

import fxrebasin as fxr

SPECS = ("mlp", "vgg", "lstm_bidirectional", *NESTED)
names = st.sampled_from(SPECS)
seeds = st.integers(0, 2**32 - 1)
often = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def elements(spec: fxr.Spec):
    """Every element of a small group."""
    choices = []
    for group in spec.groups.values():
        rows = list(itertools.permutations(range(group.size)))
        shape = spec.frame(group) + (group.size,)
        choices.append([np.array(chosen).reshape(shape) for chosen in itertools.product(rows, repeat=group.copies)])
    for chosen in itertools.product(*choices):
        yield fxr.Alignment(spec, dict(zip(spec.groups, chosen)))


# == the action, against the definition ======================================================================


def source_of(spec: fxr.Spec, alignment: fxr.Alignment, index: dict[str, int]) -> dict[str, int]:
    """Where the element with these factor indices comes from: the definition, number by number."""
    old = dict(index)
    for group in spec.groups.values():
        if not all(member in index for member in group.members):
            continue
        row = alignment.permutations[group.name][tuple(index[f] for f in group.within)]
        sizes = [spec.sizes[m] for m in group.members]
        flat = 0
        for member, size in zip(group.members, sizes):
            flat = flat * size + index[member]
        flat = int(row[flat])
        for member, size in zip(reversed(group.members), reversed(sizes)):
            flat, old[member] = divmod(flat, size)
    return old


def by_hand(spec: fxr.Spec, alignment: fxr.Alignment, name: str, tensor: torch.Tensor) -> torch.Tensor:
    result = torch.full_like(tensor, math.nan)
    for block in spec.layout(name):
        factors = list(dict.fromkeys(f for axis in block for f in axis.factors))
        for values in itertools.product(*(range(spec.sizes[f]) for f in factors)):
            new = dict(zip(factors, values))
            old = source_of(spec, alignment, new)
            where = tuple(int(axis.positions[tuple(new[f] for f in axis.factors)]) for axis in block)
            taken = tuple(int(axis.positions[tuple(old[f] for f in axis.factors)]) for axis in block)
            assert result[where].isnan(), "two blocks overlap"
            result[where] = tensor[taken]
    return result


@pytest.mark.parametrize("name", NESTED)
def test_apply_is_what_the_definition_says(name):
    spec, state = spec_of(name), state_of(name)
    alignment = spec.random(11)
    moved = alignment.apply(state)
    checked = set()
    for tensor in spec.layouts:
        kind = (spec.shapes[tensor], tensor.rsplit(".", 1)[-1], tensor.split(".")[-2:-1])
        if state[tensor].numel() <= 2000 and str(kind) not in checked:
            checked.add(str(kind))
            assert torch.equal(moved[tensor], by_hand(spec, alignment, tensor, state[tensor])), tensor
    assert checked


# == the algebra =============================================================================================


@often
@given(names, seeds)
def test_inverse_undoes(name, seed):
    spec, state = spec_of(name), state_of(name)
    a = spec.random(seed)
    assert equal(a.inverse().apply(a.apply(state)), dict(state))
    assert equal(a.apply(a.inverse().apply(state)), dict(state))
    assert a @ a.inverse() == a.inverse() @ a == spec.identity()
    assert a.inverse().inverse() == a


@often
@given(names, seeds, seeds)
def test_composition_is_one_after_the_other(name, one, two):
    spec, state = spec_of(name), state_of(name)
    a, b = spec.random(one), spec.random(two)
    assert equal((a @ b).apply(state), a.apply(b.apply(state)))
    assert (a @ b).inverse() == b.inverse() @ a.inverse()


@often
@given(names, seeds, seeds, seeds)
def test_composition_is_associative(name, one, two, three):
    spec = spec_of(name)
    a, b, c = (spec.random(seed) for seed in (one, two, three))
    assert (a @ b) @ c == a @ (b @ c)


@often
@given(names, seeds)
def test_identity(name, seed):
    spec, state = spec_of(name), state_of(name)
    a, one = spec.random(seed), spec.identity()
    assert a @ one == one @ a == a
    assert equal(one.apply(state), dict(state))
    assert not any(one.moved.values())


def test_different_elements_act_differently():
    """The action is faithful: all elements of a small nest give different states."""
    module = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
    spec = fxr.infer(Attends(module), torch.randn(2, 3, 4).double())
    assert spec.order == 2 * (2 * 2) ** 2
    state = {f"attention.{k}": torch.randn_like(v) for k, v in module.state_dict().items()}
    seen = {b"".join(t.numpy().tobytes() for t in a.apply(state).values()) for a in elements(spec)}
    assert len(seen) == spec.order


class Attends(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_alignments_of_different_specs_do_not_compose():
    with pytest.raises(fxr.SpecError, match="different specs"):
        spec_of("mlp").random(0) @ spec_of("lenet").random(0)
    with pytest.raises(TypeError):
        spec_of("mlp").random(0) @ 3


@pytest.mark.parametrize("wrong, message", [
    (lambda p: {k: v for k, v in list(p.items())[1:]}, "every group"),
    (lambda p: {**p, "other": np.arange(3)}, "every group"),
    (lambda p: {k: np.zeros_like(v) for k, v in p.items()}, "permutations of 0"),
    (lambda p: {k: v[..., :-1] for k, v in p.items()}, "permutations of 0"),
    (lambda p: {k: v + 1 for k, v in p.items()}, "permutations of 0"),
    (lambda p: {k: v - v.shape[-1] for k, v in p.items()}, "permutations of 0"),
])
def test_only_permutations_are_taken(wrong, message):
    spec = spec_of("vit_fused")
    with pytest.raises(fxr.SpecError, match=message) as caught:
        fxr.Alignment(spec, wrong(dict(spec.identity().permutations)))
    assert "\n" not in str(caught.value)


def test_alignments_are_immutable():
    a = spec_of("mlp").random(0)
    array = next(iter(a.permutations.values()))
    with pytest.raises(ValueError):
        array[0] = 1
    with pytest.raises(TypeError):
        a.permutations["0.weight:0"] = array
    given = {name: p.copy() for name, p in a.permutations.items()}
    b = fxr.Alignment(a.spec, given)
    for p in given.values():
        p[:] = 0
    assert a == b


def test_moved_counts_what_moved():
    spec = spec_of("mlp")
    swap = np.arange(32)
    swap[[3, 5]] = swap[[5, 3]]
    first = next(iter(spec.groups))
    a = fxr.Alignment(spec, {**spec.identity().permutations, first: swap})
    assert sum(a.moved.values()) == a.moved[first] == 2
    assert "2 of 80" in repr(a)


# == what apply does with tensors ============================================================================


@often
@given(names, seeds)
def test_apply_is_never_in_place(name, seed):
    spec, state = spec_of(name), state_of(name)
    before = {k: (v.clone(), v._version) for k, v in state.items()}
    for alignment in (spec.random(seed), spec.identity()):
        moved = alignment.apply(state)
        for key, tensor in moved.items():
            assert tensor.data_ptr() != state[key].data_ptr(), f"{key} is shared with the input"
            tensor.zero_()
        assert all(torch.equal(state[k], v) and state[k]._version == version for k, (v, version) in before.items())
        assert list(moved) == list(state)


@pytest.mark.parametrize("name", ["gpt2", "gpt2_conv1d"])
def test_ties_are_preserved(name):
    state = state_of(name)
    assert state["wte.weight"].data_ptr() == state["lm_head.weight"].data_ptr()
    moved = spec_of(name).random(4).apply(state)
    assert moved["wte.weight"] is moved["lm_head.weight"]
    untied = {k: v.clone() for k, v in state.items()}
    apart = spec_of(name).random(4).apply(untied)
    assert equal(apart, moved)
    assert apart["wte.weight"].data_ptr() != apart["lm_head.weight"].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("name", ["vgg", "neox", "experts"])
def test_dtypes_are_preserved(name, dtype):
    spec = spec_of(name)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_of(name).items()}
    a = spec.random(2)
    moved = a.apply(state)
    assert all(moved[k].dtype == state[k].dtype for k in state)
    assert equal(a.inverse().apply(moved), state)
    for k in spec.shapes:  # a permutation: the same numbers elsewhere
        assert Counter(moved[k].flatten().tolist()) == Counter(state[k].flatten().tolist())


def test_integer_buffers_pass_through():
    spec, state = spec_of("vgg"), dict(state_of("vgg"))
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    assert counters and set(counters) == set(spec.passed)
    for i, k in enumerate(counters):
        state[k] = torch.tensor(i + 7)
    moved = spec.random(1).apply(state)
    assert [int(moved[k]) for k in counters] == [i + 7 for i in range(len(counters))]
    assert all(moved[k].dtype == torch.int64 for k in counters)
    without = {k: v for k, v in state.items() if k not in counters}
    assert list(spec.random(1).apply(without)) == list(without)


def test_meta_and_gradients():
    spec = spec_of("llama")
    meta = {k: v.to("meta") for k, v in state_of("llama").items()}
    moved = spec.random(0).apply(meta)
    assert all(moved[k].is_meta and moved[k].shape == meta[k].shape for k in meta)
    module, _ = build("mlp")
    live = dict(module.named_parameters())
    assert not any(t.requires_grad for t in spec_of("mlp").random(0).apply(live).values())


# == states that do not fit ==================================================================================


def broken(change) -> dict[str, torch.Tensor]:
    state = dict(state_of("mlp"))
    change(state)
    return state


def damaged(key: str, value: float):
    def change(state):
        state[key] = state[key].clone()
        state[key][0] = value
    return change


@pytest.mark.parametrize("change, parts", [
    (lambda s: s.pop("2.bias"), ["lacks '2.bias'", "checkpoint of this model"]),
    (lambda s: [s.pop(k) for k in list(s)[:5]], ["lacks", "and 2 more"]),
    (lambda s: s.update(extra=torch.zeros(3)), ["unexpected 'extra'", "remove"]),
    (lambda s: s.update({"2.bias": torch.zeros(5)}), ["'2.bias' has shape (5,)", "(48,)"]),
    (lambda s: s.update({"2.bias": torch.zeros(48, dtype=torch.int8)}), ["'2.bias' is torch.int8", "dequantise"]),
    (lambda s: s.update({"2.bias": [0.0] * 48}), ["'2.bias' is a list", "state_dict"]),
    (damaged("2.bias", math.nan), ["'2.bias' holds NaN or infinity"]),
    (damaged("4.bias", math.inf), ["'4.bias' holds NaN or infinity"]),
    (damaged("0.weight", -math.inf), ["'0.weight' holds NaN or infinity"]),
])
def test_states_that_do_not_fit(change, parts):
    with pytest.raises(fxr.StateError) as caught:
        spec_of("mlp").random(0).apply(broken(change))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# == random is uniform =======================================================================================


def test_random_is_uniform():
    """All 72 elements of S_3 wr S_2 at the expected rate: the chi-square statistic is within four deviations."""
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce, self.grouped = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 2, 1, groups=2)
            self.out = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.out(self.grouped(self.reduce(x).relu()).relu())

    spec = fxr.infer(Tiny(), torch.randn(3, 2, 4, 4))
    assert spec.order == 2 * math.factorial(3) ** 2
    key = lambda a: b"".join(p.tobytes() for p in a.permutations.values())  # noqa: E731
    every = {key(a) for a in elements(spec)}
    assert len(every) == spec.order
    draws = 60 * spec.order
    counts = Counter(key(spec.random(seed)) for seed in range(draws))
    assert set(counts) == every
    chi = sum((counts[k] - 60) ** 2 / 60 for k in every)
    degrees = spec.order - 1
    print(f"chi-square {chi:.1f} with {degrees} degrees of freedom")
    assert abs(chi - degrees) < 4 * math.sqrt(2 * degrees)


def test_random_depends_on_the_seed_alone():
    spec = spec_of("vit_fused")
    np.random.seed(0)
    a = spec.random(5)
    np.random.seed(1)
    assert a == spec.random(5) != spec.random(6)


# == files ===================================================================================================


@pytest.mark.parametrize("name", SPECS)
def test_round_trip_through_a_file(name, tmp_path):
    spec, state = spec_of(name), state_of(name)
    a = spec.random(3)
    a = fxr.Alignment(spec, a.permutations, objective=0.1 + 0.2, method="exact")
    a.save(tmp_path / "a.safetensors")
    b = fxr.Alignment.load(str(tmp_path / "a.safetensors"))
    assert a == b and b.spec == spec
    assert (b.objective, b.method) == (0.1 + 0.2, "exact")
    assert list(b.permutations) == list(a.permutations)
    assert all(b.permutations[k].tobytes() == a.permutations[k].tobytes() for k in a.permutations)
    assert equal(a.apply(state), b.apply(state))
    b.save(tmp_path / "b.safetensors")
    assert load_file(tmp_path / "a.safetensors").keys() == load_file(tmp_path / "b.safetensors").keys()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]


def test_without_objective_and_method(tmp_path):
    spec_of("mlp").random(0).save(tmp_path / "a")
    b = fxr.Alignment.load(tmp_path / "a")
    assert b.objective is None and b.method is None


def refused(path) -> str:
    with pytest.raises(fxr.CheckpointError) as caught:
        fxr.Alignment.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole"
    spec_of("experts").random(1).save(path)
    return path


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())


def test_truncated_files_are_refused(whole, tmp_path):
    data = whole.read_bytes()
    for size in {0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 100, len(data) - 1}:
        (tmp_path / "cut").write_bytes(data[:size])
        refused(tmp_path / "cut")


def test_other_files_are_refused(tmp_path):
    refused(tmp_path / "absent")
    refused(tmp_path)
    for content in (b"\xff" * 64, b"hello", bytes(1000), b'{"format": "pt"}', b"\x80\x04\x95" + bytes(60)):
        (tmp_path / "other").write_bytes(content)
        refused(tmp_path / "other")
    save_file({"weight": np.zeros(3)}, tmp_path / "plain")
    assert "not an alignment" in refused(tmp_path / "plain")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickle")
    refused(tmp_path / "pickle")


@pytest.mark.parametrize("change", [
    lambda tensors, meta: tensors.pop("group.1"),
    lambda tensors, meta: tensors.update({"group.0": tensors["group.0"] * 0}),
    lambda tensors, meta: tensors.update({"group.0": tensors["group.0"] + 1}),
    lambda tensors, meta: tensors.update({"group.0": tensors["group.0"][..., :-1].copy()}),
    lambda tensors, meta: tensors.update({"group.0": tensors["group.0"] + 0.5}),
    lambda tensors, meta: tensors.update({"group.0": np.full(tensors["group.0"].shape, 2**31 - 1, dtype=np.int32)}),
    lambda tensors, meta: meta.update(spec="{}"),
    lambda tensors, meta: meta.update(spec=""),
    lambda tensors, meta: meta.update(spec="[[[["),
    lambda tensors, meta: meta.pop("spec"),
    lambda tensors, meta: meta.pop("format"),
    lambda tensors, meta: meta.update(format="fxrebasin-alignment-999"),
    lambda tensors, meta: meta.update(objective="high"),
    lambda tensors, meta: meta.update(spec=spec_of("mlp").to_json()),
])
def test_hostile_files_are_refused(whole, tmp_path, change):
    tensors, meta = load_file(whole), metadata_of(whole)
    change(tensors, meta)
    save_file(tensors, tmp_path / "hostile", metadata=meta)
    refused(tmp_path / "hostile")


def test_a_hostile_spec_in_a_file_is_refused(whole, tmp_path):
    tensors, meta = load_file(whole), metadata_of(whole)
    spec = json.loads(meta["spec"])
    for blocks in spec["layouts"].values():
        for block in blocks:
            for positions, _ in block:
                positions["start"] = 10**9
    save_file(tensors, tmp_path / "hostile", metadata={**meta, "spec": json.dumps(spec)})
    assert "outside" in refused(tmp_path / "hostile")


def test_random_bytes_in_the_file_never_crash(whole, tmp_path):
    """Either refused in one line, or an alignment that is a permutation all the same."""
    data, rng = whole.read_bytes(), np.random.default_rng(0)
    refusals = 0
    for _ in range(200):
        bad = bytearray(data)
        for at in rng.integers(0, len(data), size=3):
            bad[at] = int(rng.integers(0, 256))
        (tmp_path / "bad").write_bytes(bytes(bad))
        try:
            fxr.Alignment.load(tmp_path / "bad").apply(state_of_experts())
        except fxr.FxrebasinError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 100


def state_of_experts(cache={}):
    if not cache:
        cache.update(state_of("experts"))
    return cache


def test_files_appear_whole_or_not_at_all(tmp_path):
    a = spec_of("mlp").random(0)
    with pytest.raises(fxr.CheckpointError, match="cannot write"):
        a.save(tmp_path / "no" / "such" / "folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(fxr.CheckpointError, match="cannot write"):
        a.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert not list((tmp_path / "folder").iterdir())
    (tmp_path / "old").write_text("old")
    a.save(tmp_path / "old")
    assert fxr.Alignment.load(tmp_path / "old") == a


def test_the_network_of_the_documentation():
    """Composition on one line of an MLP, by hand: new unit i is old unit p[i]."""
    module = mlp(2, 3, 1)
    spec = fxr.infer(module, torch.randn(4, 2))
    (group,) = spec.groups
    p, q = np.array([1, 2, 0]), np.array([0, 2, 1])
    a, b = fxr.Alignment(spec, {group: p}), fxr.Alignment(spec, {group: q})
    state = module.state_dict()
    assert torch.equal(a.apply(state)["0.weight"], state["0.weight"][p])
    assert torch.equal(a.apply(state)["2.weight"], state["2.weight"][:, p])
    assert np.array_equal((a @ b).permutations[group], q[p])
    assert np.array_equal(a.inverse().permutations[group], np.argsort(p))
