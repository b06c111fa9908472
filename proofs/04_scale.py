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

# %% Lemma 3 (first bound).  On [l, h] the gain 2 alpha S1 - alpha^2 S2 is at most S1(l)^2 / S2(h).
#
# Proof.  The magnitudes of codes fall as alpha grows, so S1 and S2 do; the gain at alpha is at most
# S1(alpha)^2 / S2(alpha), whose numerator is largest at l and whose denominator is least at h.


def sums(alpha: Fraction) -> tuple[int, int]:
    c = codes(alpha)
    return sum(x * k for x, k in zip(X, c, strict=True)), sum(k * k for k in c)


for l, h in zip(ALPHAS, ALPHAS[25:], strict=False):
    (S1, _), (_, S2) = sums(l), sums(h)
    gains = [error(a, [0] * len(X)) - error(a, codes(a)) for a in (l, (l + h) / 2, h)]
    assert S2 == 0 or max(gains) <= Fraction(S1 * S1, S2)

# %% Lemma 4 (second bound).  sqrt(SSE) is Lipschitz on [l, h] with constant sqrt(S2(l)), so there
#
#     sqrt(SSE(alpha)) >= (sqrt(SSE(l)) + sqrt(SSE(h)) - sqrt(S2(l)) (h - l)) / 2.
#
# Proof.  Let d_i(alpha) be the distance of x_i from its nearest admissible grid point.  Keeping the code of one
# scale at another, d_i(beta) <= d_i(alpha) + |c_i(alpha)| |beta - alpha|, and the same with the roles changed,
# so d_i changes by at most |c_i(l)| |beta - alpha|, codes being largest at l.  The triangle inequality for the
# weighted norm of the vector d gives the constant.  Two such cones, from l and from h, meet at the mean of
# their apexes minus half the constant times h - l.

for l, h in zip(ALPHAS, ALPHAS[10:], strict=False):
    rate, (f, g) = sums(l)[1] ** 0.5, (float(error(a, codes(a))) ** 0.5 for a in (l, h))
    floor_value = (f + g - rate * float(h - l)) / 2
    middle = (l + h) / 2
    assert float(error(middle, codes(middle))) ** 0.5 >= floor_value - 1e-12  # 40 roundings of numbers below 60

# %% Corollary (ternary).  With codes -1, 0, 1 and one term, the least error is
# sum w^2 - max over k of (sum of the k largest |w|)^2 / k: a segment keeps the k largest, S1 their sum, S2 = k.

w = sorted((abs(x) for x in X), reverse=True)
closed = sum(v * v for v in w) - max(Fraction(sum(w[:k]) ** 2, k) for k in range(1, len(w) + 1))
ternary = rq.solve_scale(X, spec=rq.QuantSpec(2, narrow=True))
assert abs(float(ternary.objective) - float(closed)) <= 1e-13 * sum(v * v for v in w)

# %% Local minima are many, which is why searches that trust unimodality fail.

rng = np.random.default_rng(4)
row = rng.normal(size=576)
grid = np.linspace(0.002, 0.06, 6000)
q = np.clip(np.rint(row / grid[:, None]), -128, 127)
curve = ((row - grid[:, None] * q) ** 2).sum(axis=1)
assert np.sum((curve[1:-1] < curve[:-2]) & (curve[1:-1] <= curve[2:])) > 100
