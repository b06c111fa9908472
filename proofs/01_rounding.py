"""Rounding to integers, and when a float64 quotient is as good as the exact one.

Letters: x input, alpha scale, v = x / alpha, n an integer, u = 2^-53 half an ulp of 1 in float64.
"""

import math
from fractions import Fraction

import numpy as np

import refquant as rq
from refquant.arith.rounding import MODES, round_exact

# %% Lemma 1 (clip and round commute).  For integer bounds lo <= hi and any of the nine modes R,
# R(clip(v, lo, hi)) = clip(R(v), lo, hi).
#
# Proof.  Each R is non-decreasing and fixes integers.  If v <= lo then R(v) <= R(lo) = lo and both sides are lo;
# likewise above hi; between, lo = R(lo) <= R(v) <= R(hi) = hi and neither side is clipped.

for mode in MODES:
    values = [Fraction(k, 8) for k in range(-80, 81)]
    rounded = [round_exact(v, mode) for v in values]
    assert rounded == sorted(rounded)
    assert all(
        round_exact(max(Fraction(-3), min(Fraction(4), v)), mode) == max(-3, min(4, r))
        for v, r in zip(values, rounded, strict=True)
    )

# %% For real bounds it fails: clip(2.7 -> 2.4) rounds to 2, but 2.7 rounds to 3 and is clipped to 2.4.

assert round_exact(min(Fraction(27, 10), Fraction(24, 10)), "half_even") != min(
    round_exact(Fraction(27, 10), "half_even"), Fraction(24, 10)
)

# %% Theorem (double division).  Let x and alpha > 0 be float32, v = x / alpha exactly, and |v| < 2^29.  Then the
# float64 quotient fl(v) lies on the same side of (or on) every multiple of 1/2 as v.  Every rounding mode above
# asks nothing else, so rounding fl(v) gives what rounding v gives.
#
# Proof.  fl is non-decreasing and fixes multiples of 1/2 (they are float64 numbers here), so fl(v) can only differ
# from v by landing ON a multiple h / 2 when v is not one.  Write x = X 2^i, alpha = A 2^j with |X|, A < 2^24
# integers and e = i - j.  If e >= 0, then |v - h/2| = |2 X 2^e - h A| / (2 A) >= 1 / (2 A) > 2^-25 unless it is 0.
# fl errs by at most half an ulp of a number below 2^29, 2^(28 - 53) = 2^-25: too little to land there.  If e < 0,
# then |v - h/2| = |2 X - h A 2^-e| / (2 A 2^-e) >= 2^e / (2 A) > 2^(e - 25), while
# |v| = |X| 2^e / A; with the significands normalised (A >= 2^23) |v| < 2^(e + 1), and half an ulp of that is at
# most 2^(e - 53): far less.  (Zero x is trivial, and no quotient of float32 numbers is subnormal in float64.)


def beside(tie: float) -> list[np.float32]:
    middle = np.float32(tie)
    return [np.nextafter(middle, np.float32(-math.inf)), middle, np.nextafter(middle, np.float32(math.inf))]


rng = np.random.default_rng(1)
for alpha in rng.uniform(1, 2, 60).astype(np.float32):
    for k in (0, 1, 2, 7, 127, 32767, 2**24, 2**28 - 1):
        for x in beside((k + 0.5) * float(alpha)):
            exact = Fraction(float(x)) / Fraction(float(alpha))
            assert all(round_exact(Fraction(float(x) / float(alpha)), m) == round_exact(exact, m) for m in MODES)

# %% Beyond 2^29 it fails: a false tie, and a false integer.

x1, alpha1 = 9331076 * 2**29, 8497725
assert (2 * Fraction(float(x1) / alpha1)).denominator == 1 != (2 * Fraction(x1, alpha1)).denominator
assert any(round_exact(Fraction(float(x1) / alpha1), m) != round_exact(Fraction(x1, alpha1), m) for m in MODES)
x2, alpha2 = 13433909 * 2**30, 8928143
assert round_exact(Fraction(float(x2) / alpha2), "floor") != round_exact(Fraction(x2, alpha2), "floor")
spec = rq.QuantSpec(32, overflow="wrap")
assert rq.quantize(np.array([x1], np.float64), alpha1, spec=spec)[0] == rq.quantize_exact(x1, alpha1, 0, spec)

# %% What floor costs on a source uniform within each cell: bias -alpha/2, error alpha^2/3 instead of alpha^2/12.
# Integrals of -t and t^2 over [0, alpha), and of t^2 over [-alpha/2, alpha/2), in units of alpha.

N = 1000
inside: list[Fraction] = [
    Fraction(2 * i + 1, 2 * N) for i in range(N)
]  # midpoints: exact for linear, error 1/(12 N^2) for squares
assert sum(-t for t in inside) / N == Fraction(-1, 2)
assert abs(sum((t * t for t in inside), Fraction(0)) / N - Fraction(1, 3)) <= Fraction(1, 12 * N * N)
assert abs(
    sum(((t - Fraction(1, 2)) * (t - Fraction(1, 2)) for t in inside), Fraction(0)) / N - Fraction(1, 12)
) <= Fraction(1, 12 * N * N)
assert abs(10 * math.log10(4) - 6.0206) < 1e-4  # 6.02 dB: one whole bit
