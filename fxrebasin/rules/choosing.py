"""Ops that rank numbers: the largest ones, and where they are.

The values do not depend on the order of what is ranked. The places do: they are an index that points into the ranked
axis, and follow it. That holds as long as no two of the numbers are equal, for among equals the place decides.
"""

from __future__ import annotations

from .norms import reduced
from ..factors import Value
from .call import Call, Unordered
from .rule import rearrangement


def _ranked(call: Call, place: int, largest: int) -> Value | None:
    """The axis along which `self` is ranked, if the result of number `place`, which holds the places, is used at all;
    pinned if numbers may be equal. `largest`: how many are chosen, if the largest are; else 0."""
    if not call.used(place):
        return None
    value = call.args["self"]
    dim = call.dim(value)
    why, assumed = call.distinct("self", dim, largest)
    if why:
        call.pin(value, [dim], because=f"{why}, and among equal numbers their order decides which are chosen")
    letters = [f"d{d}" for d in range(len(value.shape))]
    axis = call.relate(f"{' '.join(letters)} -> {letters[dim]}", [value])[0]
    name = call.op.removeprefix("aten.").split(".")[0]
    call.assumed += [(axis, text) for text in (
        f"no two of the numbers that {name} ranks are equal, for almost all weights and inputs ({call.why})", *sorted(assumed))]
    return axis


@rearrangement("topk.default sort.default sort.stable kthvalue.default", moves="chosen", whatever="k keepdim descending stable",
               sample=(lambda T: {"topk": (T(3, 5), 2), "kthvalue": (T(3, 5), 2)}.get(
                           T.op.split(".")[1], (T(3, 5),) + (T.keyword(stable=True),) * T.op.endswith("stable")),
                       lambda T: {"topk": (T(3, 5), 2, -1, False), "kthvalue": (T(3, 5, 2), 2, 1, True)}.get(
                           T.op.split(".")[1], (T(3, 5),) + (T.keyword(stable=True),) * T.op.endswith("stable")
                           + (T.keyword(descending=True),))))
@rearrangement("argsort.default argsort.stable", whatever="descending stable",
               sample=lambda T: (T(3, 5), *[T.keyword(stable=True)] * T.op.endswith("stable")))
def ranked(call: Call):
    value = call.args["self"]
    dim, count = call.dim(value), max(len(call.shapes), 1)
    axis = _ranked(call, count - 1, call.args["k"] if call.args.get("largest", False) else 0)
    letters = [f"d{d}" for d in range(len(value.shape))]
    inside = " ".join(letters)
    kept = " ".join("z" if d == dim else x for d, x in enumerate(letters))
    if len(call.shapes[0]) < len(value.shape):
        kept = kept.replace("z", "")
    if call.args.get("sorted", True):
        results = [call.relate(f"{inside} -> {kept}", [value])[0] for _ in range(count)]
    else:
        order = call.factors.value((call.args["k"],))
        results = [call.relate(f"{inside}, z -> {kept}", [value, order])[0] for _ in range(count)]
        call.unordered.append(Unordered(order, value, dim, f"found in an order that depends on its places ({call.why})"))
    results[-1].points = axis
    return results


@rearrangement("max.dim min.dim median.dim", moves="chosen", sample=lambda T: (T(2, 3, 4), 1))
def extremum(call: Call):
    value = call.args["self"]
    axis = _ranked(call, 1, int(call.op.startswith("aten.max")))
    results = [reduced(call, value, [call.dim(value)], call.args["keepdim"]) for _ in range(2)]
    results[1].points = axis
    return results


@rearrangement("mode.default", sample=lambda T: (T(2, 3, 4), 1))
def mode(call: Call):
    value = call.args["self"]
    call.pin(value, [call.dim(value)])
    return [reduced(call, value, [call.dim(value)], call.args["keepdim"])] * 2


@rearrangement("argmax.default argmin.default", sample=(lambda T: (T(2, 3, 4), 1), lambda T: (T(2, 3),)))
def arg_extremum(call: Call):
    value = call.args["self"]
    if call.args["dim"] is None:
        call.pin(value)
        return reduced(call, value, call.dims(value), call.args["keepdim"])
    axis = _ranked(call, 0, int(call.op.startswith("aten.argmax")))
    result = reduced(call, value, call.dims(value), call.args["keepdim"])
    result.points = axis
    return result
