"""States as people have them: odd dtypes, broken ties, integers that differ, infinities, tensors no code can
move."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.spec.dtypes import leaves_range, wide

X = torch.randn(5, 4)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def state_of(seed: int, module=None) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {k: torch.randn_like(v) if v.is_floating_point() or v.is_complex() else v
            for k, v in (module or network()).state_dict().items()}


# == dtypes ==================================================================================================

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [*FLOAT8, torch.float16, torch.bfloat16])
def test_storage_types_are_widened_for_arithmetic(dtype):
    spec = fxr.infer(network(), X)
    base, fine, new = ({k: v.to(dtype) for k, v in state_of(s).items()} for s in range(3))
    pi = spec.random(1)
    (p,) = pi.permutations.values()
    moved, result = pi.apply(base), fxr.transport(base, fine, new, pi)
    for name, axis in (("0.weight", 0), ("2.weight", 1)):
        order = torch.from_numpy(p.copy())
        assert torch.equal(moved[name].float(), base[name].float().index_select(axis, order))
        tau = (fine[name].float() - base[name].float()).index_select(axis, order)
        assert torch.equal(result[name].float(), (new[name].float() + tau).to(dtype).float())
        assert moved[name].dtype == result[name].dtype == dtype
    found = fxr.match(spec, base, pi.apply(base))
    assert all((found.permutations[g] == pi.permutations[g]).all() for g in pi.permutations)


@pytest.mark.parametrize(
    "dtype, size", [(torch.float16, 4e4), (torch.float8_e4m3fn, 300.0), (torch.float32, 3e38)]
)
def test_a_sum_out_of_range_is_refused(dtype, size):
    spec = fxr.infer(network(), X)
    base, new = ({k: torch.zeros_like(v, dtype=dtype) for k, v in state_of(0).items()} for _ in range(2))
    fine = {k: torch.full_like(v.float(), size if k == "2.bias" else 0.0).to(dtype) for k, v in base.items()}
    new["2.bias"] = fine["2.bias"].clone()
    with pytest.raises(fxr.StateError, match=r"'2.bias': the sum leaves the range of torch\..*: give dtype=torch.float"):
        fxr.transport(base, fine, new, spec.identity())
    half = fxr.transport(base, fine, new, spec.identity(), alpha=0.1)
    assert half["2.bias"].dtype == dtype and float(half["2.bias"][0].float()) == pytest.approx(1.1 * size, rel=0.1)
    if dtype != torch.float32:
        wider = fxr.transport(base, fine, new, spec.identity(), dtype=torch.float32)
        assert float(wider["2.bias"][0]) == 2 * float(fine["2.bias"][0].float())
        assert all(v.dtype == torch.float32 for v in wider.values())


def test_range_and_width():
    assert wide(torch.float16) == torch.float32 == wide(*FLOAT8) and wide(torch.float16, torch.float64) == torch.float64
    assert wide(torch.complex32) == torch.complex64 and wide(torch.float64, torch.complex64) == torch.complex128
    assert not leaves_range(torch.tensor([65504.0, -math.inf]), torch.float16)
    assert not leaves_range(torch.tensor([65510.0]), torch.float16) and leaves_range(torch.tensor([65521.0]), torch.float16)
    assert leaves_range(torch.tensor([500.0]), torch.float8_e4m3fn) and not leaves_range(torch.tensor([-448.0]), torch.float8_e4m3fn)


class Complex(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.a = nn.Parameter(torch.randn(width, 4, dtype=torch.cfloat))
        self.b = nn.Parameter(torch.randn(3, width, dtype=torch.cfloat))

    def forward(self, x):
        z = x.to(self.a.dtype) @ self.a.T
        return (torch.complex(z.real.relu(), z.imag.relu()) @ self.b.T).abs()


@pytest.mark.parametrize("turn", [1, 1j, 1 + 1j])
@pytest.mark.parametrize("method", ["exact", "transfusion", "git-rebasin"])
def test_complex_weights_are_matched_by_their_full_inner_product(turn, method):
    spec = fxr.infer(Complex(), X)
    real = {k: torch.randn(v.shape) for k, v in Complex().state_dict().items()}
    a = {k: (v * turn).to(torch.cfloat) for k, v in real.items()}
    pi = spec.random(3)
    found = fxr.match(spec, a, pi.apply(a), method)
    assert all((found.permutations[g] == pi.permutations[g]).all() for g in pi.permutations)
    assert found.objective == pytest.approx(1, abs=1e-6)
    assert all(tensor.is_complex() for tensor in found.apply(a).values())


def test_complex_task_vectors_are_carried():
    spec = fxr.infer(Complex(), X)
    base, fine, new = (state_of(s, Complex()) for s in range(3))
    pi = spec.random(2)
    result, moved = fxr.transport(base, fine, new, pi), pi.apply({k: fine[k] - base[k] for k in base})
    for name in base:
        assert result[name].is_complex() and torch.allclose(result[name], new[name] + moved[name])
    turned = {k: v * 1j for k, v in base.items()}  # a conjugate product would see nothing here
    assert fxr.match(spec, base, turned).objective < 0.9


# == what cannot be moved ====================================================================================


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.to_sparse(), r"'0.weight' is sparse \(torch.sparse_coo\): give it as .to_dense\(\)"),
        (lambda v: v.to_sparse_csr(), r"'0.weight' is sparse \(torch.sparse_csr\)"),
        (
            lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
            "'0.weight' is torch.qint8, not .*: dequantise it first",
        ),
        (
            lambda v: v.to(torch.int8),
            "'0.weight' is torch.int8, not a floating-point tensor: dequantise it first",
        ),
        (lambda v: v.numpy(), "'0.weight' is a ndarray, not a tensor"),
    ],
    ids=["coo", "csr", "quantised", "int8", "array"],
)
def test_sparse_and_quantised_states_get_one_line(change, message):
    spec = fxr.infer(network(), X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {k: change(v) if k == "0.weight" else v for k, v in state_of(0).items()}
    for act in (lambda: spec.random().apply(odd), lambda: fxr.match(spec, odd, state_of(1)),
                lambda: fxr.transport(state_of(0), odd, state_of(1), spec.identity())):
        with pytest.raises(fxr.StateError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)


# == numbers that belong to the spec =========================================================================


class Masked(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.a, self.o, self.w = nn.Linear(4, width), nn.Linear(width, 3), nn.Parameter(torch.randn(width, width))
        self.register_buffer("mask", torch.ones(width, width, dtype=torch.bool))
        self.register_buffer("turn", torch.arange(width).flip(0))
        self.register_buffer("step", torch.tensor(3))

    def forward(self, x):
        return self.o((self.a(x).relu() @ (self.w * self.mask)).relu()[:, self.turn])


@pytest.mark.parametrize("name, value", [("mask", torch.rand(8, 8) > 0.5), ("turn", torch.arange(8))])
def test_states_with_other_integers_are_refused(name, value):
    module = Masked()
    spec = fxr.infer(module, X)
    assert set(spec.numbers) == {"mask", "turn"} and fxr.Spec.from_json(spec.to_json()).numbers == spec.numbers
    same, other = module.state_dict(), {**module.state_dict(), name: value}
    message = f"'{name}' .index or mask. holds other numbers .*: load this state into the model, and infer and match anew"
    for act in (
        lambda: spec.check(other),
        lambda: spec.random().apply(other),
        lambda: fxr.match(spec, same, other),
        lambda: fxr.transport(same, other, same, spec.identity()),
        lambda: fxr.find_equivalence(spec, other, same),
    ):
        with pytest.raises(fxr.StateError, match=message):
            act()
    spec.check({**same, "step": torch.tensor(4), "mask": same["mask"].to(torch.uint8)})
    fxr.infer(module.to("meta"), X.to("meta")).check(other)  # relied on nothing


def test_what_follows_a_mask_of_its_own_checkpoint():
    module = Masked()
    module.mask.copy_(torch.rand(8, 8) > 0.5)
    spec = fxr.infer(module, X)
    assert spec.order < fxr.infer(Masked(), X).order
    assert fxr.verify(module, X, spec.random(1)).equivalent


# == ties ====================================================================================================


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids).tanh())


IDS = torch.arange(6).view(2, 3)


@pytest.mark.parametrize("broken", ["embedding.weight", "head.weight"])
def test_a_broken_tie_is_carried_apart_and_said(broken):
    spec = fxr.infer(Tied(), IDS)
    base, new = Tied().state_dict(), Tied().state_dict()
    fine = {k: v.clone() for k, v in base.items()}
    fine[broken] += 1
    pi = spec.random(2)
    with pytest.warns(UserWarning, match="is tied to .* in the model, but not in the states given: each is carried by itself"):
        result = fxr.transport(base, fine, new, pi)
    for name in base:
        expected = new[name] + (1.0 if name == broken else 0.0)
        assert torch.allclose(result[name], expected, atol=1e-6), name
    moved = pi.apply(fine)
    assert not torch.equal(moved["head.weight"], moved["embedding.weight"])


def test_ties_that_a_file_stored_twice_stay_ties():
    spec = fxr.infer(Tied(), IDS)
    base, new = Tied().state_dict(), Tied().state_dict()
    twice = {k: v.clone() for k, v in base.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fxr.transport(twice, twice, new, spec.random(2))
    assert result["head.weight"] is result["embedding.weight"]


# == infinities ==============================================================================================


class Causal(nn.Module):
    def __init__(self, width: int = 8, length: int = 5):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(4, width), nn.Linear(4, width), nn.Linear(4, width), nn.Linear(width, 2)
        self.register_buffer("mask", torch.full((length, length), -math.inf).triu(1))

    def forward(self, x):
        return self.o((self.q(x) @ self.k(x).transpose(1, 2) + self.mask).softmax(-1) @ self.v(x))


def test_infinities_that_all_states_share_pass():
    x, a, b = torch.randn(2, 5, 4), Causal(), Causal()
    spec = fxr.infer(a, x)
    assert fxr.verify(a, x, spec.random()).equivalent
    pi = fxr.match(spec, a.state_dict(), b.state_dict())
    result = fxr.transport(a.state_dict(), a.state_dict(), b.state_dict(), pi)
    assert all(torch.equal(result[k], v) for k, v in b.state_dict().items())
    assert torch.equal(fxr.merge([pi.apply(a.state_dict()), b.state_dict()])["mask"], b.mask)


@pytest.mark.parametrize(
    "entry, value, message",
    [
        ("mask", math.nan, "'mask' holds NaN or infinity"),
        ("mask", math.inf, "'mask' .buffer. is infinite at other places"),
        ("q.weight", math.inf, "'q.weight' holds NaN or infinity"),
    ],
)
def test_other_infinities_are_refused(entry, value, message):
    spec = fxr.infer(Causal(), torch.randn(2, 5, 4))
    good = {k: v.clone() for k, v in Causal().state_dict().items()}
    bad = {k: v.clone() for k, v in good.items()}
    bad[entry][1, 0] = value
    for one, other in ((good, bad), (bad, good)):
        with pytest.raises(fxr.StateError, match=message):
            fxr.match(spec, one, other)
