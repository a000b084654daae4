"""How much work a graph is, without running it."""

from __future__ import annotations

import math

from torch import Tensor, fx

from .program import Program


def multiplications(program: Program) -> int:
    """About how many numbers a run of the graph multiplies and adds; exact for products and convolutions."""
    return sum(_of(node) for node in program.module.graph.nodes if node.op == "call_function")


def _of(node: fx.Node) -> int:
    value = node.meta.get("val")
    sizes = [
        tuple(v.shape)
        for v in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(v, Tensor)
    ]
    given = [
        tuple(a.meta["val"].shape) for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)
    ]
    results = sum(map(math.prod, sizes))
    name = str(node.target).removeprefix("aten.").split(".")[0]
    if name in ("linear", "convolution", "conv1d", "conv2d", "conv3d") and len(given) > 1:
        return results * math.prod(given[1][1:])  # inputs of one output
    if name in ("mm", "bmm", "matmul", "addmm", "baddbmm", "einsum", "_grouped_mm") and given:
        return results * max((size[-1] for size in given if size), default=1)
    if name.startswith(("scaled_dot_product", "_scaled_dot_product")) and len(given) > 2:
        return 2 * results * given[1][-2]
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        steps = math.prod(given[0][:-1])
        return steps * sum(math.prod(size) for size in given[1:] if len(size) == 2)
    return results
