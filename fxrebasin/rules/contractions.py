"""Products that sum over an index: linear maps, matrix products, convolutions."""

from __future__ import annotations

import string
from typing import Any

from .call import Call
from .rule import rule

_MAP: dict[str, Any] = {"distinct": True, "scales": "input bias | weight bias", "whatever": "stride padding dilation output_padding"}

rule("linear.default", "*b i, o i, o -> *b o", **_MAP,
     sample=(lambda T: (T(2, 3, 4), T(5, 4), T(5)), lambda T: (T(4), T(5, 4))))


def _matmul(call: Call) -> str:
    n, m = len(call.args["self"].shape), len(call.args["other"].shape)
    left, right = ("k" if n == 1 else "*b n k"), ("k" if m == 1 else "*b k m")
    return f"{left}, {right} -> {'*b' if n > 1 or m > 1 else ''}{' n' * (n > 1)}{' m' * (m > 1)}"


rule("matmul.default", _matmul, distinct=True, scales="self | other", sample=(lambda T: (T(2, 3, 4), T(2, 4, 5)), lambda T: (T(3, 4), T(2, 4, 5)),
                                        lambda T: (T(4), T(4, 5)), lambda T: (T(3, 4), T(4)), lambda T: (T(4), T(4))))
rule("mm.default", "n k, k m -> n m", distinct=True, scales="self | mat2", sample=lambda T: (T(3, 4), T(4, 5)))
rule("bmm.default", "b n k, b k m -> b n m", distinct=True, scales="self | mat2", sample=lambda T: (T(2, 3, 4), T(2, 4, 5)))
rule("mv.default", "n k, k -> n", distinct=True, scales="self | vec", sample=lambda T: (T(3, 4), T(4)))
rule("dot.default vdot.default", "k, k -> ", sample=lambda T: (T(4), T(4)))
rule("outer.default ger.default", "n, m -> n m", distinct=True, scales="self | vec2", sample=lambda T: (T(3), T(4)))

def _added(given) -> bool:
    """A sum of which no part is left out."""
    return given["alpha"] != 0 and given["beta"] != 0


rule("addmm.default", lambda c: ("m" if len(c.args["self"].shape) == 1 else "n m") + ", n k, k m -> n m",
     distinct=_added, scales="self mat1 | self mat2", whatever="alpha beta",
     sample=(lambda T: (T(5), T(3, 4), T(4, 5)), lambda T: (T(3, 5), T(3, 4), T(4, 5))))
rule("baddbmm.default", "b n m, b n k, b k m -> b n m", distinct=_added, scales="self batch1 | self batch2", whatever="alpha beta", sample=lambda T: (T(2, 3, 5), T(2, 3, 4), T(2, 4, 5)))
rule("addmv.default", "n, n k, k -> n", whatever="alpha beta", sample=lambda T: (T(3), T(3, 4), T(4)))
rule("bilinear.default", "*b i, *b j, o i j, o -> *b o", sample=lambda T: (T(2, 3), T(2, 4), T(5, 3, 4), T(5)))

rule("cdist.default", "*b n d, *b m d -> *b n m", distinct=lambda given: given["p"] > 0, whatever="p compute_mode",
     sample=lambda T: (T(2, 3, 4), T(2, 5, 4)))


def _einsum(call: Call) -> str:
    left, _, right = call.args["equation"].replace(" ", "").partition("->")
    if "->" not in call.args["equation"]:
        letters = sorted(set(left) - set(",."))
        right = "..." * ("..." in left) + "".join(x for x in letters if left.count(x) == 1)
    spell = lambda term: " ".join(term.replace("...", "@")).replace("@", "*ELL")
    return ", ".join(map(spell, left.split(","))) + " -> " + spell(right)


rule("einsum.default", _einsum, distinct=True, scales="tensors[0] | tensors[1] | tensors[2]", whatever="path",
     sample=(lambda T: ("bhld,bhsd->bhls", [T(2, 3, 4, 5), T(2, 3, 6, 5)]),
                                        lambda T: ("...i,oi->...o", [T(2, 3, 4), T(5, 4)]),
                                        lambda T: ("ij,jk", [T(3, 4), T(4, 5)])))


def _convolution(dims: int, transposed: bool = False) -> str:
    taps = " ".join(f"k{x}!" for x in string.ascii_lowercase[:dims])
    inputs = " ".join(f"y{x}!" for x in string.ascii_lowercase[:dims])
    outputs = " ".join(f"z{x}" for x in string.ascii_lowercase[:dims])
    weight = f"(g i) o {taps}" if transposed else f"(g o) i {taps}"
    return f"*n (g i) {inputs}, {weight}, (g o) -> *n (g o) {outputs}"


rule("conv1d.default conv1d.padding", _convolution(1), **_MAP, g="groups", sample=lambda T: (T(2, 4, 6), T(5, 4, 3), T(5)))
rule("conv2d.default conv2d.padding", _convolution(2), **_MAP, g="groups",
     sample=(lambda T: (T(2, 4, 6, 5), T(3, 4, 3, 2), T(3)),
             lambda T: (T(2, 6, 4, 4), T(9, 2, 3, 3), None, [1, 1], "same", [1, 1], 3) if T.op.endswith("padding") else
             (T(2, 6, 4, 4), T(9, 2, 3, 3), None, (1, 1), (1, 1), (1, 1), 3)))
rule("conv3d.default conv3d.padding", _convolution(3), **_MAP, g="groups", sample=lambda T: (T(2, 4, 3, 3, 3), T(5, 4, 2, 2, 2)))
rule("conv_transpose1d.default", _convolution(1, True), **_MAP, g="groups", sample=lambda T: (T(2, 4, 6), T(4, 5, 3), T(5)))
rule("conv_transpose2d.input", _convolution(2, True), **_MAP, g="groups",
     missing="taps change places where the stride is not below the kernel's size; grids stay as they are",
     sample=(lambda T: (T(2, 4, 5, 5), T(4, 3, 2, 2), T(3)),
             lambda T: (T(2, 6, 3, 3), T(6, 2, 2, 2), T(6), [2, 2], [0, 0], [0, 0], 3)))
rule("conv_transpose3d.input", _convolution(3, True), **_MAP, g="groups", sample=lambda T: (T(2, 4, 3, 3, 3), T(4, 5, 2, 2, 2)))
rule("convolution.default", lambda c: _convolution(len(c.args["weight"].shape) - 2, c.args["transposed"]), **_MAP, g="groups",
     sample=tuple(lambda T, bias=bias: (T(2, 4, 6, 5), T(3, 4, 3, 2), T(3) if bias else None, [1, 1], [0, 0], [1, 1], False,
                                        [0, 0], 1) for bias in (True, False)))
