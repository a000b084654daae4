"""Recurrent layers: the gates of a layer are one axis of gates x hidden units, and the hidden units move together."""

from __future__ import annotations

import numpy as np

from ..factors import Value
from .call import Call
from .rule import rearrangement

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1, "lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1,
          "rnn_relu_cell": 1}


def _parameters(T, op: str, layers: int, directions: int, inputs: int = 3, hidden: int = 5) -> list:
    gates = _GATES[op] * hidden
    return [T(*shape) for layer in range(layers) for _ in range(directions)
            for shape in ((gates, inputs if layer == 0 else hidden * directions), (gates, hidden), (gates,), (gates,))]


def _sample(layers: int, directions: int):
    def sample(T):
        name = T.op.split(".")[1]
        start = T(layers * directions, 2, 5)
        return (T(4, 2, 3), [start, T(layers * directions, 2, 5)] if name == "lstm" else start,
                _parameters(T, name, layers, directions), True, layers, 0.0, False, directions == 2, False)
    return sample


@rearrangement("lstm.input gru.input rnn_tanh.input rnn_relu.input", sample=(_sample(1, 1), _sample(2, 2)))
def recurrent(call: Call):
    name, args = call.op.split(".")[1], call.args
    dropout, train = args["dropout"], args["train"]
    if dropout and train:
        raise ValueError("numbers are drawn between the layers")
    directions = 1 + args["bidirectional"]
    starts = args["hx"] if isinstance(args["hx"], (list, tuple)) else [args["hx"]]
    params, value = list(args["params"]), args["input"]
    each = len(params) // (args["num_layers"] * directions)
    time = "*b l! i" if args["batch_first"] and len(value.shape) == 3 else "l! *b i"
    last: list[list[Value]] = [[] for _ in starts]
    for layer in range(args["num_layers"]):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            own = params[k * each:(k + 1) * each]
            state = [_row(call, start, k) for start in starts]
            result, *ends = _layer(call, time, value, own, state, _GATES[name], args["has_biases"])
            outputs.append(result)
            for ended, end in zip(last, ends):
                ended.append(end)
        value = call.factors.concatenate(outputs, len(outputs[0].shape) - 1)
    stacked = [call.factors.concatenate([call.factors.permute(x, [None, *range(len(x.shape))]) for x in ended], 0)
               for ended in last]
    return [value, *stacked]


def _row(call: Call, value: Value, k: int) -> Value:
    return call.factors.permute(call.factors.take(value, 0, np.array([k])), range(1, len(value.shape)))


def _layer(call: Call, time: str, value: Value, weights: list[Value], state: list[Value], gates: int,
           biases: bool) -> list[Value]:
    """One layer and direction: the sequence of hidden states, and the last states. With a projection (a fifth weight,
    j x h) the recurrent state j and the cell state h differ."""
    projected = len(weights) == 3 + 2 * biases
    p = "j" if projected else "h"
    kernels = ["(t! h) i", "(t! h) j"] + ["(t! h)", "(t! h)"] * biases + ["j h"] * projected
    states = [f"*b {p}", "*b h"][: len(state)]
    text = ", ".join([time, *kernels, *states])
    results = time.replace("i", p).replace("!", "")
    # the gates meet in the cell state, which holds h without t
    result, *ends = call.relate(f"{text} -> {results}, {', '.join(states)}, *b h", [value, *weights, *state], t=gates)
    if not projected:
        result = _fed_back(call, result, weights[1], results, gates)
    return [result, *ends[:len(state)]]


def _fed_back(call: Call, result: Value, kernel: Value, letters: str, gates: int) -> Value:
    """The hidden state is what the recurrent kernel reads: its two axes are one index set. (They have letters of their
    own: a letter that an operand has twice would stand for the diagonal.)"""
    read = letters.replace("h", "j")
    return call.relate(f"{read}, (t! h) j, {letters} -> {letters}", [result, kernel, result], t=gates)[0]


@rearrangement("lstm_cell.default gru_cell.default rnn_tanh_cell.default rnn_relu_cell.default",
               sample=lambda T: (T(2, 3), [T(2, 5), T(2, 5)] if "lstm" in T.op else T(2, 5),
                                 *_parameters(T, T.op.split(".")[1], 1, 1)))
def recurrent_cell(call: Call):
    args, name = call.args, call.op.split(".")[1]
    state = args["hx"] if isinstance(args["hx"], (list, tuple)) else [args["hx"]]
    weights = [args[x] for x in ("w_ih", "w_hh", "b_ih", "b_hh") if args.get(x) is not None]
    value = args["input"]
    kernels = ["(t! h) i", "(t! h) j"] + ["(t! h)"] * (len(weights) - 2)
    read, *cell = state if name != "gru_cell" else [*state, *state]  # what the recurrent kernel reads; what h goes on from
    text = ", ".join(["*b i", *kernels, "*b j", *["*b h"] * len(cell)])
    results = call.relate(f"{text} -> {', '.join(['*b h'] * len(state))}, *b h", [value, *weights, read, *cell],
                          t=_GATES[name])
    return results[:len(state)]
