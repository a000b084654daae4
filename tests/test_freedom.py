"""Freedom that is easily missed, kind by kind, with its exact order; every claim is tried on the function itself."""

from __future__ import annotations

from math import factorial as F

import pytest
import torch
import torch.nn.functional as nnf
from operator_checks import change
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import fxrebasin as fxr

torch.set_num_threads(1)


class Net(nn.Module):
    """Parameters of given shapes, and a function of them and the inputs."""

    def __init__(self, function, **shapes):
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            numbers = torch.randn(shape, dtype=torch.double, generator=generator)
            self.register_parameter(name, nn.Parameter(numbers, requires_grad=False))

    def forward(self, *inputs):
        return self.function(self, *inputs)


X = torch.randn(4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
HIDDEN = {"a": (5, 6), "w": (6, 3)}
IDS = torch.tensor([[0, 3, 1, 8], [5, 5, 2, 7]])
SPARSE = torch.eye(4, dtype=torch.double).to_sparse()
MASK = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.double)


def heads(t):
    return t.view(*t.shape[:2], 2, 4).transpose(1, 2)


def attended(m, x, how):
    """Self-attention of two heads of four units over a stream of eight."""
    x = x @ m.i
    q, k, v = (heads(x @ getattr(m, name)) for name in "qkv")
    return how(m, q, k, v).transpose(1, 2).flatten(2) @ m.o


ATTENTION = {"i": (3, 8), "q": (8, 8), "k": (8, 8), "v": (8, 8), "o": (8, 2)}
SEQUENCE = torch.randn(2, 6, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2))
ATTENDED = F(8) * F(2) * F(4) ** 4


def attention(how):
    return Net(lambda m, x: attended(m, x, how), **ATTENTION), (SEQUENCE,)


def by_hand(lend):
    def how(m, q, k, v):
        return lend(m, (q @ k.transpose(2, 3)).softmax(-1), q) @ v
    return attention(how)


def hidden(function, **more):
    return Net(lambda m, x: function(m, x @ m.a) @ m.w, **{**HIDDEN, **more}), (X,)


def scanned(m, x):
    from torch._higher_order_ops.scan import scan

    def step(carried, row):
        state = torch.tanh(carried @ m.u + row @ m.a)
        return state, state * 1.0
    return scan(step, torch.zeros(6, dtype=torch.double), x)[1] @ m.w


def repeated(m, x):
    from torch._higher_order_ops import while_loop
    return while_loop(lambda h, k: k < 3, lambda h, k: (torch.tanh(h @ m.u), k + 1), (x @ m.a, torch.tensor(0)))[0] @ m.w


def mapped(m, x):
    from torch._higher_order_ops import map as map_rows
    return map_rows(lambda row, a: (row @ a).relu(), x, m.a) @ m.w


KINDS = {
    # a type is lent
    "type_as a tensor with other axes": (lambda: by_hand(lambda m, a, q: a.type_as(q)), ATTENDED),
    "type_as a weight": (lambda: by_hand(lambda m, a, q: a.type_as(m.q)), ATTENDED),
    "to the type of another": (lambda: by_hand(lambda m, a, q: a.to(m.v)), ATTENDED),
    # looked up by a place that points
    "embedding of an argmax": (lambda: (Net(lambda m, x: nnf.embedding((x @ m.a).argmax(-1), m.w), **HIDDEN), (X,)), F(6)),
    "codebook": (lambda: (Net(lambda m, x: nnf.embedding((x @ m.a @ m.c.t()).argmax(-1), m.c) @ m.w, c=(7, 6), **HIDDEN), (X,)),
                 F(7) * F(6)),
    "bag of the best": (lambda: (Net(lambda m, x: nnf.embedding_bag((x @ m.a).topk(2).indices, m.w, mode="sum"), **HIDDEN),
                                 (X,)), F(6)),
    **{f"bags, {mode}": (lambda mode=mode: (Net(lambda m, i: nnf.embedding_bag(i, m.e, mode=mode).relu() @ m.w, e=(9, 6), w=(6, 3)),
                                            (IDS,)), F(6)) for mode in ("sum", "mean", "max")},
    "rows made shorter": (lambda: (Net(lambda m, i: nnf.embedding(i, m.e.detach().clone(), max_norm=1.0).relu() @ m.w,
                                       e=(9, 6), w=(6, 3)), (IDS,)), F(6)),
    # sparse
    "sparse product": (lambda: (Net(lambda m, s, x: torch.sparse.mm(s, x @ m.a).relu() @ m.w, **HIDDEN), (SPARSE, X)), F(6)),
    "sparse matmul": (lambda: (Net(lambda m, s, x: (s @ (x @ m.a)).relu() @ m.w, **HIDDEN), (SPARSE, X)), F(6)),
    "sparse constant": (lambda: hidden(lambda m, h: torch.sparse.mm(SPARSE, h).relu()), F(6)),
    # whole matrices
    "inverse": (lambda: hidden(lambda m, h: h @ torch.linalg.inv(m.s) @ m.t, s=(6, 6), t=(6, 6)), F(6) ** 3),
    "pseudo-inverse": (lambda: hidden(lambda m, h: h @ torch.linalg.pinv(m.s) @ m.t, s=(4, 6), t=(4, 6)), F(6) ** 2 * F(4)),
    "solve": (lambda: hidden(lambda m, h: torch.linalg.solve(m.s, h.t()).t(), s=(6, 6)), F(6) ** 2),
    "solve from the right": (lambda: hidden(lambda m, h: torch.linalg.solve(m.s, h, left=False), s=(6, 6)), F(6) ** 2),
    "matrix exponential": (lambda: hidden(lambda m, h: h @ torch.matrix_exp(m.s / 4), s=(6, 6)), F(6)),
    "matrix power": (lambda: hidden(lambda m, h: h @ torch.linalg.matrix_power(m.s, 3), s=(6, 6)), F(6)),
    "determinant": (lambda: hidden(lambda m, h: h * torch.linalg.det(m.s), s=(4, 4)), F(6) * F(4)),
    "size of a determinant": (lambda: hidden(lambda m, h: h * torch.linalg.slogdet(m.s)[1], s=(4, 4)), F(6) * F(4) ** 2),
    "singular values": (lambda: hidden(lambda m, h: h * torch.linalg.svdvals(m.s)[0], s=(4, 3)), F(6) * F(4) * F(3)),
    "largest singular value": (lambda: hidden(lambda m, h: h * torch.linalg.matrix_norm(m.s, 2), s=(4, 3)), F(6) * F(4) * F(3)),
    "nuclear norm": (lambda: hidden(lambda m, h: h * torch.linalg.norm(m.s, "nuc"), s=(4, 3)), F(6) * F(4) * F(3)),
    # within each column of four the rows are summed: S_4 for each of three columns
    "largest column sum": (lambda: hidden(lambda m, h: h * torch.linalg.norm(m.s, 1), s=(4, 3)), F(6) * F(3) * F(4) ** 3),
    "largest row sum": (lambda: hidden(lambda m, h: h * torch.linalg.norm(m.s, float("inf")), s=(4, 3)), F(6) * F(4) * F(3) ** 4),
    # equal constants
    "a mask on units": (lambda: hidden(lambda m, h: h.relu() * MASK), F(4) * F(2)),
    "a mask that the graph makes": (lambda: hidden(lambda m, h: h.relu() * (torch.arange(6) < 2)), F(4) * F(2)),
    "two constants": (lambda: hidden(lambda m, h: torch.where(torch.arange(6) % 3 == 0, 0.5, 2.0) * h.relu() * MASK),
                      F(2) ** 3),  # 0 and 3; of the others 2 and 5, where the mask is 1, and 1 and 4
    "a mask on the units of heads": (lambda: attention(lambda m, q, k, v: (q @ k.transpose(2, 3)).softmax(-1) @ (
        v * torch.tensor([1.0, 1, 0, 0], dtype=torch.double))), F(8) * F(2) * F(4) ** 2 * (F(2) ** 2) ** 2),
    # bodies
    "branches": (lambda: hidden(lambda m, h: torch.cond(h.sum() > 0, lambda h: h.relu(), lambda h: h.sin(), (h,))), F(6)),
    "rows": (lambda: (Net(mapped, **HIDDEN), (X,)), F(6)),
    "steps": (lambda: (Net(scanned, u=(6, 6), **HIDDEN), (X,)), F(6)),
    "repetition": (lambda: (Net(repeated, u=(6, 6), **HIDDEN), (X,)), F(6)),
    "flexible attention": (lambda: attention(lambda m, q, k, v: flex_attention(q, k, v)), ATTENDED),
    "flexible and causal": (lambda: attention(lambda m, q, k, v: flex_attention(
        q, k, v, score_mod=lambda s, b, h, i, j: torch.where(i >= j, s, -float("inf")))), ATTENDED),
    "flexible, by head": (lambda: attention(lambda m, q, k, v: flex_attention(
        q, k, v, score_mod=lambda s, b, h, i, j: s * (h + 1))), F(8) * F(4) ** 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_the_order_is_exact_and_every_element_keeps_the_function(kind):
    make, order = KINDS[kind]
    module, inputs = make()
    spec = fxr.infer(module, inputs)
    state = module.state_dict()
    before = (module(*inputs),)
    for seed in range(3):
        assert change(before, (torch.func.functional_call(module, spec.random(seed).apply(state), inputs),)) < 1e-11
    assert spec.order == order
