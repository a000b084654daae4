"""Ops that act on each element: every dimension keeps its meaning, sizes of 1 broadcast."""

from __future__ import annotations

from .call import Call
from .rule import rearrangement, rule

_SAME = """
alias.default clone.default contiguous.default detach.default lift_fresh.default lift_fresh_copy.default
to.dtype to.dtype_layout to.device _to_copy.default
"""

_UNARY = """
abs.default acos.default acosh.default asin.default asinh.default atan.default atanh.default
bitwise_not.default ceil.default celu.default clamp_max.default clamp_min.default
cos.default cosh.default digamma.default elu.default erf.default
erfc.default exp.default exp2.default expm1.default floor.default frac.default gelu.default
hardshrink.default hardsigmoid.default hardswish.default hardtanh.default isfinite.default isinf.default isnan.default
leaky_relu.default lgamma.default log.default log10.default log1p.default log2.default
log_sigmoid.default logical_not.default logit.default mish.default nan_to_num.default neg.default
pow.Tensor_Scalar pow.Scalar reciprocal.default relu.default relu6.default round.default rsqrt.default rsub.Scalar
selu.default sgn.default sigmoid.default sign.default silu.default sin.default sinc.default sinh.default
softplus.default softshrink.default special_expit.default sqrt.default square.default tan.default tanh.default
threshold.default trunc.default
special_erf.default special_log1p.default special_expm1.default
add.Scalar sub.Scalar mul.Scalar div.Scalar remainder.Scalar fmod.Scalar floor_divide.Scalar
eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar masked_fill.Scalar
bitwise_and.Scalar bitwise_or.Scalar __and__.Scalar __or__.Scalar
"""

_BINARY = """
add.Tensor sub.Tensor mul.Tensor div.Tensor multiply.Tensor subtract.Tensor divide.Tensor
true_divide.Tensor rsub.Tensor pow.Tensor_Tensor atan2.default
remainder.Tensor fmod.Tensor floor_divide.default maximum.default minimum.default max.other min.other hypot.default
ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor logical_and.default logical_or.default logical_xor.default
bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor
lerp.Scalar lerp.Tensor addcmul.default addcdiv.default xlogy.Tensor logaddexp.default
clamp_min.Tensor clamp_max.Tensor
where.self where.ScalarOther where.ScalarSelf where.Scalar
"""


def _all_alike(call: Call) -> str:
    return ", ".join(["*a"] * len(call.tensors())) + " -> *a"


rule(_SAME, _all_alike, moves=True)
rule(_UNARY, _all_alike)
rule(_BINARY, _all_alike)
rule("clamp.default", _all_alike, sample=lambda T: (T(2, 3, 4), -0.5, 0.5))
rule("clamp.Tensor", _all_alike, sample=(lambda T: (T(2, 3, 4), T(3, 1), T(4) + 1), lambda T: (T(2, 3), None, T(2, 3))))
rule("div.Scalar_mode", _all_alike, sample=lambda T: (T(2, 3, 4), 0.3, T.keyword(rounding_mode="floor")))
rule("div.Tensor_mode", _all_alike, sample=lambda T: (T(2, 3, 4), T.positive(3, 1), T.keyword(rounding_mode="floor")))
rule("masked_fill.Tensor", _all_alike, sample=lambda T: (T(2, 3, 4), T.bool(3, 1), T()))


@rearrangement("to.other type_as.default", sample=lambda T: (T(2, 3, 4), T(4)))
def lent_type(call: Call):
    """Of `other` the type alone: its axes are no evidence for anything, and what an index of that type points into moves on."""
    call.looked_up.append(call.args["other"])
    return call.relate("*a -> *a", [call.args["self"]])[0]


rule("prelu.default", lambda c: "n c *s, c -> n c *s" if len(c.args["self"].shape) > 1 else "c, c -> c",
     sample=(lambda T: (T(2, 5, 3), T(5)), lambda T: (T(2, 5, 3), T(1))))


@rearrangement("zeros_like.default ones_like.default full_like.default new_zeros.default "
               "new_ones.default new_full.default zeros.default ones.default full.default "
               "scalar_tensor.default zero.default fill.Scalar")
def constant(call: Call):
    call.looked_up.extend(call.tensors())  # for their shape alone
    return call.factors.constant(call.shapes[0])


@rearrangement("fill.Tensor", sample=lambda T: (T(2, 3), T()))
def filled(call: Call):
    return call.factors.constant(call.shapes[0])


@rearrangement("empty_like.default new_empty.default empty.memory_format")
def undefined(call: Call):
    return call.fresh(call.shapes[0])
