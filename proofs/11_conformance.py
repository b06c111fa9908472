"""What finitely many inputs say of a rule on all of them: thresholds, near ties, and steps by bisection.

Letters: f, g rules from the floats of one type to the codes low..high, s scale, t_k = (k + 1/2) s the tie between the
codes k and k + 1.  A rule is monotone if x <= y gives f(x) <= f(y), for finite x and y.
"""

import itertools
from functools import partial

import numpy as np

from refquant.conform.case import near_ties
from refquant.conform.deviations import DEVIATIONS, applicable
from refquant.conform.operations import Request, evaluate
from refquant.conform.thresholds import comparable, first_difference, from_order, steps_of, to_order
from refquant.quant.spec import QuantSpec

EVERY = from_order(np.arange(-31743, 31744), np.float16)  # all finite float16, ascending, the two zeros as one
ROUNDINGS = ("half_even", "half_away", "half_up", "half_down", "half_toward_zero", "floor", "ceil", "toward_zero")

# %% Lemma (order).  As integers, floats of one type are in the order of their values, without gaps, -0 as 0.
#
# Proof.  A positive float is its exponent followed by its significand, and both grow with the value; the next float
# above has the next pattern, a carry out of the significand being the next exponent.  Negative ones mirror this.

assert np.all(np.diff(EVERY.astype(np.float64)) > 0)
assert np.array_equal(to_order(EVERY), np.arange(-31743, 31744))
assert np.array_equal(np.nextafter(EVERY[:-1], np.float16(np.inf)), EVERY[1:] + np.float16(0))

# %% Theorem (steps).  A monotone rule is given by its steps: for every code c < high, the least input above which the
# code is more than c.  Two monotone rules are equal if and only if their steps are, and if the least steps at which
# they differ are x < y, then they differ at x.
#
# Proof.  f(x) > c if and only if x >= step_c, by monotony, so f(x) = low + the number of steps at or below x.  If
# f and g have steps x < y for one code c, then f(x) > c and g(x) <= c.


def quantizing(x: np.ndarray, s: float, bits: int = 4, **semantics: str) -> Request:
    spec = QuantSpec(bits, **semantics)  # type: ignore[arg-type]
    return Request("quantize", spec, {"x": x, "scale": np.asarray(s, x.dtype), "zero_point": np.asarray(1)})


def codes_of(x: np.ndarray, s: float, **change: str) -> np.ndarray:
    return evaluate(quantizing(x, s), change)["codes"]


for s in (0.25, 0.3, 1.7):
    for rounding in ROUNDINGS:
        codes = codes_of(EVERY, s, rounding=rounding)
        found = steps_of(partial(codes_of, s=s, rounding=rounding), -8, 7, np.float16)
        assert [int(np.argmax(codes > c)) - 31743 for c in range(-8, 7)] == found.tolist()

# %% Lemma (bisection).  steps_of asks for at most 17 values of float16 a code, 33 of float32, 65 of float64.
#
# Proof.  The places of a type are fewer than 2^16, 2^32, 2^64, and every question halves what is left.

asked = [0]


def counting(v: np.ndarray) -> np.ndarray:
    asked[0] += 1
    return np.rint(np.asarray(v, np.float64))


for kind, most in ((np.float16, 17), (np.float32, 33), (np.float64, 65)):
    asked[0] = 0
    steps_of(counting, 0, 3, kind)
    assert asked[0] <= most

# %% Lemma (choices that keep monotony).  Every deviation that `comparable` allows is monotone on all finite float16;
# it is a composition of monotone maps: narrowing the input, dividing by s > 0 in some precision, adding z, rounding,
# clipping.  Wrapping is not one of them.

for s in (0.25, 0.3, 61.0):
    for name, deviation in DEVIATIONS.items():
        request = quantizing(EVERY, s)
        if "quantize" in deviation.ops and comparable(request, [deviation.change]):
            assert np.all(np.diff(evaluate(request, deviation.change)["codes"]) >= 0), name
wrapped = codes_of(EVERY, 0.25, overflow="wrap")
assert not comparable(quantizing(EVERY, 0.25), [{"overflow": "wrap"}])
assert np.any(np.diff(wrapped) < 0)

# %% Corollary (certain equality).  For rules that `comparable` allows, first_difference returns None if and only if
# they are one function of the inputs of that type at these parameters, and else an input on which they differ.

request, specials = (quantizing(x, 0.3) for x in (EVERY, np.array([np.inf, -np.inf, -0.0], np.float16)))
singles = [d.change for d in DEVIATIONS.values() if "quantize" in d.ops and applicable(request, d)]
singles = [change for change in singles if comparable(request, [change])]
same = 0
for a, b in itertools.combinations(singles, 2):
    difference = first_difference(request, a, b)
    one, other = ([evaluate(r, change)["codes"] for r in (request, specials)] for change in (a, b))
    assert (difference is None) == all(map(np.array_equal, one, other))
    if difference is not None:
        assert evaluate(difference, a)["codes"] != evaluate(difference, b)["codes"]
    same += difference is None
assert same  # some deviations do nothing at these parameters, or the same

# %% Theorem (near ties are complete).  Let f round to nearest, with any rule for ties, exactly, and let g be monotone.
# If g = f on `near_ties(s, low, high)`, the floats next below, nearest to, and next above each t_k, and on the least
# and greatest finite float, then g = f on every finite float.  Here |k| < 2^28 and s is a float32, so that
# (k + 1/2) s is exact in float64.
#
# Proof.  The float n nearest to t_k is within half a gap of it, so its neighbours p < t_k < q enclose it strictly.
# Every float up to p is below t_k and every one from q on above.  So f is constant from q of t_k to p of t_(k + 1),
# both of which are among the inputs tried; g, monotone and equal to f at both ends, is constant there too.  The only
# floats that are left are the n themselves, which were tried, and those beyond the first and the last tie, where the
# least and the greatest float serve as the other end.

for s in (0.25, 0.3, 1.7, 2.0**-10):
    scale = float(np.float16(s))
    tried = np.unique(np.concatenate([near_ties(scale, -9, 7, np.float16), EVERY[[0, -1]]]))
    tried = tried[np.isfinite(tried)]
    exact, on_ties = (evaluate(quantizing(x, s))["codes"] for x in (EVERY, tried))
    for name, deviation in DEVIATIONS.items():
        if "quantize" not in deviation.ops or not comparable(quantizing(EVERY, s), [deviation.change]):
            continue
        equal_there = np.array_equal(evaluate(quantizing(tried, s), deviation.change)["codes"], on_ties)
        assert equal_there == np.array_equal(evaluate(quantizing(EVERY, s), deviation.change)["codes"], exact), name

# %% Without monotony it fails: wrapping agrees with saturating on all ties inside the range and on nothing beyond it.

inside = near_ties(0.25, -8, 6, np.float16)
saturating, wrapping = (evaluate(quantizing(inside, 0.25), {"overflow": how})["codes"] for how in ("saturate", "wrap"))
assert np.array_equal(saturating, wrapping)
assert not np.array_equal(evaluate(quantizing(EVERY, 0.25))["codes"], wrapped)

# %% Without all three floats of a tie it fails: the float below the tie 1/2 is where adding 1/2 in float32 goes wrong.

x = near_ties(1.0, 0, 1, np.float32)
request = quantizing(x, 1.0, quotient="float32")
naive, right = (evaluate(request, {"rounding": how})["codes"] for how in ("add-half", "half_up"))
assert np.array_equal(naive[1:], right[1:])
assert naive[0] != right[0]
