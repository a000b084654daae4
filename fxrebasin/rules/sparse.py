"""Products with sparse tensors. They are sums over an index like any other; how a sparse tensor is kept is nobody's business."""

from __future__ import annotations

from .call import Call
from .rule import rearrangement, rule

rule("_sparse_mm.default", "n k, k m -> n m", sample=lambda T: (T(3, 4), T(4, 5)))
rule("_sparse_addmm.default", "n m, n k, k m -> n m", sample=lambda T: (T(3, 5), T(3, 4), T(4, 5)))
rule("_to_sparse.default to_sparse.default", "*a -> *a", sample=lambda T: (T(3, 4),))
rule("to_dense.default", "*a -> *a", sample=lambda T: (T(3, 4),))


@rearrangement("sparse_coo_tensor.indices_size", sample=lambda T: (T.fixed([[0, 1, 2, 2], [1, 0, 2, 1]]), T(4), [3, 3]))
def sparse_of_parts(call: Call):
    """Numbers at given places: which number goes where is told by the places."""
    for value in call.tensors():
        call.pin(value)
    return call.fresh(call.shapes[0])
