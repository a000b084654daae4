"""Ops that rearrange: reshape, permute, expand, cut, concatenate, shift. They carry no numbers, only positions."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..factors import Value
from .call import Call
from .rule import rearrangement


@rearrangement("view.default _unsafe_view.default reshape.default flatten.using_ints unflatten.int view_as.default "
               "reshape_as.default ravel.default",
               sample=lambda T: {"view": (T(4, 6), [2, 2, 3, 2]), "_unsafe_view": (T(4, 6), [24]),
                                 "reshape": (T(2, 3, 4), [6, 4]), "flatten": (T(2, 3, 4), 1),
                                 "unflatten": (T(2, 12), 1, [3, 4]), "view_as": (T(2, 6), T(4, 3)), "ravel": (T(2, 6),),
                                 "reshape_as": (T(2, 6), T(4, 3))}
               [T.op.split(".")[1]], moves=True, whatever="*")
def reshape(call: Call):
    call.looked_up.extend(call.tensors()[1:])  # lends its shape
    return call.factors.reshape(call.args["self"], call.shapes[0], call.why)


def _order(call: Call) -> list[int]:
    value, args = call.args["self"], call.args
    order = list(range(len(value.shape)))
    name = call.op.split(".")[1]
    if name == "permute":
        return [d % len(order) for d in args["dims"]]
    if name == "movedim":
        source, target = ([x] if isinstance(x, int) else x for x in (args["source"], args["destination"]))
        rest = [d for d in order if d not in [s % len(order) for s in source]]
        for t, s in sorted((t % len(order), s % len(order)) for s, t in zip(source, target)):
            rest.insert(t, s)
        return rest
    if name in ("t", "numpy_T", "mT"):
        return order[::-1]
    a, b = (args[x] % len(order) for x in (("axis0", "axis1") if name == "swapaxes" else ("dim0", "dim1")))
    order[a], order[b] = order[b], order[a]
    return order


@rearrangement("permute.default transpose.int t.default numpy_T.default swapaxes.default swapdims.default movedim.int "
               "movedim.intlist",
               sample=lambda T: {"permute": (T(2, 3, 4), [2, 0, 1]), "t": (T(2, 3),), "numpy_T": (T(2, 3),),
                                 "movedim": (T(2, 3, 4), [0], [2]) if T.op.endswith("list") else (T(2, 3, 4), 0, 2)}
               .get(T.op.split(".")[1], (T(2, 3, 4), 0, 2)), moves=True)
def permute(call: Call):
    return call.factors.permute(call.args["self"], _order(call))


@rearrangement("unsqueeze.default", sample=lambda T: (T(2, 3), 1), moves=True)
def unsqueeze(call: Call):
    value = call.args["self"]
    dims: list[int | None] = list(range(len(value.shape)))
    dims.insert(call.args["dim"] % (len(dims) + 1), None)
    return call.factors.permute(value, dims)


@rearrangement("squeeze.default squeeze.dim squeeze.dims",
               sample=lambda T: {"default": (T(2, 1, 3),), "dim": (T(2, 1, 3), 1), "dims": (T(2, 1, 3), [1])}
               [T.op.split(".")[2]], moves=True)
def squeeze(call: Call):
    value = call.args["self"]
    dims = call.dims(value)
    return call.factors.permute(value, [d for d, size in enumerate(value.shape) if size != 1 or d not in dims])


@rearrangement("expand.default broadcast_to.default expand_as.default",
               sample=lambda T: (T(3, 1, 4), T(2, 3, 5, 4)) if "_as" in T.op else (T(3, 1, 4), [2, 3, 5, 4]),
               moves=True, whatever="*")
def expand(call: Call):
    call.looked_up.extend(call.tensors()[1:])  # lends its shape
    return call.factors.expand(call.args["self"], call.shapes[0])


@rearrangement("copy.default", sample=lambda T: (T(2, 3), T(3)))
def copy(call: Call):
    call.looked_up.append(call.args["self"])  # lends its shape
    return call.factors.expand(call.args["src"], call.shapes[0])


def _repeated(call: Call, value: Value, dim: int, times: int, outer: bool) -> Value:
    """Each position (or the whole dimension, `outer`) several times. The copies are an index set of their own."""
    dims: list[int | None] = list(range(len(value.shape)))
    dims.insert(dim + (not outer), None)
    apart = call.factors.permute(value, dims)
    shape = list(apart.shape)
    shape[dim + (not outer)] = times
    merged = list(value.shape)
    merged[dim] *= times
    return call.factors.reshape(call.factors.expand(apart, shape), merged, call.why)


@rearrangement("repeat.default tile.default", whatever="repeats dims", sample=lambda T: (T(3, 4), [2, 1, 3]), moves=True)
def repeat(call: Call):
    value, shape = call.args["self"], call.shapes[0]
    value = call.factors.reshape(value, (1,) * (len(shape) - len(value.shape)) + value.shape, call.why)
    for d, size in enumerate(shape):
        if size != value.shape[d]:
            value = _repeated(call, value, d, size // value.shape[d], outer=True)
    return value


@rearrangement("repeat_interleave.self_int", whatever="output_size", sample=(lambda T: (T(3, 4), 2, 0), lambda T: (T(3, 4), 2)), moves=True)
def repeat_interleave(call: Call):
    value = call.args["self"]
    if call.args["dim"] is None:
        value = call.factors.reshape(value, [int(np.prod(value.shape))], call.why)
        return _repeated(call, value, 0, call.args["repeats"], outer=False)
    return _repeated(call, value, call.dim(value), call.args["repeats"], outer=False)


@rearrangement("cat.default concatenate.default concat.default", moves="joined", sample=lambda T: ([T(2, 3), T(2, 4)], 1))
def cat(call: Call):
    values = [value for value in call.args["tensors"] if value.shape != (0,)] or call.args["tensors"]
    return call.factors.concatenate(values, call.dim(values[0]))


@rearrangement("stack.default", moves="joined", sample=lambda T: ([T(2, 3), T(2, 3)], 1))
def stack(call: Call):
    values = call.args["tensors"]
    dim = call.args["dim"] % (len(values[0].shape) + 1)
    dims: list[int | None] = list(range(len(values[0].shape)))
    dims.insert(dim, None)
    return call.factors.concatenate([call.factors.permute(value, dims) for value in values], dim)


@rearrangement("split.Tensor split_with_sizes.default split_with_sizes_copy.default chunk.default tensor_split.indices "
               "tensor_split.sections split.sizes",
               whatever="split_size split_sizes chunks sections indices",  # seen in the shapes of the results
               sample=lambda T: {"split": (T(2, 7), 3, 1), "chunk": (T(2, 7), 3, 1), "sections": (T(2, 7), 3, 1),
                                 "tensor_split.indices": (T(2, 7), [2, 5], 1)}
               .get(next((x for x in ("tensor_split.indices", "sections") if x in T.op),
                         "" if "sizes" in T.op else T.op.split(".")[1]), (T(2, 7), [2, 4, 1], 1)), moves=True)
def split(call: Call):
    value = call.args["self"]
    dim, offset, parts = call.dim(value), 0, []
    for k, shape in enumerate(call.shapes):  # where nobody takes a part, nothing is cut off for it
        index = np.arange(offset, offset + shape[dim])
        parts.append(call.factors.take(value, dim, index) if call.used(k) else call.fresh(shape))
        offset += shape[dim]
    return parts


@rearrangement("unbind.int", sample=lambda T: (T(2, 3, 4), 1), moves=True)
def unbind(call: Call):
    value = call.args["self"]
    return [_select(call, value, call.dim(value), k) for k in range(value.shape[call.dim(value)])]


def _select(call: Call, value: Value, dim: int, index: int) -> Value:
    taken = call.factors.take(value, dim, np.array([index % value.shape[dim]]))
    return call.factors.permute(taken, [d for d in range(len(value.shape)) if d != dim])


@rearrangement("select.int", sample=lambda T: (T(2, 3, 4), 1, -1), moves=True)
def select(call: Call):
    return _select(call, call.args["self"], call.dim(call.args["self"]), call.args["index"])


def _sliced(call: Call, size: int) -> np.ndarray:
    return np.arange(size)[slice(call.args["start"], call.args["end"], call.args["step"])]


@rearrangement("slice.Tensor", sample=lambda T: (T(2, 7), 1, 1, 6, 2), moves=True)
def slice_(call: Call):
    value = call.args["self"]
    dim = call.dim(value)
    return call.factors.take(value, dim, _sliced(call, value.shape[dim]))


@rearrangement("narrow.default", sample=(lambda T: (T(2, 7), 1, 2, 3), lambda T: (T(2, 7), -1, -3, 3)), moves=True)
def narrow(call: Call):
    value = call.args["self"]
    dim, start = call.dim(value), call.args["start"]
    start += value.shape[dim] * (start < 0)
    return call.factors.take(value, dim, np.arange(start, start + call.args["length"]))


def _overwrite(call: Call, value: Value, source: Value, dim: int, index: np.ndarray) -> Value:
    """`value` with the positions `index` of a dimension taken from `source`."""
    rest = np.setdiff1d(np.arange(value.shape[dim]), index)
    joined = call.factors.concatenate([call.factors.take(value, dim, rest), source], dim)
    return call.factors.take(joined, dim, np.argsort(np.concatenate([rest, index]), kind="stable"))


@rearrangement("slice_scatter.default", sample=lambda T: (T(2, 7), T(2, 3), 1, 1, 6, 2))
def slice_scatter(call: Call):
    value = call.args["self"]
    dim = call.dim(value)
    index = _sliced(call, value.shape[dim])
    shape = value.shape[:dim] + (len(index),) + value.shape[dim + 1:]
    return _overwrite(call, value, call.factors.expand(call.args["src"], shape), dim, index)


@rearrangement("select_scatter.default", sample=lambda T: (T(2, 7), T(2), 1, 3))
def select_scatter(call: Call):
    value, source = call.args["self"], call.args["src"]
    dim = call.dim(value)
    dims: list[int | None] = list(range(len(source.shape)))
    dims.insert(dim, None)
    index = np.array([call.args["index"] % value.shape[dim]])
    return _overwrite(call, value, call.factors.permute(source, dims), dim, index)


@rearrangement("glu.default", sample=lambda T: (T(2, 6), 1))
def glu(call: Call):
    value = call.args["self"]
    dim = call.dim(value)
    halves = np.split(np.arange(value.shape[dim]), 2)
    return call.relate("*a, *a -> *a", [call.factors.take(value, dim, half) for half in halves])[0]


@rearrangement("flip.default", sample=(lambda T: (T(2, 3, 4), [1, -3]), lambda T: (T(2, 3), [])), moves=True)
def flip(call: Call):
    value = call.args["self"]
    for dim in call.args["dims"]:  # none at all turns nothing
        dim %= len(value.shape)
        value = call.factors.take(value, dim, np.arange(value.shape[dim])[::-1])
    return value


@rearrangement("roll.default", sample=lambda T: (T(2, 3, 4), [1, -1], [1, 2]), moves=True)
def roll(call: Call):
    value, shape = call.args["self"], call.args["self"].shape
    dims = call.args["dims"]
    if not dims:
        value = call.factors.reshape(value, [int(np.prod(shape))], call.why)
    for shift, dim in zip(call.args["shifts"], dims or [0]):
        value = call.factors.take(value, dim % len(value.shape), np.roll(np.arange(value.shape[dim]), shift))
    return call.factors.reshape(value, shape, call.why)


_Mode = Literal["reflect", "edge", "wrap"]  # in numpy's words
_MODES: dict[str, _Mode | None] = {"constant": None, "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@rearrangement("pad.default constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default "
               "replication_pad1d.default replication_pad2d.default", whatever="value",
               sample=(lambda T: {"reflection_pad1d": (T(2, 5), [1, 2]), "replication_pad1d": (T(2, 5), [1, 2])}
                       .get(T.op.split(".")[1], (T(2, 3, 5), [1, 2, 0, 1])),
                       *(lambda T, mode=mode: {"reflection_pad1d": (T(2, 5), [-1, 2]), "replication_pad1d": (T(2, 5), [2, -1])}
                         .get(T.op.split(".")[1], (T(2, 4, 5), [-1, 2, 2, -1], *[mode] * (T.op == "aten.pad.default")))
                         for mode in _MODES)))
def pad(call: Call):
    value = call.args["self"]
    name = call.op.split(".")[1]
    mode: _Mode | None = "reflect" if "reflect" in name else "edge"
    if not ("reflect" in name or "replic" in name):
        mode = _MODES[call.args.get("mode", "constant")]
    amounts = call.args["pad" if "pad" in call.args else "padding"]
    for k, (before, after) in enumerate(zip(amounts[::2], amounts[1::2])):
        dim = len(value.shape) - 1 - k
        value = call.factors.take(value, dim, _padded(value.shape[dim], before, after, mode))
    return value


def _padded(size: int, before: int, after: int, mode: _Mode | None) -> np.ndarray:
    """Where each position comes from; -1 for a constant. A negative amount cuts off: in a circle before the other end is
    padded, else afterwards."""
    index = np.arange(size)
    if mode == "wrap":
        index, before, after = index[max(0, -before):size + min(0, after)], max(0, before), max(0, after)
    widths = (max(0, before), max(0, after))
    index = np.pad(index, widths, mode=mode) if mode else np.pad(index, widths, constant_values=-1)
    return index[max(0, -before):len(index) + min(0, after)]


@rearrangement("tril.default triu.default", whatever="diagonal", sample=lambda T: (T(2, 4, 4),))
def triangle(call: Call):
    value = call.args["self"]
    call.pin(value, [len(value.shape) - 2, len(value.shape) - 1])
    return call.relate("*a -> *a", [value])[0]


@rearrangement("diagonal.default", whatever="offset", sample=lambda T: (T(2, 4, 4), 0, 1, 2),
               missing="what is off the diagonal is not looked at; both dimensions stay as they are")
def diagonal(call: Call):
    value = call.args["self"]
    a, b = (call.dim(value, name) for name in ("dim1", "dim2"))
    letters = [f"d{d}!" if d in (a, b) else f"d{d}" for d in range(len(value.shape))]
    kept = [x for d, x in enumerate(letters) if d not in (a, b)]
    return call.relate(f"{' '.join(letters)} -> {' '.join(kept)} z", [value])[0]


@rearrangement("unfold.default", whatever="size step", sample=lambda T: (T(2, 6), 1, 3, 1))
def unfold(call: Call):
    value = call.args["self"]
    dim = call.args["dimension"] % len(value.shape)
    letters = [f"d{d}" for d in range(len(value.shape))]
    inside = [x + "!" * (d == dim) for d, x in enumerate(letters)]
    outside = ["y" if d == dim else x for d, x in enumerate(letters)]
    return call.relate(f"{' '.join(inside)} -> {' '.join(outside)} z", [value])[0]


@rearrangement("view_as_complex.default", sample=lambda T: (T(3, 4, 2),))
def view_as_complex(call: Call):
    return call.relate("*b t! -> *b")[0]


@rearrangement("view_as_real.default", sample=lambda T: (T.complex(3, 4),))
def view_as_real(call: Call):
    return call.relate("*b -> *b t")[0]


@rearrangement("real.default imag.default conj.default _conj.default resolve_conj.default polar.default complex.default",
               sample=lambda T: (T(3, 4), T(3, 4)) if "polar" in T.op or "complex" in T.op else (T.complex(3, 4),))
def complex_parts(call: Call):
    return call.relate(", ".join(["*a"] * len(call.tensors())) + " -> *a")[0]
