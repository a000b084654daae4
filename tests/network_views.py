"""Moves that rearrange: cuts, joins, views, reorderings, repetitions."""

from __future__ import annotations

import math

from network_steps import SIZES, Builder, Unfit, move


@move
def split_and_join(b: Builder, x: int) -> int:
    """Cuts a dimension, treats the pieces differently, joins them in some order, some twice or not at all."""
    dim = b.dim(x)
    size = b.shape(x)[dim]
    count = b.choose([2, 2, 3])
    if size < count:
        raise Unfit()
    cuts = sorted(b.choose(range(1, size)) for _ in range(count - 1))
    sizes = [n for n in (b - a for a, b in zip([0, *cuts], [*cuts, size])) if n]
    if b.choose([False, True]) and size % count == 0:
        sizes = [size // count] * count
    pieces = b.items(b.add("split", x, args=(dim, *sizes)))
    pieces = [b.activation(p) if b.choose([False, True]) else p for p in pieces]
    way = b.choose(["same", "swapped", "twice", "without", "sum"])
    if way == "swapped":
        pieces = pieces[1:] + pieces[:1]
    elif way == "twice":
        pieces.append(b.choose(pieces))
    elif way == "without" and len(pieces) > 1:
        pieces = pieces[:-1]
    elif way == "sum" and len({b.shape(p) for p in pieces}) == 1 and len(pieces) > 1:
        return b.add("add", *pieces[:2])
    return b.add("cat", *pieces, args=(dim,))


@move
def view_chain(b: Builder, x: int) -> int:
    """The last dimension as a product, something on one factor, and back in this order or another."""
    dim = len(b.shape(x)) - 1
    n, m = b.factors(b.shape(x)[dim]) if dim else b.fail()
    y = b.add("unflatten", x, args=(dim, n, m))
    way = b.choose(["none", "softmax", "norm", "cumsum", "mean", "scale", "einsum", "flip", "outer weight", "order",
                    "view again"])
    d = b.choose([dim, dim + 1])
    if way == "softmax":
        y = b.add("softmax", y, args=(d,))
    elif way == "norm":
        y = b.add("rms", y, args=(d,))
    elif way == "cumsum":
        y = b.add("cumsum", y, args=(d,))
    elif way == "mean":
        y = b.add("sub", y, b.add("mean", y, args=(d, True)))
    elif way == "scale":
        y = b.add("mul", y, b.weight(m))
    elif way == "outer weight":
        y = b.add("mul", y, b.weight(n, 1))
    elif way == "einsum":
        y = b.add("einsum", y, b.weight(n, m, m), args=("...nm,nmk->...nk",))
    elif way == "flip":
        y = b.add("flip", y, args=(d,))
    elif way == "order":
        y = b.add("index_select", y, b.order(b.shape(y)[d]), args=(d,))
    elif way == "view again":
        other = b.factors(n * m)
        y = b.add("unflatten", b.activation(b.add("flatten", y, args=(dim,))), args=(dim, *other))
        y = b.add("sub", y, b.add(b.choose(["mean", "amax"]), y, args=(d, True)))
    if b.choose([True, False]):
        y = b.add("transpose", y, args=(dim, dim + 1))
    return b.add("flatten", y, args=(dim,)) if b.choose([True, True, False]) else y


@move
def permute(b: Builder, x: int) -> int:
    rank = len(b.rank(x, 3, 4, 5))
    dims = list(range(1, rank))
    a, c = b.choose(dims), b.choose(dims)
    return b.add("transpose", x, args=(a, c))


@move
def merge(b: Builder, x: int) -> int:
    shape = b.rank(x, 3, 4, 5)
    start = b.choose(range(1, len(shape) - 1))
    if math.prod(shape[start:]) > 48:
        raise Unfit()
    return b.add("flatten", x, args=(start,))


@move
def reshape(b: Builder, x: int) -> int:
    """Some other shape of the same size."""
    shape = b.shape(x)
    total = math.prod(shape[1:])
    n, m = b.factors(total)
    return b.view(x, n, m) if b.choose([True, False]) or n < 4 else b.view(x, *b.factors(n), m)


@move
def reorder(b: Builder, x: int) -> int:
    d = b.dim(x)
    size = b.shape(x)[d]
    way = b.choose(["flip", "roll", "index", "channel shuffle", "gather"])
    if way == "flip":
        y = b.add("flip", x, args=(d,))
    elif way == "roll":
        y = b.add("roll", x, args=(b.choose(range(1, max(size, 2))), d))
    elif way == "index":
        y = b.add("index_select", x, b.order(size), args=(d,))
    elif way == "gather":
        y = b.add("gather_last", x, b.order(b.shape(x)[-1]))
    else:
        y = b.add("channel_shuffle", x, args=(b.factors(b.rank(x, 4)[1])[0],))
    return b.add("add", x, y) if b.choose([False, False, True]) else y


@move
def take_some(b: Builder, x: int) -> int:
    d = b.dim(x)
    size = b.shape(x)[d]
    if size < 3:
        raise Unfit()
    way = b.choose(["first", "every second", "narrow", "select", "some index", "repeated index"])
    if way == "select":
        return b.add("select", x, args=(d, b.choose([0, size - 1]))) if len(b.shape(x)) > 2 else b.fail()
    if way == "narrow":
        return b.add("narrow", x, args=(d, 1, size - 2))
    if way == "some index":
        return b.add("index_select", x, b.constant("order", *range(0, size, 2)), args=(d,))
    if way == "repeated index":
        return b.add("index_select", x, b.constant("order", *(k // 2 for k in range(size))), args=(d,))
    return b.add("slice", x, args=(d, 0, size - 1, 1) if way == "first" else (d, 0, size, 2))


@move
def repeat(b: Builder, x: int) -> int:
    d = b.dim(x)
    rank = len(b.shape(x))
    way = b.choose(["interleave", "tile", "expand", "circular", "pad"])
    if way == "interleave":
        return b.add("repeat_interleave", x, args=(2, d))
    if way == "tile":
        return b.add("repeat", x, args=[2 if k == d else 1 for k in range(rank)])
    if way == "circular":
        b.rank(x, 3)
        return b.add("circular_pad", x, args=(1,))
    if way == "pad":
        return b.add("pad", x, args=(b.choose([0, 1]), 1, *([0, 1] if rank > 3 else [])))
    y = b.add("unsqueeze", x, args=(d,))
    y = b.add("expand", y, args=[2 if k == d else -1 for k in range(rank + 1)])
    return b.add("flatten", y, args=(d, d + 1)) if b.choose([True, False]) else y


@move
def stack(b: Builder, x: int) -> int:
    """Several maps stacked along a new dimension, then taken apart or mixed."""
    count, width = b.choose([2, 3]), b.choose(SIZES)
    dim = b.choose(range(1, len(b.shape(x)) + 1))
    maps = [b.linear(x, width) for _ in range(count)]
    y = b.activation(b.add("stack", *maps, args=(dim,)))
    way = b.choose(["mean", "unbind", "softmax", "flatten"])
    if way == "unbind":
        parts = b.items(b.add("unbind", y, args=(dim,)))
        return b.add(b.choose(["mul", "sub", "add"]), parts[0], parts[-1])
    if way == "softmax":
        return b.add("softmax", y, args=(dim,))
    if way == "flatten":
        return b.add("flatten", y, args=(dim - 1, dim)) if dim > 1 else b.add("flatten", y, args=(1, 2))
    return b.add("mean", y, args=(dim,))


@move
def overwrite(b: Builder, x: int) -> int:
    d = b.dim(x)
    size = b.shape(x)[d]
    if size < 3:
        raise Unfit()
    piece = b.activation(b.add("narrow", x, args=(d, b.choose([0, 1]), size - 2)))
    return b.add("slice_write", x, piece, args=(d, b.choose([0, 1])))
