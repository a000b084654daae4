"""The linear assignment problem: the permutation that collects the largest total score.

Three solvers, all exact. "scipy" is `scipy.optimize.linear_sum_assignment`. "fast" is the auction of
auction.py, compiled by numba (the extra `fxrebasin[fast]`). "numpy" is that auction without numba: on large
problems it is still several times faster than scipy. The auction also gives prices, which prove its result.

Everything runs on one thread and in a fixed order. Where several permutations are optimal, the identity is
preferred; among others the solvers may choose differently.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from ...errors import FxrebasinError, StateError
from . import auction

TIE = 1e-12         # the identity is returned when it misses the optimum by no more than this, relatively
ROUNDING = 1e-11    # a proved gap above this is more than rounding
FAST_FROM = 256     # below this size (a batch: that many squared scores) loading numba costs too much
NUMPY_FROM = 1024   # below this size scipy is as fast as the auction in numpy


@dataclass(frozen=True)
class Assignment:
    """A permutation that maximises `sum(scores[i, columns[i]])`.

    columns: int64 (n,), row i goes to column columns[i].
    value:   the sum, in float64.
    prices:  float64 (n,), one for each column, a warm start for a similar problem; None from scipy.
    gap:     what another permutation could gain at most, proved by the prices, relative to
             `sum_i max_j |scores[i, j]|`: rounding errors only. 0.0 from scipy, exact but without prices.
    """

    columns: np.ndarray
    value: float
    prices: np.ndarray | None
    gap: float


def assign(scores: np.ndarray, *, solver: str = "auto", prices: np.ndarray | None = None) -> Assignment:
    """The permutation of largest total score.

    scores: (n, n), float32 or float64, finite; all sums are float64.
    solver: "scipy", "fast" (needs numba), "numpy", or "auto": for large problems fast if numba is there, else
            numpy; scipy for the others.
    prices: (n,), from an earlier solution of similar scores; scipy makes no use of them.

    If the identity is optimal to 1e-12, relative to the magnitudes it sums, it is returned: a model matched
    with itself moves nothing.
    Raises StateError for scores or prices of a wrong shape or dtype, or not finite.
    """
    scores = _checked(scores, 2)
    n = len(scores)
    prices = np.zeros(n) if prices is None else _checked_prices(prices, n)
    engine = _engine(solver, scores)
    if engine is None:
        columns = linear_sum_assignment(scores, maximize=True)[1].astype(np.int64)
        return _assignment(scores, columns, None, 0.0)
    if n and not prices.any():
        columns = scores.argmax(1)      # where no two rows want the same column, all get what they want
        if np.bincount(columns, minlength=n).max(initial=0) <= 1:
            return _assignment(scores, columns.astype(np.int64), prices, 0.0)
    result = _solve(engine, scores, prices)
    if result.gap > ROUNDING and prices.any():  # prices so large that the scores drown in their rounding
        result = _solve(engine, scores, np.zeros(n))
    return result


def _solve(engine, scores: np.ndarray, prices: np.ndarray) -> Assignment:
    prices = prices.copy()
    columns = engine.solve(scores, prices)
    if len(prices):
        prices -= prices.min()      # only differences count, and these must not grow with every warm start
    found = _assignment(scores, columns, prices, 0.0)
    return replace(found, gap=float(engine.certify(scores, found.columns, prices)))


def _assignment(scores: np.ndarray, columns: np.ndarray, prices: np.ndarray | None, gap: float) -> Assignment:
    columns, value = _prefer_identity(scores, columns)
    return Assignment(columns, float(value), prices, gap)


def assign_many(scores: np.ndarray, *, solver: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Solve a batch of problems: (m, n, n) scores -> (m, n) int64 columns and (m,) float64 values.

    The same as `assign` for each of them, errors included.
    """
    scores = _checked(scores, 3)
    engine = _engine(solver, scores)
    if engine is None:
        columns = np.empty(scores.shape[:2], dtype=np.int64)
        for k, problem in enumerate(scores):
            columns[k] = linear_sum_assignment(problem, maximize=True)[1]
    else:
        columns = engine.solve_many(scores)
    return _prefer_identity(scores, columns)


def _prefer_identity(scores: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`columns` (..., n) and their values (...), with the identity wherever it is as good."""
    chosen = np.take_along_axis(scores, columns[..., None], -1)[..., 0]
    kept = np.diagonal(scores, axis1=-2, axis2=-1)
    value, stay = chosen.sum(-1, dtype=np.float64), kept.sum(-1, dtype=np.float64)
    scale = np.maximum(np.abs(chosen), np.abs(kept)).sum(-1, dtype=np.float64)
    tied = stay >= value - TIE * scale
    columns = np.where(tied[..., None], np.arange(columns.shape[-1]), columns)
    value = np.where(tied, stay, value)
    return columns, value


def _checked(scores: np.ndarray, ndim: int) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != ndim or scores.shape[-1] != scores.shape[-2]:
        wanted = "(n, n)" if ndim == 2 else "(m, n, n)"
        raise StateError(f"scores for an assignment have shape {scores.shape}: give a square array {wanted}")
    if scores.dtype not in (np.float32, np.float64):
        raise StateError(f"scores for an assignment are {scores.dtype}: convert them to float32 or float64")
    if scores.size:
        largest = max(float(scores.max()), -float(scores.min()))
        if not np.isfinite(largest):
            where = ", ".join(str(k) for k in np.argwhere(~np.isfinite(scores))[0])
            raise StateError(f"scores[{where}] of an assignment is not finite: "
                             "look for NaN or infinity in the weights")
        if not np.isfinite(1e3 * largest * scores.shape[-1]):
            raise StateError(f"scores for an assignment reach {largest:.1e}, too large to add up: "
                             "scale them down")
    return np.ascontiguousarray(scores)


def _checked_prices(prices: np.ndarray, n: int) -> np.ndarray:
    prices = np.asarray(prices, dtype=np.float64)
    if prices.shape != (n,):
        raise StateError(f"prices have shape {prices.shape} for {n} columns: "
                         "take them from a problem of this size")
    if not (np.abs(prices) <= 1e300).all():
        raise StateError("prices for an assignment are not finite or huge: leave them out to start afresh")
    return prices


def _engine(solver: str, scores: np.ndarray):
    """What runs the auction, with functions solve, solve_many and certify; None to call scipy instead."""
    if solver not in ("auto", "scipy", "fast", "numpy"):
        raise FxrebasinError(f"unknown assignment solver {solver!r}: choose auto, scipy, fast or numpy")
    if solver == "fast" or solver == "auto" and scores.size >= FAST_FROM ** 2:
        try:
            return auction.compiled()
        except ImportError:
            if solver == "fast":
                raise FxrebasinError("the fast assignment solver needs numba: pip install 'fxrebasin[fast]', "
                                     "or choose solver='auto'") from None
    if solver == "numpy" or solver == "auto" and scores.shape[-1] >= NUMPY_FROM:
        return auction
    return None
