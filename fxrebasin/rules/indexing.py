"""Ops that look positions up.

With an index that never changes they rearrange. With one that points into an axis (the place of the largest numbers, see
`choosing`), that axis is the one looked up: both are permuted together, and what was looked up holds it as a `Choice`.
Otherwise the positions are pinned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..factors import Choice, Value
from .call import Call
from .rule import rearrangement


def _looked_up(call: Call, value: Value, dims: list[int], indices: list[Value],
               axis_of: Callable[[Value, int], Value | None]) -> tuple[list[str], list[Value], list[str]]:
    """Letters of `value`, of which dimension dims[k] is looked up with indices[k], and as further operands the axes into
    which the indices point, with their letters. A dimension whose index points nowhere is pinned."""
    letters = [f"d{d}" for d in range(len(value.shape))]
    axes, names = [], []
    for d, index in zip(dims, indices):
        axis = axis_of(index, value.shape[d])
        if axis is None:
            letters[d] += "!"
        else:
            axes.append(axis)
            names.append(letters[d])
    return letters, axes, names


def _chosen(call: Call, result: Value, indices: list[Value], first: int, rank: int) -> Value:
    """The result, knowing whose choice it is: the indices, broadcast to `rank` dimensions, run along it from `first`."""
    for index in indices:
        if any(index is seen for seen in call.looked_up):
            start = first + rank - len(index.shape)
            result.chosen += (Choice(index, tuple(None if n == 1 else start + k for k, n in enumerate(index.shape))),)
    return result




def _rearranges(index: np.ndarray, size: int) -> bool:
    """Whether a constant index only rearranges: no position is taken many times. (A table of relative positions is looked
    up hundreds of times: its entries are told apart.)"""
    return int(np.bincount(index.reshape(-1) % size, minlength=1).max()) <= 4


@rearrangement("index_select.default", sample=(lambda T: (T(3, 5), 1, T.index(5, 4)),
                                               lambda T: (T(3, 5), 1, T.points(5, 4)),
                                               lambda T: (T(3, 5), 1, T.fixed([4, 2, 0, 1, 3]))), moves=True)
def index_select(call: Call):
    value, content, index = call.args["self"], call.content("index"), call.args["index"]
    dim = call.dim(value)
    if content is not None and _rearranges(content, value.shape[dim]):
        return call.factors.take(value, dim, content.reshape(-1) % value.shape[dim])
    inside, axes, names = _looked_up(call, value, [dim], [index], call.table)
    outside = ["q" if d == dim else x for d, x in enumerate(inside)]
    result = call.relate(f"{', '.join([' '.join(inside), 'q', *names])} -> {' '.join(outside)}", [value, index, *axes])[0]
    return _chosen(call, result, [index], dim, 1)


def _indexed(call: Call) -> tuple[list[int], list[Value], int, int]:
    """For numpy-style indexing: the dimensions of `self` that are looked up, their indices, the place in the result
    where the dimensions of the indices stand, and how many those are."""
    indices = call.args["indices"]
    dims = [d for d, index in enumerate(indices) if index is not None]
    together = dims == list(range(dims[0], dims[-1] + 1))
    return dims, [indices[d] for d in dims], dims[0] if together else 0, max(len(indices[d].shape) for d in dims)


def _place(inside: list[str], dims: list[int], first: int, rank: int) -> list[str]:
    """The letters of what numpy-style indexing looks up."""
    kept = [x for d, x in enumerate(inside) if d not in dims]
    return kept[:first] + [f"q.{k}" for k in range(rank, 0, -1)] + kept[first:]


@rearrangement("index.Tensor _unsafe_index.Tensor", sample=(lambda T: (T(3, 5, 4), [None, T.index(5, 2, 6)]),
                                                           lambda T: (T(3, 5, 4), [None, T.points(5, 2, 6)]),
                                                           lambda T: (T(3, 5), [None, T.fixed([4, 2, 0, 1, 3])]),
                                                           lambda T: (T(3, 5, 4), [T.points(3, 2), None, T.points(4, 2)]),
                                                           lambda T: (T(3, 5, 4), [T.index(3, 2), None, T.index(4, 2)])),
               moves=True)
def index(call: Call):
    value = call.args["self"]
    if call.masks("indices"):
        raise ValueError("how many are taken depends on numbers")
    dims, indices, first, rank = _indexed(call)
    content = call.content("indices") if len(dims) == 1 else None
    if content is not None and content.dtype != bool and _rearranges(content, value.shape[dims[0]]):
        taken = call.factors.take(value, dims[0], content.reshape(-1) % value.shape[dims[0]])
        return call.factors.reshape(taken, value.shape[:dims[0]] + content.shape + value.shape[dims[0] + 1:], call.why)
    inside, axes, names = _looked_up(call, value, dims, indices, call.table)
    text = ", ".join([" ".join(inside), *["*q"] * len(indices), *names]) + " -> " + " ".join(_place(inside, dims, first, rank))
    return _chosen(call, call.relate(text, [value, *indices, *axes])[0], indices, first, rank)


@rearrangement("embedding.default", text="v d, *i -> *i d", through="weight", scales="weight",
               whatever="padding_idx scale_grad_by_freq sparse",
               distinct=lambda given: given["padding_idx"] < 0,  # the row of padding is zero
               sample=(lambda T: (T(7, 4), T.index(7, 2, 3)), lambda T: (T(7, 4), T.points(7, 2, 3)),
                                            lambda T: (T(5, 4), T.fixed([[4, 2, 0], [1, 3, 0]]))))
def embedding(call: Call):
    """A row for each number; with a place that points into the rows (the nearest code of a codebook), they follow it."""
    table, index = call.args["weight"], call.args["indices"]
    content, count = call.content("indices"), table.shape[0]
    if content is not None and _rearranges(content, count):
        taken = call.factors.take(table, 0, content.reshape(-1) % count)
        return call.factors.reshape(taken, content.shape + table.shape[1:], call.why)
    axis = call.points(index, count)
    if axis is None:
        return call.relate("v! d, *i -> *i d", [table, index])[0]
    return _chosen(call, call.relate("v d, *i, v -> *i d", [table, index, axis])[0], [index], 0, len(index.shape))


@rearrangement("embedding_renorm.default", whatever="max_norm norm_type", sample=lambda T: (T(7, 4), T.index(7, 2, 3), 1.0, 2.0))
def embedding_renorm(call: Call):
    """The rows that are looked up are made shorter, each by its own norm."""
    return call.relate("v! d, *i -> v d, v", [call.args["self"], call.args["indices"]])[0]


@rearrangement("embedding_bag.default embedding_bag.padding_idx _embedding_bag.default _embedding_bag_forward_only.default",
               whatever="scale_grad_by_freq mode sparse include_last_offset padding_idx",
               sample=tuple(lambda T, mode=mode, weights=weights: (
                   T(7, 4), T.index(7, 5), T.fixed([0, 2]), False, mode, False, T(5) if weights else None, False) + (None,) * (
                       "padding" in T.op) for mode, weights in ((0, False), (1, False), (2, False), (0, True))))
def embedding_bag(call: Call):
    """Sums, means or maxima of the rows in each bag. With a place that points into the rows, they follow it."""
    table, indices, weights = call.args["weight"], call.args["indices"], call.args["per_sample_weights"]
    axis = call.points(indices, table.shape[0])
    for value in (indices, call.args["offsets"], *[weights] * (weights is not None)):
        call.pin(value)
    bags = [x for x in (axis,) if x is not None]
    text = "v d, v -> d" if bags else "v! d -> d"
    units = call.relate(text, [table, *bags])[0]
    result = call.alone(0).relate("d -> z d", [units])[0]
    return [result, *map(call.fresh, call.shapes[1:3]),
            result if call.shapes[3] == call.shapes[0] else call.fresh(call.shapes[3])][:len(call.shapes)]


@rearrangement("index_put.default _unsafe_index_put.default",
               sample=(lambda T: (T(5, 4), [T.fixed([3, 0])], T(2, 4)),
                       lambda T: (T(5, 4), [T.points(5, 2)], T(4), True),
                       lambda T: (T(5, 4, 3), [T.bool(5, 4)], T()),
                       lambda T: (T(5, 4, 3), [None, T.bool(4)], T(1), True)))
def index_put(call: Call):
    value, source = call.args["self"], call.args["values"]
    if call.masks("indices"):
        return _masked_put(call, value, source)
    dims, indices, first, rank = _indexed(call)
    inside, axes, names = _looked_up(call, value, dims, indices, call.points)
    place = _place(inside, dims, first, rank)
    if not call.args["accumulate"]:  # of two that are written to one place, the last stays
        place = [x + "!" * x.startswith("q.") for x in place]
    tail = place[len(place) - len(source.shape):]
    text = ", ".join([" ".join(inside), *["*q"] * len(indices), " ".join(tail), *names])
    return call.relate(text + " -> " + " ".join(x.rstrip("!") for x in inside), [value, *indices, source, *axes])[0]


def _masked_put(call: Call, value: Value, source: Value) -> Value:
    """One number goes wherever a mask says, which lies along dimensions of its own of what it is put into."""
    dims, masks, _, _ = _indexed(call)
    if len(masks) > 1 or source.shape not in ((), (1,)):
        raise ValueError("many numbers put where a mask says")
    letters = [f"d{d}" for d in range(len(value.shape))]
    along = letters[dims[0]:dims[0] + len(masks[0].shape)]
    numbers = "u " * len(source.shape)
    return call.relate(f"{' '.join(letters)}, {' '.join(along)}, {numbers}-> {' '.join(letters)}", [value, masks[0], source])[0]


@rearrangement("gather.default", whatever="sparse_grad", sample=(lambda T: (T(3, 5, 4), 1, T.index(5, 3, 2, 4)),
                                         lambda T: (T(3, 5, 4), 1, T.points(5, 3, 2, 4))), moves=True)
def gather(call: Call):
    value, where = call.args["self"], call.args["index"]
    dim = call.dim(value)
    inside, axes, names = _looked_up(call, value, [dim], [where], call.points)
    for d in range(len(inside)):
        if d != dim and value.shape[d] != where.shape[d]:
            inside[d] += "!"
    outside = [f"q{d}" if d == dim or x.endswith("!") else x for d, x in enumerate(inside)]
    text = ", ".join([" ".join(inside), " ".join(outside), *names])
    return call.relate(f"{text} -> {' '.join(outside)}", [value, where, *axes])[0]


_WRITES = {"scatter.src": lambda T, index: (T(3, 5), 1, index(5, 3, 5), T(3, 5)),
           "scatter.value": lambda T, index: (T(3, 5), 1, index(5, 3, 5), 2.0),
           "scatter_add.default": lambda T, index: (T(3, 5), 1, index(5, 3, 5), T(3, 5)),
           "index_add.default": lambda T, index: (T(3, 5), 1, index(5, 4), T(3, 4)),
           "index_copy.default": lambda T, index: (T(3, 5), 1, T.fixed([0, 3]), T(3, 2))}


@rearrangement("scatter_reduce.two", whatever="include_self",
               sample=tuple(lambda T, way=way, index=index: (T(3, 5), 1, getattr(T, index)(5, 3, 5), T(3, 5), way)
                            for way in ("sum", "mean", "prod", "amax", "amin") for index in ("index", "points")))
@rearrangement(" ".join(_WRITES), whatever="value alpha include_self", sample=(lambda T: _WRITES[T.op.removeprefix("aten.")](T, T.index),
                                          lambda T: _WRITES[T.op.removeprefix("aten.")](
                                              T, T.points if "scatter.src" not in T.op else T.index)))
def scatter(call: Call):
    value, where = call.args["self"], call.args["index"]
    dim = call.dim(value)
    letters, axes, names = _looked_up(call, value, [dim], [where], call.points)
    others = [x for x in call.tensors()[1:] if len(x.shape) == len(value.shape)]
    for d in range(len(letters)):
        if d != dim and any(x.shape[d] != value.shape[d] for x in others):
            letters[d] += "!"
    bang = "!" * (call.op == "aten.scatter.src")  # of two that are written to one place, the last stays
    place = [f"q{d}" + bang if d == dim else f"q{d}!" if x.endswith("!") else x for d, x in enumerate(letters)]
    places = [" ".join(place if len(x.shape) == len(value.shape) else place[dim:dim + 1]) for x in call.tensors()[1:]]
    text = ", ".join([" ".join(letters), *places, *names])
    return call.relate(f"{text} -> {' '.join(letters).replace('!', '')}", [*call.tensors(), *axes])[0]


@rearrangement("one_hot.default", whatever="num_classes", sample=(lambda T: (T.index(5, 2, 3), 5), lambda T: (T.points(5, 2, 3), 5)))
def one_hot(call: Call):
    index = call.args["self"]
    axis = call.points(index, call.shapes[0][-1])
    return call.relate("*b -> *b z", [index])[0] if axis is None else call.relate("*b, z -> *b z", [index, axis])[0]


@rearrangement("eq.Tensor", sample=(lambda T: (T.index(3, 2, 3, 4), T.index(3, 3, 1)),
                                    lambda T: (T.points(5, 2, 3, 1), T.fixed([0, 1, 2, 3, 4])),
                                    lambda T: (T.fixed([[0], [1], [2]]), T.points(3, 2, 1, 4))))
def equal(call: Call):
    """An index compared with 0, 1, 2, ... along a dimension: which element of the axis it points to."""
    a, b = call.args["self"], call.args["other"]
    for index, counter, name in ((a, b, "other"), (b, a, "self")):
        numbers = call.content(name) if index.points is not None else None
        dim = None if numbers is None else _counted(numbers)
        if dim is not None and (axis := call.points(index, counter.shape[dim])) is not None:
            named = call.factors.permute(axis, [0 if d == dim else None for d in range(len(counter.shape))])
            return call.relate("*a, *a -> *a", [index, named])[0]
    return call.relate("*a, *a -> *a")[0]


def _counted(numbers: np.ndarray) -> int | None:
    """The dimension along which an array counts 0, 1, 2, ...; the others have size 1."""
    dim = max(range(numbers.ndim), key=lambda d: numbers.shape[d], default=None)
    counts = dim is not None and np.array_equal(numbers.reshape(-1), np.arange(numbers.shape[dim]))
    return dim if counts else None


@rearrangement("arange.default arange.start arange.start_step linspace.default eye.default eye.m", whatever="*")
def table(call: Call):
    return call.fresh(call.shapes[0])
