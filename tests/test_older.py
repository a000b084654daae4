"""Files of other versions, and adapters of another base: refused in one line that says what to do."""
from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

import fxrebasin as fxr
from fxrebasin.spec.text import FIELDS


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("field", ["inputs", "skips", "roles"])
def test_a_spec_of_an_older_version_says_what_it_lacks(field):
    data = json.loads(fxr.infer(mlp(0), torch.randn(2, 4)).to_json())
    del data[field]
    with pytest.raises(fxr.SpecError) as error:
        fxr.Spec.from_json(json.dumps(data))
    assert str(error.value) == f"this spec is of another version: it is without '{field}': infer it again with this version"
    assert error.value.anchor == "files-of-another-version"


def test_what_a_spec_writes_is_what_is_asked_for():
    assert {"format", "order_log10", *FIELDS} == set(json.loads(fxr.infer(mlp(0), torch.randn(2, 4)).to_json()))


def test_an_alignment_of_an_older_version_is_refused_in_one_line(tmp_path):
    fxr.infer(mlp(0), torch.randn(2, 4)).random(0).save(tmp_path / "pi.safetensors")
    with safe_open(tmp_path / "pi.safetensors", framework="numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    spec = json.loads(metadata["spec"])
    del spec["skips"]
    save_file(arrays, tmp_path / "old.safetensors", metadata | {"spec": json.dumps(spec)})
    with pytest.raises(fxr.CheckpointError) as error:
        fxr.Alignment.load(tmp_path / "old.safetensors")
    assert str(error.value) == (f"cannot read the alignment {tmp_path / 'old.safetensors'}: its spec is of another version: it "
                                "is without 'skips': match again with this version")
    assert error.value.anchor == "files-of-another-version"


def test_an_adapter_is_carried_from_its_own_base_alone(recwarn):
    spec = fxr.infer(mlp(0), torch.randn(2, 4))
    a, b, other = (mlp(seed).state_dict() for seed in range(3))
    pi = fxr.match(spec, a, b)
    low = {"base_model.model.0.lora_A.weight": torch.randn(2, 4), "base_model.model.0.lora_B.weight": torch.randn(8, 2)}
    adapter = fxr.Adapter({"r": 2, "lora_alpha": 2, "peft_type": "LORA", "target_modules": ["0"]}, low)
    fxr.transport_adapter(a, adapter, b, pi)
    with pytest.raises(fxr.StateError, match="not the state that the alignment was matched from"):
        fxr.transport_adapter(other, adapter, b, pi)
    with pytest.raises(fxr.StateError, match="swapped"):
        fxr.transport_adapter(b, adapter, a, pi)
    fxr.transport_adapter(other, adapter, b, pi, force=True)
