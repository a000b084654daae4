"""Moves that mix positions: reductions, contractions, convolutions, recurrence, learned tokens."""

from __future__ import annotations

from network_steps import MOVES, SIZES, Builder, Unfit, move


@move
def reduce(b: Builder, x: int) -> int:
    op = b.choose(["mean", "amax", "sum", "logsumexp", "var", "max"])
    d = b.dim(x)
    if b.shape(x)[d] < 2:
        raise Unfit()
    y = b.add(op, x, args=(d, True))
    way = b.choose(["gate", "centre", "drop"])
    if way == "drop":
        return b.add("squeeze", y, args=(d,)) if len(b.shape(x)) > 2 else b.fail()
    return b.add("mul", x, b.add("sigmoid", y)) if way == "gate" else b.add("sub", x, y)


@move
def along(b: Builder, x: int) -> int:
    d = b.dim(x)
    op = b.choose(["softmax", "log_softmax", "cumsum", "normalize", "rms", "sort", "topk"])
    if op == "topk":
        return b.add("topk", x, args=(min(2, b.shape(x)[d]), d))
    return b.add(op, x, args=(d,))


@move
def conditional(b: Builder, x: int) -> int:
    way = b.choose(["negative", "where", "mask", "ramp", "halves", "clamp", "causal", "lerp"])
    width = b.shape(x)[-1]
    if way == "negative":
        return b.add("mask_negative", x)
    if way == "clamp":
        return b.add("clamp", x)
    if way == "where":
        return b.add("where_positive", x, b.linear(x, width), b.weight(b.choose([width, 1])))
    if way == "mask":
        return b.add("masked_fill", x, b.add("constant", args=("future", width)), args=(0.5,)) \
            if b.shape(x)[1:][-2:] == (width, width) else b.fail()
    if way == "causal":
        return b.add("tril", x) if len(b.shape(x)) > 2 else b.fail()
    if way == "lerp":
        return b.add("lerp", x, b.linear(x, width), b.weight(width, kind="positive"))
    return b.add("mul", x, b.constant(way, width))


@move
def contraction(b: Builder, x: int) -> int:
    shape = b.rank(x, 2, 3, 4)
    c, n = shape[-1], b.choose(SIZES)
    way = b.choose(["two out", "bilinear", "gram", "experts", "tucker", "outer", "positions", "diagonal"])
    if way == "two out":
        w = b.weight(b.choose([2, 3, 4]), c, b.choose([2, 3, 4]))
        return b.add("einsum", x, w, args=("...c,hck->...hk",))
    if way == "bilinear":
        y = b.activation(x)
        return b.add("bilinear", x, y, b.weight(n, c, c), b.weight(n))
    if way == "tucker":
        return b.add("einsum", x, x, b.weight(n, c, c), args=("...i,...j,kij->...k",))
    if way == "gram":
        y = b.linear(x, c)
        b.rank(x, 3, 4)
        return b.add("matmul", b.add("matmul", x, b.add("transpose", y, args=(-1, -2))), x)
    if way == "outer":
        y = b.linear(x, b.choose([2, 3, 4]), False)
        return b.add("trace_outer", y)
    if way == "positions":
        b.rank(x, 3)
        return b.add("einsum", x, b.weight(n, shape[1]), args=("btc,st->bsc",))
    if way == "diagonal":
        y = b.add("einsum", x, b.weight(3, c), b.weight(3, c), args=("...c,ic,jc->...ij",))
        return b.add("diagonal", y)
    experts, hidden = b.choose([2, 3, 4]), b.choose([3, 4, 6])
    gate = b.add("softmax", b.linear(x, experts, False), args=(-1,))
    inner = b.activation(b.add("einsum", x, b.weight(experts, hidden, c), args=("...c,efc->...ef",)))
    out = b.add("einsum", inner, b.weight(experts, c, hidden), args=("...ef,ecf->...ec",))
    return b.add("einsum", out, gate, args=("...ec,...e->...c",))


@move
def grouped_linear(b: Builder, x: int) -> int:
    """A block-diagonal map: factors of the last dimension with weights of their own, or shared."""
    n, m = b.factors(b.shape(x)[-1])
    y = b.add("unflatten", x, args=(-1, n, m))
    k = b.choose([2, 3, 4, m])
    way = b.choose(["own", "shared", "across"])
    if way == "shared":
        y = b.linear(y, k)
    elif way == "own":
        y = b.add("einsum", y, b.weight(n, m, k), args=("...nm,nmk->...nk",))
    else:
        y = b.add("einsum", y, b.weight(m, n, k), args=("...nm,mnk->...km",))
    return b.add("flatten", b.activation(y), args=(-2,))


@move
def conv(b: Builder, x: int) -> int:
    shape = b.rank(x, 3, 4)
    c, out = shape[1], b.choose(SIZES)
    spatial = len(shape) - 2
    way = b.choose(["full", "grouped", "depthwise", "transposed"])
    groups = c if way == "depthwise" else b.choose([g for g in (2, 3, 4) if c % g == 0] or b.fail()) \
        if way == "grouped" or (way == "transposed" and b.choose([False, True])) else 1
    out = out if out % groups == 0 else groups * b.choose([1, 2])
    taps = (b.choose([1, 3]),) * spatial
    if way == "transposed":
        if spatial != 2:
            raise Unfit()
        return b.add("conv_transpose2d", x, b.weight(c, out // groups, 2, 2), b.weight(out), args=(groups,))
    w = b.weight(out, c // groups, *taps)
    return b.add(f"conv{spatial}d", x, w, b.weight(out), args=(groups, taps[0] // 2))


@move
def spatial(b: Builder, x: int) -> int:
    shape = b.rank(x, 4)
    way = b.choose(["max_pool2d", "avg_pool2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample",
                    "squeeze"])
    if way in ("max_pool2d", "avg_pool2d"):
        return b.add(way, x, args=(2,))
    if way == "upsample":
        return b.add(way, x)
    if way == "channel_shuffle":
        return b.add(way, x, args=(b.factors(shape[1])[0],))
    if way == "squeeze":
        y = b.activation(b.linear(b.add("mean", x, args=((2, 3),)), b.choose([2, 3, 4])))
        y = b.add("sigmoid", b.linear(y, shape[1]))
        return b.add("mul", x, b.view(y, shape[1], 1, 1))
    return b.add(way, x, args=(2,))


@move
def tokens(b: Builder, x: int) -> int:
    """Learned tokens before or after the positions; a position table; at times some are dropped again."""
    _, positions, width = b.rank(x, 3)
    count = b.choose([1, 2, 3])
    learned = b.add("unsqueeze", b.weight(count, width), args=(0,))
    learned = b.add("expand_as_batch", learned, x)
    y = b.add("cat", *([learned, x] if b.choose([True, False]) else [x, learned]), args=(1,))
    if b.choose([False, True]):
        y = b.add("add", y, b.weight(positions + count, width))
    if b.choose([False, True]):
        y = MOVES["attention"](b, y)
    way = b.choose(["keep", "drop first", "drop last", "first", "mean"])
    if way == "drop first":
        return b.add("slice", y, args=(1, count, None, 1))
    if way == "drop last":
        return b.add("slice", y, args=(1, 0, positions, 1))
    if way == "first":
        return b.add("select", y, args=(1, 0))
    return b.add("mean", y, args=(1,)) if way == "mean" else y


@move
def recurrent(b: Builder, x: int) -> int:
    width = b.rank(x, 3)[-1]
    op, gates = b.choose([("lstm", 4), ("gru", 3)])
    h = b.choose([3, 4, 6])
    biases = [b.weight(gates * h), b.weight(gates * h)] if b.choose([True, False]) else []
    return b.add(op, x, b.weight(gates * h, width), b.weight(gates * h, h), *biases)
