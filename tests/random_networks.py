"""Random small networks, as data: a list of steps that one module runs.

    network = random_network(seed)          the same network for the same seed, on every machine
    networks()                              a hypothesis strategy of the same networks, which shrinks
    print(network)                          one line for each step

A network is put together from *moves* (an attention block, a split and concatenation, a reshape chain ...), each of
which appends *steps*, the calls of single functions. Sizes are few and small, so that unrelated axes often have equal
sizes. The first dimension of every value that depends on an input is the batch, or has it as its outermost factor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH = 2
SIZES = (4, 6, 8, 12)
LARGEST = 4000  # elements of a value
LONGEST = 6  # dimensions of a value


class Unfit(Exception):
    """A move that cannot be made here: another one is chosen."""


# ------------------------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Step:
    """One call: `OPS[op]` on the results of earlier steps, and on constants."""

    op: str
    sources: tuple[int, ...] = ()
    args: tuple = ()

    def __str__(self) -> str:
        return f"{self.op}({', '.join([f'%{s}' for s in self.sources] + [repr(a) for a in self.args])})"


def _joined(function: Callable) -> Callable:
    """Of a function of a list of tensors and one argument, the function of the tensors one by one."""
    return lambda *given: function(given[:-1], given[-1])


def _recurrent(name: str) -> Callable:
    def run(x, *weights):
        width = weights[1].shape[1]
        start = x.new_zeros(1, x.shape[0], width)
        hidden = (start, start) if name == "lstm" else start
        return getattr(torch, name)(x, hidden, weights, len(weights) == 4, 1, 0.0, False, False, True)[0]
    return run


def _attention(q, k, v, bias=None, causal=False, gqa=False):
    return F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, enable_gqa=gqa)


OPS: dict[str, Callable] = {
    "linear": F.linear, "add": torch.add, "mul": torch.mul, "sub": torch.sub, "matmul": torch.matmul,
    "div": lambda x, y: x / (1 + y.abs()), "maximum": torch.maximum, "scale": lambda x, a: x * a,
    "relu": torch.relu, "gelu": F.gelu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu,
    "softplus": F.softplus, "square": torch.square, "abs": torch.abs, "neg": torch.neg, "cos": torch.cos,
    "reshape": lambda x, *shape: x.reshape(shape), "permute": lambda x, *dims: x.permute(dims),
    "transpose": torch.transpose, "flatten": torch.flatten, "unflatten": lambda x, d, *sizes: x.unflatten(d, sizes),
    "unsqueeze": torch.unsqueeze, "squeeze": torch.squeeze, "expand": lambda x, *shape: x.expand(shape),
    "expand_as_batch": lambda x, like: x.expand(like.shape[0], *x.shape[1:]),
    "cat": _joined(torch.cat), "stack": _joined(torch.stack), "split": lambda x, d, *sizes: x.split(sizes, d),
    "chunk": torch.chunk, "unbind": torch.unbind, "item": lambda xs, k: xs[k],
    "slice": lambda x, d, a, b, s: x[(slice(None),) * (d % x.ndim) + (slice(a, b, s),)],
    "select": torch.select, "narrow": torch.narrow, "flip": lambda x, d: x.flip(d), "roll": torch.roll,
    "index_select": lambda x, index, d: x.index_select(d, index), "gather_last": lambda x, i: x[..., i],
    "repeat": lambda x, *times: x.repeat(times), "repeat_interleave": lambda x, n, d: x.repeat_interleave(n, d),
    "mean": lambda x, d, keep=False: x.mean(d, keep), "sum": lambda x, d, keep=False: x.sum(d, keep),
    "amax": lambda x, d, keep=False: x.amax(d, keep), "logsumexp": lambda x, d, keep=False: x.logsumexp(d, keep),
    "var": lambda x, d, keep=False: x.var(d, keepdim=keep), "max": lambda x, d, keep=False: x.max(d, keep)[0],
    "softmax": torch.softmax, "log_softmax": torch.log_softmax, "cumsum": torch.cumsum,
    "sort": lambda x, d: x.sort(d)[0], "topk": lambda x, k, d: x.topk(k, d)[0],
    "normalize": lambda x, d: F.normalize(x, dim=d), "glu": F.glu,
    "rms": lambda x, d: x * torch.rsqrt(x.pow(2).mean(d, keepdim=True) + 1e-6),
    "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
    "bare_layer_norm": lambda x, n: F.layer_norm(x, x.shape[-n:]), "rms_norm": lambda x, w: F.rms_norm(x, w.shape, w),
    "batch_norm": lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), "instance_norm": F.instance_norm,
    "group_norm": lambda x, w, b, g: F.group_norm(x, g, w, b), "prelu": F.prelu,
    "conv1d": lambda x, w, b, g, pad: F.conv1d(x, w, b, padding=pad, groups=g),
    "conv2d": lambda x, w, b, g, pad: F.conv2d(x, w, b, padding=pad, groups=g),
    "conv_transpose2d": lambda x, w, b, g: F.conv_transpose2d(x, w, b, groups=g),
    "max_pool2d": F.max_pool2d, "avg_pool2d": F.avg_pool2d, "pixel_shuffle": F.pixel_shuffle,
    "pixel_unshuffle": F.pixel_unshuffle, "channel_shuffle": lambda x, g: F.channel_shuffle(x, g),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "pad": lambda x, *amounts: F.pad(x, amounts), "circular_pad": lambda x, n: F.pad(x, (n, n), mode="circular"),
    "einsum": lambda *given: torch.einsum(given[-1], *given[:-1]), "bilinear": F.bilinear,
    "attention": _attention, "biased_attention": lambda q, k, v, bias: _attention(q, k, v, bias),
    "lstm": _recurrent("lstm"), "gru": _recurrent("gru"), "embedding": lambda ids, w: F.embedding(ids, w),
    "where_positive": lambda c, x, y: torch.where(c > 0, x, y), "mask_negative": lambda x: x.masked_fill(x < 0, 0.25),
    "masked_fill": lambda x, m, a: x.masked_fill(m, a), "tril": torch.tril, "clamp": lambda x: x.clamp(-0.5, 0.5),
    "diagonal": lambda x: x.diagonal(0, -2, -1), "unfold": lambda x, d, n, s: x.unfold(d, n, s),
    "slice_write": lambda x, y, d, a: x.slice_scatter(y, d, a, a + y.shape[d]), "lerp": torch.lerp,
    "weight_norm": lambda v, g: torch._weight_norm(v, g, 0), "trace_outer": lambda x: x.unsqueeze(-1) * x.unsqueeze(-2),
}

CONSTANTS: dict[str, Callable[..., Tensor]] = {
    "angles": lambda positions, k: torch.arange(positions, dtype=torch.float64)[:, None] / 10 ** torch.linspace(0, 1, k).double(),
    "slopes": lambda heads: 2.0 ** -torch.arange(1.0, heads + 1, dtype=torch.float64)[:, None, None],
    "distances": lambda n: -(torch.arange(n)[:, None] - torch.arange(n)).abs().double(),
    "ramp": lambda n: torch.linspace(0.5, 1.5, n).double(), "halves": lambda *shape: torch.full(shape, 0.5).double(),
    "future": lambda n: torch.ones(n, n).triu(1).bool(),
    "order": lambda *index: torch.tensor(index),
}


class Network(nn.Module):
    """Runs steps. Parameters (and persistent buffers) are the steps named `weight`; their numbers depend on `seed` and
    on their step alone, not on `order`, the order of registration, or on `names`."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[int], seed: int = 0,
                 order: Sequence[int] | None = None, names: Mapping[int, str] | None = None):
        super().__init__()
        self.steps, self.outputs, self.seed = tuple(steps), tuple(outputs), seed
        weights = [k for k, step in enumerate(steps) if step.op == "weight"]
        self.names = dict(names or {k: f"w{k}" for k in weights})
        for k in weights if order is None else order:
            shape, kind = steps[k].args
            tensor = _numbers(shape, kind, 1000 * seed + k)
            if kind == "buffer":
                self.register_buffer(self.names[k], tensor)
            else:
                self.register_parameter(self.names[k], nn.Parameter(tensor, requires_grad=False))
        self.constants = {k: CONSTANTS[step.args[0]](*step.args[1:])
                          for k, step in enumerate(steps) if step.op == "constant"}

    def forward(self, *inputs):
        results: list[Any] = []
        for k, step in enumerate(self.steps):
            if step.op == "weight":
                results.append(getattr(self, self.names[k]))
            elif step.op == "constant":
                results.append(self.constants[k])
            elif step.op == "input":
                results.append(inputs[step.args[0]])
            else:
                results.append(OPS[step.op](*(results[s] for s in step.sources), *step.args))
        return tuple(results[k] for k in self.outputs)

    def inputs(self, batch: int = BATCH, seed: int = 0) -> tuple[Tensor, ...]:
        """Example inputs: float64 numbers, or indices."""
        return tuple(_example(step.args[1], (batch, *step.args[2]), 7 * k + seed)
                     for k, step in enumerate(s for s in self.steps if s.op == "input"))

    def extra_repr(self) -> str:
        return "\n".join([f"%{k} = {step}" for k, step in enumerate(self.steps)] + [f"return {self.outputs}"])

    def code(self) -> str:
        """An expression that makes this network."""
        steps = ",\n    ".join(f"Step({s.op!r}, {s.sources!r}, {s.args!r})" for s in self.steps)
        return f"Network([\n    {steps}], {self.outputs!r}, {self.seed})"


def _numbers(shape: Sequence[int], kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "positive":
        return torch.rand(tuple(shape), generator=generator, dtype=torch.float64) + 0.5
    normal = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if kind == "gain":
        return 1 + 0.3 * normal
    return normal / math.sqrt(max(math.prod(shape[1:]), 1)) if len(shape) > 1 else normal / 2


def _example(kind: str, shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "ids":
        return torch.randint(0, 7, tuple(shape), generator=generator)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------- building


class Builder:
    """Appends steps, and runs each as it comes, to know the shape of its result."""

    def __init__(self, choose: Callable[[Sequence], Any]):
        self.choose = choose
        self.steps: list[Step] = []
        self.results: list[Any] = []
        self.pool: list[int] = []  # results that a later move may take up

    def add(self, op: str, *sources: int, args: Sequence = ()) -> int:
        step = Step(op, tuple(sources), tuple(args))
        if op == "input":
            result = _example(args[1], (BATCH, *args[2]), 0)
        elif op == "weight":
            result = _numbers(*args, len(self.steps))
        elif op == "constant":
            result = CONSTANTS[args[0]](*args[1:])
        else:
            try:
                result = OPS[op](*(self.results[s] for s in sources), *args)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise Unfit(str(error)) from None
        if isinstance(result, Tensor) and (result.numel() > LARGEST or result.numel() == 0 or result.ndim > LONGEST):
            raise Unfit("too large")
        self.steps.append(step)
        self.results.append(result)
        return len(self.steps) - 1

    def shape(self, k: int) -> tuple[int, ...]:
        return tuple(self.results[k].shape)

    def rank(self, k: int, *ranks: int) -> tuple[int, ...]:
        """The shape of a value; unfit unless it has one of these ranks."""
        if self.results[k].ndim not in ranks:
            raise Unfit("rank")
        return self.shape(k)

    def dim(self, k: int) -> int:
        """A dimension that is not the batch; mostly the last."""
        rank = self.results[k].ndim
        return self.choose([rank - 1, rank - 1, *range(1, rank)]) if rank > 1 else self.fail()

    def fail(self):
        raise Unfit()

    def constant(self, *args) -> int:
        return self.add("constant", args=args)

    def items(self, k: int) -> list[int]:
        return [self.add("item", k, args=(i,)) for i in range(len(self.results[k]))]

    def view(self, k: int, *shape: int) -> int:
        return self.add("reshape", k, args=(-1, *shape))

    def factors(self, size: int) -> tuple[int, int]:
        pairs = [(a, size // a) for a in range(2, size) if size % a == 0]
        return self.choose(pairs) if pairs else self.fail()

    def weight(self, *shape: int, kind: str = "weight") -> int:
        """A tensor of the state, or one made of some; at times one that is used elsewhere too."""
        way = self.choose(["new"] * 12 + ["again", "again", "transposed", "joined", "product", "viewed", "buffer"])
        if way in ("again", "transposed"):
            wanted = tuple(shape) if way == "again" else tuple(shape[::-1])
            fitting = [k for k, step in enumerate(self.steps) if step.op == "weight" and step.args == (wanted, kind)]
            if fitting:
                k = self.choose(fitting)
                return k if way == "again" or len(shape) < 2 else self.add("permute", k, args=range(len(shape))[::-1])
        if kind == "weight" and len(shape) == 2 and way == "joined" and shape[0] > 3:
            first = self.choose(range(1, shape[0]))
            parts = [self.add("weight", args=((n, *shape[1:]), kind)) for n in (first, shape[0] - first)]
            return self.add("cat", *parts, args=(0,))
        if kind == "weight" and len(shape) == 2 and way == "product":
            rank = self.choose([2, 3, 4])
            return self.add("matmul", self.add("weight", args=((shape[0], rank), kind)),
                            self.add("weight", args=((rank, shape[1]), kind)))
        if kind == "weight" and len(shape) > 1 and way == "viewed":
            return self.add("reshape", self.add("weight", args=((math.prod(shape),), kind)), args=shape)
        return self.add("weight", args=(tuple(shape), "buffer" if way == "buffer" and kind == "weight" else kind))

    def linear(self, x: int, out: int, bias: bool | None = None) -> int:
        w = self.weight(out, self.shape(x)[-1])
        bias = self.choose([True, False]) if bias is None else bias
        return self.add("linear", x, w, self.weight(out)) if bias else self.add("linear", x, w)

    def activation(self, x: int) -> int:
        return self.add(self.choose(["relu", "gelu", "tanh", "silu", "sigmoid", "softplus", "square", "abs", "cos"]), x)

    def order(self, n: int) -> int:
        """A constant reordering of n positions."""
        kind = self.choose(["reversed", "rolled", "swapped", "riffle", "shuffled"])
        index = list(range(n))
        if kind == "reversed":
            index.reverse()
        elif kind == "rolled":
            index = index[1:] + index[:1]
        elif kind == "swapped":
            index[0], index[-1] = index[-1], index[0]
        elif kind == "riffle":
            index = index[::2] + index[1::2]
        else:
            random.Random(self.choose(range(4))).shuffle(index)
        return self.constant("order", *index)


MOVES: dict[str, Callable[[Builder, int], int]] = {}


def move(function: Callable[[Builder, int], int]) -> Callable[[Builder, int], int]:
    MOVES[function.__name__.strip("_")] = function
    return function


# -------------------------------------------------------------------------------------------------- moves: everyday


@move
def linear(b: Builder, x: int) -> int:
    return b.linear(x, b.choose(SIZES))


@move
def linear_and_activation(b: Builder, x: int) -> int:
    return b.activation(b.linear(x, b.choose(SIZES)))


@move
def activation(b: Builder, x: int) -> int:
    return b.activation(x)


@move
def norm(b: Builder, x: int) -> int:
    shape = b.rank(x, 2, 3, 4)
    width, channels = shape[-1], shape[1]
    kind = b.choose(["layer", "rms by hand", "rms", "batch", "group", "instance", "bare", "l2", "prelu"])
    if kind == "layer":
        return b.add("layer_norm", x, b.weight(width, kind="gain"), b.weight(width))
    if kind == "rms by hand":
        return b.add("mul", b.add("rms", x, args=(-1,)), b.weight(width, kind="gain"))
    if kind == "rms":
        return b.add("rms_norm", x, b.weight(width, kind="gain"))
    if kind == "batch":
        statistics = b.weight(channels), b.weight(channels, kind="positive")
        return b.add("batch_norm", x, *statistics, b.weight(channels, kind="gain"), b.weight(channels))
    if kind == "group":
        groups = b.choose([g for g in (1, 2, 3, 4, channels) if channels % g == 0 and
                           math.prod(shape[1:]) // g > 1] or b.fail())
        return b.add("group_norm", x, b.weight(channels, kind="gain"), b.weight(channels), args=(groups,))
    if kind == "instance":
        return b.add("instance_norm", x)
    if kind == "bare":
        return b.add("bare_layer_norm", x, args=(b.choose(range(1, len(shape))),))
    if kind == "prelu":
        return b.add("prelu", x, b.weight(b.choose([channels, 1])))
    return b.add("normalize", x, args=(b.dim(x),))


@move
def mlp(b: Builder, x: int) -> int:
    inner = b.activation(b.linear(norm(b, x) if b.choose([True, False]) else x, b.choose(SIZES)))
    return b.add("add", x, b.linear(inner, b.shape(x)[-1]))


@move
def gated(b: Builder, x: int) -> int:
    m = b.choose(SIZES)
    way = b.choose(["chunk", "glu", "interleaved", "view", "inner view", "two"])
    if way == "two":
        gate, value = b.linear(x, m), b.linear(x, m)
        return b.linear(b.add("mul", b.activation(gate), value), b.shape(x)[-1])
    y = b.linear(x, 2 * m)
    if way == "glu":
        return b.linear(b.add("glu", y, args=(-1,)), b.shape(x)[-1])
    if way == "chunk":
        gate, value = b.items(b.add("chunk", y, args=(2, -1)))
    elif way == "interleaved":
        gate, value = (b.add("slice", y, args=(-1, k, None, 2)) for k in (0, 1))
    elif way == "view":
        gate, value = b.items(b.add("unbind", b.add("unflatten", y, args=(-1, 2, m)), args=(-2,)))
    else:
        gate, value = b.items(b.add("unbind", b.add("unflatten", y, args=(-1, m, 2)), args=(-1,)))
    return b.add("mul", b.add(b.choose(["sigmoid", "silu"]), gate), value)


@move
def combine(b: Builder, x: int) -> int:
    """With an earlier value of the same shape, after a linear map if need be."""
    y = b.choose(b.pool)
    if b.shape(y) != b.shape(x):
        if b.shape(y)[:-1] != b.shape(x)[:-1]:
            raise Unfit()
        y = b.linear(y, b.shape(x)[-1])
    return b.add(b.choose(["add", "mul", "sub", "maximum", "div"]), x, y)


@move
def join(b: Builder, x: int) -> int:
    """Concatenation with an earlier value; at times a linear map of both."""
    y = b.choose(b.pool)
    dim = b.dim(x)
    if len(b.shape(y)) != len(b.shape(x)):
        raise Unfit()
    pair = [x, y] if b.choose([True, False]) else [y, x]
    joined = b.add("cat", *pair, args=(dim,))
    return b.linear(joined, b.choose(SIZES)) if b.choose([True, False]) else joined


@move
def again(b: Builder, x: int) -> int:
    """A square weight twice, or a weight and its transpose."""
    width = b.shape(x)[-1]
    w = b.weight(b.choose([width, *SIZES]), width)
    y = b.activation(b.add("linear", x, w))
    if b.shape(w)[0] == width and b.choose([True, False]):
        return b.add("linear", y, w)
    return b.add("linear", y, b.add("transpose", w, args=(0, 1)))


# ------------------------------------------------------------------------------------------------ moves: rearranging


@move
def split_and_join(b: Builder, x: int) -> int:
    """Cuts a dimension, treats the pieces differently, joins them in some order, some twice or not at all."""
    dim = b.dim(x)
    size = b.shape(x)[dim]
    count = b.choose([2, 2, 3])
    if size < count:
        raise Unfit()
    cuts = sorted(b.choose(range(1, size)) for _ in range(count - 1))
    sizes = [n for n in (b - a for a, b in zip([0, *cuts], [*cuts, size])) if n]
    if b.choose([False, True]) and size % count == 0:
        sizes = [size // count] * count
    pieces = b.items(b.add("split", x, args=(dim, *sizes)))
    pieces = [b.activation(p) if b.choose([False, True]) else p for p in pieces]
    way = b.choose(["same", "swapped", "twice", "without", "sum"])
    if way == "swapped":
        pieces = pieces[1:] + pieces[:1]
    elif way == "twice":
        pieces.append(b.choose(pieces))
    elif way == "without" and len(pieces) > 1:
        pieces = pieces[:-1]
    elif way == "sum" and len({b.shape(p) for p in pieces}) == 1 and len(pieces) > 1:
        return b.add("add", *pieces[:2])
    return b.add("cat", *pieces, args=(dim,))


@move
def view_chain(b: Builder, x: int) -> int:
    """The last dimension as a product, something on one factor, and back in this order or another."""
    dim = len(b.shape(x)) - 1
    n, m = b.factors(b.shape(x)[dim]) if dim else b.fail()
    y = b.add("unflatten", x, args=(dim, n, m))
    way = b.choose(["none", "softmax", "norm", "cumsum", "mean", "scale", "einsum", "flip", "outer weight", "order", "view again"])
    d = b.choose([dim, dim + 1])
    if way == "softmax":
        y = b.add("softmax", y, args=(d,))
    elif way == "norm":
        y = b.add("rms", y, args=(d,))
    elif way == "cumsum":
        y = b.add("cumsum", y, args=(d,))
    elif way == "mean":
        y = b.add("sub", y, b.add("mean", y, args=(d, True)))
    elif way == "scale":
        y = b.add("mul", y, b.weight(m))
    elif way == "outer weight":
        y = b.add("mul", y, b.weight(n, 1))
    elif way == "einsum":
        y = b.add("einsum", y, b.weight(n, m, m), args=("...nm,nmk->...nk",))
    elif way == "flip":
        y = b.add("flip", y, args=(d,))
    elif way == "order":
        y = b.add("index_select", y, b.order(b.shape(y)[d]), args=(d,))
    elif way == "view again":
        other = b.factors(n * m)
        y = b.add("unflatten", b.activation(b.add("flatten", y, args=(dim,))), args=(dim, *other))
        y = b.add("sub", y, b.add(b.choose(["mean", "amax"]), y, args=(d, True)))
    if b.choose([True, False]):
        y = b.add("transpose", y, args=(dim, dim + 1))
    return b.add("flatten", y, args=(dim,)) if b.choose([True, True, False]) else y


@move
def permute(b: Builder, x: int) -> int:
    rank = len(b.rank(x, 3, 4, 5))
    dims = list(range(1, rank))
    a, c = b.choose(dims), b.choose(dims)
    return b.add("transpose", x, args=(a, c))


@move
def merge(b: Builder, x: int) -> int:
    shape = b.rank(x, 3, 4, 5)
    start = b.choose(range(1, len(shape) - 1))
    if math.prod(shape[start:]) > 48:
        raise Unfit()
    return b.add("flatten", x, args=(start,))


@move
def reshape(b: Builder, x: int) -> int:
    """Some other shape of the same size."""
    shape = b.shape(x)
    total = math.prod(shape[1:])
    n, m = b.factors(total)
    return b.view(x, n, m) if b.choose([True, False]) or n < 4 else b.view(x, *b.factors(n), m)


@move
def reorder(b: Builder, x: int) -> int:
    d = b.dim(x)
    size = b.shape(x)[d]
    way = b.choose(["flip", "roll", "index", "channel shuffle", "gather"])
    if way == "flip":
        y = b.add("flip", x, args=(d,))
    elif way == "roll":
        y = b.add("roll", x, args=(b.choose(range(1, max(size, 2))), d))
    elif way == "index":
        y = b.add("index_select", x, b.order(size), args=(d,))
    elif way == "gather":
        y = b.add("gather_last", x, b.order(b.shape(x)[-1]))
    else:
        y = b.add("channel_shuffle", x, args=(b.factors(b.rank(x, 4)[1])[0],))
    return b.add("add", x, y) if b.choose([False, False, True]) else y


@move
def take_some(b: Builder, x: int) -> int:
    d = b.dim(x)
    size = b.shape(x)[d]
    if size < 3:
        raise Unfit()
    way = b.choose(["first", "every second", "narrow", "select", "some index", "repeated index"])
    if way == "select":
        return b.add("select", x, args=(d, b.choose([0, size - 1]))) if len(b.shape(x)) > 2 else b.fail()
    if way == "narrow":
        return b.add("narrow", x, args=(d, 1, size - 2))
    if way == "some index":
        return b.add("index_select", x, b.constant("order", *range(0, size, 2)), args=(d,))
    if way == "repeated index":
        return b.add("index_select", x, b.constant("order", *(k // 2 for k in range(size))), args=(d,))
    return b.add("slice", x, args=(d, 0, size - 1, 1) if way == "first" else (d, 0, size, 2))


@move
def repeat(b: Builder, x: int) -> int:
    d = b.dim(x)
    rank = len(b.shape(x))
    way = b.choose(["interleave", "tile", "expand", "circular", "pad"])
    if way == "interleave":
        return b.add("repeat_interleave", x, args=(2, d))
    if way == "tile":
        return b.add("repeat", x, args=[2 if k == d else 1 for k in range(rank)])
    if way == "circular":
        b.rank(x, 3)
        return b.add("circular_pad", x, args=(1,))
    if way == "pad":
        return b.add("pad", x, args=(b.choose([0, 1]), 1, *([0, 1] if rank > 3 else [])))
    y = b.add("unsqueeze", x, args=(d,))
    y = b.add("expand", y, args=[2 if k == d else -1 for k in range(rank + 1)])
    return b.add("flatten", y, args=(d, d + 1)) if b.choose([True, False]) else y


@move
def stack(b: Builder, x: int) -> int:
    """Several maps stacked along a new dimension, then taken apart or mixed."""
    count, width = b.choose([2, 3]), b.choose(SIZES)
    dim = b.choose(range(1, len(b.shape(x)) + 1))
    maps = [b.linear(x, width) for _ in range(count)]
    y = b.activation(b.add("stack", *maps, args=(dim,)))
    way = b.choose(["mean", "unbind", "softmax", "flatten"])
    if way == "unbind":
        parts = b.items(b.add("unbind", y, args=(dim,)))
        return b.add(b.choose(["mul", "sub", "add"]), parts[0], parts[-1])
    if way == "softmax":
        return b.add("softmax", y, args=(dim,))
    if way == "flatten":
        return b.add("flatten", y, args=(dim - 1, dim)) if dim > 1 else b.add("flatten", y, args=(1, 2))
    return b.add("mean", y, args=(dim,))


@move
def overwrite(b: Builder, x: int) -> int:
    d = b.dim(x)
    size = b.shape(x)[d]
    if size < 3:
        raise Unfit()
    piece = b.activation(b.add("narrow", x, args=(d, b.choose([0, 1]), size - 2)))
    return b.add("slice_write", x, piece, args=(d, b.choose([0, 1])))


# --------------------------------------------------------------------------------------------------- moves: reducing


@move
def reduce(b: Builder, x: int) -> int:
    op = b.choose(["mean", "amax", "sum", "logsumexp", "var", "max"])
    d = b.dim(x)
    if b.shape(x)[d] < 2:
        raise Unfit()
    y = b.add(op, x, args=(d, True))
    way = b.choose(["gate", "centre", "drop"])
    if way == "drop":
        return b.add("squeeze", y, args=(d,)) if len(b.shape(x)) > 2 else b.fail()
    return b.add("mul", x, b.add("sigmoid", y)) if way == "gate" else b.add("sub", x, y)


@move
def along(b: Builder, x: int) -> int:
    d = b.dim(x)
    op = b.choose(["softmax", "log_softmax", "cumsum", "normalize", "rms", "sort", "topk"])
    if op == "topk":
        return b.add("topk", x, args=(min(2, b.shape(x)[d]), d))
    return b.add(op, x, args=(d,))


@move
def conditional(b: Builder, x: int) -> int:
    way = b.choose(["negative", "where", "mask", "ramp", "halves", "clamp", "causal", "lerp"])
    width = b.shape(x)[-1]
    if way == "negative":
        return b.add("mask_negative", x)
    if way == "clamp":
        return b.add("clamp", x)
    if way == "where":
        return b.add("where_positive", x, b.linear(x, width), b.weight(b.choose([width, 1])))
    if way == "mask":
        return b.add("masked_fill", x, b.add("constant", args=("future", width)), args=(0.5,)) \
            if b.shape(x)[-2:] == (width, width) else b.fail()
    if way == "causal":
        return b.add("tril", x) if len(b.shape(x)) > 2 else b.fail()
    if way == "lerp":
        return b.add("lerp", x, b.linear(x, width), b.weight(width, kind="positive"))
    return b.add("mul", x, b.constant(way, width))


# ------------------------------------------------------------------------------------------------- moves: contracting


@move
def contraction(b: Builder, x: int) -> int:
    shape = b.rank(x, 2, 3, 4)
    c, n = shape[-1], b.choose(SIZES)
    way = b.choose(["two out", "bilinear", "gram", "experts", "tucker", "outer", "positions", "diagonal"])
    if way == "two out":
        return b.add("einsum", x, b.weight(b.choose([2, 3, 4]), c, b.choose([2, 3, 4])), args=("...c,hck->...hk",))
    if way == "bilinear":
        y = b.activation(x)
        return b.add("bilinear", x, y, b.weight(n, c, c), b.weight(n))
    if way == "tucker":
        return b.add("einsum", x, x, b.weight(n, c, c), args=("...i,...j,kij->...k",))
    if way == "gram":
        y = b.linear(x, c)
        b.rank(x, 3, 4)
        return b.add("matmul", b.add("matmul", x, b.add("transpose", y, args=(-1, -2))), x)
    if way == "outer":
        y = b.linear(x, b.choose([2, 3, 4]), False)
        return b.add("trace_outer", y)
    if way == "positions":
        b.rank(x, 3)
        return b.add("einsum", x, b.weight(n, shape[1]), args=("btc,st->bsc",))
    if way == "diagonal":
        y = b.add("einsum", x, b.weight(3, c), b.weight(3, c), args=("...c,ic,jc->...ij",))
        return b.add("diagonal", y)
    experts, hidden = b.choose([2, 3, 4]), b.choose([3, 4, 6])
    gate = b.add("softmax", b.linear(x, experts, False), args=(-1,))
    inner = b.activation(b.add("einsum", x, b.weight(experts, hidden, c), args=("...c,efc->...ef",)))
    out = b.add("einsum", inner, b.weight(experts, c, hidden), args=("...ef,ecf->...ec",))
    return b.add("einsum", out, gate, args=("...ec,...e->...c",))


@move
def grouped_linear(b: Builder, x: int) -> int:
    """A block-diagonal map: factors of the last dimension with weights of their own, or shared."""
    n, m = b.factors(b.shape(x)[-1])
    y = b.add("unflatten", x, args=(-1, n, m))
    k = b.choose([2, 3, 4, m])
    way = b.choose(["own", "shared", "across"])
    if way == "shared":
        y = b.linear(y, k)
    elif way == "own":
        y = b.add("einsum", y, b.weight(n, m, k), args=("...nm,nmk->...nk",))
    else:
        y = b.add("einsum", y, b.weight(m, n, k), args=("...nm,mnk->...km",))
    return b.add("flatten", b.activation(y), args=(-2,))


@move
def conv(b: Builder, x: int) -> int:
    shape = b.rank(x, 3, 4)
    c, out = shape[1], b.choose(SIZES)
    spatial = len(shape) - 2
    way = b.choose(["full", "grouped", "depthwise", "transposed"])
    groups = c if way == "depthwise" else b.choose([g for g in (2, 3, 4) if c % g == 0] or b.fail()) \
        if way == "grouped" or (way == "transposed" and b.choose([False, True])) else 1
    out = out if out % groups == 0 else groups * b.choose([1, 2])
    taps = (b.choose([1, 3]),) * spatial
    if way == "transposed":
        if spatial != 2:
            raise Unfit()
        return b.add("conv_transpose2d", x, b.weight(c, out // groups, 2, 2), b.weight(out), args=(groups,))
    return b.add(f"conv{spatial}d", x, b.weight(out, c // groups, *taps), b.weight(out), args=(groups, taps[0] // 2))


@move
def spatial(b: Builder, x: int) -> int:
    shape = b.rank(x, 4)
    way = b.choose(["max_pool2d", "avg_pool2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample", "squeeze"])
    if way in ("max_pool2d", "avg_pool2d"):
        return b.add(way, x, args=(2,))
    if way == "upsample":
        return b.add(way, x)
    if way == "channel_shuffle":
        return b.add(way, x, args=(b.factors(shape[1])[0],))
    if way == "squeeze":
        y = b.activation(b.linear(b.add("mean", x, args=((2, 3),)), b.choose([2, 3, 4])))
        y = b.add("sigmoid", b.linear(y, shape[1]))
        return b.add("mul", x, b.view(y, shape[1], 1, 1))
    return b.add(way, x, args=(2,))


@move
def tokens(b: Builder, x: int) -> int:
    """Learned tokens before or after the positions; a position table; at times some are dropped again."""
    _, positions, width = b.rank(x, 3)
    count = b.choose([1, 2, 3])
    learned = b.add("unsqueeze", b.weight(count, width), args=(0,))
    learned = b.add("expand_as_batch", learned, x)
    y = b.add("cat", *([learned, x] if b.choose([True, False]) else [x, learned]), args=(1,))
    if b.choose([False, True]):
        y = b.add("add", y, b.weight(positions + count, width))
    if b.choose([False, True]):
        y = attention(b, y)
    way = b.choose(["keep", "drop first", "drop last", "first", "mean"])
    if way == "drop first":
        return b.add("slice", y, args=(1, count, None, 1))
    if way == "drop last":
        return b.add("slice", y, args=(1, 0, positions, 1))
    if way == "first":
        return b.add("select", y, args=(1, 0))
    return b.add("mean", y, args=(1,)) if way == "mean" else y


@move
def recurrent(b: Builder, x: int) -> int:
    width = b.rank(x, 3)[-1]
    op, gates = b.choose([("lstm", 4), ("gru", 3)])
    h = b.choose([3, 4, 6])
    biases = [b.weight(gates * h), b.weight(gates * h)] if b.choose([True, False]) else []
    return b.add(op, x, b.weight(gates * h, width), b.weight(gates * h, h), *biases)


# --------------------------------------------------------------------------------------------------- moves: attention


@move
def attention(b: Builder, x: int) -> int:
    """Self-attention in one of its many spellings, with a residual connection at times."""
    _, t, width = b.rank(x, 3)
    h, k = b.choose([(2, 2), (2, 3), (3, 2), (2, 4), (4, 2), (4, 3), (2, 6)])
    kv = h // 2 if h % 2 == 0 and b.choose([False, False, True]) else h
    q, key, v = _projections(b, x, t, h, kv, k)  # each (batch, heads, t, k)
    q, key = _treated(b, q, key, t, h, kv, k)
    y = _scores(b, q, key, v, t, h, kv, k)
    if b.choose([True, True, False]):
        y = b.add("flatten", b.add("transpose", y, args=(1, 2)), args=(2,))
    else:
        y = b.view(y, t, h * k)  # heads and positions mixed up, as a slip of the pen would
    y = b.linear(y, width)
    return b.add("add", x, y) if b.choose([True, False]) else y


def _projections(b: Builder, x: int, t: int, h: int, kv: int, k: int) -> list[int]:
    way = b.choose(["separate", "three heads", "heads three", "packed", "interleaved groups", "einsum"])
    if way == "separate":
        parts = [b.view(b.linear(x, n * k), t, n, k) for n in (h, kv, kv)]
    elif way == "einsum":
        parts = [b.add("einsum", x, b.weight(n, b.shape(x)[-1], k), args=("btc,nck->btnk",)) for n in (h, kv, kv)]
    elif way in ("three heads", "heads three") and kv == h:
        y = b.linear(x, 3 * h * k)
        if way == "three heads":
            parts = b.items(b.add("unbind", b.view(y, t, 3, h, k), args=(2,)))
        else:
            y = b.view(y, t, h, 3 * k) if b.choose([True, False]) else b.view(y, t, h, 3, k)
            split = ("chunk", (3, -1)) if len(b.shape(y)) == 4 else ("unbind", (-2,))
            parts = b.items(b.add(split[0], y, args=split[1]))
    elif way == "interleaved groups":
        y = b.view(b.linear(x, (h + 2 * kv) * k), t, kv, h // kv + 2, k)
        q, key, v = b.items(b.add("split", y, args=(3, h // kv, 1, 1)))
        parts = [b.view(q, t, h, k), b.view(key, t, kv, k), b.view(v, t, kv, k)]
    else:
        y = b.linear(x, (h + 2 * kv) * k)
        if b.choose([True, False]):
            parts = b.items(b.add("split", y, args=(2, h * k, kv * k, kv * k)))
            parts = [b.view(p, t, n, k) for p, n in zip(parts, (h, kv, kv))]
        else:
            parts = b.items(b.add("split", b.view(y, t, h + 2 * kv, k), args=(2, h, kv, kv)))
    return [b.add("transpose", p, args=(1, 2)) for p in parts]


def _treated(b: Builder, q: int, key: int, t: int, h: int, kv: int, k: int) -> tuple[int, int]:
    """Norms and rotations of queries and keys."""
    way = b.choose(["none", "none", "shared norm", "own norm", "l2", "layer norm"])
    if way == "shared norm":
        q, key = (b.add("mul", b.add("rms", y, args=(-1,)), b.weight(k, kind="gain")) for y in (q, key))
    elif way == "own norm":
        q, key = (b.add("mul", b.add("rms", y, args=(-1,)), b.weight(n, 1, k, kind="gain")) for y, n in ((q, h), (key, kv)))
    elif way == "layer norm":
        q = b.add("layer_norm", q, b.weight(k, kind="gain"), b.weight(k))
    elif way == "l2":
        q, key = b.add("normalize", q, args=(-1,)), b.add("mul", b.add("normalize", key, args=(-1,)), b.weight(kv, 1, 1))
    way = b.choose(["none", "none", "half", "interleaved", "partial"])
    if way == "none" or k % 2 or way == "partial" and k < 4:
        return q, key
    rotated = [_rotated(b, y, t, k, way) for y in (q, key)]
    return rotated[0], rotated[1]


def _rotated(b: Builder, y: int, t: int, k: int, way: str) -> int:
    rest = []
    if way == "partial":
        y, *rest = b.items(b.add("split", y, args=(-1, 2, k - 2)))
        k = 2
    angles = b.constant("angles", t, k // 2)
    cos = b.add("cos", angles)
    sin = b.add("cos", b.add("sub", angles, b.constant("halves", 1)))
    if way == "interleaved":
        one, two = (b.add("slice", y, args=(-1, n, None, 2)) for n in (0, 1))
    else:
        one, two = b.items(b.add("chunk", y, args=(2, -1)))
    first = b.add("sub", b.add("mul", one, cos), b.add("mul", two, sin))
    second = b.add("add", b.add("mul", two, cos), b.add("mul", one, sin))
    if way == "interleaved":
        y = b.add("flatten", b.add("stack", first, second, args=(-1,)), args=(-2,))
    else:
        y = b.add("cat", first, second, args=(-1,))
    return b.add("cat", y, *rest, args=(-1,)) if rest else y


def _scores(b: Builder, q: int, key: int, v: int, t: int, h: int, kv: int, k: int) -> int:
    way = b.choose(["fused", "by hand", "folded", "causal", "alibi", "bias", "shared bias", "masked"])
    if kv != h:
        if way == "fused" or way == "causal":
            return b.add("attention", q, key, v, args=(None, way == "causal", True))
        if b.choose([True, False]):
            key, v = (b.add("repeat_interleave", y, args=(h // kv, 1)) for y in (key, v))
        else:
            expanded = []
            for y in (key, v):
                y = b.add("expand", b.add("unsqueeze", y, args=(2,)), args=(-1, -1, h // kv, -1, -1))
                expanded.append(b.view(y, h, t, k))
            key, v = expanded
    if way in ("fused", "causal"):
        return b.add("attention", q, key, v, args=(None, way == "causal"))
    if way in ("alibi", "bias", "shared bias"):
        bias = b.weight(t, t) if way == "shared bias" else b.weight(h, t, t) if way == "bias" else \
            b.add("mul", b.constant("slopes", h), b.constant("distances", t))
        return b.add("biased_attention", q, key, v, bias)
    if way == "folded":
        q, key, v = (b.view(y, t, k) for y in (q, key, v))
    scores = b.add("scale", b.add("matmul", q, b.add("transpose", key, args=(-1, -2))), args=(k ** -0.5,))
    if way == "masked":
        scores = b.add("masked_fill", scores, b.constant("future", t), args=(-1e9,))
    y = b.add("matmul", b.add("softmax", scores, args=(-1,)), v)
    return b.view(y, h, t, k) if way == "folded" else y


# ------------------------------------------------------------------------------------------------------ whole networks


def build(choose: Callable[[Sequence], Any], seed: int = 0) -> Network:
    """A network of moves chosen by `choose`, which is given a sequence and returns one of its elements."""
    b = Builder(choose)
    x, table = _start(b)
    b.pool.append(x)
    for _ in range(choose(range(1, 8))):
        for _ in range(8):
            kept = len(b.steps)
            try:
                x = MOVES[choose(list(MOVES))](b, x if choose([True, True, True, False]) else choose(b.pool))
                if b.shape(x)[0] != BATCH or len(b.shape(x)) > 5 or not torch.isfinite(b.results[x]).all():
                    raise Unfit()
            except Unfit:
                del b.steps[kept:], b.results[kept:]
                x = b.pool[-1]
                continue
            b.pool.append(x)
            break
    outputs = [_end(b, x, table)]
    if choose([False, False, True]):
        outputs.append(_end(b, choose(b.pool), None))
    return pruned(Network(b.steps, outputs, seed))


def _start(b: Builder) -> tuple[int, int | None]:
    """An input, carried to hidden units."""
    way = b.choose(["tokens", "features", "image", "ids", "state"])
    width = b.choose(SIZES)
    if way == "ids":
        ids = b.add("input", args=(0, "ids", (b.choose([3, 4, 6]),)))
        table = b.weight(7, width)
        return b.add("embedding", ids, table), table
    if way == "image":
        x = b.add("input", args=(0, "numbers", (b.choose([2, 3]), 4, b.choose([4, 6]))))
        w = b.weight(width, b.shape(x)[1], 3, 3)
        return b.add("conv2d", x, w, b.weight(width), args=(1, 1)), None
    x = b.add("input", args=(0, "numbers", (3,) if way == "features" else (b.choose([3, 4, 6]), 3)))
    y = b.linear(x, width)
    if way == "state":  # learned queries, which only look at the input
        queries = b.weight(b.choose([3, 4, 6]), width)
        queries = b.add("expand_as_batch", b.add("unsqueeze", queries, args=(0,)), y)
        return b.add("attention", queries, y, b.linear(x, width)), None
    return y, None


def _end(b: Builder, x: int, table: int | None) -> int:
    """A readout: most hidden units are summed over; at times they are the output themselves."""
    if table is not None and b.shape(x)[-1] == b.shape(table)[-1]:
        return b.add("linear", x, table)
    way = b.choose(["linear", "pooled", "flat", "pooled", "plain"])
    if way == "plain":
        return x
    shape = b.shape(x)
    if way == "pooled" and len(shape) > 2:
        d = 1 if len(shape) == 3 else len(shape) - 1
        x = b.add("mean", x, args=(d,))
        if len(b.shape(x)) > 2:
            x = b.add(b.choose(["mean", "amax"]), x, args=(b.choose(range(1, len(b.shape(x)))),))
    elif way == "flat" and len(shape) > 2:
        x = b.add("flatten", x, args=(1,))
    return b.add("linear", x, b.add("weight", args=((3, b.shape(x)[-1]), "weight")))


def pruned(network: Network) -> Network:
    """Without the steps that no output needs."""
    needed = set(network.outputs) | {k for k, step in enumerate(network.steps) if step.op == "input"}
    for k in range(len(network.steps) - 1, -1, -1):
        if k in needed:
            needed.update(network.steps[k].sources)
    place = {k: i for i, k in enumerate(sorted(needed))}
    steps = [Step(step.op, tuple(place[s] for s in step.sources), step.args)
             for k, step in enumerate(network.steps) if k in needed]
    return Network(steps, [place[k] for k in network.outputs], network.seed)


def random_network(seed: int) -> tuple[Network, tuple[Tensor, ...]]:
    """A network and inputs for it, both float64; decided by the seed alone."""
    network = build(random.Random(seed).choice, seed)
    return network, network.inputs()


@st.composite
def networks(draw) -> Network:
    """The same networks, chosen by hypothesis, which finds a small one among those that fail."""
    return build(lambda options: draw(st.sampled_from(options)))


def disguised(network: Network, seed: int = 0) -> Network:
    """The same network with its steps in another order that keeps sources first, and with its parameters renamed and
    registered in another order. (Its numbers are others, too.)"""
    rng = random.Random(seed)
    waiting = list(range(len(network.steps)))
    order: list[int] = []
    while waiting:
        ready = [k for k in waiting if set(network.steps[k].sources) <= set(order)]
        order.append(rng.choice(ready))
        waiting.remove(order[-1])
    place = {k: i for i, k in enumerate(order)}
    steps = [Step(network.steps[k].op, tuple(place[s] for s in network.steps[k].sources), network.steps[k].args)
             for k in order]
    weights = [i for i, step in enumerate(steps) if step.op == "weight"]
    names = {i: f"{rng.choice('abcdefgh')}_{n}" for n, i in enumerate(rng.sample(weights, len(weights)))}
    rng.shuffle(weights)
    return Network(steps, [place[k] for k in network.outputs], network.seed, weights, names)
