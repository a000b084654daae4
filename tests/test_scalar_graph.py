"""The exact answers themselves: held against numbers, against orders derived by hand, against the function.

scalar_graph.py is what the inference is tested with (test_exact_orders.py), so it has to be right by itself.
"""

from __future__ import annotations

from functools import cache
from math import factorial

import pytest
import torch
from scalar_graph import Expansion, automorphism_order
from sympy.combinatorics import Permutation, PermutationGroup
from tiny_networks import AXES, NETWORKS, ORDERS, change

NAMES = sorted(NETWORKS)
EXACT = 1e-12  # largest error of one evaluation in float64; values are of size one


@cache
def expansion(name: str) -> Expansion:
    return Expansion(*NETWORKS[name]())


@pytest.mark.parametrize("name", NAMES)
def test_the_scalar_graph_computes_what_the_module_computes(name):
    assert expansion(name).error(*NETWORKS[name]()) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_the_scalar_graph_has_the_order_derived_by_hand(name):
    assert expansion(name).order() == ORDERS[name]


@pytest.mark.parametrize("name", sorted(AXES))
def test_whole_axes_have_the_order_derived_by_hand(name):
    assert expansion(name).order(axes=True) == AXES[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_generator_keeps_the_function(name):
    for moved in expansion(name).generators():
        module, inputs = NETWORKS[name]()
        state = module.state_dict()
        for tensor, p in moved.items():
            assert not torch.equal(state[tensor].flatten()[p], state[tensor].flatten())
            state[tensor] = state[tensor].flatten()[p].reshape(state[tensor].shape)
        assert moved and change(module, inputs, state) < EXACT


VARIED = ["mlp", "glu_chunk", "lenet", "grouped_conv", "dense_experts", "maxout", "cycles", "rotary_half",
          "topk_experts_gathered", "tied_transpose", "repeated_segment"]


@pytest.mark.parametrize("name", VARIED)
def test_the_count_is_of_distinct_permutations_of_the_state(name):
    """The group on the state's elements has, by Schreier and Sims, as many members as were counted."""
    sizes = {tensor: ids.numel() for tensor, ids in expansion(name).state.items()}
    start = {tensor: sum(list(sizes.values())[:i]) for i, tensor in enumerate(sizes)}
    group = []
    for moved in expansion(name).generators():
        image = list(range(sum(sizes.values())))
        for tensor, p in moved.items():
            image[start[tensor]:start[tensor] + sizes[tensor]] = (start[tensor] + p).tolist()
        group.append(Permutation(image))
    assert PermutationGroup(group).order() == expansion(name).order()


def test_free_outputs_may_change_places():
    module, inputs = NETWORKS["mlp"]()
    assert automorphism_order(module, inputs, outputs="free") == ORDERS["mlp"] * factorial(2)
