"""Freedom that is easily missed, kind by kind, with its exact order; every claim is tried on the function itself."""

from __future__ import annotations

import time
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


def halves(join):
    return Net(lambda m, x: join(*(x @ m.a).chunk(2, -1)) @ m.w, a=(5, 6), w=(3, 3)), (X,)


def parts(join):
    return Net(lambda m, x: join(*(x @ m.a).chunk(3, -1)) @ m.w, a=(5, 6), w=(2, 3)), (X,)


def experts(join):
    """Three small networks of one shape on one input."""
    def forward(m, x):
        return join(*(torch.relu(x @ getattr(m, f"a{k}")) @ getattr(m, f"w{k}") for k in range(3)))
    return Net(forward, **{f"a{k}": (5, 4) for k in range(3)}, **{f"w{k}": (4, 3) for k in range(3)}), (X,)


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
    # halves of what is computed, pairwise
    "halves multiplied": (lambda: halves(torch.mul), F(3) * 2**3),
    "halves added": (lambda: halves(torch.add), F(3) * 2**3),
    "the larger half": (lambda: halves(torch.maximum), F(3) * 2**3),
    "halves subtracted": (lambda: halves(torch.sub), F(3)),
    "halves bent alike": (lambda: halves(lambda p, q: p.tanh() * q.tanh()), F(3) * 2**3),
    "halves bent apart": (lambda: halves(lambda p, q: p.tanh() * q.sin()), F(3)),
    "halves that meet again": (lambda: halves(lambda p, q: p * q - p), F(3)),
    "two thirds": (lambda: parts(lambda p, q, r: p * q + r), F(2) * 2**2),
    "three thirds": (lambda: parts(lambda p, q, r: p * q * r), F(2) * F(3) ** 2),
    # modules that are alike, whose results are no sum
    "experts multiplied": (lambda: experts(lambda e, f, g: e * f * g), F(3) * F(4) ** 3),
    "the smallest of experts": (lambda: experts(lambda e, f, g: torch.minimum(torch.minimum(e, f), g)), F(3) * F(4) ** 3),
    "experts with signs": (lambda: experts(lambda e, f, g: e - f + g), F(2) * F(4) ** 3),
    "experts taken away": (lambda: experts(lambda e, f, g: torch.ones(3, dtype=torch.double) - e - f - g), F(3) * F(4) ** 3),
    "experts told apart": (lambda: experts(lambda e, f, g: e * f / g), F(2) * F(4) ** 3),
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


class Shifted(nn.Module):
    """An axis that is shifted and added onto itself, or multiplied with itself, again and again."""

    def __init__(self, width, depth):
        super().__init__()
        self.inward, self.outward, self.depth = nn.Linear(5, width), nn.Linear(width, 3), depth

    def forward(self, x):
        h = torch.relu(self.inward(x))
        for k in range(1, self.depth):
            h = torch.cat([h[:, :k] * 2, h[:, k:] * h[:, :-k]], 1) if k % 2 else h + h.roll(k, -1)
        return self.outward(h)


def test_an_axis_shifted_onto_itself_takes_seconds():
    """It took minutes when every position that was cut off stayed a piece of its own."""
    program = fxr.capture(Shifted(400, 12), torch.randn(4, 5))
    start = time.process_time()
    assert fxr.infer(program).order == 1
    assert time.process_time() - start < 20


class Staggered(nn.Module):
    def forward(self, x):
        h = self.inward(x)
        return self.outward(torch.cat([h[:, :5] * 2, h[:, 5:] * h[:, :-5]], 1))

    def __init__(self, width):
        super().__init__()
        self.inward, self.outward = nn.Linear(5, width), nn.Linear(width, 3)


def test_what_is_given_up_for_time_is_said():
    reasons = set(fxr.infer(Staggered(600), torch.randn(4, 5)).pinned.values())
    assert any("too fragmented to follow (more than 200 pieces or 100 cuts at " in reason for reason in reasons)
    assert fxr.infer(Staggered(20), torch.randn(4, 5)).order == F(5)
