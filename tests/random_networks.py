"""Random small networks, as data: a list of steps that one module runs.

    network = random_network(seed)          the same network for the same seed, on every machine
    networks()                              a hypothesis strategy of the same networks, which shrinks
    print(network)                          one line for each step

A network is put together from *moves* (an attention block, a split and concatenation, a reshape chain ...), each
of which appends *steps*, the calls of single functions. Sizes are few and small, so that unrelated axes often have
equal sizes. The first dimension of every value that depends on an input is the batch, or has it as its outermost
factor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

# These five register moves, and the order of moves is part of what a seed means.
# isort: off
import network_layers  # noqa: F401
import network_views  # noqa: F401
import network_mixing  # noqa: F401
import network_attention  # noqa: F401
import network_choosing  # noqa: F401
# isort: on
import torch
from hypothesis import strategies as st
from network_steps import BATCH, MOVES, SIZES, Builder, Network, Step, Unfit, pruned
from torch import Tensor


def build(choose: Callable[[Sequence], Any], seed: int = 0) -> Network:
    """A network of moves chosen by `choose`, which is given a sequence and returns one of its elements."""
    b = Builder(choose)
    x, table = _start(b)
    b.pool.append(x)
    for _ in range(choose(range(1, 8))):
        for _ in range(8):
            kept = len(b.steps)
            try:
                x = MOVES[choose(list(MOVES))](b, x if choose([True, True, True, False]) else choose(b.pool))
                if b.shape(x)[0] != BATCH or len(b.shape(x)) > 5 or not torch.isfinite(b.results[x]).all():
                    raise Unfit()
            except Unfit:
                del b.steps[kept:], b.results[kept:]
                x = b.pool[-1]
                continue
            b.pool.append(x)
            break
    outputs = [_end(b, x, table)]
    if choose([False, False, True]):
        outputs.append(_end(b, choose(b.pool), None))
    return pruned(Network(b.steps, outputs, seed))


def _start(b: Builder) -> tuple[int, int | None]:
    """An input, carried to hidden units."""
    way = b.choose(["tokens", "features", "image", "ids", "state"])
    width = b.choose(SIZES)
    if way == "ids":
        ids = b.add("input", args=(0, "ids", (b.choose([3, 4, 6]),)))
        table = b.weight(7, width)
        return b.add("embedding", ids, table), table
    if way == "image":
        x = b.add("input", args=(0, "numbers", (b.choose([2, 3]), 4, b.choose([4, 6]))))
        w = b.weight(width, b.shape(x)[1], 3, 3)
        return b.add("conv2d", x, w, b.weight(width), args=(1, 1)), None
    x = b.add("input", args=(0, "numbers", (3,) if way == "features" else (b.choose([3, 4, 6]), 3)))
    y = b.linear(x, width)
    if way == "state":  # learned queries, which only look at the input
        queries = b.weight(b.choose([3, 4, 6]), width)
        queries = b.add("expand_as_batch", b.add("unsqueeze", queries, args=(0,)), y)
        return b.add("attention", queries, y, b.linear(x, width)), None
    return y, None


def _end(b: Builder, x: int, table: int | None) -> int:
    """A readout: most hidden units are summed over; at times they are the output themselves."""
    if table is not None and b.shape(x)[-1] == b.shape(table)[-1]:
        return b.add("linear", x, table)
    way = b.choose(["linear", "pooled", "flat", "pooled", "plain"])
    if way == "plain":
        return x
    shape = b.shape(x)
    if way == "pooled" and len(shape) > 2:
        d = 1 if len(shape) == 3 else len(shape) - 1
        x = b.add("mean", x, args=(d,))
        if len(b.shape(x)) > 2:
            x = b.add(b.choose(["mean", "amax"]), x, args=(b.choose(range(1, len(b.shape(x)))),))
    elif way == "flat" and len(shape) > 2:
        x = b.add("flatten", x, args=(1,))
    return b.add("linear", x, b.add("weight", args=((3, b.shape(x)[-1]), "weight")))


def random_network(seed: int) -> tuple[Network, tuple[Tensor, ...]]:
    """A network and inputs for it, both float64; decided by the seed alone."""
    network = build(random.Random(seed).choice, seed)
    return network, network.inputs()


@st.composite
def networks(draw) -> Network:
    """The same networks, chosen by hypothesis, which finds a small one among those that fail."""
    return build(lambda options: draw(st.sampled_from(options)))


def disguised(network: Network, seed: int = 0) -> Network:
    """The same network with its steps in another order that keeps sources first, and with its parameters renamed
    and registered in another order. (Its numbers are others, too.)"""
    rng = random.Random(seed)
    waiting = list(range(len(network.steps)))
    order: list[int] = []
    while waiting:
        ready = [k for k in waiting if set(network.steps[k].sources) <= set(order)]
        order.append(rng.choice(ready))
        waiting.remove(order[-1])
    place = {k: i for i, k in enumerate(order)}
    steps = [Step(step.op, tuple(place[s] for s in step.sources), step.args)
             for step in (network.steps[k] for k in order)]
    weights = [i for i, step in enumerate(steps) if step.op == "weight"]
    names = {i: f"{rng.choice('abcdefgh')}_{n}" for n, i in enumerate(rng.sample(weights, len(weights)))}
    rng.shuffle(weights)
    return Network(steps, [place[k] for k in network.outputs], network.seed, weights, names)


__all__ = ["MOVES", "Network", "Step", "build", "disguised", "networks", "pruned", "random_network"]
