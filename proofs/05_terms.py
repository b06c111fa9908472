"""Sums of low-bit terms: how fast they decay, when they slice bits, when they lose nothing.

Letters: w the values, T terms, alpha_t scales, q_t codes, r_t what is left before term t (r_1 = w), b bits,
qmax the greatest code, L the ratio of consecutive scales of a ladder.
"""

from fractions import Fraction

import numpy as np

import refquant as rq
from refquant.arith.rounding import round_exact
from refquant.quant.multiterm import encode_greedy, encode_ladder, rest_of
from refquant.solve.sums import best_sum, codebook_bound

rng = np.random.default_rng(5)

# %% Lemma 1 (decay).  On the grid -qmax..qmax with scale |r_t|_inf / qmax and rounding to nearest, in exact
# arithmetic, |r_{T+1}|_inf <= |w|_inf / (2 qmax)^T: 20 log10(2 qmax) dB a term.
#
# Proof.  |r / alpha| <= qmax, so nothing is clipped and rounding errs by at most alpha / 2 = |r|_inf / (2 qmax).


def left(w: list[Fraction], qmax: int, T: int) -> Fraction:
    for _ in range(T):
        alpha = max(map(abs, w)) / qmax or Fraction(1)
        w = [r - alpha * round_exact(r / alpha, "half_even") for r in w]
    return max(map(abs, w))


W = [Fraction(float(v)) for v in rng.normal(size=40)]
for qmax in (1, 3, 7):
    for T in (1, 2, 3):
        assert left(W, qmax, T) <= max(map(abs, W)) / (2 * qmax) ** T

# %% With scales rounded to float32 the bound needs a factor (1 + 2^-24)^T: the scale may be rounded up by that
# much.  The factor cannot be left out: w = [1, alpha/2] with alpha the float32 nearest to 1/3.

spec = rq.QuantSpec(3, narrow=True)
alpha = np.float32(1) / np.float32(3)
pair = encode_greedy(np.array([1.0, alpha / 2], np.float32), spec=spec, terms=1, rest=spec)
residual = abs(Fraction(float(alpha)) / 2 - Fraction(float(pair.scales[0])) * int(pair.codes[0, 1]))
assert Fraction(1, 6) < residual <= Fraction(1, 6) * (1 + Fraction(1, 2**24))

# %% Lemma 2 (bit slicing).  With floor, L = 2^b, the first term signed and the rest unsigned, T terms of b bits
# are one quantizer of T b bits, code by code, with saturation and for negative numbers.
#
# Proof.  Let v = w / alpha_T, n = floor(v), and clip n to [-2^(Tb-1), 2^(Tb-1) - 1].  Unsaturated:
# floor(v / L^k) = floor(n / L^k), so the first term is the top digit of n in two's complement and
# each later term, floor of what is left over its scale, is the next digit, in 0..L-1.  Above the range the first
# term is qmax and every later digit saturates at L - 1; below, the first is qmin and what is left is negative, so
# every later digit is 0: both are the ends of the wide quantizer.

x = np.concatenate([rng.normal(scale=40, size=3000), np.arange(-200, 200) / 4]).astype(np.float32)
for bits, T in ((2, 2), (2, 4), (4, 2)):
    first = rq.QuantSpec(bits, rounding="floor")
    ladder = encode_ladder(x, 3.0, spec=first, terms=T, rest=rest_of(first))
    wide = rq.QuantSpec(bits * T, rounding="floor")
    whole = rq.quantize(x, 3.0 / 2 ** (bits * (T - 1)), spec=wide)
    digits = sum(q.astype(np.int64) << (bits * (T - 1 - t)) for t, q in enumerate(ladder.codes))
    assert np.array_equal(digits, whole)

# %% Where an assumption is dropped: signed full-range digits with rounding to nearest and L = 2^b.  The residual
# +alpha/2 asks for the digit 2^(b-1), which is one more than the greatest; what is left then grows at each term.

r, scale = Fraction(1, 2), Fraction(1)
for _ in range(6):
    scale /= 4  # b = 2: digits -2..1
    r -= scale * max(-2, min(1, round_exact(r / scale, "half_even")))
assert r > scale / 2  # a converging ladder would have left at most half a step

# %% Lemma 3 (nearest ladder).  On the grid -qmax..qmax with L = 2 qmax + 1, |w| <= (qmax + 1/2) alpha_1 implies
# |r_{T+1}| <= alpha_T / 2.
#
# Proof.  By induction: |r_t| <= (qmax + 1/2) alpha_t, so the nearest code is admissible and leaves at most
# alpha_t / 2 = (L / 2) alpha_{t+1} = (qmax + 1/2) alpha_{t+1}.

limited = x[np.abs(x) <= 3.5 * 5.0]
nearest = encode_ladder(limited, 5.0, spec=spec, terms=3, rest=spec)
for value, *q in zip(limited.tolist(), *nearest.codes.tolist(), strict=True):
    step = Fraction(5, 49)
    assert abs(Fraction(value) - step * (49 * q[0] + 7 * q[1] + q[2])) <= step / 2

# %% Lemma 4 (lossless on a dyadic grid).  If every w is a multiple of 2^-k and |w| < 2^m, floor slicing with
# T = ceil((m + k + 1) / b) terms and last scale 2^-k loses nothing: w 2^k is an integer of m + k + 1 bits, sign
# included, and by lemma 2 the ladder is that integer's digits.  (One term less cannot do: it has too few sums.)

m, k, bits = 2, 7, 3
dyadic = rng.integers(-(2 ** (m + k)) + 1, 2 ** (m + k), 500) / 2.0**k
T = -(-(m + k + 1) // bits)
first = rq.QuantSpec(bits, rounding="floor")
ladder = encode_ladder(dyadic, 2.0 ** (-k + bits * (T - 1)), spec=first, terms=T, rest=rest_of(first))
assert np.array_equal(ladder.decode(np.float64), dyadic)

# %% Corollary (one scale for a ladder).  So a ladder is one uniform quantizer, of T b bits with floor, of L^T levels
# with nearest on the grid -qmax..qmax: saturated sums are its ends.  Its best first scale is the certified scale of
# that quantizer times L^(T-1).

steps = [sum(7 ** (2 - t) * q for t, q in enumerate(digits)) for digits in np.ndindex(7, 7, 7)]
assert sorted(steps) == list(range(7**3))  # every level once, each digit moved by qmax

# %% Lemma 5 (alternation).  Given codes, least squares gives the best scales; given scales, the nearest of all
# sums gives the best codes; so alternating never increases the error, and started from greedy it is never worse.

row = rng.normal(size=64)
ternary = rq.QuantSpec(2, narrow=True)
errors = {
    method: float(np.sum((row - rq.encode_terms(row, spec=ternary, terms=2, method=method).decode(np.float64)) ** 2))
    for method in ("greedy", "joint")
}
assert errors["joint"] <= errors["greedy"]

# %% Lemma 6 (two large scales are never needed).  Let both grids hold 0, and with two codes of opposite sign also their
# sum, as the signed grids do.  Among sums alpha c + beta d of values |w| <= M, scales of at most 2 M each suffice.
#
# Proof.  Let alpha >= beta > 0 and alpha > 2 M.  A pair with c != 0 and d of the same sign, or 0, has a sum beyond 2
# M in magnitude, so 0 is nearer to every w.  Every other useful pair has c = 0, or c and d of opposite sign; there c
# alpha + d beta = c (alpha - beta) + (c + d) beta, and c + d lies between c and d.  So (alpha - beta, beta) serves at
# least as well.  Subtracting so, as Euclid did, ends with both at most 2 M (or with a scale of 0, which is one term).

M, grid = 1.0, [(c, d) for c in range(-2, 3) for d in range(-2, 3)]


def worst(values: np.ndarray, a: float, b: float) -> np.ndarray:
    return np.asarray(np.abs(values[:, None] - np.array([c * a + d * b for c, d in grid])).min(axis=1))


values = np.linspace(-M, M, 101)
for a, b in rng.uniform(0.01, 6, (200, 2)):
    while max(a, b) > 2 * M:
        before = worst(values, a, b)
        a, b = max(a, b) - min(a, b), min(a, b)
        assert np.all(worst(values, a, b) <= before + 1e-12)  # two roundings of numbers below 24

# %% Lemma 7 (a box of scales).  Let each scale lie in [l_t, h_t].  A sum c . alpha then lies in an interval; no
# element is nearer to any sum than to the nearest of these intervals.  If for one c even the farthest point of its
# interval is no farther from x than the nearest points of all others, c is x's nearest sum in the whole box, and
# contributes the convex (x - c . alpha)^2.  Sums over elements of the one or the other bound the error of the box
# from below.

box = np.array([[0.5, 0.6], [0.2, 0.25]])
inside = rng.uniform(box[:, 0], box[:, 1], (300, 2))
for x0 in rng.normal(size=20):
    ends = [sorted((min(c * box[0]) + min(d * box[1]), max(c * box[0]) + max(d * box[1]))) for c, d in grid]
    near = [max(lo - x0, x0 - hi, 0.0) for lo, hi in ends]
    far = [max(abs(lo - x0), abs(x0 - hi)) for lo, hi in ends]
    k = int(np.argmin(far))
    if far[k] <= min(v for j, v in enumerate(near) if j != k):
        assert all(worst(np.array([x0]), a, b)[0] == abs(x0 - grid[k][0] * a - grid[k][1] * b) for a, b in inside)
    assert all(worst(np.array([x0]), a, b)[0] >= min(near) - 1e-15 for a, b in inside)

# %% How far from the best are they?  Two ternary terms of a normal row of 64: greedy, joint, and the certified best.

solved = best_sum(row, specs=(ternary, ternary), start=rq.encode_terms(row, spec=ternary, terms=2).scales)
assert solved.certified
assert solved.lower_bound <= solved.objective <= errors["joint"] * (1 + 1e-12)
assert errors["greedy"] > 1.1 * float(solved.objective)
assert codebook_bound(row, 9) <= float(solved.lower_bound)  # nine free values do better than nine sums

# %% Honest comparison.  At equal storage one quantizer of T b bits beats T terms of b bits on a normal row: the
# sums are for hardware that has only low-bit products, for mixed counts, and for outliers.

wide_error = float(rq.solve_scale(row, spec=rq.QuantSpec(4)).objective)
assert wide_error < errors["joint"]
