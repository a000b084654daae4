"""Every ATen op of an exported graph as scalar operations (see scalar_graph.py).

A symbolic tensor is `Ids`: an int64 tensor of node ids. What does not depend on the inputs or the state stays
an ordinary tensor and is computed by torch. Ops that only move elements are run by torch on the ids
themselves; arithmetic comes down to `elementwise`, `reduced` and `contract`.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scalar_graph import ScalarGraph
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class Ids:
    """A tensor whose elements are nodes of the scalar graph."""

    at: torch.Tensor


def words(text: str) -> set[str]:
    return set(text.split())


MOVES = words("""
    view _unsafe_view reshape permute transpose t slice select split split_with_sizes chunk unbind cat stack
    expand expand_as squeeze unsqueeze flatten unflatten roll flip pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle repeat repeat_interleave unfold index_select slice_scatter
    select_scatter diagonal movedim swapaxes narrow upsample_nearest1d upsample_nearest2d broadcast_to rot90
    tile numpy_T mT reshape_as view_as
""")
SAME = words("clone alias detach contiguous to _to_copy dropout lift_fresh_copy type_as")
LINEAR = words("""
    avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d upsample_bilinear2d
    upsample_linear1d
""")
UNARY = words("""
    relu gelu silu sigmoid tanh exp log log1p sqrt rsqrt neg abs sin cos square reciprocal elu leaky_relu
    softplus hardtanh hardsigmoid hardswish mish erf clamp relu6 logical_not sign clamp_min
""")
BINARY = {"add": "sum", "sub": "sub", "mul": "product", "div": "div", "pow": "pow", "maximum": "max",
          "minimum": "min", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne",
          "logical_and": "product", "bitwise_and": "product"}


def expand(graph: ScalarGraph, exported: torch.export.ExportedProgram):
    """Writes the program into the graph; returns the ids of the state, of the inputs and of the outputs."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {**signature.inputs_to_lifted_tensor_constants}
    first: dict[int, str] = {}  # tied tensors are one object
    state: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    values: dict[torch.fx.Node, object] = {}

    def leaves(kind: str, name: str, shape) -> torch.Tensor:
        size = math.prod(shape)
        return torch.tensor([graph.leaf(kind, name, i) for i in range(size)],
                            dtype=torch.int64).reshape(shape)

    def placeholder(node):
        if node.name in constants:
            return exported.constants[constants[node.name]]
        if node.name not in names:
            if not isinstance(node.meta["val"], torch.Tensor):
                return node.meta["val"]
            inputs[node.name] = leaves("input", node.name, node.meta["val"].shape)
            return Ids(inputs[node.name])
        name = names[node.name]
        if name in signature.non_persistent_buffers:
            return exported.constants[name]
        tensor = exported.state_dict[name]
        if not tensor.is_floating_point():
            return tensor
        name = first.setdefault(id(tensor), name)
        if name not in state:
            state[name] = leaves("state", name, tensor.shape)
        return Ids(state[name])

    for node in exported.graph.nodes:
        if node.op == "placeholder":
            values[node] = placeholder(node)
        elif node.op == "get_attr":
            values[node] = getattr(exported.graph_module, node.target)
        elif node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = _call(graph, node, args, kwargs)
    last = exported.graph.output_node()
    wanted = {
        spec.arg.name
        for spec in signature.output_specs
        if spec.kind.name == "USER_OUTPUT" and hasattr(spec.arg, "name")
    }
    outputs = []
    for node in last.args[0]:
        if isinstance(node, torch.fx.Node) and node.name in wanted:
            outputs.append(_ids(graph, values[node]))
    return state, inputs, outputs


def _call(graph: ScalarGraph, node: torch.fx.Node, args, kwargs):
    if node.target is operator.getitem:
        return args[0][args[1]]
    if not any(isinstance(a, Ids) for a in tree_leaves((args, kwargs))):
        return node.target(*args, **kwargs)
    name = node.target._schema.name.split("::")[1]
    if name in SAME:
        return args[0]
    if name in MOVES:
        return moved(graph, node.target, args, kwargs)
    if name in LINEAR:
        return linear_map(graph, node.target, args, kwargs)
    if name in UNARY:
        extra = (tuple(args[1:]), tuple(kwargs.items()))
        return elementwise(lambda i: graph.apply(name, i, attributes=extra), args[0].at)
    if name in BINARY:
        return binary(graph, name, *args, **kwargs)
    if name not in RULES:
        raise NotImplementedError(f"scalar_ops.py does not know aten.{name} ({node.format_node()})")
    return RULES[name](graph, *args, **kwargs)


# -- the four ways of making new elements -------------------------------------------------------------------


def _ids(graph: ScalarGraph, value) -> torch.Tensor:
    """The ids of a symbolic tensor's elements, or of the constants in an ordinary tensor or number."""
    if isinstance(value, Ids):
        return value.at
    tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    out = [graph.const(float(v)) for v in tensor.flatten().tolist()]
    return torch.tensor(out, dtype=torch.int64).reshape(tensor.shape)


def moved(graph: ScalarGraph, target: Callable, args, kwargs):
    """Runs an op that only moves elements on the ids (as float64, which all such ops accept)."""

    def unwrap(a):
        return a.at.double() if isinstance(a, Ids) else a

    def tensors(a):  # cat of ids and constants: constants become ids
        if isinstance(a, list | tuple) and any(isinstance(x, Ids) for x in a):
            return [Ids(_ids(graph, x)) for x in a]
        return a

    args = [tensors(a) for a in args]
    if target._schema.name in ("aten::view", "aten::_unsafe_view"):  # the ids have strides of their own
        target = torch.ops.aten.reshape.default
    if target._schema.name in ("aten::slice_scatter", "aten::select_scatter"):
        args[:2] = [Ids(_ids(graph, a)) for a in args[:2]]
    answer = target(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    return tree_map(lambda t: Ids(t.round().long()), answer)


def elementwise(function: Callable[..., int], *operands: torch.Tensor) -> Ids:
    """function(id, ...) -> id over broadcast tensors of ids."""
    wide = torch.broadcast_tensors(*operands)
    out = [function(*row) for row in zip(*(t.flatten().tolist() for t in wide))]
    return Ids(torch.tensor(out, dtype=torch.int64).reshape(wide[0].shape))


def reduced(function: Callable[[list[int]], int], x: torch.Tensor, dims, keepdim: bool) -> Ids:
    """function([ids]) -> id over the dimensions `dims` (None or empty: all)."""
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
    dims = sorted(d % x.ndim for d in dims)
    kept = [d for d in range(x.ndim) if d not in dims]
    rows = x.permute(*kept, *dims).reshape(math.prod(x.shape[d] for d in kept), -1)
    out = torch.tensor([function(row) for row in rows.tolist()], dtype=torch.int64)
    return Ids(
        out.reshape([1 if d in dims else x.shape[d] for d in range(x.ndim) if keepdim or d not in dims])
    )


def contract(graph: ScalarGraph, equation: str, *operands: torch.Tensor) -> Ids:
    """An einsum: every output is one sum node over product nodes."""
    equation = equation.replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "." in left:
        extra = max(t.ndim - len(term.replace("...", "")) for term, t in zip(terms, operands))
        names = "".join(chr(0x3B1 + i) for i in range(extra))
        terms = [term.replace("...", names[extra - (t.ndim - len(term) + 3) :]) for term,
                 t in zip(terms, operands)]
        right = right.replace("...", names)
    if "->" not in equation:
        letters = "".join(terms)
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    size: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, n in zip(term, operand.shape, strict=True):
            size[letter] = max(n, size.get(letter, 1))
    summed = [c for c in size if c not in right]
    flat = [t.flatten().tolist() for t in operands]
    steps = [[(c, s if t.shape[i] > 1 else 0) for i,
              (c, s) in enumerate(zip(term, t.contiguous().stride()))] for term, t in zip(terms, operands)]
    out = []
    for outer in itertools.product(*(range(size[c]) for c in right)):
        at = dict(zip(right, outer))
        parts = []
        for inner in itertools.product(*(range(size[c]) for c in summed)):
            at.update(zip(summed, inner))
            factors = [f[sum(at[c] * s for c, s in step)] for f, step in zip(flat, steps)]
            parts.append(factors[0] if len(factors) == 1 else graph.apply("product", *factors))
        out.append(graph.apply("sum", *parts))
    return Ids(torch.tensor(out, dtype=torch.int64).reshape([size[c] for c in right]))


def linear_map(graph: ScalarGraph, target: Callable, args, kwargs) -> Ids:
    """An op that is linear in its first argument, with constant coefficients that torch itself gives."""
    x = args[0].at
    basis = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
    columns = [target(b, *args[1:], **kwargs) for b in basis]
    shape = columns[0].shape
    matrix = torch.stack([c.flatten() for c in columns], 1)
    ids, out = x.flatten().tolist(), []
    for row in matrix.tolist():
        out.append(graph.apply("sum",
                               *(graph.apply("product", graph.const(c), i) for c, i in zip(row, ids) if c)))
    return Ids(torch.tensor(out, dtype=torch.int64).reshape(shape))


# -- arithmetic ---------------------------------------------------------------------------------------------


def binary(graph: ScalarGraph, name: str, a, b, alpha=1, rounding_mode=None) -> Ids:
    assert rounding_mode is None
    a, b = _ids(graph, a), _ids(graph, b)
    if alpha != 1:
        b = binary(graph, "mul", Ids(b), alpha).at
    return elementwise(lambda p, q: graph.apply(BINARY[name], p, q), a, b)


def matmul(graph, a, b):
    a, b = _ids(graph, a), _ids(graph, b)
    left, right = a.ndim == 1, b.ndim == 1
    a, b = (a[None] if left else a), (b[:, None] if right else b)
    out = contract(graph, "...nk,...km->...nm", a, b).at
    out = out.squeeze(-2) if left else out
    return Ids(out.squeeze(-1) if right else out)


def linear(graph, x, weight, bias=None):
    out = contract(graph, "...i,oi->...o", _ids(graph, x), _ids(graph, weight))
    return out if bias is None else binary(graph, "add", out, bias)


def addmm(graph, bias, a, b, beta=1, alpha=1):
    assert beta == alpha == 1
    return binary(graph, "add", matmul(graph, a, b), bias)


def einsum(graph, equation, operands, path=None):
    return contract(graph, equation, *(_ids(graph, x) for x in operands))


def total(graph, x, dim=None, keepdim=False, dtype=None):
    return reduced(lambda row: graph.apply("sum", *row), x.at, dim, keepdim)


def mean(graph, x, dim=None, keepdim=False, dtype=None):
    def of(row):
        return graph.apply("product", graph.const(1 / len(row)), graph.apply("sum", *row))

    return reduced(of, x.at, dim, keepdim)


def var(graph, x, dim=None, correction=1, unbiased=None, keepdim=False, take=lambda g, v: v):
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    correction = correction if unbiased is None else int(unbiased)

    def of(row):
        m = graph.apply("product", graph.const(1 / len(row)), graph.apply("sum", *row))
        squares = [graph.apply("square", graph.apply("sub", i, m)) for i in row]
        return take(graph, graph.apply("product", graph.const(1 / (len(row) - correction)),
                                       graph.apply("sum", *squares)))

    return reduced(of, x.at, dim, keepdim)


def std(graph, x, *args, **kwargs):
    return var(graph, x, *args, **kwargs, take=lambda g, v: g.apply("sqrt", v))


def vector_norm(graph, x, ord=2, dim=None, keepdim=False, dtype=None):
    assert ord == 2

    def of(row):
        return graph.apply("sqrt", graph.apply("sum", *(graph.apply("square", i) for i in row)))

    return reduced(of, x.at, dim, keepdim)


def amax(graph, x, dim=None, keepdim=False):
    return reduced(lambda row: graph.apply("max", *row), x.at, dim, keepdim)


def max_dim(graph, x, dim=None, keepdim=False):
    if dim is None:
        return amax(graph, x)
    return top(graph, x, 1, dim, keepdim)


def cumsum(graph, x, dim, dtype=None):
    parts = [reduced(lambda row: graph.apply("sum", *row), x.at.narrow(dim, 0, i + 1), dim,
                     False).at for i in range(x.at.shape[dim])]
    return Ids(torch.stack(parts, dim))


def softmax(graph, x, dim, half_to_float=False, dtype=None):
    powers = elementwise(lambda i: graph.apply("exp", i), x.at)
    return binary(graph, "div", powers, total(graph, powers, dim, True))


def log_softmax(graph, x, dim, half_to_float=False, dtype=None):
    return elementwise(lambda i: graph.apply("log", i), softmax(graph, x, dim).at)


def where(graph, condition, a, b):
    return elementwise(lambda c, p, q: graph.apply("where", c, p, q),
                       *(_ids(graph, v) for v in (condition, a, b)))


def glu(graph, x, dim=-1):
    a, b = x.at.chunk(2, dim)
    return binary(graph, "mul", Ids(a), elementwise(lambda i: graph.apply("sigmoid", i), b))


def masked_fill(graph, x, mask, value):
    return where(graph, mask, value, x)


def triangle(op):
    def rule(graph, x, diagonal=0):
        kept = op(torch.ones(x.at.shape), diagonal)
        return where(graph, kept, x, 0.0)

    return rule


def pad(graph, x, widths, mode="constant", value=None):
    if mode == "constant":
        return constant_pad(graph, x, widths, value or 0.0)
    return Ids(torch.nn.functional.pad(x.at.double(), widths, mode).round().long())


def constant_pad(graph, x, widths, value=0.0):
    return Ids(torch.nn.functional.pad(x.at, widths, value=graph.const(value)))


# -- choosing -----------------------------------------------------------------------------------------------


def top(graph, x, k, dim, keepdim=True):
    """(values, indices) of the k largest; an index is the choice among the constants 0, 1, 2, ..."""
    rows = x.at.movedim(dim, -1)
    values, places = [], []
    for row in rows.reshape(-1, rows.shape[-1]).tolist():
        numbers = tuple(graph.const(i) for i in range(len(row)))
        values.append([graph.pick(rank, tuple(row), tuple(row)) for rank in range(k)])
        places.append([graph.pick(rank, tuple(row), numbers) for rank in range(k)])
    shape = (*rows.shape[:-1], k)
    answer = [torch.tensor(t).reshape(shape).movedim(-1, dim) for t in (values, places)]
    return tuple(Ids(t if keepdim else t.squeeze(dim)) for t in answer)


def topk(graph, x, k, dim=-1, largest=True, sorted=True):
    assert largest
    return top(graph, x, k, dim)


def argmax(graph, x, dim, keepdim=False):
    return top(graph, x, 1, dim, keepdim)[1]


def sort(graph, x, dim=-1, descending=False):
    assert descending
    return top(graph, x, x.at.shape[dim], dim)


def embedding(graph, weight, indices, *_):
    return index(graph, weight, [indices])


def index(graph, x, indices):
    """x[i, j, ...] with None for a whole dimension; indices may be constant, given or chosen."""
    table = _ids(graph, x)
    if not any(isinstance(i, Ids) for i in indices):
        return Ids(table[tuple(slice(None) if i is None else i for i in indices)])
    if len(indices) == 2 and all(i is not None for i in indices) and not isinstance(indices[0], Ids):
        row, column = torch.broadcast_tensors(indices[0], indices[1].at)
        chosen = [[graph.lookup(c,
                                list(cells)) for cells in zip(*table[r].reshape(table.shape[1],
                                                                                -1).tolist())] for r,
                  c in zip(row.flatten().tolist(), column.flatten().tolist())]
        return Ids(torch.tensor(chosen).reshape(*row.shape, *table.shape[2:]))
    assert len(indices) == 1, "one symbolic index at a time"
    columns = table.reshape(table.shape[0], -1).T.tolist()
    chosen = [[graph.lookup(i, column) for column in columns] for i in indices[0].at.flatten().tolist()]
    return Ids(torch.tensor(chosen).reshape(*indices[0].at.shape, *table.shape[1:]))


def gather(graph, x, dim, where_, sparse_grad=False):
    table = _ids(graph, x).movedim(dim, -1)
    if not isinstance(where_, Ids):
        return Ids(_ids(graph, x).gather(dim, where_))
    places = where_.at.movedim(dim, -1)
    table = table[tuple(slice(n) for n in places.shape[:-1])]
    out = [[graph.lookup(i, row) for i in picks] for row,
           picks in zip(table.reshape(-1, table.shape[-1]).tolist(),
                        places.reshape(-1, places.shape[-1]).tolist())]
    return Ids(torch.tensor(out).reshape(places.shape).movedim(-1, dim))


def scatter(graph, x, dim, where_, source):
    base = _ids(graph, x).movedim(dim, -1)
    places = _ids(graph, where_).movedim(dim, -1)
    source = _ids(graph, source)
    source = source.movedim(dim, -1) if source.ndim else source.expand(places.shape)
    out = base.clone().reshape(-1, base.shape[-1]).tolist()
    for row, picks, given in zip(out, *(t.reshape(-1, t.shape[-1]).tolist() for t in (places, source))):
        for pick, value in zip(picks, given):
            row[:] = [graph.apply("where", graph.apply("eq", pick, graph.const(i)), value, old) for i,
                      old in enumerate(row)]
    return Ids(torch.tensor(out).reshape(base.shape).movedim(-1, dim))


def one_hot(graph, x, classes):
    return elementwise(lambda i, c: graph.apply("eq", i, c), x.at[..., None],
                       _ids(graph, torch.arange(classes)))


# -- normalisation ------------------------------------------------------------------------------------------


def normalised(graph, x, dims, eps):
    centred = binary(graph, "sub", x, mean(graph, x, dims, True))
    spread = binary(graph, "add", var(graph, x, dims, correction=0, keepdim=True), eps)
    return binary(graph, "mul", centred, elementwise(lambda i: graph.apply("rsqrt", i), spread.at))


def affine(graph, x, weight, bias, shape=None):
    for name, parameter in (("mul", weight), ("add", bias)):
        if parameter is not None:
            ids = _ids(graph, parameter)
            x = binary(graph, name, x, Ids(ids.reshape(shape or ids.shape)))
    return x


def _channel(x):
    return [1, -1] + [1] * (x.at.ndim - 2)


def layer_norm(graph, x, shape, weight=None, bias=None, eps=1e-5, *_):
    return affine(graph, normalised(graph, x, list(range(-len(shape), 0)), eps), weight, bias)


def rms_norm(graph, x, shape, weight=None, eps=None):
    squares = elementwise(lambda i: graph.apply("square", i), x.at)
    size = mean(graph, squares, list(range(-len(shape), 0)), True)
    size = binary(graph, "add", size, torch.finfo(torch.float64).eps if eps is None else eps)
    return affine(graph, binary(graph, "mul", x, elementwise(lambda i: graph.apply("rsqrt", i), size.at)),
                  weight, None)


def batch_norm(graph, x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn):
    if training or running_mean is None:
        return batch_norm_of_batch(graph, x, weight, bias, True, momentum, eps)[0]
    return batch_norm_of_statistics(graph, x, weight, bias, running_mean, running_var, momentum, eps)[0]


def batch_norm_of_statistics(graph, x, weight, bias, running_mean, running_var, momentum, eps):
    m, v = (Ids(_ids(graph, t).reshape(_channel(x))) for t in (running_mean, running_var))
    scale = elementwise(lambda i: graph.apply("rsqrt", i), binary(graph, "add", v, eps).at)
    out = binary(graph, "mul", binary(graph, "sub", x, m), scale)
    return affine(graph, out, weight, bias, _channel(x)), None, None


def batch_norm_of_batch(graph, x, weight, bias, training, momentum, eps):
    dims = [d for d in range(x.at.ndim) if d != 1]
    return affine(graph, normalised(graph, x, dims, eps), weight, bias, _channel(x)), None, None


def instance_norm(graph, x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn):
    if not use_input_stats:
        return batch_norm_of_statistics(graph, x, weight, bias, running_mean, running_var, momentum, eps)[0]
    return affine(graph, normalised(graph, x, list(range(2, x.at.ndim)), eps), weight, bias, _channel(x))


def group_norm(graph, x, groups, weight=None, bias=None, eps=1e-5, *_):
    grouped = Ids(x.at.reshape(x.at.shape[0], groups, -1))
    out = Ids(normalised(graph, grouped, [2], eps).at.reshape(x.at.shape))
    return affine(graph, out, weight, bias, _channel(x))


def weight_norm(graph, v, g, dim=0):
    length = vector_norm(graph, v, dim=[d for d in range(v.at.ndim) if d != dim], keepdim=True)
    return binary(graph, "mul", v, binary(graph, "div", g, length))


def prelu(graph, x, weight):
    slope = _ids(graph, weight)
    slope = slope.reshape(_channel(x) if slope.numel() > 1 else [1] * x.at.ndim)
    below = binary(graph, "mul", x, Ids(slope))
    positive = elementwise(lambda i: graph.apply("gt", i, graph.const(0.0)), x.at)
    return where(graph, positive, x, below)


# -- convolution and pooling --------------------------------------------------------------------------------


def _each(value, n: int) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * n if len(value) == 1 else value


def patches(x: torch.Tensor, kernel, stride, dilation) -> torch.Tensor:
    """(n, c, *spatial) -> (n, c, k1, o1, k2, o2, ...): what each place of the window sees at each output."""
    at = [slice(None), slice(None)]
    for i, (size, k, s, d) in enumerate(zip(x.shape[2:], kernel, stride, dilation)):
        out = (size - d * (k - 1) - 1) // s + 1
        where_ = torch.arange(k)[:, None] * d + torch.arange(out)[None, :] * s
        shape = [1] * 2 * len(kernel)
        shape[2 * i], shape[2 * i + 1] = k, out
        at.append(where_.reshape(shape))
    return x[tuple(at)]


def conv(graph, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    x, weight = _ids(graph, x), _ids(graph, weight)
    n = weight.ndim - 2
    stride, dilation = _each(stride, n), _each(dilation, n)
    if padding == "same":
        widths = [
            w
            for k, d in zip(weight.shape[:1:-1], dilation[::-1])
            for w in (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
        ]
    else:
        widths = [w for p in _each(0 if padding == "valid" else padding, n)[::-1] for w in (p, p)]
    x = constant_pad(graph, Ids(x), widths).at
    seen = patches(x, weight.shape[2:], stride, dilation)
    seen = seen.reshape(seen.shape[0], groups, -1, *seen.shape[2:])
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    kernel, places = "xyz"[:n], "uvw"[:n]
    window = "".join(k + p for k, p in zip(kernel, places))
    out = contract(graph, f"ngc{window},goc{kernel}->ngo{places}", seen, weight).at.flatten(1, 2)
    return affine(graph, Ids(out), None, bias, [1, -1] + [1] * n)


def conv_transpose(graph, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """The convolution of x, with zeros between its elements, by the flipped kernel."""
    x, weight = _ids(graph, x), _ids(graph, weight)
    n = weight.ndim - 2
    stride, padding, output_padding, dilation = (_each(v, n) for v in (stride, padding, output_padding,
                                                                       dilation))
    spread = torch.full([*x.shape[:2], *((size - 1) * s + 1 for size, s in zip(x.shape[2:], stride))],
                        graph.const(0.0))
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    edge = [d * (k - 1) - p for k, d, p in zip(weight.shape[2:], dilation, padding)]
    widths = [w for e, o in zip(edge[::-1], output_padding[::-1]) for w in (e, e + o)]
    grouped = (
        weight.reshape(groups, -1, *weight.shape[1:])
        .transpose(1, 2)
        .flatten(0, 1)
        .flip(list(range(2, 2 + n)))
    )
    return conv(graph, constant_pad(graph, Ids(spread), widths), Ids(grouped), bias, 1, 0, dilation, groups)


def max_pool(graph, x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False):
    assert not ceil_mode
    n = x.at.ndim - 2
    kernel = _each(kernel, n)
    widths = [w for p in _each(padding, n)[::-1] for w in (p, p)]
    seen = patches(constant_pad(graph, x, widths, -math.inf).at, kernel, _each(stride or kernel, n),
                   _each(dilation, n))
    return amax(graph, Ids(seen), list(range(2, 2 + 2 * n, 2)))


def adaptive_max_pool(graph, x, size):
    assert all(s == 1 for s in _each(size, 1))
    return amax(graph, x, list(range(2, x.at.ndim)), True), None


# -- attention and recurrence -------------------------------------------------------------------------------


def attention(graph, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        times = q.at.shape[-3] // k.at.shape[-3]
        k, v = (Ids(t.at.repeat_interleave(times, -3)) for t in (k, v))
    scale = q.at.shape[-1] ** -0.5 if scale is None else scale
    scores = binary(graph, "mul", matmul(graph, q, Ids(k.at.transpose(-1, -2))), scale)
    if is_causal:
        attn_mask = torch.ones(scores.at.shape[-2:], dtype=torch.bool).tril()
    if isinstance(attn_mask, torch.Tensor) and attn_mask.dtype == torch.bool:
        scores = where(graph, attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = binary(graph, "add", scores, attn_mask)
    return matmul(graph, softmax(graph, scores, -1), v)


def gates(graph, x, h, weights, parts: int):
    """The parts of x W_ih' + b_ih and of h W_hh' + b_hh, each (batch, hidden)."""
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    of_input, of_hidden = linear(graph, x, w_ih, b_ih), linear(graph, h, w_hh, b_hh)
    return [[Ids(t) for t in y.at.chunk(parts, -1)] for y in (of_input, of_hidden)]


def lstm_cell(graph, x, state, weights):
    h, c = state
    i, f, g, o = (binary(graph, "add", a, b) for a, b in zip(*gates(graph, x, h, weights[:4], 4)))
    i, f, o = (elementwise(lambda n: graph.apply("sigmoid", n), t.at) for t in (i, f, o))
    g = elementwise(lambda n: graph.apply("tanh", n), g.at)
    c = binary(graph, "add", binary(graph, "mul", f, c), binary(graph, "mul", i, g))
    return binary(graph, "mul", o, elementwise(lambda n: graph.apply("tanh", n), c.at)), c


def gru_cell(graph, x, state, weights):
    (h,) = state
    (r, z, n), (hr, hz, hn) = gates(graph, x, h, weights, 3)
    r, z = (elementwise(lambda i: graph.apply("sigmoid", i), binary(graph, "add", a, b).at) for a,
            b in ((r, hr), (z, hz)))
    n = elementwise(lambda i: graph.apply("tanh", i), binary(graph, "add", n, binary(graph, "mul", r, hn)).at)
    keep = binary(graph, "mul", binary(graph, "sub", 1.0, z), n)
    return (binary(graph, "add", keep, binary(graph, "mul", z, h)),)


def rnn_cell(nonlinearity):
    def cell(graph, x, state, weights):
        total = binary(graph, "add", *(parts[0] for parts in gates(graph, x, state[0], weights, 1)))
        return (elementwise(lambda i: graph.apply(nonlinearity, i), total.at),)

    return cell


def recurrent(cell, states: int):
    """An ATen recurrent op: (output, final hidden, ...) with layers and directions in torch's order."""

    def rule(graph, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        hx = [_ids(graph, h) for h in (hx if isinstance(hx, list | tuple) else [hx])]
        steps = x.at.transpose(0, 1) if batch_first else x.at
        directions = 2 if bidirectional else 1
        each = len(params) // (num_layers * directions)
        assert each == (4 if has_biases else 2), "no projections"
        final = []
        for layer in range(num_layers):
            sides = []
            for side in range(directions):
                n = layer * directions + side
                state, out = tuple(Ids(h[n]) for h in hx), []
                for step in steps.flip(0) if side else steps:
                    state = cell(graph, Ids(step), state, params[n * each : (n + 1) * each])
                    out.append(state[0].at)
                final.append(state)
                sides.append(torch.stack(out[::-1] if side else out))
            steps = torch.cat(sides, -1)
        last = [Ids(torch.stack([state[i].at for state in final])) for i in range(states)]
        return (Ids(steps.transpose(0, 1) if batch_first else steps), *last)

    return rule


def filled(value: float):
    return lambda graph, x, **_: torch.full(x.at.shape, value)


def copy(graph, x, source, *_):
    return Ids(_ids(graph, source).expand(_ids(graph, x).shape))


def rsub(graph, a, b, alpha=1):
    return binary(graph, "sub", b, a, alpha=alpha)


def outer(graph, a, b):
    return contract(graph, "i,j->ij", _ids(graph, a), _ids(graph, b))


RULES: dict[str, Callable] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot"), matmul), "linear": linear, "einsum": einsum,
    "addmm": addmm, "baddbmm": addmm, "outer": outer, "rsub": rsub,
    "sum": total, "mean": mean, "var": var, "std": std, "amax": amax, "max": max_dim, "cumsum": cumsum,
    "linalg_vector_norm": vector_norm, "softmax": softmax, "_softmax": softmax, "log_softmax": log_softmax,
    "_log_softmax": log_softmax, "where": where, "glu": glu, "masked_fill": masked_fill,
    "tril": triangle(torch.tril), "triu": triangle(torch.triu), "pad": pad, "constant_pad_nd": constant_pad,
    "zeros_like": filled(0.0), "ones_like": filled(1.0), "copy": copy,
    "topk": topk, "argmax": argmax, "sort": sort, "embedding": embedding, "index": index,
    "_unsafe_index": index, "gather": gather, "scatter": scatter, "one_hot": one_hot,
    "layer_norm": layer_norm, "rms_norm": rms_norm, "group_norm": group_norm, "instance_norm": instance_norm,
    "batch_norm": batch_norm, "_native_batch_norm_legit_no_training": batch_norm_of_statistics,
    "_native_batch_norm_legit": batch_norm_of_batch, "_weight_norm": weight_norm, "prelu": prelu,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv), "conv_transpose1d": conv_transpose,
    "conv_transpose2d": conv_transpose, "max_pool1d": max_pool, "max_pool2d": max_pool,
    "adaptive_max_pool2d": adaptive_max_pool, "scaled_dot_product_attention": attention,
    "lstm": recurrent(lstm_cell, 2), "gru": recurrent(gru_cell, 1),
    "rnn_tanh": recurrent(rnn_cell("tanh"), 1), "rnn_relu": recurrent(rnn_cell("relu"), 1),
}
