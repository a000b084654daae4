"""Matching beyond one pair: several models, activations, budgets, interruption; and what the exact step may leave out."""

import numpy as np
import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.match import Problem, Step
from fxrebasin.match import descent


class Attention(nn.Module):
    """Two heads groups deep: key-value heads, queries within them, units within both."""

    def __init__(self, d=12, kv=3, queries=2, k=4):
        super().__init__()
        self.shape = kv, queries, k
        self.inside = nn.Linear(5, d)
        self.q, self.k, self.v = nn.Linear(d, kv * queries * k), nn.Linear(d, kv * k), nn.Linear(d, kv * k)
        self.o, self.outside = nn.Linear(kv * queries * k, d), nn.Linear(d, 3)

    def forward(self, x):
        kv, queries, k = self.shape
        h = self.inside(x)
        q = self.q(h).unflatten(-1, (kv, queries, k))
        key, value = self.k(h).unflatten(-1, (kv, k)), self.v(h).unflatten(-1, (kv, k))
        weights = torch.einsum("blhgk,bshk->bhgls", q, key).softmax(-1)
        mixed = torch.einsum("bhgls,bshk->blhgk", weights, value)
        return self.outside(h + self.o(mixed.flatten(-3)))


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    model = Attention().double()
    return model, fxr.infer(model, torch.randn(2, 4, 5, dtype=torch.float64))


def noisy(spec, state, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    planted = spec.random(seed)
    target = {k: v + sigma * v.std() * torch.randn(v.shape, generator=generator, dtype=v.dtype)
              for k, v in planted.apply(state).items()}
    return planted, target


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0, 10.0])
def test_inner_assignments_that_are_skipped_never_change_the_answer(deep, sigma, monkeypatch):
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), sigma, 5)
    solved = []
    lazily = descent.Step._best_lazily
    monkeypatch.setattr(descent.Step, "_best_lazily",
                        lambda self, own, parts, frame: solved.append(own.shape) or lazily(self, own, parts, frame))
    problem = Problem(spec, model.state_dict(), target)
    nests = [n for n in problem.nests.values() if len(n.groups) > 1]
    steps = [Step(nest, problem.pieces_of(nest)) for nest in nests]
    assert solved, "no nest was solved lazily"

    def eagerly(self, own, parts, frame):
        n = own.shape[0]
        inner = [(child, e, self._best(child, lower, frame)) for child, e, lower in parts]
        values = own + sum(solution.values for *_, solution in inner).reshape(n, n)
        found = descent.assign(values)
        return descent.Solution(found.columns[None], np.array([found.value]), inner)

    monkeypatch.setattr(descent.Step, "_best_lazily", eagerly)
    for nest, step in zip(nests, steps):
        reference = Step(nest, problem.pieces_of(nest))
        assert step.gained == pytest.approx(reference.gained, rel=1e-12, abs=1e-12)
        for name, moves in reference.moves.items():
            np.testing.assert_array_equal(step.moves[name], moves)


def test_bound_is_never_below_the_best_assignment():
    scores = np.random.default_rng(0).normal(size=(200, 7, 7))
    _, values = descent.assign_many(scores)
    assert (descent._bound(scores) >= values - 1e-12).all()


def test_a_deep_nest_is_recovered(deep):
    model, spec = deep
    planted, target = noisy(spec, model.state_dict(), 0.0, 3)
    found = fxr.match(spec, model.state_dict(), target)
    assert found == planted and found.objective == pytest.approx(1, abs=1e-12)


def test_many_models_agree_on_a_reference(deep):
    model, spec = deep
    base = model.state_dict()
    states = [base] + [noisy(spec, base, 0.3, seed)[1] for seed in (1, 2, 3)]
    found = fxr.match_many(spec, states)
    pair = [[found[j].inverse() @ found[i] for i in range(4)] for j in range(4)]
    cycle = pair[0][3] @ pair[3][2] @ pair[2][1] @ pair[1][0]
    assert cycle == spec.identity() and found[0] == spec.identity()
    merged = fxr.merge([a.apply(s) for a, s in zip(found, states)])
    together = torch.cat([merged[k].flatten() - base[k].flatten() for k in base]).norm()
    apart = torch.cat([states[1][k].flatten() - found[1].inverse().apply(base)[k].flatten() for k in base]).norm()
    assert together < apart, f"the mean of four noisy copies is {together:.3f} from the truth, one copy {apart:.3f}"


def test_merge_weights_and_counters():
    one, two = ({"w": torch.full((2,), float(v)).half(), "n": torch.tensor(v)} for v in (1, 4))
    merged = fxr.merge([one, two], [2, 1])
    assert merged["w"].dtype == torch.float16 and merged["w"].tolist() == [2.0, 2.0] and merged["n"] == 1


def test_match_many_wants_two(deep):
    with pytest.raises(fxr.FxrebasinError, match="at least two states"):
        fxr.match_many(deep[1], [deep[0].state_dict()])


def test_activations_find_what_weights_cannot(deep):
    """With weights drowned in noise, a handful of inputs still places the units."""
    model, spec = deep
    base = model.state_dict()
    planted = spec.random(7)
    target = planted.apply(base)
    inputs = torch.randn(64, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = fxr.match(spec, base, target, model=model, inputs=[inputs], inputs_weight=100.0)
    assert found == planted


def test_activations_need_the_module(deep):
    model, spec = deep
    with pytest.raises(fxr.FxrebasinError, match="needs the module"):
        fxr.match(spec, model.state_dict(), model.state_dict(), inputs=[torch.zeros(2, 4, 5)])
    with pytest.raises(fxr.FxrebasinError, match="at least one batch"):
        fxr.match(spec, model.state_dict(), model.state_dict(), inputs=[], model=model)


def test_progress_is_told_and_the_budget_kept(deep):
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), 1.0, 2)
    news = []
    found = fxr.match(spec, model.state_dict(), target, progress=news.append)
    assert news and news[-1]["objective"] == pytest.approx(found.objective, abs=1e-12)
    assert {"stage", "done", "of"} <= set(news[0])
    stopped = fxr.match(spec, model.state_dict(), target, seconds=0.0)
    assert stopped.objective <= found.objective + 1e-12


def test_an_interrupted_match_goes_on_where_it_was(deep, tmp_path):
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), 0.5, 4)
    whole = fxr.match(spec, model.state_dict(), target)
    kept, steps = tmp_path / "best.safetensors", []

    def stop(news):
        steps.append(news)
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fxr.match(spec, model.state_dict(), target, progress=stop, checkpoint=kept)
    assert fxr.Alignment.load(kept).moved != spec.identity().moved
    resumed = fxr.match(spec, model.state_dict(), target, checkpoint=kept)
    assert resumed.objective == pytest.approx(whole.objective, abs=1e-9)
    other = fxr.infer(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 2))
    state = {name: torch.zeros(shape) for name, shape in other.shapes.items()}
    with pytest.raises(fxr.SpecError, match="belongs to another model"):
        fxr.match(other, state, state, checkpoint=kept)


@pytest.mark.parametrize("method", ["exact", "transfusion", "git-rebasin", "ot", "identity"])
def test_zero_tensors_and_single_elements(method):
    spec = fxr.infer(nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 2))
    zeros = {name: torch.zeros(shape) for name, shape in spec.shapes.items()}
    found = fxr.match(spec, zeros, zeros, method=method)
    assert found.objective == 0.0


def test_similarities_that_are_kept_are_those_computed_anew(deep, monkeypatch):
    from fxrebasin.match.cache import Similarities
    from fxrebasin.match.problem import similarity
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), 4.0, 6)
    kept, worst = Similarities.__call__, []

    def both(self, nest, group, pieces):
        self.room = 10 ** 9
        known, fresh = kept(self, nest, group, pieces), similarity(nest, group, pieces)
        worst.append(float((known - fresh).abs().max()) / max(float(fresh.abs().max()), 1e-300))
        return known

    monkeypatch.setattr(Similarities, "__call__", both)
    problem = Problem(spec, model.state_dict(), target)
    descent.descend(problem, problem.roots, descent.Clock(), 20)
    assert problem.similarities.shares and len(worst) > len(problem.roots), "nothing was kept or solved twice"
    assert max(worst) < 1e-12, f"kept similarities are off by {max(worst):.1e}"


def test_kept_similarities_stay_within_their_room(deep):
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), 1.0, 6)
    problem = Problem(spec, model.state_dict(), target)
    descent.descend(problem, problem.roots, descent.Clock(), 20)
    assert sum(s.nbytes for s in problem.similarities.shares.values()) <= problem.similarities.room
