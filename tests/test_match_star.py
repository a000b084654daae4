"""Groups side by side in one tensor: bilinear assignments, and networks that have them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from architectures import LlamaBlock, ResNeXtBlock
from fuzz_checks import examine
from random_networks import MOVES, random_network

import fxrebasin as fxr
from fxrebasin.match import Problem, Step
from fxrebasin.match.solve.assignment import assign_many
from fxrebasin.match.solve.coupled import Bilinear


def drawn(pairs: int, m: int, n: int, rest: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    target, source = (torch.randn(pairs, m, n, rest, generator=generator, dtype=torch.float64) for _ in range(2))
    own, other = (torch.randn(pairs, k, k, generator=generator, dtype=torch.float64).numpy() for k in (m, n))
    return target, source, own, other


def value(target, source, own, other, hub, columns) -> np.ndarray:
    """What a choice is worth, number by number."""
    return np.array([sum(own[k, a, hub[k, a]] for a in range(own.shape[1]))
                     + sum(other[k, b, columns[k, b]] for b in range(other.shape[1]))
                     + float((target[k] * source[k][hub[k]][:, columns[k]]).sum()) for k in range(len(own))])


def brute_force(target, source, own, other) -> np.ndarray:
    """Every order of the hub, the partner by an assignment."""
    pairs, m = own.shape[:2]
    best = np.full(pairs, -np.inf)
    for order in map(list, itertools.permutations(range(m))):
        scores = other + torch.einsum("kabr,kacr->kbc", target, source[:, order]).numpy()
        best = np.maximum(best, own[:, range(m), order].sum(1) + assign_many(scores)[1])
    return best


@pytest.mark.parametrize("m, n, rest", [(1, 5, 2), (2, 3, 1), (3, 6, 4), (4, 4, 40), (4, 2, 0)])
def test_a_small_hub_is_solved_exactly(m, n, rest):
    case = drawn(30, m, n, rest, seed=m)
    target, source, own, other = case
    hub, (columns,), values = Bilinear([(target, source)], own, [other]).best()
    np.testing.assert_allclose(values, value(*case, hub, columns), rtol=1e-12)
    np.testing.assert_allclose(values, brute_force(*case), rtol=1e-12)


def test_a_larger_hub_comes_close_and_never_loses():
    case = drawn(60, 6, 7, 5, seed=0)
    target, source, own, other = case
    hub, (columns,), values = Bilinear([(target, source)], own, [other]).best()
    np.testing.assert_allclose(values, value(*case, hub, columns), rtol=1e-12)
    best, stay = brute_force(*case), value(*case, np.tile(np.arange(6), (60, 1)), np.tile(np.arange(7), (60, 1)))
    print(f"optimal in {np.isclose(values, best).sum()} of 60; on average {np.mean(values / best):.4f} of the optimum")
    assert (values <= best + 1e-9).all() and (values >= stay - 1e-9).all()
    assert np.mean(values / best) > 0.9


@pytest.mark.parametrize("rest", [3, 100])  # fewer and more numbers than elements: these are shortened
@pytest.mark.parametrize("partners", [1, 2])
def test_a_planted_order_is_found_by_sorted_numbers_alone(partners, rest):
    generator = np.random.default_rng(1)
    sides, hub = [], np.argsort(generator.random((9, 6)), 1)
    for size in (5, 8)[:partners]:
        source = torch.randn(9, 6, size, rest, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
        columns = np.argsort(generator.random((9, size)), 1)
        k = np.arange(9)[:, None, None]
        sides.append((source[k, hub[:, :, None], columns[:, None, :]], source))
    zeros = [np.zeros((9, t.shape[2], t.shape[2])) for t, _ in sides]
    found, _, values = Bilinear(sides, np.zeros((9, 6, 6)), zeros).best()
    np.testing.assert_array_equal(found, hub)
    np.testing.assert_allclose(values, sum(t.square().sum((1, 2, 3)) for t, _ in sides), rtol=1e-12)


COUPLED = {  # groups side by side, small and large hubs
    "grouped_queries": (lambda: LlamaBlock(16, 3, 6, 8, 4), (2, 4, 16)),
    "grouped_convolution": (lambda: ResNeXtBlock(6, 3, 5, 7), (2, 6, 4, 4)),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_coupled_groups_are_recovered(name, sigma):
    make, shape = COUPLED[name]
    torch.manual_seed(0)
    module = make().double().eval()
    spec = fxr.infer(module, torch.randn(shape).double())
    state = {k: v for k, v in module.state_dict().items() if k in spec.shapes}
    assert any(nest.hubs for nest in Problem(spec, state, state).nests.values()), "nothing is coupled"
    for seed in range(5):
        planted = spec.random(seed)
        noise = torch.Generator().manual_seed(seed)
        target = {k: v + sigma * v.square().mean().sqrt() * torch.randn(v.shape, generator=noise, dtype=v.dtype)
                  for k, v in planted.apply(state).items()}
        assert fxr.match(spec, state, target) == planted


def test_a_step_on_coupled_groups_gains_what_it_says():
    make, shape = COUPLED["grouped_queries"]
    module = make().double().eval()
    spec = fxr.infer(module, torch.randn(shape).double())
    source, target = ({k: torch.randn(s, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                       for k, s in spec.shapes.items()} for seed in (0, 1))
    problem = Problem(spec, source, target)
    for _ in range(2):  # from the identity, and from where that led
        for nest in problem.nests.values():
            step, before = Step(nest, problem.pieces_of(nest)), problem.inner()
            problem.move(step.moves)
            assert step.gained == pytest.approx(problem.inner() - before, abs=1e-9 * problem.norm)


@pytest.mark.parametrize("seed", [192, 310, 521, 1044, 1351, 10028, 10033, 10189, 10213, 10267])
def test_random_networks_that_failed_once(seed, monkeypatch):
    """Two inner groups of one nest in one tensor: a planted permutation, no noise."""
    for younger in ("routed", "ranked"):  # moves that came later: with them, seeds mean other networks
        monkeypatch.delitem(MOVES, younger)
    found = examine(random_network(seed)[0], only=["inference", "recovery"])
    assert not found.failures
