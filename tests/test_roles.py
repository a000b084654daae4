"""What an entry of a state is: from the module, from its graph, from the states at hand."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.spec import roles
from fxrebasin.transport import transported

X = torch.randn(5, 4)


class Frozen(nn.Module):
    """A batch norm written by hand: no op names its statistics."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("mean_of_all", torch.randn(width))
        self.register_buffer("spread", torch.rand(width) + 0.5)
        self.register_buffer("table", torch.randn(width))

    def forward(self, x):
        return (x - self.mean_of_all) * (self.spread.reshape(1, -1) + 1e-5).rsqrt() + self.shift + self.table


class Modes(nn.Module):
    """Two ways in, of which an example takes one."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.text, self.image, self.out = nn.Linear(4, width), nn.Linear(6, width), nn.Linear(width, 3)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("order", torch.arange(width).flip(0))
        self.register_buffer("keep", torch.ones(width, dtype=torch.bool))

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass

    def forward(self, text=None, image=None):
        hidden = self.text(text)[:, self.order] if image is None else self.norm(self.image(image)) * self.keep
        return self.out(hidden.relu())


def roles_of(module, inputs=X) -> dict[str, str]:
    spec = fxr.infer(module.eval(), inputs)
    assert set(spec.roles) == set(module.state_dict())
    assert fxr.Spec.from_json(spec.to_json()).roles == spec.roles
    return dict(spec.roles)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False), nn.SyncBatchNorm(6)])
def test_statistics_of_a_batch_norm(norm):
    found = roles_of(nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3)))
    assert found["1.running_mean"] == roles.MEAN and found["1.running_var"] == roles.VARIANCE
    assert found["1.num_batches_tracked"] == roles.COUNTER and found["0.weight"] == roles.PARAMETER
    assert found.get("1.weight", roles.PARAMETER) == roles.PARAMETER


def test_statistics_are_known_by_what_is_done_with_them():
    found = roles_of(nn.Sequential(nn.Linear(4, 6), Frozen(6), nn.ReLU(), nn.Linear(6, 3)))
    assert found["1.spread"] == roles.VARIANCE and found["1.mean_of_all"] == roles.MEAN
    assert found["1.shift"] == found["1.table"] == roles.BUFFER


def test_a_parameter_under_a_square_root_is_a_parameter():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(4, 6), nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.inner(x) * self.scale.sqrt()
    assert roles_of(Scaled())["scale"] == roles.PARAMETER


def test_what_the_example_does_not_reach_is_said():
    text, image = {"text": X}, {"image": torch.randn(5, 6)}
    found = roles_of(Modes(), text)
    for name in ("image.weight", "norm.running_var", "norm.bias", "keep"):
        assert roles.is_outside(found[name]), name
    assert roles.kind(found["norm.running_var"]) == roles.VARIANCE and roles.kind(found["keep"]) == roles.INDEX
    assert found["order"] == roles.INDEX and found["_extra_state"] == roles.EXTRA
    assert found["text.weight"] == found["out.bias"] == roles.PARAMETER
    assert found["norm.num_batches_tracked"] == roles.COUNTER
    (note,) = (note for note in fxr.infer(Modes().eval(), text).notes if note.startswith(roles.OUTSIDE))
    assert "'image.weight'" in note and "infer(model, [x, y])" in note
    other = roles_of(Modes(), image)
    assert roles.is_outside(other["text.weight"]) and other["image.weight"] == roles.PARAMETER
    assert other["keep"] == roles.INDEX and roles.is_outside(other["order"])


def test_match_and_transport_say_what_is_outside():
    spec = fxr.infer(Modes().eval(), {"text": X})
    a, b = Modes().state_dict(), Modes().state_dict()
    message = "outside the example run, and not moved: 'image.weight', 'image.bias', 'norm.weight' and 4 more"
    with pytest.warns(roles.RoleNote, match=f"^match: {message}"):
        pi = fxr.match(spec, a, b)
    with pytest.warns(roles.RoleNote, match=f"^transport: {message}"):
        fxr.transport(a, a, b, pi)
    with pytest.warns(roles.RoleNote) as said:
        dict(transported(a, a, b, pi))
    assert len(said) == 1, "said once, and not for each part"
    merged, moved = fxr.merge([a, b]), pi.apply(a)
    assert merged["_extra_state"] == moved["_extra_state"] == {"version": 1}  # extra state passes through all of it


def test_several_runs_reach_more():
    module = Modes().eval()
    module.order.copy_(torch.arange(8))
    spec = fxr.infer(module, [{"text": X}, {"image": torch.randn(5, 6)}])
    assert not any(map(roles.is_outside, spec.roles.values())) and spec.roles["norm.running_var"] == roles.VARIANCE


@pytest.mark.parametrize(
    "made",
    [
        lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8),
        lambda m: m.register_buffer("q", torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)) or m,
    ],
)
def test_quantised_modules_get_one_line(made):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = made(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    with pytest.raises(fxr.CaptureError, match="is quantised, .*: give the module as it was before") as caught:
        fxr.infer(module, X)
    assert "\n" not in str(caught.value)


def test_a_frozen_infinite_parameter_is_a_constant():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 6)
            self.mask = nn.Parameter(torch.tensor([0.0, -math.inf] * 3), requires_grad=False)

        def forward(self, x):
            return (self.inner(x) + self.mask).softmax(-1)
    module = Masked()
    spec = fxr.infer(module, X)
    assert spec.roles["mask"] == roles.BUFFER and spec.roles["inner.weight"] == roles.PARAMETER
    spec.random().apply(module.state_dict())
    module.inner.requires_grad_(False)
    assert fxr.infer(module, X).roles["inner.weight"] == roles.PARAMETER


def test_a_network_that_is_reached_whole_has_no_note():
    assert not fxr.infer(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval(), X).notes


def test_roles_without_a_module_and_without_numbers():
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    expected = roles_of(module)
    assert dict(fxr.infer(torch.export.export(module, (X,))).roles) == expected
    assert roles_of(module.to("meta")) == expected


def test_roles_are_printed():
    text = str(fxr.infer(Modes().eval(), {"text": X}))
    for word in ("index or mask: order", "extra state: _extra_state", "counter: norm.num_batches_tracked",
                 "outside the example run: parameter: image.weight", "note: outside the example run"):
        assert word in text, word
    assert "parameter: out.weight" not in text


# == fixed buffers ===========================================================================================


def frozen_spec():
    module = nn.Sequential(nn.Linear(4, 6), Frozen(6), nn.ReLU(), nn.Linear(6, 3))
    return fxr.infer(module, X), module.state_dict()


def test_a_buffer_is_fixed_where_the_states_agree():
    spec, state = frozen_spec()
    other = {name: tensor + 1 if name == "1.table" else tensor.clone() for name, tensor in state.items()}
    every = {"1.shift", "1.table"}  # what is a statistic is no constant
    assert set(spec.fixed(state, state)) == every
    assert set(spec.fixed(state, other)) == set(spec.fixed(other, state, state)) == every - {"1.table"}
    assert spec.fixed(state) == ()  # one state alone agrees with nothing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_agreement_survives_another_dtype(dtype):
    spec, state = frozen_spec()
    assert len(spec.fixed(state, {name: tensor.to(dtype) for name, tensor in state.items()})) == 2
    assert roles.agree(torch.tensor([-math.inf, 0.0]), torch.tensor([-math.inf, -0.0]).to(dtype))
    assert not roles.agree(torch.tensor([1.0]), torch.tensor([1.1]).to(dtype))
