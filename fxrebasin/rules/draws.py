"""Ops that draw random numbers: what they draw belongs to its positions, which stay as they are.

Independent draws would be exchangeable, but a claim about distributions is not what a spec makes: with the generator in the
same state, the network must compute the same numbers.
"""

from __future__ import annotations

from ..factors import Value
from .call import Call
from .rule import rearrangement


def drawn(call: Call) -> Value:
    """Tensor arguments lend their shape alone."""
    call.looked_up.extend(call.tensors())
    return call.fresh(call.shapes[0])


for _ops, _sample in {
    "rand.default randn.default": lambda T: ([2, 3],),
    "randint.default": lambda T: (5, [2, 3]),
    "randint.low": lambda T: (2, 7, [2, 3]),
    "randperm.default": lambda T: (5,),
    "normal.float_float": lambda T: (0.0, 1.0, [2, 3]),
    "rand_like.default randn_like.default uniform.default exponential.default log_normal.default cauchy.default "
    "normal_functional.default random.default": lambda T: (T(2, 3),),
    "bernoulli.p geometric.default": lambda T: (T(2, 3), 0.5),
    "randint_like.default random.to": lambda T: (T(2, 3), 7),
    "randint_like.low_dtype random.from": lambda T: (T(2, 3), 2, 7),
}.items():
    rearrangement(_ops, sample=_sample, whatever="*")(drawn)


def drawn_with(call: Call) -> list[Value]:
    """Every element of the arguments meets a draw of its own."""
    for value in call.tensors():
        call.pin(value)
    return [call.fresh(shape) for shape in call.shapes]


for _ops, _sample in {
    "bernoulli.default poisson.default": lambda T: (T.positive(3, 5),),
    "binomial.default": lambda T: (T.positive(3, 5) + 50, T.positive(3, 5)),
    "normal.Tensor_Tensor": lambda T: (T.positive(3, 5), T.positive(3, 5)),
    "normal.Tensor_float": lambda T: (T(3, 5), 1.0),
    "normal.float_Tensor": lambda T: (0.0, T.positive(3, 5)),
    "multinomial.default": lambda T: (T.positive(3, 5), 4),
}.items():
    rearrangement(_ops, sample=_sample, whatever="*")(drawn_with)


@rearrangement("dropout.default alpha_dropout.default native_dropout.default rrelu.default", whatever="p lower upper",
               sample=tuple(lambda T, on=on: (T(3, 5), 0.1, 0.3, on) if "rrelu" in T.op else (T(3, 5), 0.5, on)
                            for on in (True, False)))
def dropped(call: Call):
    """Draws in training alone."""
    if call.args.get("train", call.args.get("training")):
        return drawn_with(call)
    return [call.relate("*a -> *a")[0], *map(call.factors.constant, call.shapes[1:])]


@rearrangement("feature_dropout.default feature_alpha_dropout.default", whatever="p",
               sample=tuple(lambda T, on=on: (T(3, 5, 2), 0.5, on) for on in (True, False)))
def dropped_as_a_whole(call: Call):
    """Channels meet draws, what is inside them does not."""
    return call.relate("n! c! *s -> n c *s" if call.args["train"] else "*a -> *a")[0]
