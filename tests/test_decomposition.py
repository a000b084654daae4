"""What an op without a rule decomposes into is believed only where it does what the op does."""

import torch
from operator_checks import examined
from operator_networks import Vocabulary, composed, inputs

from fxrebasin.infer.decomposition import faithful


def test_places_from_the_end_are_not_taken_for_zero():
    """All columns that were picked seemed to be the same one, so that what reads them could be permuted."""
    assert examined(composed(3305, Vocabulary()), inputs()).kind == "sound"


def test_parts_that_differ_from_the_op_are_told():
    like, known = [torch.empty(3, 4)], [None]
    assert faithful(lambda x: [x.sin()], lambda x: [x.sin()], like, known)
    assert not faithful(lambda x: [x.sin()], lambda x: [x.sin() + (x > 0)], like, known)
    assert not faithful(lambda x: [x], lambda x: [x, x], like, known)


def test_constants_are_what_they_are():
    held = torch.tensor([-1])
    assert not faithful(lambda i: [i], lambda i: [i.clamp(0)], [torch.empty(1, dtype=torch.long)], [held])
