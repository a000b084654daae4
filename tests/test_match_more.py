"""Matching beyond one pair: several models, activations, budgets, interruption; and what the exact step may leave out."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.match import Problem, Step
from fxrebasin.match.solve import descent
from fxrebasin.match.solve import step as steps
from fxrebasin.match.solve.assignment import assign_many


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
    problem = Problem(spec, model.state_dict(), target)
    nests = [n for n in problem.nests.values() if len(n.groups) > 1]
    pieces = {n.root.name: [p for p in problem.pieces_of(n) if not n.coupled(p.factors)] for n in nests}
    lazy = [Step(nest, pieces[nest.root.name]) for nest in nests]
    assert lazy, "nothing is nested"
    monkeypatch.setattr(Step, "_best_root", lambda self, e, frame: self._best(
        self.nest.root, self.scores[self.nest.root.name][e][None], frame))
    for nest, step in zip(nests, lazy):
        reference = Step(nest, pieces[nest.root.name])
        assert step.gained == pytest.approx(reference.gained, rel=1e-12, abs=1e-12)
        for name, moves in reference.moves.items():
            np.testing.assert_array_equal(step.moves[name], moves)


def test_bound_is_never_below_the_best_assignment():
    scores = np.random.default_rng(0).normal(size=(200, 7, 7))
    _, values = assign_many(scores)
    assert (steps.bound(scores) >= values - 1e-12).all()


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
    from fxrebasin.match.objective import kept as store
    from fxrebasin.match.objective.kept import Similarities
    from fxrebasin.match.objective.similarity import similarity
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), 4.0, 6)
    kept, worst = Similarities.__call__, []

    def both(self, nest, group, pieces):
        self.room = 10 ** 9
        known, fresh = kept(self, nest, group, pieces), similarity(nest, group, pieces)
        worst.append(float((known - fresh).abs().max()) / max(float(fresh.abs().max()), 1e-300))
        return known

    monkeypatch.setattr(Similarities, "__call__", both)
    monkeypatch.setattr(store, "WORTH", 0)
    problem = Problem(spec, model.state_dict(), target)
    descent.descend(problem, problem.roots, descent.Clock(), 20)
    assert problem.similarities.shares and len(worst) > len(problem.roots), "nothing was kept or solved twice"
    assert max(worst) < 1e-12, f"kept similarities are off by {max(worst):.1e}"


def test_kept_similarities_stay_within_their_room(deep, monkeypatch):
    from fxrebasin.match.objective import kept as store
    monkeypatch.setattr(store, "WORTH", 0)
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), 1.0, 6)
    problem = Problem(spec, model.state_dict(), target)
    descent.descend(problem, problem.roots, descent.Clock(), 20)
    kept = problem.similarities.shares
    assert kept and sum(s.nbytes for s in kept.values()) <= problem.similarities.room


def test_nothing_keeps_the_states_after_a_match(deep):
    """Without waiting for the garbage collector: states can be large."""
    model, spec = deep
    source = {k: v.clone() for k, v in model.state_dict().items()}
    problem = Problem(spec, source, spec.random(1).apply(source))
    descent.descend(problem, problem.roots, descent.Clock(), 20)
    assert problem.alignment != spec.identity()
    gc.disable()
    try:
        known = weakref.ref(problem)
        del problem
        assert known() is None
    finally:
        gc.enable()


def test_states_are_neither_copied_nor_changed(deep):
    """Pieces are views of the states, also where a tensor falls into several blocks, before and after a move."""
    model, spec = deep
    torch.manual_seed(0)
    fused = nn.ModuleDict({"first": nn.Linear(4, 18), "second": nn.Linear(6, 2)})  # three segments: a GRU's gates
    fused.forward = lambda x: fused["second"](torch.stack(fused["first"](x).chunk(3, -1)).tanh().prod(0))
    for module, one in ((model, spec), (fused, fxr.infer(fused, torch.randn(2, 4)))):
        source = {k: v.clone() for k, v in module.state_dict().items()}
        target = one.random(1).apply(source)
        before = {k: v.clone() for k, v in source.items()}
        problem = Problem(one, source, target)
        problem.move(one.random(2).permutations)
        held = {t.untyped_storage().data_ptr() for state in (source, target) for t in state.values()}
        for piece in problem.pieces:
            assert {side.untyped_storage().data_ptr() for side in (piece.source, piece.target)} <= held, piece.tensor
        fxr.match(one, source, target)
        assert all(torch.equal(source[k], before[k]) for k in before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parts_make_up_the_moved_source(deep, dtype):
    model, spec = deep
    source = {k: v.to(dtype) for k, v in model.state_dict().items()}
    problem, moved = Problem(spec, source, source), spec.random(3)
    problem.reset(moved)
    whole = Problem(spec, moved.apply(source), source)
    for piece, other in zip(problem.pieces, whole.pieces):
        piece.part = 7
        expected = other.sides(scaled=False)[1]
        assert torch.equal(piece.sides(scaled=False)[1], expected)
        assert torch.allclose(piece.sides()[1], other.sides()[1], rtol=1e-6, atol=0)
        for axis in range(expected.ndim):
            parts = [side for _, side in piece.parts([axis])]
            assert torch.equal(torch.cat(parts, axis), expected)
            assert len(parts) > 1 or expected.shape[axis] == 1 or expected.numel() <= 7
    assert problem.cosine() == pytest.approx(whole.cosine(), abs=1e-12 if dtype == torch.float64 else 1e-6)


def test_similarities_do_not_depend_on_how_sources_are_gathered(deep):
    """In parts or whole; columns moved at the end or every source before."""
    from fxrebasin.match.objective.similarity import similarity
    model, spec = deep
    _, target = noisy(spec, model.state_dict(), 1.0, 6)
    moved = spec.random(3)
    problem, whole = Problem(spec, model.state_dict(), target), Problem(spec, moved.apply(model.state_dict()), target)
    problem.reset(moved)
    for piece in problem.pieces:
        piece.part = 5
    for name, nest in problem.nests.items():
        for group in nest.groups:
            mine, theirs = ([p for p in q.pieces_of(nest) if nest.owner(p.factors) is group] for q in (problem, whole))
            a, b = similarity(nest, group, mine), similarity(nest, group, theirs)
            assert (a - b).abs().max() <= 1e-12 * b.abs().max()
