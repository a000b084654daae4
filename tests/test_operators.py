"""A few of PyTorch's own operators in every wrap, a few random networks of them, and mistakes that must be noticed. All of
them: benchmarks/operators.py and benchmarks/operator_fuzz.py."""

from __future__ import annotations

import pytest
import torch
from operator_cases import WRAPS, cases
from operator_checks import change, examine, examined
from operator_networks import Vocabulary, composed, inputs

from fxrebasin.rules import RULES
from fxrebasin.rules.rule import Rule

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary()


@pytest.mark.parametrize("name", ["flip", "narrow", "nn.functional.pad.reflect", "linalg.norm", "index_put", "topk", "cumsum", "gather",
                                  "nn.functional.linear", "norm.nuc", "index_select", "scatter_reduce.sum", "matmul"])
def test_operators_in_every_wrap(vocabulary, name):
    found = [(case, examine(case)) for case in cases(vocabulary.ops[name], most=2)]
    assert not [f"{case}: {outcome.detail}" for case, outcome in found if outcome.kind == "unsound"]
    assert {case.wrap for case, outcome in found if outcome.kind == "sound"} == set(WRAPS)
    assert any(outcome.order > 1 for _, outcome in found)


def test_random_networks_of_operators(vocabulary):
    for seed in range(25):
        outcome = examined(composed(seed, vocabulary), inputs(), [lambda: inputs(1)])
        assert outcome.kind != "unsound", outcome.detail


@pytest.mark.parametrize("name, op", [("flip", "flip.default"), ("cumsum", "cumsum.default")])
def test_a_wrong_rule_is_noticed(vocabulary, name, op, monkeypatch):
    as_if_pointwise = Rule(f"aten.{op}", None, lambda call: call.relate("*a -> *a", call.tensors()[:1]),
                           whatever=frozenset("*"))
    monkeypatch.setitem(RULES, f"aten.{op}", as_if_pointwise)
    assert any(examine(case).kind == "unsound" for case in cases(vocabulary.ops[name], most=2))


@pytest.mark.parametrize("seed", [3, 20])
def test_a_seed_decides_everything(vocabulary, seed):
    """Whatever the vocabulary has looked up before."""
    one, other = composed(seed, Vocabulary()), composed(seed, vocabulary)
    assert str(one) == str(other)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_what_rounding_decides_shows_nothing(vocabulary):
    """The sign of a determinant that is zero."""
    assert examined(composed(380, vocabulary), inputs()).kind == "unmeasured"


def test_a_step_that_nothing_reads_is_not_part_of_the_network(vocabulary):
    """It would refuse other numbers: a deviation below zero."""
    network = composed(654, vocabulary)
    assert network.steps[2].op == "normal" and 4 not in network._needed(2)
    assert examined(network, inputs()).kind == "sound"


@pytest.mark.parametrize("before, after, far", [
    ([1.0, 2.0], [1.0, 2.0], False), ([1.0, float("nan")], [1.0, float("nan")], False), ([1.0, 2.0], [2.0, 1.0], True),
    ([1.0, float("inf")], [1.0, -float("inf")], True), ([1.0, float("nan")], [float("nan"), 1.0], True), ([0.0], [1e-300], True)])
def test_what_counts_as_a_change(before, after, far):
    assert (change([torch.tensor(before, dtype=torch.double)], [torch.tensor(after, dtype=torch.double)]) > 1e-9) == far
