"""What may be taken for different: scores that are ranked, one way to make equal ones after another, and ways that make none."""

from __future__ import annotations

from math import factorial as F

import pytest
import torch
import torch.nn.functional as nnf
from tiny_networks import change
from torch import nn

import fxrebasin as fxr

N, D = 6, 5  # scores, inputs


class Ranked(nn.Module):
    """Rows of a table, chosen by scores of the input."""

    def __init__(self, scores, choose=lambda s: s.argmax(-1), bias=False, **more):
        super().__init__()
        self.scores, self.choose, self.router = scores, choose, nn.Linear(D, N, bias=bias)
        for name, shape in more.items():
            setattr(self, name, nn.Parameter(torch.randn(*shape)))
        with torch.no_grad():
            size = self.scores(self, self.router(torch.randn(2, D))).shape[-1]
        self.rows = nn.Parameter(torch.randn(size, 3))

    def forward(self, x):
        return self.rows[self.choose(self.scores(self, self.router(x)))]


def ranked(scores, *rest, **more) -> Ranked:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Ranked(scores, *rest, **more).double().eval()


def inputs() -> torch.Tensor:
    return torch.randn(16, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def smallest(s):
    return s.argmin(-1)


def mean(h):
    return h.mean(-1, keepdim=True)


def rounded(dtype):
    return lambda m, h: (h * 1e-3 + 1).to(dtype)


EQUAL = {  # numbers that may be equal for whole regions of inputs
    "relu": lambda m, h: torch.relu(h),
    "clip": lambda m, h: h.clip(-0.5, 0.5),
    "clamp by a tensor": lambda m, h: torch.clamp(h, max=mean(h)),
    "fix": lambda m, h: torch.fix(h),
    "round": lambda m, h: torch.round(h, decimals=1),
    "without its fraction": lambda m, h: h - torch.frac(h),
    "division that floors": lambda m, h: torch.div(h, 2.0, rounding_mode="floor"),
    "division that cuts off": lambda m, h: torch.div(h, torch.tensor(2.0), rounding_mode="trunc"),
    "a comparison": lambda m, h: torch.greater(h, 0).double(),
    "an equality": lambda m, h: (h == mean(h)).double(),
    "whole numbers": lambda m, h: h.long(),
    "eight bits": lambda m, h: h.to(torch.int8),
    "the type of whole numbers": lambda m, h: h.type_as(torch.ones(1, dtype=torch.int64)),
    "bfloat16": rounded(torch.bfloat16),
    "half": rounded(torch.float16),
    "single": rounded(torch.float32),
    "softmax in half": lambda m, h: torch.softmax(h, -1, dtype=torch.float16),
    "there and back": lambda m, h: rounded(torch.float16)(m, h).double(),
    "the larger": lambda m, h: torch.maximum(h, mean(h)),
    "the larger, by max": lambda m, h: torch.max(h, mean(h)),
    "the larger, by fmax": lambda m, h: torch.fmax(h, mean(h)),
    "a step": lambda m, h: torch.where(h > 0, h, 0.0),
    "half of it": lambda m, h: h * (h > 0),
    "half of it, added": lambda m, h: h + h.abs(),
    "half of it, by addcmul": lambda m, h: torch.addcmul(h, h.abs(), torch.ones(())),
    "sign": lambda m, h: torch.sign(h),
    "all the way to the mean": lambda m, h: torch.lerp(h, mean(h), 1.0),
    "from itself": lambda m, h: h + (-h),
    "from itself, by sub": lambda m, h: torch.sub(h, h * 1, alpha=1),
    "from itself, by rsub": lambda m, h: torch.rsub(h, h),
    "by itself": lambda m, h: h / (h * 1),
    "to the power of zero": lambda m, h: h ** 0,
    "times zero": lambda m, h: h * 0.0,
    "times a zero": lambda m, h: h * torch.zeros(()),
    "nothing but another": lambda m, h: torch.add(mean(h), h, alpha=0),
    "lost beside one": lambda m, h: h * 1e-20 + 1,
    "tanh far out": lambda m, h: torch.tanh(h * 1e3),
    "sigmoid far out": lambda m, h: torch.sigmoid(h / 1e-6),
    "softmax far out": lambda m, h: torch.softmax(h * 1e6, -1),
    "tanh of a power": lambda m, h: torch.tanh(h.exp()),
    "erf": lambda m, h: torch.erf(h * 100),
    "a logarithm of what may be negative": lambda m, h: torch.log(h),
    "itself turned round": lambda m, h: h + h.flip(-1),
    "a product with itself": lambda m, h: (h[:, :, None] * h[:, None, :]).flatten(1),
    "a matrix and its transpose": lambda m, h: (m.q + m.q.T).flatten()[None] * h[:, :1],
    "twice": lambda m, h: torch.cat([h, h], -1),
    "twice, and one of them turned": lambda m, h: torch.cat([h, -h], -1).abs(),
    "repeated": lambda m, h: h.repeat(1, 2),
    "each twice": lambda m, h: h.repeat_interleave(2, -1),
    "expanded": lambda m, h: h[:, :, None].expand(-1, -1, 2).flatten(1),
    "looked up twice": lambda m, h: h[:, torch.tensor([0, 1, 1, 2, 3, 4])],
    "the largest so far": lambda m, h: torch.cummax(h, -1).values,
    "sums of windows' largest": lambda m, h: nnf.max_pool1d(h[:, None], 3, 1, 1)[:, 0],
    "a map of what may be zero": lambda m, h: torch.relu(h) @ m.q,
    "a row of padding": lambda m, h: nnf.embedding((h[:, 0] > 0).long(), m.q, padding_idx=0),
    "another dimension's softmax": lambda m, h: torch.softmax(m.u[:, None] + m.v[None], 1)[:, 0][None] * h[:, :1] ** 0,
}
EQUAL_CHOICES = {
    "masked, and the smallest taken": (lambda m, h: h.masked_fill(h > 0, -1e9), smallest),
    "masked, turned": (lambda m, h: -h.masked_fill(h > 0, -1e9), lambda s: s.argmax(-1)),
    "masked, and all sorted": (lambda m, h: h.masked_fill(h > 0, -1e9), lambda s: s.argsort(-1)[:, 0]),
    "unsorted": (lambda m, h: h, lambda s: s.topk(3, sorted=False).indices),
}
MORE = {"q": (N, N), "u": (N,), "v": (4,)}


@pytest.mark.parametrize("name", [*EQUAL, *EQUAL_CHOICES])
def test_what_may_make_equal_numbers_pins(name):
    scores, *choose = EQUAL_CHOICES.get(name) or (EQUAL[name],)
    module = ranked(scores, *choose, **MORE)
    spec = fxr.infer(module, inputs(), falsify=False)
    assert ("rows", 0) in spec.pinned, spec
    assert not any("ranks" in text for text in spec.assumptions)


DIFFERENT = {  # way to make scores, or way to choose -> what is taken for granted, beside that no two are equal
    "plain": (lambda m, h: h, ()),
    "smallest": (lambda m, h: h, (), smallest),
    "negative": (lambda m, h: -h, ()),
    "softmax": (lambda m, h: torch.softmax(h, -1), ("softmax does not saturate",)),
    "log_softmax": (lambda m, h: torch.log_softmax(h, -1), ("log_softmax does not saturate",)),
    "sigmoid, with a bias of its own": (lambda m, h: torch.sigmoid(h) + m.u, ()),
    "sigmoid": (lambda m, h: torch.sigmoid(h) * 2.5, ("sigmoid does not saturate",)),
    "tanh, softly": (lambda m, h: 30 * torch.tanh(h / 30), ("tanh does not saturate",)),
    "shares of the whole": (lambda m, h: (lambda s: s / s.sum(-1, keepdim=True))(torch.softmax(h, -1)),
                            ("softmax does not saturate",)),
    "less its mean": (lambda m, h: h - mean(h), ()),
    "squared": (lambda m, h: h.square(), ()),
    "masked, and enough is left": (lambda m, h: h.masked_fill(torch.tensor([0, 0, 0, 0, 0, 0]).bool(), float("-inf")), ()),
    "masked with a number": (lambda m, h: h.masked_fill(torch.tensor([0, 0, 0, 0, 0, 0]).bool(), -1e9),
                             ("what is masked with -1e+09 lies below",)),
    "added to by a map of its own": (lambda m, h: h + torch.tanh(h) @ m.q.T, ()),
    "moved about": (lambda m, h: h.view(4, 4, N).transpose(0, 1).reshape(16, N), ()),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_makes_no_equal_numbers_is_free(name):
    scores, granted, *choose = DIFFERENT[name]
    module = ranked(scores, *choose, **MORE) if name != "moved about" else Moved().double().eval()
    spec = fxr.infer(module, inputs(), falsify=False)
    assert spec.order % F(N) == 0 and ("rows", 0) not in spec.pinned, spec
    for seed in range(3):
        assert change(module, (inputs(),), spec.random(seed).apply(module.state_dict())) < 1e-12
    said = [text for text in spec.assumptions if "no two of the numbers" not in text]
    assert len(said) == len(granted) and all(text.startswith(g) for text, g in zip(said, granted)), spec.assumptions
    assert any("no two of the numbers" in text for text in spec.assumptions)
    again = fxr.Spec.from_json(spec.to_json())
    assert again.assumptions == spec.assumptions and all(text[:40] in str(spec) for text in spec.assumptions)


class Moved(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.rows = nn.Linear(D, N, bias=False), nn.Parameter(torch.randn(N, 3))

    def forward(self, x):
        return self.rows[self.router(x).view(4, 4, N).transpose(0, 1).reshape(16, N).argmax(-1)]


def test_an_assumption_is_said_only_where_a_claim_relies_on_it():
    module = ranked(lambda m, h: torch.softmax(torch.relu(h), -1))
    assert not fxr.infer(module, inputs(), falsify=False).assumptions
    assert not fxr.infer(nn.Sequential(nn.Linear(D, 4), nn.Sigmoid(), nn.Linear(4, 3)), torch.randn(4, D)).assumptions


def test_a_row_of_padding_is_taken_for_granted_only_beside_something_else():
    class Tokens(nn.Module):
        def __init__(self, added):
            super().__init__()
            self.embed, self.inner = nn.Embedding(9, D, padding_idx=0), nn.Linear(D, D, bias=False)
            self.router, self.rows, self.added = nn.Linear(D, N, bias=False), nn.Parameter(torch.randn(N, 3)), added

        def forward(self, ids):
            x = self.embed(ids)
            x = x + self.inner(x.roll(1, 1)) if self.added else x
            return self.rows[self.router(x).argmax(-1)]
    ids = torch.randint(0, 9, (2, 7))
    alone, beside = (fxr.infer(Tokens(added).eval(), ids, falsify=False) for added in (False, True))
    assert "may be zero" in alone.pinned["rows", 0]
    assert ("rows", 0) not in beside.pinned and any("row of padding" in text for text in beside.assumptions)


def test_order_of_unsorted_results():
    """Free while the results are summed over, pinned as soon as they are told apart, or mixed from row to row."""
    summed = ranked(lambda m, h: h, lambda s: s.topk(3, sorted=False).indices)
    module = nn.Sequential(summed, Sum()).double()
    assert fxr.infer(module, inputs(), falsify=False).order == F(N)
    told = nn.Sequential(summed, nn.Flatten(), nn.Linear(9, 2)).double()
    spec = fxr.infer(told, inputs(), falsify=False)
    assert "an order that depends on its places" in spec.pinned["0.rows", 0] and spec.order == F(3)  # the columns of the rows
    mixed = nn.Sequential(summed, Mixed()).double()
    assert ("0.rows", 0) in fxr.infer(mixed, inputs(), falsify=False).pinned


class Sum(nn.Module):
    def forward(self, x):
        return torch.tanh(x).sum(1)


class Mixed(nn.Module):
    """What stands at one place in all rows together: each row has an order of its own."""

    def forward(self, x):
        return torch.tanh(x.sum(0)).sum(0)
