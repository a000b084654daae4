"""The assignment problem by auction and shortest augmenting paths: exact, with prices that prove it.

1. *Auction* (Bertsekas, "The auction algorithm", Annals of Operations Research 14, 1988). Every column has
   a price; a free row takes the column of largest score minus price and raises its price until the row
   would be as happy with its second choice, plus epsilon. Coarse epsilons first. Only the prices are kept.
2. *Augmenting row reduction* (Jonker and Volgenant, "A shortest augmenting path algorithm for dense and
   sparse linear assignment problems", Computing 38, 1987): the same bids with epsilon 0, so that every
   assigned row sits on a column that is best for it, exactly (complementary slackness).
3. *Shortest augmenting paths*, by Dijkstra on reduced costs, for the few rows still free: this makes the
   result optimal whatever the earlier steps did, so their budgets can be small.

Nearly all the time goes into two scans of one row of scores, `_best_two` and `_relax`. They are written
twice: in numpy, and as loops for numba (`compiled`). The rest is the same code, interpreted or compiled.
Scores may be float32; prices and all arithmetic are float64. owner[j] is the row that column j is given to,
columns[i] the reverse; -1 is free.
"""
from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np

LANES = 64          # columns compared side by side, so that the compiler can use vector instructions


def solve(scores, prices):
    """(n, n) -> (n,) int64 columns of an optimal assignment. Brings `prices`, in place, to optimal ones."""
    n = len(prices)
    columns, owner = np.empty(n, np.int64), np.empty(n, np.int64)
    scratch = np.empty(max(n, LANES))
    left = _reduce(scores, prices, columns, owner, n + n // 2, scratch)
    if n > LANES and left > n // 50:        # a contested problem: worth better prices first
        step = (n + 63) // 64               # the spread of a sample of rows, their means taken away
        total, rows = 0.0, 0                # absolute, not squared: that could overflow
        for i in range(0, n, step):
            profit = scores[i] - prices
            total += np.abs(profit - profit.mean()).mean()
            rows += 1
        spread = total / rows
        _auction(scores, prices, 0.25 * spread, 0.01 * spread, scratch)
        _reduce(scores, prices, columns, owner, 3 * n, scratch)
    _augment(scores, prices, columns, owner, scratch)
    return columns


def solve_many(scores):
    """(m, n, n) -> (m, n) columns."""
    m, n = scores.shape[0], scores.shape[1]
    columns = np.empty((m, n), np.int64)
    for k in range(m):
        columns[k] = solve(scores[k], np.zeros(n))
    return columns


def certify(scores, columns, prices):
    """The relative gap that `prices` prove for `columns`: what another permutation could gain at most.

    For any prices p, no permutation collects more than sum_i max_j (scores[i, j] - p[j]) + sum_j p[j]. What
    is missing to that bound is given relative to sum_i max_j |scores[i, j]|. Optimal prices give nearly 0.
    """
    scratch = np.empty(max(len(prices), LANES))
    slack = scale = 0.0
    for i in range(len(prices)):
        _, best, _ = _best_two(scores[i], prices, scratch)
        slack += best - (scores[i, columns[i]] - prices[columns[i]])
        scale += np.abs(scores[i]).max()
    return slack / scale if slack != 0.0 else 0.0


def _auction(scores, prices, epsilon, last, scratch):
    """Raise `prices` by auctions with epsilon, epsilon / 5, ... down to `last`.

    The last hundredth of the rows is left out: they take as many bids as many others, and only prices count.
    """
    n = len(prices)
    while True:
        owner = np.full(n, -1, np.int64)
        waiting = np.arange(n - 1, -1, -1)
        count, bids = n, 0
        while count > n // 100 and bids < 20 * n:
            i = waiting[count - 1]
            column, price = _bid(scores[i], prices, epsilon, scratch)
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


def _reduce(scores, prices, columns, owner, budget, scratch):
    """Augmenting row reduction: bids with epsilon 0, at most `budget`; how many rows are still free."""
    columns[:] = -1
    owner[:] = -1
    for first in range(len(prices)):
        i = first
        while budget > 0:
            budget -= 1
            column, price = _bid(scores[i], prices, 0.0, scratch)
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


def _augment(scores, prices, columns, owner, scratch):
    """Assign every free row along a shortest path of reduced costs, keeping complementary slackness."""
    n = len(prices)
    distance, reached = np.empty(n), np.empty(n)
    previous, done = np.empty(n, np.int64), np.empty(n, np.int64)
    free = np.flatnonzero(owner < 0)
    for first in np.flatnonzero(columns < 0):
        distance[:] = np.inf
        live = prices.copy()
        i, base, count = first, 0.0, 0
        while True:
            column, least = _relax(scores[i], live, base, i, distance, previous, scratch)
            nearest = distance[free].argmin()
            if distance[free[nearest]] <= least:    # of equally near columns a free one: the search ends
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
        column = free[nearest]
        free[nearest] = free[-1]
        free = free[:-1]
        while True:
            i = previous[column]
            owner[column] = i
            columns[i], column = column, columns[i]
            if i == first:
                break


def _bid(row, prices, epsilon, scratch):
    """The best column for a row, and the price at which the row stops preferring it."""
    column, best, second = _best_two(row, prices, scratch)
    rise = best - second if second > -np.inf else 0.0
    return column, prices[column] + rise + epsilon


def _best_two(row, prices, scratch):
    """The best column of score minus price, its profit, and the profit of the second best (-inf if n = 1)."""
    profit = np.subtract(row, prices, out=scratch[:row.size])
    column = profit.argmax()
    best = profit[column]
    profit[column] = -np.inf
    return column, best, profit.max()


def _relax(row, prices, base, i, distance, previous, scratch):
    """One Dijkstra step: reach every column through row i; the nearest column and its distance.

    Columns that are done have price and distance inf, and stay as they are.
    """
    through = np.subtract(row, prices, out=scratch[:row.size])
    np.subtract(base, through, out=through)
    np.copyto(previous, i, where=through < distance)
    np.minimum(distance, through, out=distance)
    column = distance.argmin()
    return column, distance[column]


@functools.cache
def compiled() -> SimpleNamespace:
    """`solve`, `solve_many` and `certify`, compiled at their first call and kept on disk.

    Numba is imported here only: ImportError without it.
    """
    import numba
    numba.extending.overload(_best_two)(lambda row, prices, scratch: _best_two_loops)
    numba.extending.overload(_relax)(
        lambda row, prices, base, i, distance, previous, scratch: _relax_loops)
    for helper in (_bid, _reduce, _augment, _auction, solve):
        numba.extending.register_jitable(helper)
    return SimpleNamespace(**{entry.__name__: numba.njit(cache=True)(entry)
                              for entry in (solve, solve_many, certify)})


# The two scans for numba. scratch[:LANES] holds a running best for each lane: this keeps the inner loop free
# of branches and of dependences between its steps, so that a scan runs at the speed of memory.

def _best_two_loops(row, prices, scratch):
    n = row.size
    full = n - n % LANES
    for lane in range(LANES):
        scratch[lane] = -np.inf
    for start in range(0, full, LANES):
        for lane in range(LANES):
            profit = row[start + lane] - prices[start + lane]
            scratch[lane] = profit if profit > scratch[lane] else scratch[lane]
    best, second, at = -np.inf, -np.inf, 0
    for lane in range(LANES):
        if scratch[lane] > best:
            best, second, at = scratch[lane], best, lane
        elif scratch[lane] > second:
            second = scratch[lane]
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


def _relax_loops(row, prices, base, i, distance, previous, scratch):
    n = row.size
    full = n - n % LANES
    for lane in range(LANES):
        scratch[lane] = np.inf
    for start in range(0, full, LANES):
        for lane in range(LANES):
            j = start + lane
            through = base - (row[j] - prices[j])
            nearer = through < distance[j]
            previous[j] = i if nearer else previous[j]
            length = through if nearer else distance[j]
            distance[j] = length
            scratch[lane] = length if length < scratch[lane] else scratch[lane]
    least, at = np.inf, 0
    for lane in range(LANES):
        if scratch[lane] < least:
            least, at = scratch[lane], lane
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
