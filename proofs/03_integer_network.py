"""Integer networks: exact sums in float64, accumulators that cannot overflow, roundings that differ, 4-bit digits.

Letters: a, w integer operands, K products a sum, acc an accumulator, m a 31-bit multiplier and e >= 0 a right shift
(the factor is m / 2^(31 + e)), M a real factor, k its integer result, d a difference in codes.
"""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np

import refquant as rq
from refquant.arith.fixedpoint import double_round, quantize_multiplier, single_round
from refquant.arith.rounding import round_exact

# %% Lemma 1 (integer sums in float64).  If K max|a| max|w| <= 2^53, then sum a w computed in float64 is exact, in any
# order, with or without fused multiply-adds: every product and every partial sum is an integer of magnitude at most
# 2^53, and float64 holds all of those, so no operation rounds.

rng = np.random.default_rng(0)
a, w = rng.integers(-(2**20), 2**20, (2, 8192))
assert 8192 * 2**20 * 2**20 <= 2**53
assert int(a.astype(float) @ w.astype(float)) == sum(int(x) * int(y) for x, y in zip(a, w, strict=True))

# %% One more and it fails: 2^53 + 1 is no float64, and the order begins to matter.

assert 2.0**53 + 1.0 == 2.0**53
assert (2.0**53 + 1.0) - 2.0**53 != (2.0**53 - 2.0**53) + 1.0

# %% Lemma 2 (a width that never overflows).  With a in [a0, a1], w in [w0, w1] and |bias| <= B, the sums of K
# products fill exactly [K lo - B, K hi + B], lo and hi the least and greatest of the four corner products.  So B
# bits that hold these two numbers never overflow, and no fewer do.


def corners(a: tuple[int, int], w: tuple[int, int]) -> tuple[int, int]:
    products = [x * y for x in a for y in w]
    return min(products), max(products)


def bits_needed(K: int, a: tuple[int, int], w: tuple[int, int], bias: int = 0) -> int:
    lo, hi = corners(a, w)
    least, greatest = K * lo - bias, K * hi + bias
    return 1 + max(greatest.bit_length(), (-least - 1).bit_length() if least < 0 else 0)


def most_products(a: tuple[int, int], w: tuple[int, int], bits: int = 32) -> int:
    lo, hi = corners(a, w)
    limit = 1 << (bits - 1)
    return min((limit - 1) // hi, limit // -lo)


int8, narrow, uint8, distance = (-128, 127), (-127, 127), (0, 255), (-255, 255)
for small in ((-2, 1), (-1, 1), (0, 3)):
    for K in range(1, 5):
        sums = {0}
        for _ in range(K):
            sums = {s + x * y for s in sums for x in range(small[0], small[1] + 1) for y in range(-2, 2)}
        n = bits_needed(K, small, (-2, 1))
        assert all(-(2 ** (n - 1)) <= s < 2 ** (n - 1) for s in sums)
        assert not all(-(2 ** (n - 2)) <= s < 2 ** (n - 2) for s in sums)

# The longest sums that an int32 holds, whatever the codes: 131,071 for int8 by int8 (-128 x -128 is the corner), more
# for narrow weights, and 65,793 for the differences q - z of bytes by int8.

assert most_products(int8, int8) == 131_071
assert most_products(int8, narrow) == 132_104
assert most_products(distance, int8) == 65_793
assert bits_needed(131_071, int8, int8) == 32 < bits_needed(131_072, int8, int8)
assert 140_000 * 127 * 127 >= 2**31
assert (140_000 * 127 * 127 + 2**31) % 2**32 - 2**31 == 2_258_060_000 - 2**32

# %% Lemma 3 (pairs in int16).  For bytes a and int8 w, a1 w1 + a2 w2 stays within int16 for all a exactly if the sum
# of the positive ones of w1, w2 is at most 128 and that of the negative ones at least -128: 255 x 128 = 32,640 <=
# 32,767 < 255 x 129, and 255 x -128 >= -32,768 > 255 x -129.

for w1 in range(-128, 128):
    for w2 in range(-128, 128):
        greatest = 255 * (max(w1, 0) + max(w2, 0))
        least = 255 * (min(w1, 0) + min(w2, 0))
        safe = max(w1, 0) + max(w2, 0) <= 128 and min(w1, 0) + min(w2, 0) >= -128
        assert safe == (-(2**15) <= least and greatest < 2**15)

# %% Theorem 1 (one rounding against two).  For shift e >= 1 write t = x m / 2^31, exactly, and n = floor(t + 1/2),
# the doubling high product.  single = floor(t / 2^e + 1/2), double = the half_away rounding of n / 2^e.  With h =
# 2^(e-1), so that n = h (mod 2^e) says that n is a tie of the second rounding, they differ exactly where
#   (i)  n = h (mod 2^e), t < n, and n > 0: double goes up from a tie that the first rounding made; or
#   (ii) n = h (mod 2^e), t >= n, and n < 0: double goes down from it, single does not;
# by one, double being farther from 0.
#
# Proof.  single = floor((t + h) / 2^e) and, as h is an integer, = floor(floor(t + h) / 2^e) = floor((floor(t) + h) /
# 2^e).  half_up of n is floor((n + h) / 2^e), and n = floor(t) or floor(t) + 1, the latter iff frac(t) >= 1/2.  If n
# = floor(t) (t >= n), half_up(n) = single; double differs from half_up only on ties with n < 0: that is (ii).  If n
# = floor(t) + 1 (t < n), half_up(n) differs from single exactly if n + h = 0 (mod 2^e), i.e. n = h (mod 2^e) [h = -h
# mod 2^e]: then single = half_up(n) - 1; double equals half_up(n) if n > 0, which is (i); if n < 0 double rounds the
# tie down, to half_up(n) - 1 = single, so they agree.  (n = 0 is no tie.)


def parts(x: int, m: int, e: int) -> bool:
    t = Fraction(x * m, 2**31)
    n = round_exact(t, "half_up")
    tie = n % 2**e == 2 ** (e - 1)
    return tie and ((t < n and n > 0) or (t >= n and n < 0))


share = {}
for m, e in ((1583594044, 9), (2**30, 1), (2**30 + 1, 4), (2**31 - 1, 5), (1717986918, 7)):
    x = np.arange(-(2**15), 2**15)
    one, two = single_round(x, m, -e), double_round(x, m, -e)
    expected = np.array([parts(int(v), m, e) for v in x])
    assert np.array_equal(one != two, expected)
    assert np.abs(one - two).max() <= 1
    assert (np.abs(two) >= np.abs(one))[expected].all()
    share[m, e] = expected.mean()

# %% About one accumulator in 2^(e+1) differs: half of those whose high product falls on a tie.  The public report:

assert all(0.3 * 2.0 ** -(e + 1) < s < 3 * 2.0 ** -(e + 1) for (m, e), s in share.items() if m % 2**20)
assert parts(7984, 1583594044, 9)
assert (int(single_round(7984, 1583594044, -9)), int(double_round(7984, 1583594044, -9))) == (11, 12)

# %% Lemma 4 (distance from the real product).  |single - t / 2^e| <= 1/2 and |double - t / 2^e| <= 1/2 + 2^-(e+1) <=
# 3/4 for e >= 1 (two roundings of 1/2, the first in units of 2^-e), 1/2 for e = 0.  The multiplier adds 2^-31 |k|,
# since m / 2^31 is within 2^-32 and at least 1/2.

for m, e in ((1583594044, 9), (2**30 + 1, 1), (2**31 - 1, 2)):
    x = np.arange(-5000, 5000)
    for rule, bound in ((single_round, Fraction(1, 2)), (double_round, Fraction(1, 2) + Fraction(1, 2 ** (e + 1)))):
        assert all(
            abs(int(k) - Fraction(int(v) * m, 2 ** (31 + e))) <= bound for v, k in zip(x, rule(x, m, -e), strict=True)
        )
for factor in rng.uniform(1e-6, 4, 200):
    m, shift = map(int, quantize_multiplier(factor))
    assert abs(Fraction(m) * Fraction(2) ** (shift - 31) / Fraction(float(factor)) - 1) <= Fraction(1, 2**31)

# %% Theorem 2 (a float64 factor).  Let M = s_a s_w / s_y, M^ its float64 rounding, and let the product acc M^ be
# exact with one rounding to an integer (how="exact").  The result differs from the rounding of acc M only if a
# breakpoint of the mode lies between acc M and acc M^, so within 2^-53 |acc M| of acc M; and never where M is a
# float64, as with scales that are powers of two.  For |acc M| < 2^17 that is a distance of 2^-36 steps.

s_a, s_w, s_y = (np.float32(v) for v in (0.0431, 0.00717, 0.0619))
real = Fraction(float(s_a)) * Fraction(float(s_w)) / Fraction(float(s_y))
stored = Fraction(float(s_a) * float(s_w) / float(s_y))
assert 0 < abs(stored / real - 1) <= Fraction(1, 2**52)  # quotient and (exact) product: 2^-53 each at most
acc = np.arange(-50_000, 50_000)
codes = rq.requantize(acc, float(stored), spec=rq.QuantSpec(16))
assert codes.tolist() == [round_exact(int(v) * real, "half_even") for v in acc]

# %% Theorem 3 (how differences travel).  Run one network under two requantization rules that err by at most r and r'
# from the real product.  If the inputs of a node differ by at most d codes, its outputs differ by at most
#   Conv, Gemm:        floor(M sum|w| d + r + r')  for the worst output channel,
#   Relu, Relu6, MaxPool, Flatten with one scale: d,
#   Add:               floor(s_1 / s_y d_1 + s_2 / s_y d_2 + r + r'),
#   Concat, AveragePool: floor(s_x / s_y d + r + r').
#
# Proof.  Accumulators differ by at most sum|w| d, real products by M sum|w| d, results by r + r' more, and results
# are integers.  Maximum, minimum and clip move no two numbers farther apart; an average of numbers that differ by at
# most d differs by at most d.  Zero points and saturation change no difference but to make it less.

for _ in range(300):
    K, d = int(rng.integers(1, 30)), int(rng.integers(0, 4))
    W, x = rng.integers(-127, 128, K), rng.integers(-128, 128, K)
    y = np.clip(x + rng.integers(-d, d + 1, K), -128, 127)
    M = float(rng.uniform(1e-4, 0.01))
    spec = rq.QuantSpec(8)
    k1 = int(rq.requantize(int(W @ x), M, 3, spec=spec, how="exact"))
    k2 = int(rq.requantize(int(W @ y), M, 3, spec=spec, how="double-round"))
    assert abs(k1 - k2) <= math.floor(M * np.abs(W).sum() * d + 0.5 + 0.75 + 2.0**-14)

# Without the roundings' share it would be false: equal inputs, and codes that differ.

assert rq.requantize(7984, 1583594044 / 2**40, spec=spec, how="double-round") == 12
assert rq.requantize(7984, 1583594044 / 2**40, spec=spec, how="exact") == 11

# %% Theorem 4 (two 4-bit terms).  Every 8-bit code is 16 h + l with l in 0..15 and h = floor(q / 16), in -8..7 for
# int8, in 0..15 for bytes: so a product of two codes is 256 h h' + 16 (h l' + l h') + l l', four 4-bit products, and
# a layer of K of them is four low-bit layers, shifted and added.  With digits of -8..7 only, 16 h + l reaches
# -136..119, every number there once; 120..127 need 256 + 16 h + l.

code = np.arange(-128, 128)
h, l = code // 16, code % 16
assert ((-8 <= h) & (h <= 7) & (0 <= l) & (l <= 15)).all()
q, r = np.meshgrid(code, code)
assert np.array_equal(
    q * r, 256 * (q // 16) * (r // 16) + 16 * (q // 16 * (r % 16) + q % 16 * (r // 16)) + (q % 16) * (r % 16)
)
reached = sorted(16 * hi + lo for hi in range(-8, 8) for lo in range(-8, 8))
assert reached == list(range(-136, 120))
assert all(b - a == 1 for a, b in pairwise(reached))
third = {256 + v for v in reached}
assert set(range(120, 128)) <= third
assert set(range(-128, 120)) <= set(reached)

# %% Corollary (a constant saves the third digit).  Where a constant may be taken off the codes, as for the input of a
# layer, whose constant times the sum of the weights joins the bias, two signed digits are enough: -128..127 less 8 is
# -136..119, and bytes less 136 are too.

assert [q - 8 for q in range(-128, 128)] == reached
assert [q - 136 for q in range(256)] == reached
