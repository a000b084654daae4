"""Files of older versions, and adapters of another base: refused in one line that says what to do."""
from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fxrebasin as fxr


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("field", ["inputs", "skips", "roles"])
def test_a_spec_of_an_older_version_says_what_it_lacks(field):
    data = json.loads(fxr.infer(mlp(0), torch.randn(2, 4)).to_json())
    del data[field]
    with pytest.raises(fxr.SpecError, match=f"lacks '{field}'.*older versions.*infer it anew"):
        fxr.Spec.from_json(json.dumps(data))


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
