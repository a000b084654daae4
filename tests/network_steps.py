"""Networks as data: a list of steps that one module runs, and the builder that puts the list together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 2
SIZES = (4, 6, 8, 12)
LARGEST = 4000  # elements of a value
LONGEST = 6  # dimensions of a value


class Unfit(Exception):
    """A move that cannot be made here: another one is chosen."""


# ------------------------------------------------------------------------------------------------------ steps


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
    "transpose": torch.transpose, "flatten": torch.flatten,
    "unflatten": lambda x, d, *sizes: x.unflatten(d, sizes),
    "unsqueeze": torch.unsqueeze, "squeeze": torch.squeeze, "expand": lambda x, *shape: x.expand(shape),
    "expand_as_batch": lambda x, like: x.expand(like.shape[0], *x.shape[1:]),
    "cat": _joined(torch.cat), "stack": _joined(torch.stack), "split": lambda x, d, *sizes: x.split(sizes, d),
    "chunk": torch.chunk, "unbind": torch.unbind, "item": lambda xs, k: xs[k],
    "slice": lambda x, d, a, b, s: x[(slice(None),) * (d % x.ndim) + (slice(a, b, s),)],
    "select": torch.select, "narrow": torch.narrow, "flip": lambda x, d: x.flip(d), "roll": torch.roll,
    "index_select": lambda x, index, d: x.index_select(d, index), "gather_last": lambda x, i: x[..., i],
    "repeat": lambda x, *times: x.repeat(times),
    "repeat_interleave": lambda x, n, d: x.repeat_interleave(n, d),
    "mean": lambda x, d, keep=False: x.mean(d, keep), "sum": lambda x, d, keep=False: x.sum(d, keep),
    "amax": lambda x, d, keep=False: x.amax(d, keep),
    "logsumexp": lambda x, d, keep=False: x.logsumexp(d, keep),
    "var": lambda x, d, keep=False: x.var(d, keepdim=keep), "max": lambda x, d, keep=False: x.max(d, keep)[0],
    "softmax": torch.softmax, "log_softmax": torch.log_softmax, "cumsum": torch.cumsum,
    "sort": lambda x, d: x.sort(d)[0], "topk": lambda x, k, d: x.topk(k, d)[0],
    "normalize": lambda x, d: F.normalize(x, dim=d), "glu": F.glu,
    "rms": lambda x, d: x * torch.rsqrt(x.pow(2).mean(d, keepdim=True) + 1e-6),
    "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
    "bare_layer_norm": lambda x, n: F.layer_norm(x, x.shape[-n:]),
    "rms_norm": lambda x, w: F.rms_norm(x, w.shape, w),
    "batch_norm": lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), "instance_norm": F.instance_norm,
    "group_norm": lambda x, w, b, g: F.group_norm(x, g, w, b), "prelu": F.prelu,
    "conv1d": lambda x, w, b, g, pad: F.conv1d(x, w, b, padding=pad, groups=g),
    "conv2d": lambda x, w, b, g, pad: F.conv2d(x, w, b, padding=pad, groups=g),
    "conv_transpose2d": lambda x, w, b, g: F.conv_transpose2d(x, w, b, groups=g),
    "max_pool2d": F.max_pool2d, "avg_pool2d": F.avg_pool2d, "pixel_shuffle": F.pixel_shuffle,
    "pixel_unshuffle": F.pixel_unshuffle, "channel_shuffle": lambda x, g: F.channel_shuffle(x, g),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "pad": lambda x, *amounts: F.pad(x, amounts),
    "circular_pad": lambda x, n: F.pad(x, (n, n), mode="circular"),
    "einsum": lambda *given: torch.einsum(given[-1], *given[:-1]), "bilinear": F.bilinear,
    "attention": _attention, "biased_attention": lambda q, k, v, bias: _attention(q, k, v, bias),
    "lstm": _recurrent("lstm"), "gru": _recurrent("gru"), "embedding": lambda ids, w: F.embedding(ids, w),
    "where_positive": lambda c, x, y: torch.where(c > 0, x, y),
    "mask_negative": lambda x: x.masked_fill(x < 0, 0.25),
    "masked_fill": lambda x, m, a: x.masked_fill(m, a), "tril": torch.tril,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "diagonal": lambda x: x.diagonal(0, -2, -1), "unfold": lambda x, d, n, s: x.unfold(d, n, s),
    "slice_write": lambda x, y, d, a: x.slice_scatter(y, d, a, a + y.shape[d]), "lerp": torch.lerp,
    "weight_norm": lambda v, g: torch._weight_norm(v, g, 0),
    "topk_index": lambda x, k, d: x.topk(k, d)[1], "argmax": lambda x, d, keep: x.argmax(d, keep),
    "next_place": lambda i, n: (i + 1) % n, "look_up": lambda w, i: w[i], "gather": lambda x, i: x.gather(-1, i),
    "one_hot": lambda i, n: F.one_hot(i, n).double(), "where_equal": lambda i, n: (i.unsqueeze(-1) == n).double(),
    "scatter": lambda i, x, n: x.new_zeros(*x.shape[:-1], n).scatter(-1, i, x),
    "trace_outer": lambda x: x.unsqueeze(-1) * x.unsqueeze(-2),
}

CONSTANTS: dict[str, Callable[..., Tensor]] = {
    "angles": lambda positions, k: (
        torch.arange(positions, dtype=torch.float64)[:, None] / 10 ** torch.linspace(0, 1, k).double()),
    "slopes": lambda heads: 2.0 ** -torch.arange(1.0, heads + 1, dtype=torch.float64)[:, None, None],
    "distances": lambda n: -(torch.arange(n)[:, None] - torch.arange(n)).abs().double(),
    "ramp": lambda n: torch.linspace(0.5, 1.5, n).double(),
    "halves": lambda *shape: torch.full(shape, 0.5).double(),
    "future": lambda n: torch.ones(n, n).triu(1).bool(),
    "order": lambda *index: torch.tensor(index),
}


class Network(nn.Module):
    """Runs steps. Parameters (and persistent buffers) are the steps named `weight`; their numbers depend on `seed`
    and on their step alone, not on `order`, the order of registration, or on `names`."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[int], seed: int = 0,
                 order: Sequence[int] | None = None, names: Mapping[int, str] | None = None):
        super().__init__()
        self.steps, self.outputs, self.seed = tuple(steps), tuple(outputs), seed
        weights = [k for k, step in enumerate(steps) if step.op == "weight"]
        self.names = dict(names or {k: f"w{k}" for k in weights})
        for k in weights if order is None else order:
            shape, kind = steps[k].args
            tensor = numbers(shape, kind, 1000 * seed + k)
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
        return tuple(example(step.args[1], (batch, *step.args[2]), 7 * k + seed)
                     for k, step in enumerate(s for s in self.steps if s.op == "input"))

    def extra_repr(self) -> str:
        return "\n".join([f"%{k} = {step}" for k, step in enumerate(self.steps)] + [f"return {self.outputs}"])

    def code(self) -> str:
        """An expression that makes this network."""
        steps = ",\n    ".join(f"Step({s.op!r}, {s.sources!r}, {s.args!r})" for s in self.steps)
        return f"Network([\n    {steps}], {self.outputs!r}, {self.seed})"


def numbers(shape: Sequence[int], kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "positive":
        return torch.rand(tuple(shape), generator=generator, dtype=torch.float64) + 0.5
    normal = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if kind == "gain":
        return 1 + 0.3 * normal
    return normal / math.sqrt(max(math.prod(shape[1:]), 1)) if len(shape) > 1 else normal / 2


def example(kind: str, shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "ids":
        return torch.randint(0, 7, tuple(shape), generator=generator)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


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


# --------------------------------------------------------------------------------------------------- building


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
            result = example(args[1], (BATCH, *args[2]), 0)
        elif op == "weight":
            result = numbers(*args, len(self.steps))
        elif op == "constant":
            result = CONSTANTS[args[0]](*args[1:])
        else:
            try:
                result = OPS[op](*(self.results[s] for s in sources), *args)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise Unfit(str(error)) from None
        if isinstance(result, Tensor) and (not 0 < result.numel() <= LARGEST or result.ndim > LONGEST):
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
        rare = ["again", "again", "transposed", "joined", "product", "viewed", "buffer"]
        way = self.choose(["new"] * 12 + rare)
        if way in ("again", "transposed"):
            wanted = tuple(shape) if way == "again" else tuple(shape[::-1])
            fitting = [k for k, step in enumerate(self.steps) if step == Step("weight", (), (wanted, kind))]
            if fitting:
                k = self.choose(fitting)
                same = way == "again" or len(shape) < 2
                return k if same else self.add("permute", k, args=range(len(shape))[::-1])
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
        return self.add("weight", args=(tuple(shape), "buffer" if (way, kind) == ("buffer", "weight") else kind))

    def linear(self, x: int, out: int, bias: bool | None = None) -> int:
        w = self.weight(out, self.shape(x)[-1])
        bias = self.choose([True, False]) if bias is None else bias
        return self.add("linear", x, w, self.weight(out)) if bias else self.add("linear", x, w)

    def activation(self, x: int) -> int:
        names = ["relu", "gelu", "tanh", "silu", "sigmoid", "softplus", "square", "abs", "cos"]
        return self.add(self.choose(names), x)

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
