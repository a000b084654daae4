"""Moves: the everyday layers."""

from __future__ import annotations

import math

from network_steps import SIZES, Builder, Unfit, move


@move
def linear(b: Builder, x: int) -> int:
    return b.linear(x, b.choose(SIZES))


@move
def linear_and_activation(b: Builder, x: int) -> int:
    return b.activation(b.linear(x, b.choose(SIZES)))


@move
def activation(b: Builder, x: int) -> int:
    return b.activation(x)


@move
def norm(b: Builder, x: int) -> int:
    shape = b.rank(x, 2, 3, 4)
    width, channels = shape[-1], shape[1]
    kind = b.choose(["layer", "rms by hand", "rms", "batch", "group", "instance", "bare", "l2", "prelu"])
    if kind == "layer":
        return b.add("layer_norm", x, b.weight(width, kind="gain"), b.weight(width))
    if kind == "rms by hand":
        return b.add("mul", b.add("rms", x, args=(-1,)), b.weight(width, kind="gain"))
    if kind == "rms":
        return b.add("rms_norm", x, b.weight(width, kind="gain"))
    if kind == "batch":
        statistics = b.weight(channels), b.weight(channels, kind="positive")
        return b.add("batch_norm", x, *statistics, b.weight(channels, kind="gain"), b.weight(channels))
    if kind == "group":
        groups = b.choose([g for g in (1, 2, 3, 4, channels) if channels % g == 0 and
                           math.prod(shape[1:]) // g > 1] or b.fail())
        return b.add("group_norm", x, b.weight(channels, kind="gain"), b.weight(channels), args=(groups,))
    if kind == "instance":
        return b.add("instance_norm", x)
    if kind == "bare":
        return b.add("bare_layer_norm", x, args=(b.choose(range(1, len(shape))),))
    if kind == "prelu":
        return b.add("prelu", x, b.weight(b.choose([channels, 1])))
    return b.add("normalize", x, args=(b.dim(x),))


@move
def mlp(b: Builder, x: int) -> int:
    inner = b.activation(b.linear(norm(b, x) if b.choose([True, False]) else x, b.choose(SIZES)))
    return b.add("add", x, b.linear(inner, b.shape(x)[-1]))


@move
def gated(b: Builder, x: int) -> int:
    m = b.choose(SIZES)
    way = b.choose(["chunk", "glu", "interleaved", "view", "inner view", "two"])
    if way == "two":
        gate, value = b.linear(x, m), b.linear(x, m)
        return b.linear(b.add("mul", b.activation(gate), value), b.shape(x)[-1])
    y = b.linear(x, 2 * m)
    if way == "glu":
        return b.linear(b.add("glu", y, args=(-1,)), b.shape(x)[-1])
    if way == "chunk":
        gate, value = b.items(b.add("chunk", y, args=(2, -1)))
    elif way == "interleaved":
        gate, value = (b.add("slice", y, args=(-1, k, None, 2)) for k in (0, 1))
    elif way == "view":
        gate, value = b.items(b.add("unbind", b.add("unflatten", y, args=(-1, 2, m)), args=(-2,)))
    else:
        gate, value = b.items(b.add("unbind", b.add("unflatten", y, args=(-1, m, 2)), args=(-1,)))
    return b.add("mul", b.add(b.choose(["sigmoid", "silu"]), gate), value)


@move
def combine(b: Builder, x: int) -> int:
    """With an earlier value of the same shape, after a linear map if need be."""
    y = b.choose(b.pool)
    if b.shape(y) != b.shape(x):
        if b.shape(y)[:-1] != b.shape(x)[:-1]:
            raise Unfit()
        y = b.linear(y, b.shape(x)[-1])
    return b.add(b.choose(["add", "mul", "sub", "maximum", "div"]), x, y)


@move
def join(b: Builder, x: int) -> int:
    """Concatenation with an earlier value; at times a linear map of both."""
    y = b.choose(b.pool)
    dim = b.dim(x)
    if len(b.shape(y)) != len(b.shape(x)):
        raise Unfit()
    pair = [x, y] if b.choose([True, False]) else [y, x]
    joined = b.add("cat", *pair, args=(dim,))
    return b.linear(joined, b.choose(SIZES)) if b.choose([True, False]) else joined


@move
def again(b: Builder, x: int) -> int:
    """A square weight twice, or a weight and its transpose."""
    width = b.shape(x)[-1]
    w = b.weight(b.choose([width, *SIZES]), width)
    y = b.activation(b.add("linear", x, w))
    if b.shape(w)[0] == width and b.choose([True, False]):
        return b.add("linear", y, w)
    return b.add("linear", y, b.add("transpose", w, args=(0, 1)))
