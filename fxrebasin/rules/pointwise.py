"""Ops that act on each element: every dimension keeps its meaning, sizes of 1 broadcast."""

from __future__ import annotations

from .call import Call
from .rule import rearrangement, rule

_SAME = """
alias.default clone.default contiguous.default detach.default lift_fresh.default lift_fresh_copy.default
to.dtype to.dtype_layout to.device _to_copy.default
"""

_UNARY = """
acos.default acosh.default asin.default atanh.default bitwise_not.default ceil.default clamp_max.default clamp_min.default
digamma.default erf.default erfc.default floor.default frac.default hardshrink.default hardsigmoid.default hardswish.default
hardtanh.default isfinite.default isinf.default isnan.default lgamma.default log.default log10.default log1p.default
log2.default logical_not.default logit.default nan_to_num.default pow.Scalar relu6.default round.default sgn.default
sign.default sinc.default softshrink.default sqrt.default tan.default threshold.default trunc.default
special_erf.default special_log1p.default remainder.Scalar fmod.Scalar floor_divide.Scalar
eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar masked_fill.Scalar
bitwise_and.Scalar bitwise_or.Scalar __and__.Scalar __or__.Scalar
"""

_BINARY = """
pow.Tensor_Tensor atan2.default remainder.Tensor fmod.Tensor floor_divide.default maximum.default minimum.default
max.other min.other hypot.default
ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor logical_and.default logical_or.default logical_xor.default
bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor
lerp.Scalar lerp.Tensor addcmul.default addcdiv.default xlogy.Tensor logaddexp.default
clamp_min.Tensor clamp_max.Tensor where.self where.ScalarOther where.ScalarSelf where.Scalar
"""


def _all_alike(call: Call) -> str:
    return ", ".join(["*a"] * len(call.tensors())) + " -> *a"


def _unless_zero(*names: str):
    """Injective, unless one of these arguments is the number zero."""
    return lambda given: "injective" if all(given[name] != 0 for name in names) else False


def _whole_power(given) -> bool:
    exponent = given["exponent"]
    return isinstance(exponent, (int, float)) and exponent >= 1 and exponent == int(exponent)


rule(_SAME, _all_alike, whatever="*", moves="same")
rule(_UNARY, _all_alike, whatever="*")
rule(_BINARY, _all_alike, whatever="*")

rule("add.Tensor sub.Tensor subtract.Tensor rsub.Tensor", _all_alike, whatever="*", distinct=_unless_zero("alpha"), scales="self other")
rule("mul.Tensor multiply.Tensor", _all_alike, whatever="*", distinct=_unless_zero("other"), scales="self | other")
rule("div.Tensor divide.Tensor true_divide.Tensor", _all_alike, whatever="*", distinct="injective", scales="self")
rule("add.Scalar sub.Scalar", _all_alike, whatever="*", distinct="increasing")
rule("rsub.Scalar", _all_alike, whatever="*", distinct=_unless_zero("alpha"))
rule("mul.Scalar div.Scalar", _all_alike, whatever="*", distinct=_unless_zero("other"), scales="self")
rule("pow.Tensor_Scalar", _all_alike, whatever="*", distinct=_whole_power)
rule("neg.default", _all_alike, whatever="*", distinct="injective", scales="self")
rule("abs.default", _all_alike, whatever="*", distinct=True, scales="self")
rule("relu.default", _all_alike, whatever="*", scales="self")
rule("leaky_relu.default", _all_alike, whatever="*", distinct=lambda given: "increasing" if given["negative_slope"] > 0 else False,
     scales="self")
rule("square.default sin.default cos.default", _all_alike, whatever="*", distinct=True)
rule("reciprocal.default", _all_alike, whatever="*", distinct="injective")
rule("asinh.default", _all_alike, whatever="*", distinct="increasing")
rule("rsqrt.default", _all_alike, whatever="*", positive=True)
rule("exp.default exp2.default sigmoid.default special_expit.default", _all_alike, whatever="*",
     distinct="increasing", saturates=True, positive=True)
rule("softplus.default", _all_alike, whatever="*", distinct=lambda given: given["beta"] > 0, saturates=True, positive=True)
rule("cosh.default", _all_alike, whatever="*", distinct=True, saturates=True, positive=True)
rule("tanh.default sinh.default atan.default expm1.default special_expm1.default log_sigmoid.default", _all_alike, whatever="*",
     distinct="increasing", saturates=True)
rule("elu.default celu.default selu.default", _all_alike, whatever="*", saturates=True,
     distinct=lambda given: "increasing" if all(given.get(x, 1) > 0 for x in ("alpha", "scale", "input_scale")) else False)
rule("silu.default gelu.default mish.default", _all_alike, whatever="*", distinct=True, saturates=True)
rule("clamp.default", _all_alike, whatever="*", sample=lambda T: (T(2, 3, 4), -0.5, 0.5))
rule("clamp.Tensor", _all_alike, whatever="*", sample=(lambda T: (T(2, 3, 4), T(3, 1), T(4) + 1), lambda T: (T(2, 3), None, T(2, 3))))
rule("div.Scalar_mode", _all_alike, whatever="*", sample=lambda T: (T(2, 3, 4), 0.3, T.keyword(rounding_mode="floor")))
rule("div.Tensor_mode", _all_alike, whatever="*", sample=lambda T: (T(2, 3, 4), T.positive(3, 1), T.keyword(rounding_mode="floor")))
rule("masked_fill.Tensor", _all_alike, whatever="*", sample=lambda T: (T(2, 3, 4), T.bool(3, 1), T()))


@rearrangement("to.other type_as.default", moves="same", whatever="*", sample=lambda T: (T(2, 3, 4), T(4)))
def lent_type(call: Call):
    """Of `other` the type alone: its axes are no evidence for anything, and what an index of that type points into moves on."""
    call.looked_up.append(call.args["other"])
    return call.relate("*a -> *a", [call.args["self"]])[0]


rule("prelu.default", lambda c: "n c *s, c -> n c *s" if len(c.args["self"].shape) > 1 else "c, c -> c",
     sample=(lambda T: (T(2, 5, 3), T(5)), lambda T: (T(2, 5, 3), T(1))))


@rearrangement("zeros_like.default ones_like.default full_like.default new_zeros.default "
               "new_ones.default new_full.default zeros.default ones.default full.default "
               "scalar_tensor.default zero.default fill.Scalar", whatever="*")
def constant(call: Call):
    call.looked_up.extend(call.tensors())  # for their shape alone
    return call.factors.constant(call.shapes[0])


@rearrangement("fill.Tensor", sample=lambda T: (T(2, 3), T()))
def filled(call: Call):
    call.looked_up.extend(call.tensors())  # a shape, and one number
    return call.factors.constant(call.shapes[0])


@rearrangement("empty_like.default new_empty.default empty.memory_format", whatever="*")
def undefined(call: Call):
    call.looked_up.extend(call.tensors())  # for their shape alone
    return call.fresh(call.shapes[0])
