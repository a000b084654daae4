"""The inferred symmetries of whole networks against exact answers.

The exact orders are those of tiny_networks.py; test_scalar_graph.py holds them against automorphisms of the
graph of scalar operations, which knows nothing of axes.
"""

from __future__ import annotations

from math import factorial

import pytest
from tiny_networks import AXES, NETWORKS, ORDERS, WHOLE, change

import fxrebasin as fxr

EXACT = 1e-12  # largest error of one evaluation in float64; values are of size one

# Where a spec is smaller than what axes can do, and why. Every entry is a freedom that the analysis gives up,
# and the test fails when it no longer does.
CYCLES = "where a reordering maps an axis onto itself, whole cycles are exchanged, but not turned"
COPIES = "segments that nothing tells apart stay in their order"
ALIGNED = "axes factored in two ways that do not align are pinned"
SMALLER = {
    "flipped_and_added": CYCLES, "rolled_by_half_and_added": CYCLES, "flipped_and_subtracted": CYCLES,
    "heads_flipped_and_subtracted": CYCLES, "rolled_and_added": CYCLES, "cycles": CYCLES,
    "swapped_concatenation": COPIES, "repeated_segment": COPIES,
    "diagonal_weight": "there is no rule for a diagonal",
    "outer_square": "equal elements of a product with itself are not exchanged",
    "misaligned_views": ALIGNED, "misaligned_inner_views": ALIGNED,
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_spec_has_the_exact_order(name):
    module, inputs = NETWORKS[name]()
    spec = fxr.infer(module, inputs, falsify=False)
    order = WHOLE.get(name, ORDERS[name])
    assert order % spec.order == 0, "not a subgroup: the spec claims a symmetry that is none"
    if name in SMALLER:
        assert spec.order < AXES.get(name, order), f"no longer smaller: take {name} out of SMALLER"
    else:  # a factor within another may differ from row to row, which is more than whole axes can
        assert spec.order in (AXES.get(name, order), order)
    for seed in range(3):
        module, inputs = NETWORKS[name]()
        assert change(module, inputs, spec.random(seed).apply(module.state_dict())) < EXACT


def test_free_outputs_may_change_places():
    module, inputs = NETWORKS["mlp"]()
    assert fxr.infer(module, inputs, outputs="free").order == ORDERS["mlp"] * factorial(2)
