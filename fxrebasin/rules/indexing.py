"""Ops that look positions up. With an index that never changes they rearrange; otherwise the positions are pinned."""

from __future__ import annotations

import numpy as np

from .rule import Call, Value, rearrangement


@rearrangement("index_select.default", sample=(lambda T: (T(3, 5), 1, T.index(5, 4)),
                                               lambda T: (T(3, 5), 1, T.fixed([4, 2, 0, 1, 3]))))
def index_select(call: Call):
    value, index = call.args["self"], call.content("index")
    dim = call.dim(value)
    if index is not None and _rearranges(index, value.shape[dim]):
        return call.factors.take(value, dim, index.reshape(-1) % value.shape[dim])
    letters = [f"d{d}" for d in range(len(value.shape))]
    inside = [x + "!" * (d == dim) for d, x in enumerate(letters)]
    outside = ["q" if d == dim else x for d, x in enumerate(letters)]
    return call.relate(f"{' '.join(inside)}, q -> {' '.join(outside)}", [value, call.args["index"]])[0]


def _rearranges(index: np.ndarray, size: int) -> bool:
    """Whether a constant index only rearranges: no position is taken many times. (A table of relative positions is looked
    up hundreds of times: its entries are told apart.)"""
    return int(np.bincount(index.reshape(-1) % size, minlength=1).max()) <= 4


def _indexed(call: Call) -> tuple[list[str], list[Value], list[str]]:
    """Letters of `self` and of the looked-up result, and the index values, for numpy-style indexing."""
    value, indices = call.args["self"], call.args["indices"]
    indexed = [d for d, index in enumerate(indices) if index is not None]
    rank = max(len(indices[d].shape) for d in indexed)
    q = [f"q.{k}" for k in range(rank, 0, -1)]
    inside = [f"d{d}" + "!" * (d in indexed) for d in range(len(value.shape))]
    kept = [f"d{d}" for d in range(len(value.shape)) if d not in indexed]
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    at = indexed[0] if together else 0
    return inside, [indices[d] for d in indexed], kept[:at] + q + kept[at:]


@rearrangement("index.Tensor _unsafe_index.Tensor", sample=(lambda T: (T(3, 5, 4), [None, T.index(5, 2, 6)]),
                                                           lambda T: (T(3, 5), [None, T.fixed([4, 2, 0, 1, 3])]),
                                                           lambda T: (T(3, 5, 4), [T.index(3, 2), None, T.index(4, 2)])))
def index(call: Call):
    value, indices = call.args["self"], call.args["indices"]
    indexed = [d for d, x in enumerate(indices) if x is not None]
    content = call.content("indices") if len(indexed) == 1 else None
    if content is not None and content.dtype != bool and _rearranges(content, value.shape[indexed[0]]):
        dim = indexed[0]
        taken = call.factors.take(value, dim, content.reshape(-1) % value.shape[dim])
        return call.factors.reshape(taken, value.shape[:dim] + content.shape + value.shape[dim + 1:], call.why)
    inside, looked, outside = _indexed(call)
    text = ", ".join([" ".join(inside)] + ["*q"] * len(looked)) + " -> " + " ".join(outside)
    return call.relate(text, [value, *looked])[0]


@rearrangement("index_put.default _unsafe_index_put.default",
               sample=lambda T: (T(5, 4), [T.fixed([3, 0])], T(2, 4)))
def index_put(call: Call):
    value, source = call.args["self"], call.args["values"]
    inside, looked, outside = _indexed(call)
    tail = outside[len(outside) - len(source.shape):]
    text = ", ".join([" ".join(inside)] + ["*q"] * len(looked) + [" ".join(tail)])
    return call.relate(text + " -> " + " ".join(x.rstrip("!") for x in inside), [value, *looked, source])[0]


@rearrangement("gather.default", sample=lambda T: (T(3, 5, 4), 1, T.index(5, 3, 2, 4)))
def gather(call: Call):
    value, where = call.args["self"], call.args["index"]
    dim = call.dim(value)
    same = [d != dim and value.shape[d] == where.shape[d] for d in range(len(value.shape))]
    inside = [f"d{d}" if keep else f"d{d}!" for d, keep in enumerate(same)]
    outside = [f"d{d}" if keep else f"q{d}" for d, keep in enumerate(same)]
    return call.relate(f"{' '.join(inside)}, {' '.join(outside)} -> {' '.join(outside)}", [value, where])[0]


@rearrangement("scatter.src scatter.value scatter_add.default scatter_reduce.two index_add.default index_copy.default",
               sample=lambda T: {"scatter.value": (T(3, 5), 1, T.index(5, 3, 5), 2.0),
                                 "scatter_reduce.two": (T(3, 5), 1, T.index(5, 3, 5), T(3, 5), "sum"),
                                 "index_add.default": (T(3, 5), 1, T.index(5, 4), T(3, 4)),
                                 "index_copy.default": (T(3, 5), 1, T.fixed([0, 3]), T(3, 2))}
               .get(T.op.removeprefix("aten."), (T(3, 5), 1, T.index(5, 3, 5), T(3, 5))))
def scatter(call: Call):
    value = call.args["self"]
    dim = call.dim(value)
    others = [x for x in call.tensors()[1:] if len(x.shape) == len(value.shape)]
    same = [d != dim and all(x.shape[d] == value.shape[d] for x in others) for d in range(len(value.shape))]
    inside = " ".join(f"d{d}" if keep else f"d{d}!" for d, keep in enumerate(same))
    bang = "!" * (call.op == "aten.scatter.src")  # of two that are written to one place, the last stays
    place = [f"d{d}" if keep else f"q{d}" + (bang if d == dim else "!") for d, keep in enumerate(same)]
    places = [" ".join(place if len(x.shape) == len(value.shape) else place[dim:dim + 1]) for x in call.tensors()[1:]]
    return call.relate(", ".join([inside, *places]) + f" -> {inside.replace('!', '')}")[0]


@rearrangement("topk.default sort.default sort.stable argsort.default argsort.stable kthvalue.default",
               sample=lambda T: {"topk": (T(3, 5), 2), "kthvalue": (T(3, 5), 2)}.get(
                   T.op.split(".")[1], (T(3, 5),) + (T.keyword(stable=True),) * T.op.endswith("stable")))
def ranked(call: Call):
    value = call.args["self"]
    dim = call.dim(value)
    call.pin(value, [dim])
    letters = [f"d{d}" for d in range(len(value.shape))]
    inside = " ".join(x + "!" * (d == dim) for d, x in enumerate(letters))
    outside = " ".join("z" if d == dim else x for d, x in enumerate(letters))
    if len(call.shapes[0]) < len(value.shape):
        outside = outside.replace("z", "")
    kept = outside.replace("z", "")
    result = call.relate(f"{inside} -> {outside}, {kept}", [value])[0]
    return [result] * max(len(call.shapes), 1)


@rearrangement("one_hot.default", sample=lambda T: (T.index(5, 2, 3), 5))
def one_hot(call: Call):
    return call.relate("*b -> *b z")[0]


@rearrangement("arange.default arange.start arange.start_step linspace.default eye.default eye.m")
def table(call: Call):
    return call.fresh(call.shapes[0])
