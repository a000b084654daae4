"""Linear algebra on whole matrices: what a matrix is to its rows and columns when these change places.

With P and Q permutation matrices: the inverse of P A Q' is Q inv(A) P'; its singular values and the size of its determinant
are those of A; functions of a matrix (exponential, powers) and the sign of a determinant follow only P A P'. Rows and
columns are told apart by what such an op computes on its way, so that neither may differ from index to index of the other.
"""

from __future__ import annotations

import math

from .call import Call, Value
from .norms import reduced
from .rule import rearrangement, rule

_SOLVED = "*b n, *b m"  # what any elimination holds on its way: rows without columns, columns without rows


def _plain_inverse(call: Call) -> str:
    """Tolerances follow the batch. With `hermitian` half of the matrix is read alone."""
    bang = "!" * bool(call.args.get("hermitian"))
    tolerances = ", *b" * (len(call.tensors()) - 1)
    return f"*b n{bang} m{bang}{tolerances} -> *b m n, {_SOLVED}"


rule("linalg_inv.default inverse.default linalg_pinv.default linalg_pinv.atol_rtol_tensor linalg_pinv.atol_rtol_float "
     "pinverse.default", _plain_inverse,
     sample=lambda T: (T(2, 4, 3), 1e-9) if T.op.endswith("linalg_pinv.default") else (T(2, 4, 3),) if "pinv" in T.op
     else (T(2, 4, 4),))


@rearrangement("linalg_inv_ex.default", sample=lambda T: (T(2, 4, 4),))
def inverse_and_status(call: Call):
    inverse, status = call.relate(f"*b n m -> *b m n, *b, {_SOLVED}")[:2]
    return [inverse, status]


def _solved(call: Call) -> str:
    """X of A X = B, or of X A = B; B may be one vector for each matrix."""
    matrix, right = call.args["A"], call.args["B"]
    if len(right.shape) == 1 or right.shape == matrix.shape[:-1]:
        return f"*b n m, *b n -> *b m, {_SOLVED}"
    left = call.args.get("left", True)
    return (f"*b n m, *b n k -> *b m k, {_SOLVED}" if left else f"*b n m, *b k m -> *b k n, {_SOLVED}")


rule("linalg_solve.default", _solved,
     sample=(lambda T: (T(2, 4, 4), T(2, 4, 3)), lambda T: (T(2, 4, 4), T(2, 4)), lambda T: (T(4, 4), T(4, 3)),
             lambda T: (T(2, 4, 4), T(2, 3, 4), T.keyword(left=False))))


@rearrangement("linalg_solve_ex.default", sample=lambda T: (T(2, 4, 4), T(2, 4, 3)))
def solved_and_status(call: Call):
    matrix = call.args["A"]
    solution = call.relate(_solved(call))[0]
    return [solution, call.relate("*b n m -> *b", [matrix])[0]]


rule("linalg_solve_triangular.default", lambda c: "*b n! m!, *b n k -> *b z k" if c.args["left"] else "*b n! m!, *b k m -> *b k z",
     sample=(lambda T: (T(2, 4, 4), T(2, 4, 3), T.keyword(upper=True)),
             lambda T: (T(2, 4, 4), T(2, 3, 4), T.keyword(upper=False, left=False))))


def together(call: Call, results: str, value: Value | None = None) -> list[Value]:
    """Rows and columns of a square matrix are one index set, as if it were added to its transpose."""
    value = call.tensors()[0] if value is None else value
    return call.relate(f"*b n m, *b m n -> {results}", [value, value])


@rearrangement("matrix_exp.default linalg_matrix_exp.default linalg_matrix_power.default matrix_power.default",
               sample=lambda T: (T(2, 4, 4), 3) if "power" in T.op else (T(2, 4, 4) / 4,))
def function_of_a_matrix(call: Call):
    return together(call, "*b n m, *b n")[0]


@rearrangement("linalg_det.default det.default logdet.default", sample=lambda T: (
    T(2, 4, 4) @ T(2, 4, 4).mT if "log" in T.op else T(2, 4, 4),),
    missing="even permutations of rows or columns keep the sign: a group that is not symmetric")
def determinant(call: Call):
    return together(call, "*b, *b n")[0]


@rearrangement("linalg_slogdet.default slogdet.default", sample=lambda T: (T(2, 4, 4),),
               missing="with the sign in use, even permutations keep it: a group that is not symmetric")
def size_of_determinant(call: Call):
    """The sign asks for rows and columns to move together; the size does not."""
    if call.used(0):
        together(call, "*b, *b n")
    value = call.tensors()[0]
    return [call.relate(f"*b n m -> *b, {_SOLVED}", [value])[0] for _ in range(2)]


rule("linalg_svdvals.default", f"*b n m -> *b z, {_SOLVED}", sample=lambda T: (T(2, 4, 3),))
rule("linalg_cond.default linalg_cond.p_str", f"*b n m -> *b, {_SOLVED}",
     sample=lambda T: (T(2, 4, 4), "nuc") if T.op.endswith("str") else (T(2, 4, 4),))


@rearrangement("linalg_svd.default _linalg_svd.default svd.default", sample=lambda T: (T(2, 4, 3),))
def singular_values(call: Call):
    """Singular vectors are determined up to signs alone: with them in use, everything but the batch stays."""
    value = call.tensors()[0]
    if call.used(0) or call.used(2):
        call.pin(value, [len(value.shape) - 2, len(value.shape) - 1])
    return [call.alone(k).relate(f"*b n m -> {result}, {_SOLVED}", [value])[0]
            for k, result in enumerate(("*b y z", "*b z", "*b y z"))]


def _matrix_norm(call: Call, dims: list[int], order) -> Value:
    """Sums over rows, then the largest: the sums hold columns without rows. With singular values both meet."""
    value = call.tensors()[0]
    letters = [f"d{d}" for d in range(len(value.shape))]
    held = {1: [dims[:1]], math.inf: [dims[1:]]}.get(abs(order) if order != "nuc" else 2, [dims[:1], dims[1:]])
    kept, *on_the_way = ([x for d, x in enumerate(letters) if d not in left_out] for left_out in (dims, *held))
    result = call.relate(f"{' '.join(letters)} -> {', '.join(map(' '.join, (kept, *on_the_way)))}", [value])[0]
    if call.args["keepdim"]:
        order = iter(range(len(kept)))
        result = call.factors.permute(result, [None if d in dims else next(order) for d in range(len(letters))])
    return result


@rearrangement("linalg_norm.default linalg_norm.ord_str linalg_matrix_norm.default linalg_matrix_norm.str_ord "
               "nuclear_norm.default nuclear_norm.dim",
               sample=(lambda T: (T(2, 3, 4), [1, 2]) if "nuclear_norm.dim" in T.op else (T(3, 4),) if "nuclear" in T.op else
                       (T(3, 4), "nuc" if "str" in T.op else 1),
                       lambda T: (T(2, 3, 4), [-1, 0], True) if "nuclear_norm.dim" in T.op else (T(3, 4), True) if "nuclear" in
                       T.op else (T(2, 3, 4), "fro" if "str" in T.op else -2, [2, 0], True),
                       lambda T: (T(2, 3, 4), [2, 1]) if "nuclear_norm.dim" in T.op else (T(3, 4),) if "nuclear" in T.op else
                       (T(2, 3, 4),) if T.op.endswith("norm.default") and "matrix" not in T.op else
                       (T(3, 4), "fro") if "str" in T.op else (T(3, 4), float("inf"))))
def matrix_norm(call: Call):
    """With an order, the norm of a matrix if there are two dimensions; else that of a vector of all elements."""
    value = call.tensors()[0]
    order, given = call.args.get("ord", "nuc"), call.args.get("dim", [-2, -1])
    dims = [d % len(value.shape) for d in ([given] if isinstance(given, int) else given or range(len(value.shape)))]
    if len(dims) == 2 and order not in (None, "fro"):
        return _matrix_norm(call, dims, order)
    return reduced(call, value, dims, call.args["keepdim"])
