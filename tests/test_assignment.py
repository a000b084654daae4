"""Assignments: the three solvers against brute force and scipy, the certificate, ties, and bad input."""
from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from fxrebasin.errors import FxrebasinError, StateError
from fxrebasin.match.solve import assignment, auction
from fxrebasin.match.solve.assignment import assign, assign_many
from fxrebasin.match.solve.auction import certify


@pytest.fixture(params=["scipy", "fast", "numpy"])
def solver(request):
    if request.param == "fast":
        pytest.importorskip("numba")
    return request.param


@pytest.fixture
def priced(solver):
    """The solvers that return prices."""
    if solver == "scipy":
        pytest.skip("scipy gives no prices")
    return solver


@pytest.fixture
def no_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)                 # makes `import numba` fail
    auction.compiled.cache_clear()
    yield
    auction.compiled.cache_clear()


def similarity(n, width, sigma, seed=0, decay=0.0):
    """The similarity of a matrix to a noisy, shuffled copy of itself (to another matrix: sigma = inf)."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, width + 1) ** -decay
    rows, noise = rng.standard_normal((2, n, width)) * spectrum
    copy = noise if np.isinf(sigma) else rows[rng.permutation(n)] + sigma * noise
    return copy @ rows.T


def problems():
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 17, 63, 64, 65, 128, 200):
        yield f"gaussian-{n}", rng.standard_normal((n, n))
        yield f"integers-{n}", rng.integers(0, 4, (n, n)).astype(float)
    yield "noise-free", similarity(150, 30, 0.0)
    yield "noisy", similarity(300, 64, 6.0)
    yield "low-rank", similarity(200, 4, np.inf)
    yield "decaying", similarity(300, 100, 3.0, decay=0.7)
    yield "rank-one", np.outer(rng.standard_normal(120), rng.standard_normal(120))
    yield "constant", np.full((130, 130), -2.5)
    yield "zero", np.zeros((90, 90))
    yield "duplicate-rows", np.repeat(rng.standard_normal((20, 140)), 7, axis=0)
    yield "duplicate-columns", np.repeat(rng.standard_normal((140, 20)), 7, axis=1)
    yield "duplicates-of-both", np.repeat(np.repeat(rng.standard_normal((20, 20)), 7, axis=0), 7, axis=1)
    yield "binary", (rng.random((150, 150)) < 0.03).astype(float)
    yield "offset-columns", rng.standard_normal((150, 150)) + 1e4 * rng.standard_normal(150)
    yield "offset-rows", rng.standard_normal((150, 150)) + 1e4 * rng.standard_normal((150, 1))
    yield "products", np.outer(np.arange(100.0), np.arange(100.0))      # hard for auctions: all want the same
    yield "huge", 1e300 * rng.standard_normal((80, 80))
    yield "tiny", 1e-300 * rng.standard_normal((80, 80))
    yield "wide-range", np.exp(20 * rng.standard_normal((100, 100)))


PROBLEMS = dict(problems())


def reference(scores):
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return float(scores[rows, columns].sum(dtype=np.float64))


def magnitude(scores):
    return np.abs(scores).max(axis=1).sum(dtype=np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", PROBLEMS)
def test_optimal_and_proved(name, dtype, solver):
    scores = PROBLEMS[name].astype(dtype) if name not in ("huge", "tiny") else PROBLEMS[name]
    n = len(scores)
    kept = scores.copy()
    result = assign(scores, solver=solver)
    assert np.array_equal(scores, kept)
    assert result.columns.dtype == np.int64 and sorted(result.columns) == list(range(n))
    assert result.value == scores[np.arange(n), result.columns].sum(dtype=np.float64)
    assert abs(result.value - reference(scores)) <= 1e-12 * magnitude(scores)
    if solver != "scipy":
        assert 0 <= result.gap <= 1e-12
        assert 0 <= certify(scores, result.columns, result.prices) <= 1e-12
        assert np.isfinite(result.prices).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_against_every_permutation(n, solver):
    rng = np.random.default_rng(n)
    for scores in (rng.standard_normal((n, n)), rng.integers(-2, 3, (n, n)).astype(float)):
        best = max(sum(scores[range(n), order]) for order in itertools.permutations(range(n)))
        assert assign(scores, solver=solver).value == pytest.approx(best, rel=1e-14, abs=1e-14)


def test_planted_permutation_is_found(solver):
    rng = np.random.default_rng(5)
    order = rng.permutation(400)
    rows = rng.standard_normal((400, 60))
    scores = (rows[order] + 0.5 * rng.standard_normal((400, 60))) @ rows.T
    assert np.array_equal(assign(scores, solver=solver).columns, order)


def test_certificate_exposes_a_worse_assignment(priced):
    scores = similarity(200, 40, np.inf)
    best = assign(scores, solver=priced)
    worse = best.columns.copy()
    worse[[3, 8]] = worse[[8, 3]]
    loss = best.value - scores[np.arange(200), worse].sum()
    gap = certify(scores, worse, best.prices) * magnitude(scores)
    assert loss > 0 and abs(gap - loss) <= 1e-12 * magnitude(scores)
    arbitrary = np.random.default_rng(0).standard_normal(200)       # any prices bound the optimum from above
    assert certify(scores, worse, arbitrary) * magnitude(scores) >= loss


@pytest.mark.parametrize("scores", [
    np.zeros((40, 40)), np.full((40, 40), 7.0), np.kron(np.eye(8), np.ones((5, 5))),
    np.ones((3, 3)) - 1e-15 * np.eye(3),
], ids=["zero", "constant", "duplicated-units", "rounding"])
def test_identity_wins_ties(scores, solver):
    assert np.array_equal(assign(scores, solver=solver).columns, np.arange(len(scores)))
    assert np.array_equal(assign_many(scores[None], solver=solver)[0][0], np.arange(len(scores)))


def test_a_real_difference_is_no_tie(solver):
    scores = np.ones((30, 30))
    scores[2, 5] = scores[5, 2] = 1 + 1e-9
    columns = assign(scores, solver=solver).columns
    assert columns[2] == 5 and columns[5] == 2


def test_empty(solver):
    result = assign(np.zeros((0, 0)), solver=solver)
    assert result.columns.shape == (0,) and result.value == 0.0 and result.gap == 0.0
    columns, values = assign_many(np.zeros((0, 4, 4)), solver=solver)
    assert columns.shape == (0, 4) and values.shape == (0,)


@pytest.mark.parametrize("n", [1, 5, 64, 90])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many(n, dtype, solver):
    rng = np.random.default_rng(n)
    scores = (rng.standard_normal((30, n, 8)) @ rng.standard_normal((30, 8, n))).astype(dtype)
    scores[0] = 1.0
    columns, values = assign_many(scores, solver=solver)
    assert columns.dtype == np.int64 and values.dtype == np.float64
    assert (np.sort(columns) == np.arange(n)).all()
    for problem, chosen, value in zip(scores, columns, values):
        assert abs(value - problem[np.arange(n), chosen].sum(dtype=np.float64)) <= 1e-12 * magnitude(problem)
        assert abs(value - reference(problem)) <= 1e-12 * magnitude(problem)


def test_warm_start_changes_the_time_only(priced):
    prices = None
    for step in range(5):
        scores = similarity(300, 50, np.inf, seed=0) + 0.5 ** step * similarity(300, 50, np.inf, seed=9)
        result = assign(scores, solver=priced, prices=prices)
        assert abs(result.value - reference(scores)) <= 1e-12 * magnitude(scores) and result.gap <= 1e-12
        prices = result.prices
    kept = prices.copy()
    assign(-scores, solver=priced, prices=prices)
    assert np.array_equal(prices, kept)                             # the caller's array is not written to
    for size in (1e3, 1e12, 1e200):                                 # unrelated prices, up to absurd ones
        bad = size * np.random.default_rng(0).standard_normal(300)
        result = assign(scores, solver=priced, prices=bad)
        assert abs(result.value - reference(scores)) <= 1e-11 * magnitude(scores) and result.gap <= 1e-11


def test_deterministic_and_blind_to_memory_layout(solver):
    scores = similarity(300, 8, np.inf)
    first = assign(scores, solver=solver)
    for again in (scores.copy(), np.asfortranarray(scores), np.repeat(scores, 2, axis=1)[:, ::2]):
        other = assign(again, solver=solver)
        assert np.array_equal(first.columns, other.columns) and first.value == other.value
        assert first.gap == other.gap and np.array_equal(first.prices, other.prices)


@pytest.mark.parametrize("scores, word", [
    (np.full((3, 3), np.nan), "not finite"), (np.diag([1.0, np.inf, 1.0]), r"\[1, 1\]"),
    (np.full((2, 2), -np.inf), "not finite"), (np.zeros((3, 4)), "square"), (np.zeros(4), "square"),
    (np.zeros((3, 3), dtype=int), "int64"), (np.full((5, 5), 1e308), "too large"),
])
def test_bad_scores_are_refused_in_one_line(scores, word, solver):
    with pytest.raises(StateError, match=word) as caught:
        assign(scores, solver=solver)
    assert "\n" not in str(caught.value)
    with pytest.raises(StateError):
        assign_many(scores[None], solver=solver)


@pytest.mark.parametrize("prices", [np.zeros(4), np.full(3, np.nan), np.zeros((3, 1))])
def test_bad_prices_are_refused(prices, solver):
    with pytest.raises(StateError, match="prices"):
        assign(np.eye(3), solver=solver, prices=prices)


def test_unknown_solver():
    with pytest.raises(FxrebasinError, match="auto, scipy, fast or numpy"):
        assign(np.eye(3), solver="quick")


def test_without_numba_auto_takes_numpy_for_large_problems(no_numba):
    with pytest.raises(FxrebasinError, match=r"fxrebasin\[fast\]"):
        assign(np.eye(3), solver="fast")
    assert assign(similarity(assignment.NUMPY_FROM - 1, 20, 1.0)).prices is None
    assert assign_many(similarity(300, 20, 1.0)[None])[0].shape == (1, 300)
    for sigma in (1.0, np.inf):                                     # easy, contested
        scores = similarity(assignment.NUMPY_FROM, 20, sigma)
        result = assign(scores)
        assert abs(result.value - reference(scores)) <= 1e-12 * magnitude(scores)
        assert 0 <= result.gap <= 1e-12 and np.isfinite(result.prices).all()
        assert np.array_equal(assign_many(scores[None])[0][0], result.columns)


def test_numba_is_imported_only_when_needed():
    code = ("import sys, numpy as np; from fxrebasin.match.solve.assignment import assign; "
            "assign(np.eye(3)); assign(np.eye(300), solver='numpy'); sys.exit('numba' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
