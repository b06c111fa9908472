"""One quantizer: where the zero point is added, what a product of steps costs, and what a second pass changes.

Letters: x input, s scale, v = x / s, z zero point, q code, R a rounding mode, p the significand bits of a format.
Clip and round commute (Lemma 1 of proofs/01_rounding.py), so clauses Q4 to Q6 may be read in either order.
"""

from fractions import Fraction

import numpy as np

import refquant as rq
from refquant.arith.rounding import MODES, round_exact

# %% Lemma 1 (which modes commute with integers).  R(v + z) = R(v) + z for every real v and integer z exactly for
# floor, ceil, half_up and half_down.
#
# Proof.  floor(v + z) = floor(v) + z; ceil(v) = -floor(-v); half_up is floor(v + 1/2), half_down ceil(v - 1/2).
# The other five look at the sign of v (toward_zero, away_from_zero, half_away, half_toward_zero) or at the
# parity of its floor (half_even), and both change under some translation.

quarters = [Fraction(k, 4) for k in range(-40, 41)]
translating = {
    m for m in MODES if all(round_exact(v + z, m) == round_exact(v, m) + z for v in quarters for z in range(-9, 10))
}
assert translating == {"floor", "ceil", "half_up", "half_down"}

# %% Theorem 1 (zero point before or after rounding).  For an integer z the two orders differ exactly
#   half_even: at ties with odd z;
#   half_away, half_toward_zero: at ties v with v and v + z of opposite sign (0 counts as neither: a tie is not 0);
#   toward_zero, away_from_zero: at non-integers v with v and v + z of opposite sign;
# and then by one code.  All of these sets are empty for z = 0.
#
# Proof.  half_even: a tie v = n + 1/2 goes to the even one of n, n + 1; v + z to the even one of n + z, n + z + 1,
# which is the same place exactly if z is even.  half_away at a tie goes up if v > 0 and down if v < 0: the same
# way for v and v + z exactly if they have one sign; so do the directed modes at every non-integer.  Off these sets
# all roundings go to the nearest integer, or the same way.


def differs(v: Fraction, z: int, mode: str) -> bool:
    tie, opposite = (2 * v).denominator == 1 != v.denominator, v * (v + z) < 0
    return {
        "half_even": tie and z % 2 == 1,
        "half_away": tie and opposite,
        "half_toward_zero": tie and opposite,
        "toward_zero": v.denominator != 1 and opposite,
        "away_from_zero": v.denominator != 1 and opposite,
    }.get(mode, False)


for mode in MODES:
    for v in quarters:
        for z in range(-9, 10):
            before, after = round_exact(v + z, mode), round_exact(v, mode) + z
            assert (before != after) == differs(v, z, mode)
            assert abs(before - after) <= 1

# %% So an exact quantizer that adds an odd zero point first is seen at ties alone, and in no other place.

x = np.arange(-40, 41) / 8
first, last = (rq.QuantSpec(8, zero_point_order=order) for order in ("before", "after"))
apart = x[rq.quantize(x, 1.0, 3, spec=first) != rq.quantize(x, 1.0, 3, spec=last)]
assert np.array_equal(apart, np.arange(-5, 5) + 0.5)
assert np.array_equal(rq.quantize(x, 1.0, 2, spec=first), rq.quantize(x, 1.0, 2, spec=last))

# %% Lemma 2 (error inside).  If v is not clipped, |x - s R(v)| <= s / 2 for the half modes and < s for the others,
# and x - s R(v) >= 0 for floor.  Both are attained or approached: at ties, and just below integers.

for mode in MODES:
    worst = max(abs(v - round_exact(v, mode)) for v in quarters)
    assert worst == (Fraction(1, 2) if mode.startswith("half") else Fraction(3, 4))
assert all(v >= round_exact(v, "floor") for v in quarters)

# %% Lemma 3 (monotone).  Quantizing is non-decreasing in x, for every mode, quotient and zero point, if it saturates.
# Every step is: a correctly rounded quotient or product by a positive number, a sum, a rounding, a clip.  Wrapping is
# not.

x = np.linspace(-30, 30, 4001, dtype=np.float32)
for mode in MODES:
    for quotient in ("exact", "float32", "float16", "reciprocal-float32"):
        assert (np.diff(rq.quantize(x, 0.3, 1, spec=rq.QuantSpec(6, rounding=mode, quotient=quotient))) >= 0).all()
assert (np.diff(rq.quantize(x, 0.3, 1, spec=rq.QuantSpec(6, overflow="wrap"))) < 0).any()

# %% Theorem 2 (a second pass, nearest).  Let d = q - z, x^ = fl(s d) in a format of p bits, |d| <= 2^(p-1), s d normal
# and finite, R a half mode.  Then R(x^ / s) = d: quantizing what was dequantized changes nothing.
#
# Proof.  fl(s d) = s d (1 + e), |e| <= u / (1 + u) < u = 2^-p (round to nearest).  So |x^ / s - d| < |d| 2^-p <= 1/2,
# and d is the only nearest integer; no tie occurs, whichever half mode.
#
# Exhaustively for all normal float16 scales and codes of 8 bits; and the bound is sharp in this sense: for 12 bits,
# where |d| goes up to 2^11 = 2^p, it fails.

halves = np.arange(0x0400, 0x7C00, dtype=np.uint16).view(np.float16)  # positive, normal
spec = rq.QuantSpec(8, granularity=rq.PerChannel(0))
some = halves[::7]
codes = np.broadcast_to(np.arange(-128, 128), (some.size, 256))
reals = rq.dequantize(codes, some, spec=spec, dtype=np.float16)
normal = np.isfinite(reals) & ((np.abs(reals) >= np.float16(2.0**-14)) | (codes == 0))
again = rq.quantize(np.where(normal, reals, np.float16(0)), some, spec=spec)
assert np.array_equal(again[normal], codes[normal])


def survives(bits: int) -> bool:
    """Whether every code passes a second time, in float16, over scales of one binade."""
    wide = rq.QuantSpec(bits, granularity=rq.PerChannel(0))
    scales = halves[(halves >= 1) & (halves < 2)][::3]
    q = np.broadcast_to(np.arange(wide.qmin, wide.qmax + 1), (scales.size, 1 << bits))
    return bool(
        np.array_equal(rq.quantize(rq.dequantize(q, scales, spec=wide, dtype=np.float16), scales, spec=wide), q)
    )


assert survives(11)  # |d| <= 2^10 = 2^(p-1)
assert not survives(12)

# %% It also fails where products are subnormal: with s = 2^-24, the least float16, and half a step there is no real.

tiny = np.float16(2.0**-24) * np.float16(3)
assert rq.dequantize([1], tiny / np.float16(2), spec=rq.QuantSpec(8), dtype=np.float16) == np.float16(2.0**-23)

# %% Theorem 3 (a second pass, floor).  floor(fl(s d) / s) = d - 1 exactly if fl(s d) < s d, else d (|d| <= 2^(p-1)).
# So the seed's literal quantizer is idempotent at (s, d) exactly if the product rounds up or is exact: never for all
# codes, unless s has few digits.
#
# The smallest witness, by |d| and then by the significand of s, in each format: a product of p-bit s by |d| <= 2 is
# exact; |d| = 3 is the first that can round.  d > 0 needs rounding down, d < 0 rounding up in magnitude.


def first_witness(d: int, p: int) -> int:
    """The least significand S of p bits for which fl(S d) < S d."""
    for S in range(1 << (p - 1), 1 << p):
        exact = S * d
        quantum = 1 << max(0, abs(exact).bit_length() - p)
        if round_exact(Fraction(exact, quantum), "half_even") * quantum < exact:
            return S
    raise AssertionError("no witness")


for p, dtype in ((11, np.float16), (24, np.float32)):
    for d in (1, 2, -1, -2):
        assert all(np.array_equal(dtype(S) * dtype(d), S * d) for S in range(1 << (p - 1), (1 << (p - 1)) + 999))
    for d in (3, -3):
        S = first_witness(d, p)
        s = dtype(S)
        x = rq.dequantize([d], s, spec=rq.QuantSpec(8), dtype=dtype)
        assert rq.quantize(x, s, spec=rq.profile("seed-floor@1")) == d - 1
        assert rq.quantize(x, s, spec=rq.QuantSpec(8)) == d
assert (first_witness(3, 11), first_witness(-3, 11)) == (1027, 1025)
assert (first_witness(3, 24), first_witness(-3, 24)) == (8388611, 8388609)

# How common it is: of 2,000 float32 scales, those with some code of 8 bits that floor moves.

rng = np.random.default_rng(0)
scales = rng.uniform(1e-3, 1, 2000).astype(np.float32)
floor = rq.QuantSpec(8, rounding="floor", granularity=rq.PerChannel(0))
q = np.broadcast_to(np.arange(-128, 128), (2000, 256))
moved = (rq.quantize(rq.dequantize(q, scales, spec=floor), scales, spec=floor) != q).any(axis=1)
assert 0.9 < moved.mean() < 1

# %% Lemma 4 (the reciprocal).  x times fl(1 / s) is not x / s: it moves ties.  For float16, s = 1 .. 2, the least
# scale and tie that part are found by looking at all of them.

s16 = halves[(halves > 1) & (halves < 2)]
k = np.arange(0, 256) + 0.5
ties = (k[None] * s16[:, None].astype(np.float64)).astype(np.float16)
at_tie = ties.astype(np.float64) == k[None] * s16[:, None].astype(np.float64)  # x / s is a true tie
product = ties * (np.float16(1) / s16)[:, None]
parted = at_tie & (product.astype(np.float64) != k[None])
assert parted.any()
row, column = np.argwhere(parted)[0]
assert (float(s16[row]), float(k[column])) == (1 + 28 / 1024, 0.5)  # the least scale above 1, with its first tie
assert (int(parted.sum()), int(at_tie.sum())) == (288, 3584)  # of the ties that float16 holds

# %% Lemma 5 (D2).  q s - z s, each product rounded, equals (q - z) s rounded once if all products are exact, which is
# so when s has at most p - b digits for b-bit codes.  Otherwise it differs for some codes, also at q = z + 1, but never
# at q = z, where both are 0.

byte = rq.QuantSpec(8, signed=False)
apart_byte = rq.QuantSpec(8, signed=False, dequantize="difference-of-products")
codes = np.arange(256)
short, long = np.float32(0.3125), np.float32(0.1)
a, b = (rq.dequantize(codes, short, 77, spec=v) for v in (byte, apart_byte))
assert np.array_equal(a, b)
a, b = (rq.dequantize(codes, long, 77, spec=v) for v in (byte, apart_byte))
assert (a != b).any()
assert a[77] == b[77] == 0
