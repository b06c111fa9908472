"""The scale of least squared error: why one sweep over breakpoints finds it.

Letters: x_i the values, m_i >= 0 their weights, alpha > 0 the scale, c_i the integer codes,
SSE(alpha) = sum m_i (x_i - alpha c_i(alpha))^2 with c_i(alpha) the code of x_i at that scale.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np

import refquant as rq
from refquant.arith.rounding import round_exact

# %% Setting: a small tensor of integers, so that everything below is exact.

X = [7, -3, 12, 5, -9, 1]
QMIN, QMAX = -2, 1  # the two's complement grid of 2 bits


def codes(alpha: Fraction, low: int = QMIN, high: int = QMAX) -> list[int]:
    return [max(low, min(high, round_exact(Fraction(x) / alpha, "half_even"))) for x in X]


def error(alpha: Fraction, c: list[int]) -> Fraction:
    return sum(((x - alpha * k) ** 2 for x, k in zip(X, c, strict=True)), Fraction(0))


ALPHAS = [Fraction(k, 16) for k in range(1, 480)]

# %% Lemma 1 (envelope).  With rounding to nearest, and 0 among the codes, SSE(alpha) is the least of the
# parabolas E_c(alpha) = sum (x - alpha c)^2 over ALL code vectors c on the grid.
#
# Proof.  The sum separates over elements, and for each element the nearest grid point alpha k is, by
# definition, the k that makes (x - alpha k)^2 least.  Clipping the nearest integer to [qmin, qmax] gives the
# nearest admissible integer, because |v - k| is unimodal in k.  (Ties do not matter: both sides err alike.)

GRID = np.array(np.meshgrid(*[range(QMIN, QMAX + 1)] * len(X))).reshape(len(X), -1).T.tolist()
for alpha in ALPHAS[::40]:
    assert error(alpha, codes(alpha)) == min(error(alpha, c) for c in GRID)

# %% Lemma 2 (breakpoints).  The magnitude of the code of x steps from k to k + 1 where |x| / alpha = k + 1/2,
# that is at alpha = |x| / (k + 1/2), and nowhere else.  Between neighbouring breakpoints the codes are constant.

POINTS = sorted({Fraction(abs(x)) / (k + Fraction(1, 2)) for x in X for k in range(2)})
for low, high in pairwise(POINTS):
    inside = [low + (high - low) * Fraction(j, 8) for j in range(1, 8)]
    assert len({tuple(codes(alpha)) for alpha in inside}) == 1

# %% Theorem (sweep).  With S1 = sum m x c and S2 = sum m c^2 on each segment,
#
#     min over alpha of SSE = sum m x^2 - max over segments with S2 > 0 of S1^2 / S2,
#
# and no clamping of alpha to its segment is needed.
#
# Proof.  On a segment E_c(alpha) = sum m x^2 - 2 alpha S1 + alpha^2 S2 has the minimum sum m x^2 - S1^2 / S2
# at alpha = S1 / S2 > 0.  If that alpha lies outside the segment, the code vector c is still admissible there,
# so by lemma 1 SSE(alpha) <= E_c(alpha): the value is attained or improved, never understated.  Conversely
# every alpha lies on some segment, so SSE(alpha) is at least the minimum of that segment's parabola.


def sweep() -> Fraction:
    best = Fraction(0)
    edges = [Fraction(0), *POINTS]
    for low, high in pairwise(edges):
        c = codes((low + high) / 2)
        S1, S2 = sum(x * k for x, k in zip(X, c, strict=True)), sum(k * k for k in c)
        best = max(best, Fraction(S1 * S1, S2)) if S2 else best
    return sum((Fraction(x * x) for x in X), Fraction(0)) - best


OPTIMUM = sweep()
assert OPTIMUM == min(
    sum((Fraction(x * x) for x in X), Fraction(0))
    - Fraction(sum(x * k for x, k in zip(X, c, strict=True)) ** 2, sum(k * k for k in c))
    for c in GRID
    if any(c) and sum(x * k for x, k in zip(X, c, strict=True)) > 0
)
assert all(error(alpha, codes(alpha)) >= OPTIMUM for alpha in ALPHAS)
solved = rq.solve_scale(X, spec=rq.QuantSpec(2))
assert Fraction(float(solved.lower_bound)) <= OPTIMUM
assert abs(float(solved.objective) - float(OPTIMUM)) <= 1e-13 * sum(x * x for x in X)

# %% Where an assumption is dropped: without 0 among the codes (here 3..10) the magnitude of a code need not fall
# as alpha grows, breakpoints lie elsewhere, and the sums S1, S2 of this sweep are not those of any scale: the
# code of 1 is 3 at every alpha >= 1/3, so it does not become 0 beyond its last breakpoint 2.

assert codes(Fraction(100), 3, 10) == [3] * len(X)
assert 0 not in codes(Fraction(100), 3, 10)

# %% Floor is not the nearest: its codes are not the best for their scale, so lemma 1 fails and alpha must be
# clamped to its segment.  One witness suffices.

floors = [max(QMIN, min(QMAX, round_exact(Fraction(x) / 8, "floor"))) for x in X]
assert error(Fraction(8), floors) > error(Fraction(8), codes(Fraction(8)))

# %% Theorem (convexity).  With rounding to nearest, gain(alpha) = sum m x^2 - SSE(alpha) is 2 alpha G(alpha) with
#
#     G(alpha) = S1 - alpha S2 / 2 = sum over x and steps k of m (|x| - alpha (k + 1/2))_+,
#
# which is convex, falling and continuous in alpha, although SSE itself has many local minima.
#
# Proof.  The code of x is the number of steps it has made, those with |x| >= alpha (k + 1/2), k below its last code.
# So S1 = sum over steps made of m |x|, and S2 = sum m c^2 = sum over steps made of m (2k + 1).  Hence
# S1 - alpha S2 / 2 is the sum over steps made of m (|x| - alpha (k + 1/2)), where each term is positive exactly if its
# step is made: a sum of positive parts of linear functions.


def sums(alpha: Fraction) -> tuple[int, int]:
    c = codes(alpha)
    return sum(x * k for x, k in zip(X, c, strict=True)), sum(k * k for k in c)


def convex_part(alpha: Fraction) -> Fraction:
    S1, S2 = sums(alpha)
    return S1 - alpha * S2 / 2


ENERGY = error(Fraction(1), [0] * len(X))
for alpha in ALPHAS:
    assert ENERGY - error(alpha, codes(alpha)) == 2 * alpha * convex_part(alpha)
    steps = [(abs(x), k) for x in X for k in range(QMAX if x > 0 else -QMIN)]
    assert convex_part(alpha) == sum(
        (max(a - alpha * (k + Fraction(1, 2)), Fraction(0)) for a, k in steps), Fraction(0)
    )
values = [convex_part(alpha) for alpha in ALPHAS]  # equally spaced
assert all(a + c >= 2 * b for a, b, c in zip(values, values[1:], values[2:], strict=False))
assert values == sorted(values, reverse=True)

# %% Corollary (chord bound).  On [l, h] the gain is at most the greatest value of 2 alpha times the chord of G, a
# parabola.  The bound is off by at most 2 h times the gap between G and its chord, which is of second order in h - l
# where many small steps approach a smooth G.  So halving intervals and dropping those whose bound is below the best
# gain seen leaves a handful at each level: that is what `refquant/solve/search.py` does.

for l, h in zip(ALPHAS, ALPHAS[25:], strict=False):
    for alpha in (l, l + (h - l) / 3, (l + h) / 2, h):
        chord = (convex_part(l) * (h - alpha) + convex_part(h) * (alpha - l)) / (h - l)
        assert ENERGY - error(alpha, codes(alpha)) <= 2 * alpha * chord

# How few: of a normal row of 4,096 at 4 bits, with 32,768 breakpoints or so, about a hundred scales are looked at.

row = np.random.default_rng(11).normal(size=4096)
assert rq.solve_scale(row, spec=rq.QuantSpec(4)).evaluations < 400

# %% For floor and the other directed modes the step is made at another place, |x| >= alpha (k + o) with o = 0 or 1 by
# the side of 0, while it still contributes |x| - alpha (k + 1/2).  So gain = 2 alpha (G + alpha D), with G the sum of
# m (|x| - alpha (k + o))_+, convex again, and D = sum over steps made of m (o - 1/2): SSE jumps with it.


def floor_codes(alpha: Fraction) -> list[int]:
    return [max(QMIN, min(QMAX, round_exact(Fraction(x) / alpha, "floor"))) for x in X]


for alpha in ALPHAS:
    c = floor_codes(alpha)
    made = [(abs(x), k, int(x > 0)) for x, n in zip(X, c, strict=True) for k in range(abs(n))]
    convex = sum((a - alpha * (k + o) for a, k, o in made), Fraction(0))
    D = sum((Fraction(2 * o - 1, 2) for _, _, o in made), Fraction(0))
    assert all(a >= alpha * (k + o) for a, k, o in made)
    assert ENERGY - error(alpha, c) == 2 * alpha * (convex + alpha * D)

# %% Lemma 3 (a second bound, for checkers).  sqrt(SSE) is Lipschitz on [l, h] with constant sqrt(S2(l)), so there
#
#     sqrt(SSE(alpha)) >= (sqrt(SSE(l)) + sqrt(SSE(h)) - sqrt(S2(l)) (h - l)) / 2.
#
# Proof.  Let d_i(alpha) be the distance of x_i from its nearest admissible grid point.  Keeping the code of one
# scale at another, d_i(beta) <= d_i(alpha) + |c_i(alpha)| |beta - alpha|, and the same with the roles changed,
# so d_i changes by at most |c_i(l)| |beta - alpha|, codes being largest at l.  The triangle inequality for the
# weighted norm of the vector d gives the constant.  Two such cones, from l and from h, meet at the mean of
# their apexes minus half the constant times h - l.  It holds for every p-norm, with (sum m |c|^p)^(1/p).

for l, h in zip(ALPHAS, ALPHAS[10:], strict=False):
    rate, (f, g) = sums(l)[1] ** 0.5, (float(error(a, codes(a))) ** 0.5 for a in (l, h))
    floor_value = (f + g - rate * float(h - l)) / 2
    middle = (l + h) / 2
    assert float(error(middle, codes(middle))) ** 0.5 >= floor_value - 1e-12  # 40 roundings of numbers below 60

# %% Lemma 4 (zero points).  With an integer zero point z the codes less z lie on qmin - z .. qmax - z.  For every z in
# [y, y'] these lie in qmin - y' .. qmax - y, so the best scale for nearest rounding on that grid errs no more than any
# scale with any such z: intervals of zero points can be discarded like intervals of scales.

for y, y2 in ((-2, 1), (-1, 0), (0, 1)):
    relaxed = min(error(a, codes(a, QMIN - y2, QMAX - y)) for a in ALPHAS)
    assert all(error(a, codes(a, QMIN - z, QMAX - z)) >= relaxed for a in ALPHAS for z in range(y, y2 + 1))

# %% Corollary (ternary).  With codes -1, 0, 1 and one term, the least error is
# sum w^2 - max over k of (sum of the k largest |w|)^2 / k: a segment keeps the k largest, S1 their sum, S2 = k.

w = sorted((abs(x) for x in X), reverse=True)
closed = sum(v * v for v in w) - max(Fraction(sum(w[:k]) ** 2, k) for k in range(1, len(w) + 1))
ternary = rq.solve_scale(X, spec=rq.QuantSpec(2, narrow=True))
assert abs(float(ternary.objective) - float(closed)) <= 1e-13 * sum(v * v for v in w)

# %% Corollary (binary).  With codes -1 and 1 (bipolar), every code is sign(w), S1 = sum |w|, S2 = n: alpha = mean |w|,
# and the least error is sum w^2 - (sum |w|)^2 / n.  On the grid -1, 0, 1 it is the corollary's term k = n.

binary = sum(v * v for v in w) - Fraction(sum(w) ** 2, len(w))
assert binary == min(sum((v - a) ** 2 for v in w) for a in [Fraction(k, 6) for k in range(1, 80)])
assert closed <= binary

# %% Local minima are many, which is why searches that trust unimodality fail.

rng = np.random.default_rng(4)
row = rng.normal(size=576)
grid = np.linspace(0.002, 0.06, 6000)
q = np.clip(np.rint(row / grid[:, None]), -128, 127)
curve = ((row - grid[:, None] * q) ** 2).sum(axis=1)
assert np.sum((curve[1:-1] < curve[:-2]) & (curve[1:-1] <= curve[2:])) > 100
