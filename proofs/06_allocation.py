"""One choice for each item under a budget: duality, when greedy is optimal, and when it is not.

Letters: e_ij error and c_ij cost of choice j for item i, B the budget, lambda >= 0 the price of cost,
L(lambda) = sum_i min_j (e_ij + lambda c_ij) - lambda B the dual function, OPT the least total error within B.
"""

import itertools
from fractions import Fraction

import numpy as np

import refquant as rq
from refquant.solve.hull import dual_front, marginal_greedy
from refquant.solve.knapsack import allocate_integer, pareto_front

rng = np.random.default_rng(6)

Table = list[list[Fraction]]


def tables(items: int, choices: int) -> tuple[Table, Table]:
    error = [[Fraction(int(v)) for v in sorted(rng.integers(0, 60, choices))[::-1]] for _ in range(items)]
    cost = [[Fraction(int(v)) for v in np.cumsum(rng.integers(1, 7, choices))] for _ in range(items)]
    return error, cost


def allocations(e: Table, c: Table) -> list[tuple[Fraction, Fraction, tuple[int, ...]]]:
    """(cost, error, choices) of every allocation."""
    every = itertools.product(range(len(e[0])), repeat=len(e))
    return [(sum(c[i][j] for i, j in enumerate(a)), sum(e[i][j] for i, j in enumerate(a)), a) for a in every]  # type: ignore[misc]


def dual(e: Table, c: Table, B: Fraction, price: Fraction) -> Fraction:
    pairs = (zip(row, costs, strict=True) for row, costs in zip(e, c, strict=True))
    return sum((min(a + price * b for a, b in pair) for pair in pairs), Fraction(0)) - price * B


E, C = tables(5, 3)
EVERY = allocations(E, C)
PRICES = [Fraction(k, 4) for k in range(160)]
LOW, HIGH = (int(f(cost for cost, _, _ in EVERY)) for f in (min, max))

# %% Theorem (weak duality).  L(lambda) <= OPT for every lambda >= 0 and every budget.
#
# Proof.  Let an allocation have error e and cost c <= B.  Its e + lambda c is a sum of e_ij + lambda c_ij, so at least
# the sum of their minima; and lambda c <= lambda B.  So e >= sum of minima - lambda c >= L(lambda).

for B in range(LOW, HIGH, 7):
    OPT = min(error for cost, error, _ in EVERY if cost <= B)
    assert max(dual(E, C, Fraction(B), p) for p in PRICES) <= OPT

# %% Lemma 1 (what a price buys).  The allocation that takes for each item the least e_ij + lambda c_ij has the least
# error of all whose cost is at most its own.
#
# Proof.  Any other allocation has e' + lambda c' >= e + lambda c, so e' >= e + lambda (c - c') >= e if c' <= c.

for price in PRICES[1::9]:
    a = tuple(min(range(3), key=lambda j, i=i: E[i][j] + price * C[i][j]) for i in range(5))  # type: ignore[misc]
    cost, error = sum(C[i][j] for i, j in enumerate(a)), sum(E[i][j] for i, j in enumerate(a))
    assert error == min(other for c, other, _ in EVERY if c <= cost)

# %% Lemma 2 (hulls).  Only choices on the lower convex hull of an item's (cost, error) points are ever bought at a
# price > 0, and they are bought in the order of the hull's slopes.  So walking all items' hull steps in order of
# falling slope passes every allocation that some price buys, and max over lambda of L is the chord between two of
# them.
#
# Proof.  e + lambda c is a linear function on the plane, least at a vertex of the lower hull; it moves from one vertex
# to the next when lambda falls below the slope of the edge between them.  L is concave and piecewise linear with a kink
# at each slope; at the price where the walk's cost passes B, its value is the chord's at B.

e, c = (np.array(t, float) for t in (E, C))
front = dual_front(e, c)
for B in range(LOW, HIGH, 3):
    best = max(dual(E, C, Fraction(B), p) for p in PRICES)
    assert float(best) <= float(front.bound(B)) + 1e-9  # prices here are multiples of 1/4 only
    kinks = [Fraction(s).limit_denominator(10**6) for s in -np.diff(front.error) / np.diff(front.cost)]
    assert abs(float(max(dual(E, C, Fraction(B), p) for p in [Fraction(0), *kinks])) - float(front.bound(B))) < 1e-9
assert all(float(error) >= float(front.bound(float(cost))) - 1e-9 for cost, error, _ in EVERY)

# %% Theorem (when greedy is optimal).  If all tables are convex in cost, and all steps cost the same, then marginal
# greedy is optimal at every budget.
#
# Proof.  Every choice is on its hull, so greedy's steps are the hull walk.  With steps of one cost the walk meets every
# budget (rounded down to whole steps) exactly, and lemma 1 applies.

convex = np.cumsum(np.sort(rng.exponential(size=(6, 4)), axis=1), axis=1)[:, ::-1].copy()
unit = np.tile(np.arange(4), (6, 1))
for B in range(19):
    chosen = marginal_greedy(convex, unit, B)
    assert abs(convex[np.arange(6), chosen].sum() - float(allocate_integer(convex, unit, B).objective)) < 1e-12

# %% It fails when a step does not fit: two items, a budget of 3.  Greedy buys the steeper step of item 1 (cost 2,
# saving 7) and cannot pay for item 0 (cost 3, saving 10) any more.

error2, cost2 = [[10.0, 0.0], [7.0, 0.0]], [[0, 3], [0, 2]]
assert marginal_greedy(error2, cost2, 3).tolist() == [0, 1]
assert rq.allocate(error2, cost2, 3).value.tolist() == [1, 0]

# %% And when tables are not convex: the next choice saves nothing, the one after it all.  Greedy never looks there.

error3, cost3 = [[10.0, 9.9, 0.0], [5.0, 4.0, 3.0]], [[0, 1, 2], [0, 1, 2]]
assert marginal_greedy(error3, cost3, 2).tolist() == [0, 2]
assert rq.allocate(error3, cost3, 2).value.tolist() == [2, 0]

# %% Lemma 3 (the core).  Let some allocation have error U.  A choice with e_ij + lambda c_ij - min_k (e_ik + lambda
# c_ik) > U - L(lambda) is in no better allocation: taking it raises the bound of weak duality above U.  What is left
# is the core on which the integer programme runs.

for B in range(LOW + 2, HIGH, 9):
    OPT, answer = min((error, a) for cost, error, a in EVERY if cost <= B)
    for price in PRICES[2:60:7]:
        gap = OPT - dual(E, C, Fraction(B), price)
        for i, j in enumerate(answer):
            least = min(E[i][k] + price * C[i][k] for k in range(3))
            assert E[i][j] + price * C[i][j] - least <= gap

# %% Lemma 4 (integer costs).  The total costs of all allocations differ by multiples of the greatest common divisor g
# of all c_ij - min_k c_ik, so a budget may be lowered to the next such total without losing an allocation.

even = np.array([[2, 4, 8], [2, 6, 8], [4, 8, 10]])
totals = {sum(even[i, j] for i, j in enumerate(a)) for a in itertools.product(range(3), repeat=3)}
assert {int(t) % 2 for t in totals} == {0}
assert rq.allocate(e[:3], even, 13.9).value.tolist() == rq.allocate(e[:3], even, 12).value.tolist()

# %% The dynamic programme F_i(b) = min over j of F_{i-1}(b - c_ij) + e_ij is another proof of the optimum, and of all
# fronts at once: its argument is induction over items, without duality.

whole = pareto_front(e, np.array(C, np.int64))
for cost, error in zip(whole.cost, whole.error, strict=True):
    assert float(error) == float(min(other for c, other, _ in EVERY if c <= int(cost)))
    assert abs(float(rq.allocate(e, c, float(cost)).objective) - error) < 1e-9
