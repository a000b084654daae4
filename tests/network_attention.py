"""Moves: attention in its many spellings."""

from __future__ import annotations

from network_steps import Builder, move


@move
def attention(b: Builder, x: int) -> int:
    """Self-attention in one of its many spellings, with a residual connection at times."""
    _, t, width = b.rank(x, 3)
    h, k = b.choose([(2, 2), (2, 3), (3, 2), (2, 4), (4, 2), (4, 3), (2, 6)])
    kv = h // 2 if h % 2 == 0 and b.choose([False, False, True]) else h
    q, key, v = _projections(b, x, t, h, kv, k)  # each (batch, heads, t, k)
    q, key = _treated(b, q, key, t, h, kv, k)
    y = _scores(b, q, key, v, t, h, kv, k)
    if b.choose([True, True, False]):
        y = b.add("flatten", b.add("transpose", y, args=(1, 2)), args=(2,))
    else:
        y = b.view(y, t, h * k)  # heads and positions mixed up, as a slip of the pen would
    y = b.linear(y, width)
    return b.add("add", x, y) if b.choose([True, False]) else y


def _projections(b: Builder, x: int, t: int, h: int, kv: int, k: int) -> list[int]:
    way = b.choose(["separate", "three heads", "heads three", "packed", "interleaved groups", "einsum"])
    if way == "separate":
        parts = [b.view(b.linear(x, n * k), t, n, k) for n in (h, kv, kv)]
    elif way == "einsum":
        width = b.shape(x)[-1]
        parts = [b.add("einsum", x, b.weight(n, width, k), args=("btc,nck->btnk",)) for n in (h, kv, kv)]
    elif way in ("three heads", "heads three") and kv == h:
        y = b.linear(x, 3 * h * k)
        if way == "three heads":
            parts = b.items(b.add("unbind", b.view(y, t, 3, h, k), args=(2,)))
        else:
            y = b.view(y, t, h, 3 * k) if b.choose([True, False]) else b.view(y, t, h, 3, k)
            split = ("chunk", (3, -1)) if len(b.shape(y)) == 4 else ("unbind", (-2,))
            parts = b.items(b.add(split[0], y, args=split[1]))
    elif way == "interleaved groups":
        y = b.view(b.linear(x, (h + 2 * kv) * k), t, kv, h // kv + 2, k)
        q, key, v = b.items(b.add("split", y, args=(3, h // kv, 1, 1)))
        parts = [b.view(q, t, h, k), b.view(key, t, kv, k), b.view(v, t, kv, k)]
    else:
        y = b.linear(x, (h + 2 * kv) * k)
        if b.choose([True, False]):
            parts = b.items(b.add("split", y, args=(2, h * k, kv * k, kv * k)))
            parts = [b.view(p, t, n, k) for p, n in zip(parts, (h, kv, kv))]
        else:
            parts = b.items(b.add("split", b.view(y, t, h + 2 * kv, k), args=(2, h, kv, kv)))
    return [b.add("transpose", p, args=(1, 2)) for p in parts]


def _treated(b: Builder, q: int, key: int, t: int, h: int, kv: int, k: int) -> tuple[int, int]:
    """Norms and rotations of queries and keys."""
    way = b.choose(["none", "none", "shared norm", "own norm", "l2", "layer norm"])
    if way == "shared norm":
        q, key = (b.add("mul", b.add("rms", y, args=(-1,)), b.weight(k, kind="gain")) for y in (q, key))
    elif way == "own norm":
        q, key = (b.add("mul", b.add("rms", y, args=(-1,)), b.weight(n, 1, k, kind="gain"))
                  for y, n in ((q, h), (key, kv)))
    elif way == "layer norm":
        q = b.add("layer_norm", q, b.weight(k, kind="gain"), b.weight(k))
    elif way == "l2":
        q, key = (b.add("normalize", y, args=(-1,)) for y in (q, key))
        key = b.add("mul", key, b.weight(kv, 1, 1))
    way = b.choose(["none", "none", "half", "interleaved", "partial"])
    if way == "none" or k % 2 or way == "partial" and k < 4:
        return q, key
    rotated = [_rotated(b, y, t, k, way) for y in (q, key)]
    return rotated[0], rotated[1]


def _rotated(b: Builder, y: int, t: int, k: int, way: str) -> int:
    rest = []
    if way == "partial":
        y, *rest = b.items(b.add("split", y, args=(-1, 2, k - 2)))
        k = 2
    angles = b.constant("angles", t, k // 2)
    cos = b.add("cos", angles)
    sin = b.add("cos", b.add("sub", angles, b.constant("halves", 1)))
    if way == "interleaved":
        one, two = (b.add("slice", y, args=(-1, n, None, 2)) for n in (0, 1))
    else:
        one, two = b.items(b.add("chunk", y, args=(2, -1)))
    first = b.add("sub", b.add("mul", one, cos), b.add("mul", two, sin))
    second = b.add("add", b.add("mul", two, cos), b.add("mul", one, sin))
    if way == "interleaved":
        y = b.add("flatten", b.add("stack", first, second, args=(-1,)), args=(-2,))
    else:
        y = b.add("cat", first, second, args=(-1,))
    return b.add("cat", y, *rest, args=(-1,)) if rest else y


def _scores(b: Builder, q: int, key: int, v: int, t: int, h: int, kv: int, k: int) -> int:
    way = b.choose(["fused", "by hand", "folded", "causal", "alibi", "bias", "shared bias", "masked"])
    if kv != h:
        if way == "fused" or way == "causal":
            return b.add("attention", q, key, v, args=(None, way == "causal", True))
        if b.choose([True, False]):
            key, v = (b.add("repeat_interleave", y, args=(h // kv, 1)) for y in (key, v))
        else:
            expanded = []
            for y in (key, v):
                y = b.add("expand", b.add("unsqueeze", y, args=(2,)), args=(-1, -1, h // kv, -1, -1))
                expanded.append(b.view(y, h, t, k))
            key, v = expanded
    if way in ("fused", "causal"):
        return b.add("attention", q, key, v, args=(None, way == "causal"))
    if way in ("alibi", "bias", "shared bias"):
        bias = b.weight(t, t) if way == "shared bias" else b.weight(h, t, t) if way == "bias" else \
            b.add("mul", b.constant("slopes", h), b.constant("distances", t))
        return b.add("biased_attention", q, key, v, bias)
    if way == "folded":
        q, key, v = (b.view(y, t, k) for y in (q, key, v))
    scores = b.add("scale", b.add("matmul", q, b.add("transpose", key, args=(-1, -2))), args=(k ** -0.5,))
    if way == "masked":
        scores = b.add("masked_fill", scores, b.constant("future", t), args=(-1e9,))
    y = b.add("matmul", b.add("softmax", scores, args=(-1,)), v)
    return b.view(y, h, t, k) if way == "folded" else y
