"""Moves in which numbers decide which weights are used: experts, ranked units, masks made of places."""

from __future__ import annotations

from network_steps import Builder, move


def _places(b: Builder, scores: int, n: int) -> int:
    """Which of n scores are the largest; at times changed, so that the places no longer follow the scores."""
    if b.choose([True, False]):
        place = b.add("topk_index", scores, args=(b.choose(range(1, n)), -1))
    else:
        place = b.add("argmax", scores, args=(-1, True))
    way = b.choose(["plain"] * 6 + ["next", "viewed", "rolled"])
    if way == "next":
        return b.add("next_place", place, args=(n,))
    if way == "viewed":
        shape = b.shape(place)
        return b.view(b.add("flatten", place), *shape[1:])
    return b.add("roll", place, args=(1, -1)) if way == "rolled" else place


@move
def routed(b: Builder, x: int) -> int:
    """Experts by score, their weights looked up or all of them run and masked."""
    c = b.rank(x, 2, 3, 4)[-1]
    n, hidden = b.choose([3, 4]), b.choose([3, 4, 6])
    scores = b.linear(x, n)
    scores = b.choose([scores, scores, b.add("softmax", scores, args=(-1,)), b.activation(scores)])
    place = _places(b, scores, n)
    value = b.add("gather", b.add("softmax", scores, args=(-1,)), place)
    up, down = b.weight(n, hidden, c), b.weight(n, c, hidden)
    way = b.choose(["looked up", "looked up", "one hot", "compared", "scattered"])
    if way == "looked up":
        inner = b.activation(b.add("einsum", x, b.add("look_up", up, place), args=("...c,...rfc->...rf",)))
        twist = b.choose(["none"] * 4 + ["rolled", "summed", "fixed"])
        if twist == "rolled":
            inner = b.add("add", inner, b.add("roll", inner, args=(1, -2)))
        if twist == "summed":
            inner = b.add("sum", inner, args=(-2, True))
        rows = b.add("look_up", down, place if twist != "fixed" else _places(b, b.linear(x, n), n))
        out = b.add("einsum", inner, rows, args=("...rf,...rcf->...rc",))
        return b.add("einsum", out, value, args=("...rc,...r->...c",))
    inner = b.activation(b.add("einsum", x, up, args=("...c,efc->...ef",)))
    out = b.add("einsum", inner, down, args=("...ef,ecf->...ec",))
    if way == "scattered":
        mask = b.add("scatter", place, value, args=(n,))
    else:
        hot = b.add("one_hot", place, args=(n,)) if way == "one hot" else \
            b.add("where_equal", place, b.constant("order", *range(n)))
        mask = b.add("einsum", hot, value, args=("...re,...r->...e",))
    return b.add("einsum", out, mask, args=("...ec,...e->...c",))


@move
def ranked(b: Builder, x: int) -> int:
    """Units in the order of their numbers, with the weights that belong to them."""
    c = b.rank(x, 2, 3)[-1]
    y = b.choose([b.activation(x), b.add("scale", x, args=(2.0,))])
    place = b.add("topk_index", y, args=(b.choose([2, c]), -1))
    value = b.add("gather", y, place)
    way = b.choose(["rows", "rows", "plain", "place"])
    if way == "plain":
        return value
    if way == "place":  # the places themselves are numbers of the network
        return b.add("add", value, b.add("scale", place, args=(0.1,)))
    rows = b.add("look_up", b.weight(c, b.choose([4, 6])), place)
    return b.add("einsum", value, rows, args=("...c,...cn->...n",))
