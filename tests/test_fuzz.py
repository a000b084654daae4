"""Random networks against every property; networks that failed once; and mistakes that must be noticed."""

from __future__ import annotations

import random
from math import factorial

import pytest
import torch
from fuzz_checks import PROPERTIES, examine, shrunk, sizes, traced
from hypothesis import HealthCheck, given, note, settings
from random_networks import Network, Step, build, disguised, networks, random_network

import fxrebasin as fxr
from fxrebasin.rules import RULES, Rule

torch.set_num_threads(1)


@settings(max_examples=300, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))
@given(networks())
def test_every_property_of_random_networks(network):
    """All but those that may fail now and then on the sound side (below)."""
    note(network.code())
    found = examine(network, only=[name for name in PROPERTIES if name not in ("recovery", "invariance")])
    assert not found.failures
    assert not found.misfits


def test_planted_permutations_are_found_and_order_makes_no_difference():
    """Without noise; a start from the anchors may still end in a local optimum, but seldom. As seldom, what is given up
    depends on the order in which it is met (views that do not align, tables joined against the order of a list)."""
    found = {seed: examine(random_network(seed)[0], only=["inference", "recovery", "invariance"]) for seed in range(100)}
    lost = {seed: answer.failures for seed, answer in found.items() if answer.failures}
    assert len(lost) <= 2, lost


@pytest.mark.parametrize("seed", [3, 17, 153])
def test_tracing_and_capture_lead_to_one_spec(seed):
    network, inputs = random_network(seed)
    assert sizes(fxr.infer(network, inputs)) == sizes(fxr.infer(traced(network, inputs)))


# ------------------------------------------------------------------------------------ networks that failed once

def test_what_a_view_cuts_is_not_joined_again_for_ever():
    """Inference never ended: a value in 16 pieces was tidied into six, which the same view cut into 16 again."""
    network, _ = random_network(458)
    assert not examine(network, only=["inference", "soundness"]).failures


_FEATURES = Step("input", (), (0, "numbers", (4, 3)))


def _weight(*shape: int) -> Step:
    return Step("weight", (), (shape, "weight"))


ONCE = {
    # a softmax over units and padding makes the padding differ from row to row
    "softmax over padding": (
        Network([_FEATURES, _weight(8, 3), Step("linear", (0, 1)), Step("pad", (2,), (0, 1)),
                 Step("log_softmax", (3,), (2,)), Step("flatten", (4,), (1,)), _weight(3, 36),
                 Step("linear", (5, 6))], [7]), factorial(8)),
    # a recurrent kernel in two pieces: its rows and columns are one index set, but it is no diagonal
    "recurrent kernel in pieces": (
        Network([_FEATURES, _weight(12, 3), _weight(12, 2), _weight(12, 2), Step("cat", (2, 3), (1,)),
                 Step("gru", (0, 1, 4)), _weight(3, 4), Step("linear", (5, 6))], [7]), factorial(2) ** 2),
    # views of which one part has a single position
    "riffled, added and viewed": (
        Network([_FEATURES, _weight(8, 3), Step("linear", (0, 1)),
                 Step("constant", (), ("order", 0, 2, 4, 6, 1, 3, 5, 7)), Step("gather_last", (2, 3)),
                 Step("add", (2, 4)), Step("unflatten", (5,), (2, 4, 2)), _weight(3, 2),
                 Step("linear", (6, 7))], [8]), 1),
    "stacked in threes, viewed as two": (
        Network([_FEATURES, _weight(6, 3), Step("linear", (0, 1)), _weight(4, 6), _weight(4),
                 Step("linear", (2, 3, 4)), Step("linear", (2, 3)), _weight(24), Step("reshape", (7,), (4, 6)),
                 Step("linear", (2, 8)), Step("stack", (5, 6, 9), (2,)), Step("flatten", (10,), (2, 3)),
                 Step("unflatten", (11,), (-1, 2, 6)), _weight(3, 6), Step("linear", (12, 13))], [14]), 1440),
    # weights that are a product: their common axis is free on its own, once
    "product of two": (
        Network([_FEATURES, _weight(6, 2), _weight(2, 3), Step("matmul", (1, 2)), Step("linear", (0, 3)),
                 Step("relu", (4,)), _weight(3, 6), Step("linear", (5, 6))], [7]), factorial(6) * factorial(2)),
    # a factor of an axis that stands for a part of the positions, which other tensors have without naming it
    "tokens in pairs": (
        Network([Step("input", (), (0, "ids", (6,))), _weight(7, 12), Step("embedding", (0, 1)),
                 Step("topk_index", (2,), (2, -1)), Step("gather", (2, 3)), _weight(12, 6), Step("look_up", (5, 3)),
                 Step("einsum", (4, 6), ("...c,...cn->...n",)), Step("reshape", (7,), (-1, 3, 12)),
                 Step("linear", (8, 1))], [9]), 720),
    # scores that are equal by construction: their order decides
    "copies ranked": (
        Network([_FEATURES, _weight(8, 3), Step("linear", (0, 1)), Step("circular_pad", (2,), (1,)),
                 Step("topk_index", (3,), (2, -1)), _weight(10, 4), Step("look_up", (5, 4))], [6]), 1),
    "a constant among the scores": (
        Network([_FEATURES, _weight(6, 3), Step("linear", (0, 1)), _weight(6, 6), Step("linear", (2, 3)), _weight(1),
                 Step("where_positive", (2, 4, 5)), Step("topk_index", (6,), (2, -1)), _weight(6, 4),
                 Step("look_up", (8, 7))], [9]), 1),
    # equal numbers at two positions: a view of them must not tell them apart for others
    "expanded, used and viewed": (
        Network([Step("input", (), (0, "numbers", (3,))), _weight(4, 3), Step("linear", (0, 1)),
                 Step("unsqueeze", (2,), (1,)), Step("expand", (3,), (-1, 2, -1)), Step("flatten", (4,), (1,)),
                 _weight(3, 8), Step("linear", (5, 6)), _weight(3, 4), Step("linear", (4, 8))], [7, 9]), 384),
}


@pytest.mark.parametrize("name", sorted(ONCE))
def test_networks_that_failed_once(name):
    network, order = ONCE[name]
    found = examine(network)
    assert not found.failures
    assert found.order == order


# --------------------------------------------------------------------------------------- the checks themselves


def _as_if_pointwise(op: str) -> Rule:
    """A wrong rule: that the op acts on each element alone."""
    def apply(call):
        return call.relate("*a -> *a", call.tensors()[:1])
    return Rule(f"aten.{op}.default", None, apply, whatever=frozenset("*"))


@pytest.mark.parametrize("op", ["cumsum", "flip", "roll", "tril"])
def test_a_wrong_rule_is_noticed(op, monkeypatch):
    """Among networks with the op, one shows that its rule claims too much; and a small one does."""
    monkeypatch.setitem(RULES, f"aten.{op}.default", _as_if_pointwise(op))

    def fails(network):
        return "soundness" in examine(network, only=["inference", "soundness"]).failures

    with_op = (n for n, _ in map(random_network, range(2000)) if any(step.op == op for step in n.steps))
    guilty = next((network for network, _ in zip(with_op, range(60)) if fails(network)), None)
    assert guilty is not None
    small = shrunk(guilty, fails, tries=60)
    assert fails(small)
    assert any(step.op == op for step in small.steps)
    assert len(small.steps) <= len(guilty.steps)


def test_a_seed_decides_everything():
    assert random_network(5)[0].steps == random_network(5)[0].steps
    assert all(torch.equal(a, b) for a, b in zip(random_network(5)[0].state_dict().values(),
                                                 random_network(5)[0].state_dict().values()))
    assert len({random_network(seed)[0].steps for seed in range(50)}) == 50


def test_a_disguise_changes_order_and_names_only():
    network, _ = random_network(8)
    other = disguised(network)
    assert other.steps != network.steps and list(other.state_dict()) != list(network.state_dict())
    assert sorted(map(str, (s.op for s in other.steps))) == sorted(map(str, (s.op for s in network.steps)))
    assert [a.shape for a in other(*other.inputs(3))] == [a.shape for a in network(*network.inputs(3))]


def test_networks_are_varied():
    ops = {step.op for seed in range(400) for step in build(random.Random(seed).choice).steps}
    assert len(ops) >= 75
