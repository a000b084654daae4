"""The linear assignment problem: the permutation that collects the largest total score.

Two solvers, both exact. The default without extras is `scipy.optimize.linear_sum_assignment`. With
numba (the extra `fxrebasin[fast]`) it is an auction followed by shortest augmenting paths:

1. *Auction* (Bertsekas, "The auction algorithm", Annals of Operations Research 14, 1988). Every column has
   a price; a free row takes the column of largest score minus price and raises its price until the row
   would be as happy with its second choice, plus epsilon. Coarse epsilons first. Only the prices are kept.
2. *Augmenting row reduction* (Jonker and Volgenant, "A shortest augmenting path algorithm for dense and
   sparse linear assignment problems", Computing 38, 1987): the same bids with epsilon 0, so that every
   assigned row sits on a column that is best for it, exactly (complementary slackness).
3. *Shortest augmenting paths*, by Dijkstra on reduced costs, for the few rows still free: this makes the
   result optimal whatever the earlier steps did, so their budgets can be small.

Prices prove the result. For any prices p, no permutation collects more than
sum_i max_j (scores[i, j] - p[j]) + sum_j p[j]: what is missing to that bound is the most one could gain.

Everything runs on one thread and in a fixed order. Where several permutations are optimal, the identity is
preferred; among others the two solvers may choose differently.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..errors import FxrebasinError, StateError

TIE = 1e-12         # the identity is returned when it misses the optimum by no more than this, relatively
ROUNDING = 1e-11    # a proved gap above this is more than rounding
FAST_FROM = 256     # below this size "auto" lets scipy solve a single problem: loading numba costs more
LANES = 64          # columns compared side by side, so that the compiler can use vector instructions


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
    solver: "scipy", "fast" (needs numba), or "auto": fast for large problems if numba is there.
    prices: (n,), from an earlier solution of similar scores; scipy makes no use of them.

    If the identity is optimal to 1e-12, relative to the magnitudes it sums, it is returned: a model matched
    with itself moves nothing.
    Raises StateError for scores or prices of a wrong shape or dtype, or not finite.
    """
    scores = _checked(scores, 2)
    n = len(scores)
    prices = np.zeros(n) if prices is None else _checked_prices(prices, n)
    if not _use_fast(solver, n >= FAST_FROM):
        columns = linear_sum_assignment(scores, maximize=True)[1].astype(np.int64)
        return Assignment(*_prefer_identity(scores, columns), None, 0.0)
    result = _solve_fast(scores, prices)
    if result.gap > ROUNDING and prices.any():  # prices so large that the scores drown in their rounding
        result = _solve_fast(scores, np.zeros(n))
    return result


def _solve_fast(scores: np.ndarray, prices: np.ndarray) -> Assignment:
    prices = prices.copy()
    columns = _kernels()["_solve"](scores, prices)
    if len(prices):
        prices -= prices.min()      # only differences count, and these must not grow with every warm start
    columns, value = _prefer_identity(scores, columns)
    slack, scale = _kernels()["_slack"](scores, columns, prices)
    return Assignment(columns, value, prices, slack / scale if slack else 0.0)


def assign_many(scores: np.ndarray, *, solver: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Solve a batch of problems: (m, n, n) scores -> (m, n) int64 columns and (m,) float64 values.

    The same as `assign` for each of them, errors included.
    """
    scores = _checked(scores, 3)
    if _use_fast(solver, scores.size >= FAST_FROM ** 2):
        columns = _kernels()["_solve_many"](scores)
    else:
        columns = np.empty(scores.shape[:2], dtype=np.int64)
        for k, problem in enumerate(scores):
            columns[k] = linear_sum_assignment(problem, maximize=True)[1]
    return _prefer_identity(scores, columns)


def certify(scores: np.ndarray, columns: np.ndarray, prices: np.ndarray) -> float:
    """The relative gap that `prices` prove for `columns`, as in `Assignment.gap`, by numpy alone.

    Any finite prices give a valid bound; those of an optimal solution give one near 0.
    """
    slack = scale = 0.0
    for start in range(0, len(scores), 64):
        block = scores[start:start + 64].astype(np.float64)
        chosen = columns[start:start + 64]
        profit = block[np.arange(len(block)), chosen] - prices[chosen]
        slack += float(((block - prices).max(axis=1) - profit).sum())
        scale += float(np.abs(block).max(axis=1).sum())
    return slack / scale if slack else 0.0


def _prefer_identity(scores: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`columns` (..., n) and their values (...), with the identity wherever it is as good."""
    chosen = np.take_along_axis(scores, columns[..., None], -1)[..., 0]
    kept = np.diagonal(scores, axis1=-2, axis2=-1)
    value, stay = chosen.sum(-1, dtype=np.float64), kept.sum(-1, dtype=np.float64)
    scale = np.maximum(np.abs(chosen), np.abs(kept)).sum(-1, dtype=np.float64)
    tied = stay >= value - TIE * scale
    columns = np.where(tied[..., None], np.arange(columns.shape[-1]), columns)
    value = np.where(tied, stay, value)
    return columns, value if value.ndim else float(value)


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


def _use_fast(solver: str, worthwhile: bool) -> bool:
    if solver not in ("auto", "scipy", "fast"):
        raise FxrebasinError(f"unknown assignment solver {solver!r}: choose auto, scipy or fast")
    if solver == "scipy" or solver == "auto" and not worthwhile:
        return False
    try:
        _kernels()
    except ImportError:
        if solver == "fast":
            raise FxrebasinError("the fast assignment solver needs numba: pip install 'fxrebasin[fast]', "
                                 "or choose solver='auto'") from None
        return False
    return True


@functools.cache
def _kernels() -> dict:
    """The functions below, compiled at their first call and kept on disk; numba is imported here only."""
    import numba
    for helper in (_best_two, _relax, _bid, _reduce, _augment, _auction, _solve_one):
        numba.extending.register_jitable(helper)
    return {entry.__name__: numba.njit(cache=True)(entry) for entry in (_solve, _solve_many, _slack)}


# ---------------------------------------------------------------------------------------------------------
# What follows is compiled by numba: plain loops over float64, and no Python objects. Scores may be float32;
# prices and all arithmetic are float64. owner[j] is the row that column j is given to, columns[i] the
# reverse; -1 is free. `lanes` is scratch of size LANES: a running maximum for each lane keeps the inner loop
# free of branches and of dependences between its steps, so that a scan runs at the speed of memory.

def _best_two(row, prices, lanes):
    """The best column of score minus price, its profit, and the profit of the second best (-inf if n = 1)."""
    n = row.size
    full = n - n % LANES
    for lane in range(LANES):
        lanes[lane] = -np.inf
    for start in range(0, full, LANES):
        for lane in range(LANES):
            profit = row[start + lane] - prices[start + lane]
            lanes[lane] = profit if profit > lanes[lane] else lanes[lane]
    best, second, at = -np.inf, -np.inf, 0
    for lane in range(LANES):
        if lanes[lane] > best:
            best, second, at = lanes[lane], best, lane
        elif lanes[lane] > second:
            second = lanes[lane]
    column = -1
    for j in range(at, full, LANES):        # the best lane again: where its maximum is, and what comes after
        profit = row[j] - prices[j]
        if profit == best and column < 0:
            column = j
        elif profit > second:
            second = profit
    for j in range(full, n):
        profit = row[j] - prices[j]
        if profit > best:
            best, second, column = profit, best, j
        elif profit > second:
            second = profit
    return column, best, second


def _relax(row, prices, base, i, distance, previous, lanes):
    """One Dijkstra step: reach every column through row i; the nearest column and its distance.

    Columns that are done have price and distance inf, and stay as they are.
    """
    n = row.size
    full = n - n % LANES
    for lane in range(LANES):
        lanes[lane] = np.inf
    for start in range(0, full, LANES):
        for lane in range(LANES):
            j = start + lane
            through = base - (row[j] - prices[j])
            nearer = through < distance[j]
            previous[j] = i if nearer else previous[j]
            length = through if nearer else distance[j]
            distance[j] = length
            lanes[lane] = length if length < lanes[lane] else lanes[lane]
    least, at = np.inf, 0
    for lane in range(LANES):
        if lanes[lane] < least:
            least, at = lanes[lane], lane
    column = -1
    for j in range(at, full, LANES):
        if distance[j] == least and column < 0:
            column = j
    for j in range(full, n):
        through = base - (row[j] - prices[j])
        if through < distance[j]:
            distance[j] = through
            previous[j] = i
        if distance[j] < least:
            least, column = distance[j], j
    return column, least


def _bid(row, prices, epsilon, lanes):
    """The best column for a row, and the price at which the row stops preferring it."""
    column, best, second = _best_two(row, prices, lanes)
    rise = best - second if second > -np.inf else 0.0
    return column, prices[column] + rise + epsilon


def _auction(scores, prices, epsilon, last, lanes):
    """Raise `prices` by auctions with epsilon, epsilon / 5, ... down to `last`.

    The last hundredth of the rows is left out: they take as many bids as many others, and only prices count.
    """
    n = len(prices)
    owner = np.empty(n, np.int64)
    waiting = np.empty(n, np.int64)
    while True:
        owner[:] = -1
        for k in range(n):
            waiting[k] = n - 1 - k
        count, bids = n, 0
        while count > n // 100 and bids < 20 * n:
            i = waiting[count - 1]
            column, price = _bid(scores[i], prices, epsilon, lanes)
            prices[column] = price
            loser = owner[column]
            owner[column] = i
            if loser >= 0:
                waiting[count - 1] = loser
            else:
                count -= 1
            bids += 1
        if epsilon <= last:
            return
        epsilon = max(epsilon / 5, last)


def _reduce(scores, prices, columns, owner, budget, lanes):
    """Augmenting row reduction: bids with epsilon 0, at most `budget`; how many rows are still free."""
    n = len(prices)
    columns[:] = -1
    owner[:] = -1
    for first in range(n):
        i = first
        while budget > 0:
            budget -= 1
            column, price = _bid(scores[i], prices, 0.0, lanes)
            loser = owner[column]
            if loser >= 0 and not price > prices[column]:
                break                       # a tie: bidding would go round in circles
            prices[column] = price
            owner[column] = i
            columns[i] = column
            if loser < 0:
                break
            columns[loser] = -1
            i = loser
    return (columns < 0).sum()


def _augment(scores, prices, columns, owner, lanes):
    """Assign every free row along a shortest path of reduced costs, keeping complementary slackness."""
    n = len(prices)
    distance = np.empty(n)
    reached = np.empty(n)
    live = np.empty(n)
    previous = np.empty(n, np.int64)
    done = np.empty(n, np.int64)
    free = np.empty(n, np.int64)
    frees = 0
    for j in range(n):
        if owner[j] < 0:
            free[frees] = j
            frees += 1
    for first in range(n):
        if columns[first] >= 0:
            continue
        distance[:] = np.inf
        live[:] = prices
        i, base, count, sink = first, 0.0, 0, -1
        while True:
            column, least = _relax(scores[i], live, base, i, distance, previous, lanes)
            for k in range(frees):          # of equally near columns a free one, which ends the search
                if distance[free[k]] <= least:
                    sink = free[k]
                    frees -= 1
                    free[k] = free[frees]
                    break
            if sink >= 0:
                break
            done[count] = column
            reached[count] = least
            count += 1
            live[column] = np.inf           # out of reach from now on
            distance[column] = np.inf
            i = owner[column]
            base = least + (scores[i, column] - prices[column])
        for k in range(count):
            prices[done[k]] += least - reached[k]
        column = sink
        while True:
            i = previous[column]
            owner[column] = i
            columns[i], column = column, columns[i]
            if i == first:
                break


def _solve_one(scores, prices, columns, owner, lanes):
    """Fill `columns` with an optimal assignment and bring `prices` to optimal ones."""
    n = len(prices)
    left = _reduce(scores, prices, columns, owner, n + n // 2, lanes)
    if n > LANES and left > n // 50:        # a contested problem: worth better prices first
        step = (n + 63) // 64               # the spread of a sample of rows, their means taken away
        total, rows = 0.0, 0                # absolute, not squared: that could overflow
        for i in range(0, n, step):
            profit = scores[i] - prices
            total += np.abs(profit - profit.mean()).mean()
            rows += 1
        spread = total / rows
        _auction(scores, prices, 0.25 * spread, 0.01 * spread, lanes)
        _reduce(scores, prices, columns, owner, 3 * n, lanes)
    _augment(scores, prices, columns, owner, lanes)


def _solve(scores, prices):
    """(n, n) -> (n,) columns; `prices` in place."""
    n = len(prices)
    columns = np.empty(n, np.int64)
    _solve_one(scores, prices, columns, np.empty(n, np.int64), np.empty(LANES))
    return columns


def _solve_many(scores):
    """(m, n, n) -> (m, n) columns."""
    m, n = scores.shape[0], scores.shape[1]
    columns = np.empty((m, n), np.int64)
    prices, owner, lanes = np.empty(n), np.empty(n, np.int64), np.empty(LANES)
    for k in range(m):
        prices[:] = 0.0
        _solve_one(scores[k], prices, columns[k], owner, lanes)
    return columns


def _slack(scores, columns, prices):
    """Sums over the rows: how far each is from its best profit, and its largest magnitude (see `certify`)."""
    lanes = np.empty(LANES)
    slack = scale = 0.0
    for i in range(len(prices)):
        _, best, _ = _best_two(scores[i], prices, lanes)
        slack += best - (scores[i, columns[i]] - prices[columns[i]])
        scale += np.abs(scores[i]).max()
    return slack, scale
