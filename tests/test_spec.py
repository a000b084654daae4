"""Specs as text: a round trip keeps everything, and nothing that is not a spec is read as one."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, LIGHT, NAMES, ViT, mlp, spec_of, state_of
from torch import nn

import fxrebasin as fxr
from fxrebasin.spec import Order

# == round trip ==============================================================================================


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    spec = spec_of(name)
    text = spec.to_json()
    again = fxr.Spec.from_json(text)
    assert again == spec and hash(again) == hash(spec)
    assert again.to_json() == text
    for field in dataclasses.fields(spec):
        if field.name not in ("layouts", "outputs"):
            assert getattr(again, field.name) == getattr(spec, field.name), field.name
    assert list(again.groups) == list(spec.groups) and list(again.layouts) == list(spec.layouts)
    for tensor, blocks in spec.layouts.items():
        for one, other in zip(blocks, again.layouts[tensor], strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.factors == b.factors
                assert a.positions.shape == b.positions.shape and np.array_equal(a.positions, b.positions)
    assert again.order == spec.order == ARCHITECTURES[name].order


@pytest.mark.parametrize("name", LIGHT)
def test_the_spec_that_was_read_acts_alike(name):
    spec, state = spec_of(name), state_of(name)
    again = fxr.Spec.from_json(spec.to_json())
    one, other = spec.random(8), again.random(8)
    assert one == other
    moved, also = one.apply(state), other.apply(state)
    assert all(torch.equal(moved[k], also[k]) for k in state)


def test_round_trip_with_free_outputs():
    network = ViT()
    network.head = nn.Identity()
    spec = fxr.infer(network, torch.randn(2, 1, 12, 12), outputs="free")
    again = fxr.Spec.from_json(spec.to_json())
    assert again == spec and spec.outputs
    (path,) = spec.outputs
    x = torch.randn(2, 12)
    moved = spec.random(1).apply_to_output(path, x)
    assert torch.equal(again.random(1).apply_to_output(path, x), moved) and not torch.equal(moved, x)


def test_different_specs_are_not_equal():
    specs = [spec_of(name) for name in ("mlp", "lenet", "vit_fused", "vit_separate", "gpt2")]
    assert all((a == b) == (a is b) for a in specs for b in specs)
    assert specs[0] != "spec"


def test_the_text_is_json_for_others():
    data = json.loads(spec_of("llama").to_json())
    assert data["format"].startswith("fxrebasin-spec-")
    assert {(g["size"], g["copies"]) for g in data["groups"].values()} == {(10, 1), (14, 1), (2, 1), (3, 2), (4, 2)}
    assert len(spec_of("resnet18").to_json()) < 100_000  # positions are written as strides, not one by one


# == what a spec says ========================================================================================


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_is_consistent(name):
    spec = spec_of(name)
    assert set(spec.sizes) == set(spec.group_of) | set(spec.reasons)
    assert not set(spec.group_of) & set(spec.reasons)
    for key, group in spec.groups.items():
        assert key == group.name and group.size > 1
        assert group.size == math.prod(spec.sizes[m] for m in group.members)
        assert group.copies == math.prod(spec.sizes[f] for f in group.within) == math.prod(spec.frame(group))
        assert group.sites and not set(group.members) & set(group.within)
        for site in group.sites:
            assert set(group.members) & set(spec.layouts[site.tensor][site.block][site.axis].factors)
            present = {f for axis in spec.layouts[site.tensor][site.block] for f in axis.factors}
            assert set(group.within) <= present, "a permutation may depend on what is not there"
    for tensor, blocks in spec.layouts.items():  # blocks partition the tensor
        covered = np.zeros(spec.shapes[tensor], dtype=int)
        for block in blocks:
            covered[np.ix_(*(axis.positions.reshape(-1) for axis in block))] += 1
        assert (covered == 1).all(), tensor


def test_specs_are_immutable():
    spec = spec_of("mlp")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.groups = {}
    with pytest.raises(TypeError):
        spec.groups["x"] = None
    with pytest.raises(TypeError):
        spec.pinned["0.weight", 1] = "no"


def test_order_is_an_exact_integer():
    spec = spec_of("resnet18")
    assert isinstance(spec.order, int) and spec.order % math.factorial(512) ** 3 == 0
    assert fxr.infer(nn.Linear(3, 2), torch.randn(2, 3)).order == 1


def test_an_order_prints_at_any_size():
    """Python itself refuses to print integers of more than 4,300 digits."""
    order = spec_of("resnet18").order
    exponent = float(str(order).removeprefix("about 10^"))
    assert exponent == pytest.approx(spec_of("resnet18").log10_order, abs=0.1) and f"{order:e}" == f"10^{exponent:.1f}"
    assert str(Order(math.factorial(20))) == "2432902008176640000" and f"{Order(24)}" == "24" and f"{Order(24):>4}" == "  24"
    assert Order(10 ** 4299) + 1 == 10 ** 4299 + 1 and len(str(Order(10 ** 4299))) == 4300


def test_ties_lead_to_one_layout():
    spec = spec_of("gpt2")
    (alias, name), = spec.ties.items()
    assert {alias, name} == {"wte.weight", "lm_head.weight"}
    assert spec.layout(alias) is spec.layout(name) and alias not in spec.layouts
    assert (alias in spec.permutable) + (name in spec.permutable) == 1


# == what is not a spec ======================================================================================


def refused(text) -> str:
    with pytest.raises(fxr.SpecError) as caught:
        fxr.Spec.from_json(text)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("text", [
    "", " ", "{}", "[]", "null", "3", "NaN", '"spec"', "{", "[[[[", "\x00", "not json\nat all", '{"format": 1}',
    '{"format": null}', '{"format": "fxrebasin-spec-1"}', '{"format": "fxrebasin-spec-2", "groups": {}}', "[" * 100_000,
    '{"a":' * 50_000], ids=range(18))
def test_garbage_is_refused(text):
    refused(text)


def edited(*path, value=None, remove=False) -> str:
    """The text of an MLP's spec with one entry changed."""
    data = json.loads(spec_of("mlp").to_json())
    at = data
    for key in path[:-1]:
        at = at[key]
    if remove:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(fxr.Spec) if f.name != "stacks"])
def test_missing_fields_are_refused(field):
    refused(edited(field, remove=True))


@pytest.mark.parametrize("field, value", [(f.name, value) for f in dataclasses.fields(fxr.Spec) for value in (None, 3, "x")
                                          if (f.name, value) != ("evidence", "x")])  # which is a text
def test_fields_of_another_kind_are_refused(field, value):
    refused(edited(field, value=value))


FIRST = ("layouts", "0.weight", 0, 0, 0)  # the positions of the first axis, 32 of them
GROUP = ("groups", "0.weight:0")


@pytest.mark.parametrize("path, value", [
    (FIRST, {"start": 5, "strides": [1], "shape": [32]}),  # out of the tensor
    (FIRST, {"start": -1, "strides": [1], "shape": [32]}),
    (FIRST, {"start": 0, "strides": [0], "shape": [32]}),  # the same position again and again
    (FIRST, {"start": 0, "strides": [1], "shape": [31]}),  # too few
    (FIRST, {"start": 0, "strides": [1], "shape": [-32]}),
    (FIRST, {"start": 0, "strides": [1], "shape": [10**13]}),  # more than there is memory
    (FIRST, {"start": 0, "strides": [1], "shape": [2] * 70}),
    (FIRST, {"start": 0, "strides": [1.5], "shape": [32]}),
    (FIRST, {"list": [0] * 32, "shape": [32]}),
    (FIRST, {"list": list(range(31)) + [99], "shape": [32]}),
    (FIRST, {"list": list(range(31)), "shape": [32]}),
    (FIRST, {}),
    (("layouts", "0.weight", 0, 0, 1), ["unknown"]),
    (("layouts", "0.weight", 0, 0, 1), []),
    (("layouts", "0.weight", 0), []),
    (("layouts", "0.weight"), []),
    (("shapes", "0.weight"), [3, 3]),
    (("shapes", "0.weight"), "ab"),
    (("sizes", "0.weight:0"), -32),
    (("sizes", "0.weight:0"), 10**13),
    (("sizes", "0.weight:0"), "32"),
    (("ties",), {"0.weight": "zzz"}),
    ((*GROUP, "size"), 31),
    ((*GROUP, "size"), 32.5),
    ((*GROUP, "copies"), 2),
    ((*GROUP, "copies"), 0),
    ((*GROUP, "within"), ["unknown"]),
    ((*GROUP, "members"), ["2.weight:0"]),
    ((*GROUP, "members"), []),
    ((*GROUP, "sites"), [["unknown", 0, 0]]),
    ((*GROUP, "sites"), [["0.weight", 7, 0]]),
    ((*GROUP, "sites"), [["0.weight", 0, 9]]),
    ((*GROUP, "sites"), [["0.weight"]]),
])
def test_hostile_entries_are_refused(path, value):
    refused(edited(*path, value=value))


def test_a_group_within_what_is_elsewhere_is_refused():
    data = json.loads(spec_of("mlp").to_json())
    data["groups"]["0.weight:0"].update(within=["2.weight:0"], copies=48)
    refused(json.dumps(data))


def test_a_group_within_itself_is_refused():
    data = json.loads(spec_of("mlp").to_json())
    data["groups"]["0.weight:0"].update(within=["0.weight:0"], copies=32)
    refused(json.dumps(data))


def test_overlapping_blocks_are_refused():
    data = json.loads(fxr.infer(mlp(2, 4, 2), torch.randn(3, 2)).to_json())
    half = lambda start: [[{"start": start, "strides": [1], "shape": [2]}, ["half"]],  # noqa: E731
                          data["layouts"]["0.weight"][0][1]]
    data["sizes"]["half"] = 2
    data["layouts"]["0.weight"] = [half(0), half(1)]
    refused(json.dumps(data))


def test_a_layout_for_every_tensor_and_for_no_other():
    refused(edited("layouts", "4.bias", remove=True))
    refused(edited("shapes", "4.bias", remove=True))


# == the table of git-re-basin ===============================================================================


def test_axes_to_perm_goes_out_and_comes_in():
    for name in ("mlp", "resnet18"):
        spec = spec_of(name)
        table = spec.axes_to_perm()
        assert set(table) == set(spec.names) and all(len(table[k]) == len(v) for k, v in spec.names.items())
        again = fxr.Spec.from_axes_to_perm(table, spec.names)
        assert again.order == spec.order and set(again.groups) == set(spec.groups)
        pi = spec.random(2)
        moved, also = (fxr.Alignment(s, pi.permutations).apply({k: v for k, v in state_of(name).items() if k in spec.names})
                       for s in (spec, again))
        assert all(torch.equal(moved[k], also[k]) for k in moved)
        assert fxr.Spec.from_json(again.to_json()) == again


def test_axes_to_perm_as_it_is_written_by_hand():
    table = {"dense0/kernel": (None, "P0"), "dense0/bias": ("P0",), "dense1/kernel": ("P0", None), "dense1/bias": (None,)}
    shapes = {"dense0/kernel": (4, 6), "dense0/bias": (6,), "dense1/kernel": (6, 3), "dense1/bias": (3,)}
    spec = fxr.Spec.from_axes_to_perm(table, shapes)
    assert spec.order == 720 and spec.axes_to_perm() == table
    a = {k: torch.randn(s) for k, s in shapes.items()}
    pi = spec.random(1)
    assert fxr.match(spec, a, pi.apply(a)) == pi


@pytest.mark.parametrize("table, shapes, message", [
    ({"w": (None, "P")}, {"w": (3,)}, "axes_to_perm has 2 axes for 'w', the state has 1"),
    ({"w": ("P",)}, {}, "axes_to_perm has 1 axes for 'w', the state has no such tensor"),
    ({"w": ("P",), "v": ("P",)}, {"w": (3,), "v": (4,)}, "'P' moves 3 places elsewhere, and axis 0 of 'v' has 4"),
    ({"w": ("P",)}, {"w": (3,), "v": (4,)}, "axes_to_perm says nothing of 'v'")])
def test_tables_that_do_not_fit(table, shapes, message):
    with pytest.raises(fxr.SpecError, match=message):
        fxr.Spec.from_axes_to_perm(table, shapes)


def test_what_axes_to_perm_cannot_say():
    with pytest.raises(fxr.SpecError, match="is no whole axis that one permutation moves: axes_to_perm cannot say"):
        spec_of("vit_fused").axes_to_perm()
