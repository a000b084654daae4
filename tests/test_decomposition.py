"""What an op without a rule decomposes into is believed only where it does what the op does."""

import pytest
import torch
from fuzz_checks import traced
from torch import nn

import fxrebasin as fxr
from fxrebasin.infer.decomposition import faithful

MASK = torch.tensor([True, True, True, False])[:, None]


class Picked(nn.Module):
    """Picks columns by places, for a map."""

    def __init__(self, places):
        super().__init__()
        self.a, self.o = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(4, 3))
        self.places = places

    def forward(self, x):
        return torch.ops.aten._unsafe_masked_index((x @ self.a).t(), MASK, [torch.tensor(self.places)], 0.0).t() @ self.o


@pytest.mark.parametrize("places", [[0, 0, 0, 0], [-1, -2, -1, 0], [-6, -6, 0, 3], [1, 4, 4, 2]])
def test_places_from_the_end_are_not_taken_for_zero(places):
    torch.manual_seed(0)
    model, x = Picked(places).double(), torch.randn(7, 5, dtype=torch.double)
    spec = fxr.infer(traced(model, (x,)), falsify=False)
    expected = model(x)
    for seed in range(5):
        moved = spec.random(seed).apply(model.state_dict())
        torch.testing.assert_close(torch.func.functional_call(model, moved, x), expected)


def test_parts_that_differ_from_the_op_are_told():
    like, known = [torch.empty(3, 4)], [None]
    assert faithful(lambda x: [x.sin()], lambda x: [x.sin()], like, known)
    assert not faithful(lambda x: [x.sin()], lambda x: [x.sin() + (x > 0)], like, known)
    assert not faithful(lambda x: [x], lambda x: [x, x], like, known)


def test_constants_are_what_they_are():
    held = torch.tensor([-1])
    assert not faithful(lambda i: [i], lambda i: [i.clamp(0)], [torch.empty(1, dtype=torch.long)], [held])
