"""Verification of modules of many kinds, and of alignments spoiled at one site where the example shows
little."""
from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from hiding import HIDING, Chosen, Spoiled
from torch import nn
from torch.nn.utils import prune

import fxrebasin as fxr
from fxrebasin.evaluate import evaluate, given_inputs
from fxrebasin.verify import Run


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4))


class Inside(nn.Module):
    """An MLP, and how it is called."""

    def __init__(self, call=lambda m, *x: m(*x), body: nn.Module | None = None):
        super().__init__()
        self.m, self.call = body or mlp(), call

    def forward(self, x):
        return self.call(self.m, x)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    scale: float = 2.0


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    hidden: tuple


class Writes(nn.Module):
    """Writes to a buffer, to its input and to itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.seen = nn.Linear(5, 6), nn.Linear(6, 4), []
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        x.mul_(2).add_(1)
        h = self.a(x).relu()
        self.mean.mul_(0.9).add_(h.mean(0) * 0.1)
        self.seen.append(h)
        return self.b(h - self.mean) * self.calls


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.o = nn.Parameter(torch.randn(6, 5, dtype=torch.cfloat)), nn.Linear(6, 3)

    def forward(self, x):
        return self.o((x.to(self.w.dtype) @ self.w.t()).abs())


def called(module: nn.Module, x) -> nn.Module:
    """Old ways to reparametrise leave a computed tensor behind, which cannot be copied."""
    module(x)
    return module


def pruned() -> nn.Module:
    module = mlp()
    prune.l1_unstructured(module[0], "weight", 0.4)
    prune.ln_structured(module[2], "weight", 0.3, n=2, dim=1)
    return called(module, torch.randn(4, 5))


def autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m(x)


def normed_in_float32(m, x):
    return m[2](F.normalize(m[1](m[0](x)).float(), dim=-1).to(x.dtype))


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
KINDS = {
    "data parallel": (lambda: nn.DataParallel(mlp()), X),
    "autocast": (lambda: Inside(autocast), X),
    "norm in float32": (lambda: Inside(normed_in_float32).double(), X.double()),
    "bfloat16": (lambda: mlp().bfloat16(), X.bfloat16()),
    "old weight norm": (
        lambda: called(nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 6)), nn.Linear(6, 3)), X),
        X,
    ),
    "prune": (pruned, X),
    "a list of arguments": (mlp, [X]),
    "a list as argument and result": (lambda: Inside(lambda m, xs: [m(x) for x in xs]), ([X, X + 1],)),
    "dataclasses": (lambda: Inside(lambda m, b: Answer(m(b.x) * b.scale, (b.x,))), {"x": Batch(X)}),
    "complex parameters": (Complex, X),
    "writes": (Writes, X),
    "infinite outputs": (
        lambda: Inside(lambda m, x: torch.log(m(x)).masked_fill(X[:, :4] > 1, -torch.inf)),
        X,
    ),
    "random numbers": (lambda: Inside(lambda m, x: m(x) + torch.rand(4)), X),
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        {"src": torch.randn(2, 5, 8), "src_key_padding_mask": torch.arange(5) > torch.tensor([[4], [2]])},
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_right_alignments_are_accepted(name):
    """And wrong ones are not; and nothing is left behind."""
    make, inputs = KINDS[name]
    module = make().eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    spec = fxr.infer(module, inputs)
    evidence = fxr.verify(module, inputs, spec.random(1))
    assert evidence.equivalent and evidence.max_rel < 1e-13
    assert (len(evidence.notes) == 1) == (name == "random numbers")
    own = [run for run in evidence.runs if run.precision == "own"]
    assert len(own) == (name != "random numbers") and len(evidence.runs) == 13 + len(own)
    site = next(s for g in spec.groups.values() for s in g.sites if s.tensor in before and before[s.tensor].ndim > 1)
    with pytest.raises(fxr.NotEquivalentError) as caught:
        fxr.verify(module, inputs, Spoiled.of(spec.random(1), site.tensor, site.axis, 0, 1), draws=1)
    assert (site.tensor, site.axis) in caught.value.evidence.sites
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not getattr(module, "seen", []) and torch.equal(X, torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", HIDING)
def test_what_the_example_hides_is_seen(name):
    """Two indices exchanged at one site: every one that changes the module on other inputs is refused, with
    the site."""
    torch.manual_seed(0)
    make, example = HIDING[name]
    module, inputs = make().eval(), example()
    program, state = fxr.capture(module, inputs), module.state_dict()
    spec = fxr.infer(program)
    for seed in range(2):
        assert fxr.verify(program, inputs, spec.random(seed), state=state).equivalent
    sites = sorted({(s.tensor, s.axis) for g in spec.groups.values() for s in g.sites})
    for k, (tensor, axis) in enumerate(sites):
        if tensor == "k.bias":  # moves all scores of a query alike
            continue
        with pytest.raises(fxr.NotEquivalentError) as caught:
            fxr.verify(program, inputs, Spoiled.of(spec.random(k), tensor, axis, 0, 3), state=state)
        evidence = caught.value.evidence
        assert evidence.sites == ((tensor, axis),) and f"{tensor} axis {axis}" in str(caught.value)
        assert [n for n in evidence.offending if any((s.tensor, s.axis) == (tensor, axis) for s in spec.groups[n].sites)]


def test_without_draws_less_is_seen():
    """The control: on the example alone units that are shut are not."""
    make, example = HIDING["units that are shut"]
    torch.manual_seed(0)
    module, inputs = make().eval(), example()
    alignment = Spoiled.of(fxr.infer(module, inputs).random(0), "b.weight", 1, 0, 3)
    assert len(fxr.verify(module, inputs, alignment, draws=0).runs) == 2
    with pytest.raises(fxr.NotEquivalentError, match=r"weights random \d, inputs ordinary\), caused by group 'a.weight:0' at "
                                                     r"b.weight axis 1: do not"):
        fxr.verify(module, inputs, alignment)


def test_what_is_chosen_seldom_gets_more_draws():
    torch.manual_seed(0)
    module, x = Chosen(64), torch.randn(2, 8)
    program, state = fxr.capture(module, x), module.state_dict()
    spec = fxr.infer(program)
    assert len(fxr.verify(program, x, spec.random(0), state=state).runs) == 1 + 40  # of 64, two for each of two
    for k in range(6):
        with pytest.raises(fxr.NotEquivalentError):
            fxr.verify(program, x, Spoiled.of(spec.random(k), "down", 0, k, 63 - k), state=state)


def test_several_runs_are_verified_together():
    """Each run takes a branch of its own, and an alignment that breaks one of them is refused."""
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x):
            h = self.a(x).relu()
            return self.b(h) if x.ndim == 2 else self.c(h)

    module, runs = Branches().eval(), [X, X[None].repeat(2, 1, 1)]
    spec = fxr.infer(module, runs)
    evidence = fxr.verify(module, runs, spec.random(0))
    assert len(evidence.outputs) == 2 and [run.precision for run in evidence.runs].count("own") == 1
    for tensor in ("b.weight", "c.weight"):
        with pytest.raises(fxr.NotEquivalentError) as caught:
            fxr.verify(module, runs, Spoiled.of(spec.random(0), tensor, 1, 0, 1))
        assert caught.value.evidence.sites == ((tensor, 1),)
    program, state = fxr.capture(module, X), module.state_dict()
    assert fxr.verify(program, X, Spoiled.of(spec.random(0), "c.weight", 1, 0, 1), state=state).equivalent


def test_nothing_seen_is_no_evidence():
    module = Inside(lambda m, x: m(x) * float("nan"))
    alignment = fxr.infer(module, X).random(0)
    with pytest.raises(fxr.NotEquivalentError, match="nothing can be said of the alignment: in every run") as caught:
        fxr.verify(module, X, alignment)
    assert not caught.value.evidence.equivalent and "shows nothing" in str(caught.value.evidence)
    chaos = Inside(lambda m, x: torch.sin(m(x) * 1e30))
    with pytest.raises(fxr.NotEquivalentError, match="nothing but rounding"):
        fxr.verify(chaos, X, fxr.infer(chaos, X).random(0))


def test_the_module_must_be_what_was_captured(monkeypatch):
    """A graph that is another function than the module on the state at hand, and one that is another on others."""
    from fxrebasin.verify import front

    class Adds(nn.Module):
        def __init__(self, number=lambda m: 0.0):
            super().__init__()
            self.m, self.number = mlp(), number

        def forward(self, x):
            return self.m(x) + self.number(self.m)

    plain = Adds().eval()
    program, alignment = fxr.capture(plain, X), fxr.infer(plain, X).random(0)
    monkeypatch.setattr(front, "captured", lambda *_: (program, {"x": X}, []))
    assert fxr.verify(plain, X, alignment).equivalent
    with pytest.raises(fxr.CaptureError, match="Adds is not what was captured: output 'output' differs by") as caught:
        fxr.verify(Adds(lambda m: m[0].bias[0]), X, alignment)
    assert "\n" not in str(caught.value)
    first = plain.m[0].bias[0].item()
    with pytest.raises(fxr.NotEquivalentError, match="of the module itself differs by .* in its own precision") as caught:
        fxr.verify(Adds(lambda m: m[0].bias[0] - first), X, alignment)
    assert caught.value.evidence.runs[-1].precision == "own" and not caught.value.evidence.equivalent


def test_a_state_with_other_whole_numbers_is_refused():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.register_buffer("mask", torch.ones(8, dtype=torch.bool))

        def forward(self, x):
            return self.b(self.a(x).relu() * self.mask)

    module = Masked().eval()
    alignment = fxr.infer(module, X).random(0)
    other = {**module.state_dict(), "mask": torch.arange(8) % 2 == 0}
    with pytest.raises(fxr.StateError, match="mask") as caught:
        fxr.verify(module, X, alignment, state=other)
    assert "\n" not in str(caught.value)


def test_an_alignment_that_makes_no_state():
    class Short(fxr.Alignment):
        def apply(self, state):
            return {k: v for k, v in super().apply(state).items() if k != "2.bias"}

    module = mlp()
    right = fxr.infer(module, X).random(0)
    with pytest.raises(fxr.StateError, match="makes of '2.bias' nothing, not shape"):
        fxr.verify(module, X, Short(right.spec, right.permutations))


def test_a_wrong_group_is_traced_to_its_site():
    """A group that moves one axis too many: without that site it would keep the function."""
    module = mlp()
    spec = fxr.infer(module, X)
    name, group = next(iter(spec.groups.items()))
    layouts = {**spec.layouts, "2.weight": tuple((axes[0], dataclasses.replace(axes[1], factors=("loose",)))
                                                 for axes in spec.layouts["2.weight"])}
    sites = tuple(site for site in group.sites if site.tensor != "2.weight")
    wrong = dataclasses.replace(
        spec,
        layouts=layouts,
        sizes={**spec.sizes, "loose": 12},
        reasons={**spec.reasons, "loose": "forgotten"},
        groups={name: dataclasses.replace(group, sites=sites)},
    )
    with pytest.raises(fxr.NotEquivalentError) as caught:
        fxr.verify(module, X, wrong.random(0))
    assert caught.value.evidence.offending == (name,)
    assert caught.value.evidence.sites == tuple((site.tensor, site.axis) for site in sites)


def test_evidence_prints_and_travels():
    module = mlp()
    evidence = fxr.verify(module, X, fxr.infer(module, X).random(0), draws=2)
    lines = str(evidence).splitlines()
    assert lines[0] == evidence.headline and lines[1].split()[:3] == ["weights", "inputs", "precision"]
    assert [line.split()[0] for line in lines[2:]] == ["own", "own", "random", "own"]
    data = json.loads(evidence.to_json())
    assert data["equivalent"] is True and data["max_rel"] == evidence.max_rel and len(data["runs"]) == 4
    assert data["runs"][0]["precision"] == "float64" and data["runs"][1]["precision"] == "own"
    broken = dataclasses.replace(evidence, max_rel=float("inf"), notes=("a remark",), runs=(
        *evidence.runs, Run("own", "large", "float64", 1.0, float("nan"), "y", float("inf"), True, False)))
    assert not broken.equivalent and str(broken).startswith("NOT equivalent") and "BREAKS" in str(broken)
    assert str(broken).endswith("note: a remark") and json.loads(broken.to_json())["max_rel"] == "inf"


# == exact equivalence =======================================================================================


def planted(module: nn.Module, inputs=X, seed: int = 3) -> tuple[fxr.Spec, dict, dict, fxr.Alignment]:
    spec, a = fxr.infer(module, inputs), {k: v.detach().clone() for k, v in module.state_dict().items()}
    alignment = spec.random(seed)
    return spec, a, alignment.apply(a), alignment


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1.0, 1e20, 1e30])
def test_equivalence_at_any_scale(scale):
    spec, a, _, alignment = planted(mlp())
    a = {k: v * scale for k, v in a.items()}
    assert fxr.find_equivalence(spec, a, alignment.apply(a)) == alignment


def test_equivalence_across_types():
    spec, a, b, alignment = planted(mlp())
    assert fxr.find_equivalence(spec, a, {k: v.half() for k, v in b.items()}) is None
    assert fxr.find_equivalence(spec, {k: v.half() for k, v in a.items()}, b) is None
    short = {k: v.half() for k, v in a.items()}
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert fxr.find_equivalence(spec, short, {k: v.to(dtype) for k, v in alignment.apply(short).items()}) == alignment
    brain = {k: v.bfloat16() for k, v in a.items()}
    assert fxr.find_equivalence(spec, brain, short) is None


def test_zeros_of_both_signs_are_one_number():
    spec, a, _, alignment = planted(mlp())
    a["0.bias"] = torch.zeros(12)
    b = alignment.apply(a)
    b["0.bias"][::2] = -0.0
    assert fxr.find_equivalence(spec, a, b) == alignment


def test_equivalence_of_what_does_not_move():
    """Whole numbers and parameters that overlap others must be equal as they are."""
    module = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).eval()
    spec, a, b, alignment = planted(module)
    assert fxr.find_equivalence(spec, a, b) == alignment
    assert fxr.find_equivalence(spec, a, {**b, "1.num_batches_tracked": torch.tensor(7)}) is None
    assert fxr.find_equivalence(spec, a, {k: v for k, v in b.items() if k != "1.num_batches_tracked"}) is None

    class Overlapping(nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.randn(20, 5)
            self.u, self.v, self.o = nn.Parameter(whole[:12]), nn.Parameter(whole[8:]), nn.Linear(12, 3)

        def forward(self, x):
            return self.o(F.linear(x, self.u).relu() + F.linear(x, self.v).relu())

    spec, a, b, _ = planted(Overlapping())
    assert fxr.find_equivalence(spec, a, b) is not None
    assert fxr.find_equivalence(spec, a, {**b, "v": b["v"][[1, 0, *range(2, 12)]]}) is None


def test_equivalence_of_complex_states():
    spec, a, b, alignment = planted(Complex())
    assert fxr.find_equivalence(spec, a, b) == alignment
    assert fxr.find_equivalence(spec, a, {**b, "w": b["w"].conj().resolve_conj()}) is None
    assert fxr.find_equivalence(spec, a, {**b, "w": b["w"].real.to(torch.cfloat)}) is None


def test_equivalence_stops_at_the_fast_match(monkeypatch):
    from fxrebasin.verify import equivalence
    tried, whole = [], equivalence.match

    def counted(*states, **options):
        tried.append(options["effort"])
        return whole(*states, **options)

    monkeypatch.setattr(equivalence, "match", counted)
    spec, a, b, _ = planted(mlp())
    assert fxr.find_equivalence(spec, a, b) and tried == ["fast"]
    other = copy.deepcopy(b)
    other["2.weight"][0, [0, 1]] = other["2.weight"][0, [1, 0]]
    assert fxr.find_equivalence(spec, a, other) is None and tried == ["fast", "fast", "best"]
    other["2.weight"][0, 0] += 1
    assert fxr.find_equivalence(spec, a, other) is None and len(tried) == 3  # other numbers: no search


class Ranked(nn.Module):
    """Scores that are equal in float32 and not in float64: logaddexp(-100, 0) is 0 in one and 1e-44 in the other."""

    def __init__(self, wrong=0.0):
        super().__init__()
        self.up, self.table, self.wrong = nn.Linear(5, 6), nn.Parameter(torch.randn(6, 3)), wrong
        self.body = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x):
        place = torch.logaddexp(self.up(x) * 1000, torch.zeros(())).argmin(-1)
        return self.table[place] + self.body(x) + self.wrong


def test_where_rounding_decides_the_module_is_compared_in_its_own_precision():
    torch.manual_seed(0)
    model, x = Ranked(), torch.randn(16, 5)
    evidence = fxr.verify(model, x, fxr.infer(model, x).random(0))
    assert evidence.equivalent and any("rounding decides" in note for note in evidence.notes)


def test_a_module_that_is_another_one_is_still_refused_there(monkeypatch):
    from fxrebasin.verify import front

    torch.manual_seed(0)
    model, x = Ranked().eval(), torch.randn(16, 5)
    program, alignment = fxr.capture(model, x), fxr.infer(model, x).random(0)
    monkeypatch.setattr(front, "captured", lambda *_: (program, {"x": x}, []))
    model.wrong = 0.5
    with pytest.raises(fxr.CaptureError, match="not what was captured"):
        fxr.verify(model, x, alignment)


def test_signals_that_die_are_no_difference():
    """In float32 the outputs are zero, in float64 they are not."""
    module = Inside(lambda m, x: m(x) * 1e-24 * 1e-24)
    assert fxr.verify(module, X, fxr.infer(module, X).random(0), draws=0).equivalent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_epsilon_that_is_left_out_is_that_of_the_module(dtype):
    """RMSNorm's default depends on the dtype: with small activations, that of float64 is another function."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.RMSNorm(8), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight *= 1e-3
    model, x = model.to(dtype), torch.randn(4, 5).to(dtype)
    evidence = fxr.verify(model, x, fxr.infer(model, x).random(0))
    assert evidence.equivalent and not evidence.notes
    program = fxr.capture(model, x)
    exact = evaluate(program, model.state_dict(), given_inputs(program, x)).outputs["output"]
    own = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]  # units of the dtype's last place
    assert float((exact - model(x).double()).detach().abs().max()) < own
