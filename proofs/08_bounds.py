"""Bounds on the error of a quantized network: why each is one, roundings included, and what each loses.

Letters: a a value of the float run, as recorded, a + e that of the quantized run, e its error; s a scale, z a zero
point, d = Q(v) - v the error of a quantizer, rho that of rounding to an integer, in steps; L^, b^ the quantized weights
and bias; r the radius of a box; u a linear form of errors, or the unit roundoff where it says so.
"""

import itertools
import math
from fractions import Fraction

import numpy as np

import refquant as rq
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.theory.affine import bound_forms, element_forms
from refquant.theory.bounds import bound_error
from refquant.theory.box import Box, point
from refquant.theory.quantizer_error import ROUNDING, quantizer_error
from refquant.theory.rounding_error import TINY, UNITS, gamma, sum_down, sum_up
from refquant.theory.spectral import conv_norm_bound, norm_bound

rng = np.random.default_rng(8)

# %% Lemma 1 (one quantizer).  Let rounding err by rho in [rho_low, rho_high], and v lie in [low, high].  With bottom =
# s (qmin - z), top = s (qmax - z), d lies between
#
#     max(min(s rho_low, top - high), bottom - high)   and   min(max(s rho_high, bottom - low), top - low).
#
# Proof.  Let k be the integer before saturation, w = s (k - z) = v + s rho.  Q(v) is w clipped to [bottom, top], the
# middle one of w, bottom and top.  If w <= top, then Q(v) >= w, so d >= s rho_low; else Q(v) = top, and d = top - v >=
# top - high.  So d >= min(s rho_low, top - high); and always Q(v) >= bottom.  The other side is alike.

GRID = rq.QuantSpec(3)
VALUES = [Fraction(k, 8) for k in range(-60, 60)]


def decoded(v: Fraction, spec: rq.QuantSpec) -> Fraction:
    return Fraction(rq.quantize_exact(v, 1.0, 1, spec) - 1)


for mode, (down, up) in ROUNDING.items():
    spec = rq.QuantSpec(3, rounding=mode)
    bottom, top = spec.qmin - 1, spec.qmax - 1
    for low, width in itertools.product(VALUES[::7], (Fraction(0), Fraction(1), Fraction(5, 2))):
        high = low + width
        least = max(min(Fraction(down), top - high), bottom - high)
        most = min(max(Fraction(up), bottom - low), top - low)
        for v in VALUES:
            if low <= v <= high:
                assert least <= decoded(v, spec) - v <= most
        if low == -5:  # the program says the same, outwards
            box = quantizer_error(
                spec, np.array(1.0), np.array(1), Box(np.array(float(low)), np.array(float(high))), "float64"
            )
            assert float(box.low) <= least <= most <= float(box.high)
            assert float(box.high - box.low) <= most - least + 1e-12

# Half a step alone is no bound where values are clipped:

assert decoded(Fraction(7), GRID) - 7 < Fraction(-1, 2)

# %% Lemma 2 (a linear step).  If x^ = a + e is read and a_out = L a + b (or whatever the float run recorded) was given,
#
#     e_out = L^ e + (L^ a + b^ - a_out),
#
# and for e with |e - m| <= r, element by element, e_out is within |L^| r of L^ m + (L^ a + b^ - a_out): exactly the
# range of each element.
#
# Proof.  e_out = L^ (a + e) + b^ - a_out.  |sum_j L^_j (e_j - m_j)| <= sum_j |L^_j| r_j, with equality at the corner
# e_j = m_j + r_j sign L^_j.  Only the weights that carry e enter the radius: what the weights' own error does at a is a
# known number.  Bounding |L^ - L| (|a| + |e|) instead would take it for unknown.


def fractions(*shape: int) -> np.ndarray:
    """Random multiples of 1/8, exact."""
    return np.asarray(np.vectorize(Fraction)(rng.integers(-20, 21, shape)) / 8)


L, Lq, a, m = fractions(3, 4), fractions(3, 4), fractions(4), fractions(4)
b, bq, r = fractions(3), fractions(3), np.abs(fractions(4))
out = L @ a + b
corners = [m + r * np.array(signs) for signs in itertools.product((-1, 1), repeat=4)]
errors = np.array([Lq @ (a + e) + bq - out for e in corners])
middle, radius = Lq @ m + (Lq @ a + bq - out), np.abs(Lq) @ r
assert (errors.max(axis=0) == middle + radius).all()
assert (errors.min(axis=0) == middle - radius).all()

# %% Lemma 3 (Relu).  Let phi(e) = max(a + e, 0) - max(a, 0) and e in [low, high].  For any slope, phi(e) - slope e
# takes its extremes at low, at high, or at -a clipped to [low, high].  Where a and all a + e have one sign it is 0
# for the slope 0 or 1; the chord's slope, (phi(high) - phi(low)) / (high - low), leaves the least width.
#
# Proof.  phi - slope e is a line on either side of -a: its extremes are at ends of pieces.  phi is convex, so it lies
# below its chord and above the parallel through the kink; for another slope the rest is at least as far apart at low
# and high, or at the kink and one of these, as the height between the two parallels.

LOWS, HIGHS = (Fraction(-3), Fraction(-1, 2)), (Fraction(1, 2), Fraction(4))
for a1, *ends in itertools.product(map(Fraction, (-2, 0, 1)), LOWS, HIGHS):

    def phi(e: Fraction, at: Fraction = a1) -> Fraction:
        return max(at + e, Fraction(0)) - max(at, Fraction(0))

    kink = min(max(-a1, ends[0]), ends[1])
    every = [ends[0] + (ends[1] - ends[0]) * Fraction(k, 60) for k in range(61)]
    chord = (phi(ends[1]) - phi(ends[0])) / (ends[1] - ends[0])
    widths = {}
    for slope in (Fraction(0), Fraction(1, 3), Fraction(1), chord):
        tried = [phi(e) - slope * e for e in (*ends, kink)]
        assert all(min(tried) <= phi(e) - slope * e <= max(tried) for e in every)
        widths[slope] = max(tried) - min(tried)
    assert widths[chord] == min(widths.values())

# %% Lemma 4 (MaxPool).  With w a place where the float run's maximum is, 0 <= e_out - e_w <= max(0, lead), lead the
# most that another place's a + e may be above that of w.  So the rest is 0 where no other place can be ahead.
#
# Proof.  e_out - e_w = max_j (a_j + e_j) - a_w - e_w, as max_j a_j = a_w: j = w gives 0, another j at most its lead.

for _ in range(200):
    a3, e3 = rng.integers(-9, 10, 5), rng.integers(-5, 6, 5)
    w = int(a3.argmax())
    lead = max(a3[j] + e3[j] - a3[w] - e3[w] for j in range(5) if j != w)
    assert (a3 + e3).max() - a3.max() - e3[w] == max(0, lead)

# %% Theorem 1 (intervals and affine forms).  Let every step of the network be a piece e_out = M e + c with a map M
# and a rest c in a box C, for all e in the boxes of its inputs.  Then the boxes made by intervals hold; and for every
# form u of the errors at a value, u e is the sum, over steps, of u_k c_k, with u_k the form carried back to step k by
# the transposed maps; so it is within sum_k |u_k| r_k of sum_k u_k m_k, m_k and r_k middles and radii of C_k.  The
# bound is attained if the rests may take all values of their boxes independently.
#
# Proof.  The first by induction over steps, lemmas 1 to 4 being its cases.  By the same induction all e lie in the
# boxes for which the pieces were made, so all pieces hold at once, and u e_out = (M^T u) e + u c unrolls to the sum.
# Its extremes over a product of boxes are at corners, as in lemma 2.
#
# Below: two layers of a network whose second quantizer may take any value within half a step: every corner is tried.


def line_network(kink: bool) -> tuple[Graph, QuantPlan]:
    """Gemm, Relu if there is a kink, and a Gemm whose input is quantized."""
    nodes = [Node("h", "Gemm", ("x",), {"in_features": 2, "out_features": 3}, {"weight": "A"})]
    nodes += [Node("k", "Relu", ("h",))] if kink else []
    last = nodes[-1].name
    nodes.append(Node("z", "Gemm", (last,), {"in_features": 3, "out_features": 2}, {"weight": "B"}))
    A, B = np.array([[1, 2], [-1, 1], [2, -1]], np.float32), np.array([[1, -2, 3], [1, -2, 2]], np.float32)
    q = ActivationQuantizer(rq.QuantSpec(8), np.array(0.25), np.array(0))
    return Graph("line", InputSpec("x", (2,)), "z", tuple(nodes), {"A": A, "B": B}), QuantPlan(activations={last: q})


graph, plan = line_network(kink=False)
found = bound_error(graph, plan, [[0.3, 0.45]])
d = np.array(list(itertools.product((-0.125, 0.125), repeat=3)))
reached = d @ graph.arrays["B"].T.astype(np.float64)
form = bound_forms(found.enclosure, "z", np.array([[[1.0, -1.0]]]))  # z_0 - z_1
slack = 1e-4  # of float32 roundings, which the bound covers, too
assert np.abs(found.affine["z"].high[0] - reached.max(axis=0)).max() < slack
assert abs(form.high[0, 0] - (reached[:, 0] - reached[:, 1]).max()) < slack

# Intervals for z_0 and z_1 apart forget that both come from the same errors:

apart = found.interval["z"].high[0, 0] - found.interval["z"].low[0, 1]
assert apart > 10 * form.high[0, 0]

# The way back gives what the forms of single elements give, too, and with a kink it stays a bound:

assert np.allclose(
    bound_forms(found.enclosure, "z", element_forms((2,), 1)).high[0], found.affine["z"].high[0], rtol=1e-9
)
graph, plan = line_network(kink=True)
x = rng.uniform(-1, 1, (20, 2)).astype(np.float32)
found, hidden = bound_error(graph, plan, x), np.maximum(x.astype(np.float64) @ graph.arrays["A"].T, 0)
exact = hidden @ graph.arrays["B"].T.astype(np.float64)
for shift in d:
    e = (hidden + np.where(hidden > 0, shift, 0)) @ graph.arrays["B"].T.astype(np.float64) - exact
    box = found.affine["z"].widened(slack)
    assert ((box.low <= e) & (e <= box.high)).all()

# %% Lemma 5 (norms).  Clipping, Relu and Softmax let the norm of no difference grow; a MaxPool lets it grow by at most
# sqrt(overlap), overlap the most windows that a pixel is in.  A zero-padded convolution has at most the norm
# sqrt(overlap) |K|, K the kernel as a matrix, and at most max over w of |K^(w)|, on any torus on which it does not
# wrap.
#
# Proof.  Clipping and Relu are nowhere steeper than 1.  Softmax has the Jacobian diag(p) - p p^T, symmetric, whose
# rows have sums of magnitudes 2 p_i (1 - p_i) <= 1/2: so its norm is at most 1/2 everywhere, also along the way from
# one point to another.  |max_j x_j - max_j y_j| <= max_j |x_j - y_j|, whose square is at most the sum over the
# window; added up over windows each pixel counts overlap times.  The same sum bounds |K P|^2 <= |K|^2 |P|^2 over
# patches P.  On the torus the convolution is block diagonal in the Fourier basis with blocks K^(w); padding, cropping
# and strides only restrict what goes in and what comes out.

for p in rng.dirichlet([0.3] * 4, 50):
    J = np.diag(p) - np.outer(p, p)
    rows = np.abs(J).sum(axis=1)
    assert np.allclose(rows, 2 * p * (1 - p))
    assert np.linalg.norm(J, 2) <= rows.max() + 1e-12 <= 0.5 + 2e-12

# The kernel's own norm is no bound:

window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
ones = np.ones((1, 1, 3, 3))
image = np.ones((1, 1, 40, 40))
padded = np.pad(image[0, 0], 1)
summed = sum(padded[i : i + 40, j : j + 40] for i in range(3) for j in range(3))
growth = np.linalg.norm(summed) / np.linalg.norm(image)
assert np.linalg.norm(ones.reshape(1, 9), 2) == 3 < 8.5 < growth
assert growth <= conv_norm_bound(ones, window, (1, 40, 40)) < 9.001

# %% Theorem 2 (a norm proved in floating point).  If the Cholesky factorization of t I - A A^T, as computed in float64,
# runs to its end, then |A|^2 <= t + delta with delta = gamma(m + 1) trace / (1 - gamma(m + 1)) and the roundings of
# forming the matrix, which are at most gamma(n + 2) |A|_F^2 and some u (t + |A|_F^2).
#
# Proof.  The computed R satisfies R^T R = H + D for the computed matrix H, |D| <= gamma(m + 1) |R^T| |R| (Higham 2002,
# theorem 10.3), whose norm is at most gamma(m + 1) trace(R^T R).  R^T R has no negative eigenvalue, so those of H are
# at least -|D|.  So no guess of t need be trusted: a wrong one makes the factorization fail, and |A|_F is taken.
#
# Below: t^2 I - A A^T is shown to be positive definite by an exact elimination, on Fractions.


def positive(H: list[list[Fraction]]) -> bool:
    """Whether all pivots of a symmetric matrix are positive."""
    H = [row[:] for row in H]
    for k in range(len(H)):
        if H[k][k] <= 0:
            return False
        for i in range(k + 1, len(H)):
            f = H[i][k] / H[k][k]
            H[i] = [x - f * y for x, y in zip(H[i], H[k], strict=True)]
    return True


def above(A: np.ndarray, t: float) -> bool:
    F = [[Fraction(v) for v in row] for row in A.tolist()]
    G = [[sum((x * y for x, y in zip(p, q, strict=True)), Fraction(0)) for q in F] for p in F]
    return positive([[Fraction(t) ** 2 * (i == j) - G[i][j] for j in range(len(G))] for i in range(len(G))])


for _ in range(10):
    A = rng.normal(0, 1, (4, 6)) * 10.0 ** rng.uniform(-3, 3, 6)
    t = float(norm_bound(A))
    assert above(A, t)
    assert not above(A, t * (1 - 1e-4))  # and it is close

# Power iteration from below is not a bound: begun almost across from the largest direction it stops at the second.

A, start = np.diag([2.0, 1.0]), np.array([1e-9, 1.0])
for _ in range(10):
    start = A.T @ A @ start
    start /= np.linalg.norm(start)
assert np.linalg.norm(A @ start) < 1.001 < norm_bound(A)

# %% Lemma 6 (roundings of a sum).  A sum of n products in floating point, in any order, fused or not, errs by at most
# gamma(n) sum |products| + n tiny, u the unit roundoff, gamma(n) = n u / (1 - n u), tiny the least normal number.
#
# Proof.  Each product meets at most n factors 1 + delta, |delta| <= u, one of its own and n - 1 of additions; their
# product differs from 1 by at most gamma(n) (Higham 2002, lemma 3.1).  Where a product underflows, it loses at most
# tiny, also where it is flushed to zero; additions that underflow are exact, or flushed, which loses as much, and of n
# products and the additions that do something to what is left of them at most n lose so.

n, p = 64, UNITS["float32"]
for _ in range(50):
    x, y = (rng.normal(0, 1, n).astype(np.float32) for _ in range(2))
    products = [Fraction(float(i)) * Fraction(float(j)) for i, j in zip(x, y, strict=True)]
    s = np.float32(0)
    for k in rng.permutation(n):
        s = np.float32(s + x[k] * y[k])
    bound = Fraction(gamma(n, p)) * sum(map(abs, products)) + n * Fraction(TINY["float32"])
    assert abs(Fraction(float(s)) - sum(products)) <= bound

# Without tiny it is false, and where terms cancel, no multiple of the sum itself would do:

small = np.float32(2.0**-80)
assert small * small == 0 < Fraction(float(small)) ** 2 * (1 - Fraction(gamma(1, p)))
three = np.array([1, 2.0**-24, -1], np.float32)
assert np.float32(np.float32(three[0] + three[1]) + three[2]) == 0 < sum(map(Fraction, three.tolist()))

# Nor is a subnormal operand that arithmetic reads as zero covered: a large factor makes a large loss of it.

assert 0 < 2.0**-127 < TINY["float32"] < 2.0**-127 * 2.0**100

# %% Lemma 7 (sums rounded outwards).  sum_down(a, b) <= a + b <= sum_up(a, b), and both are equal to it where a + b
# is a float64.
#
# Proof.  Knuth's two-sum gives fl(a + b) and the exact rest; a neighbour is taken only where the rest calls for it.

for i, j in zip(rng.normal(0, 1, 300), rng.normal(0, 1, 300) * 10.0 ** rng.uniform(-20, 2, 300), strict=True):
    below, beyond = float(sum_down(np.array(i), np.array(j))), float(sum_up(np.array(i), np.array(j)))
    assert Fraction(below) <= Fraction(i) + Fraction(j) <= Fraction(beyond)
    assert beyond <= math.nextafter(below, math.inf)

# %% Theorem 3 (noise).  Let errors d_k be independent, each in an interval of radius r_k about its mean, and u fixed.
# Then |sum u_k (d_k - mean)| < sqrt(2 ln(2 / delta) sum (u_k r_k)^2), but with probability delta.  If a box is made
# so for each of M forms, with delta / M, all hold at once but with probability delta, those that later boxes build on
# included.
#
# Proof.  Hoeffding 1963, theorem 2.  The forms u are computed from the boxes, so they are fixed numbers, not chance; on
# the event that none of the M inequalities fails, the boxes hold one after the other, by theorem 1.  Under subtractive
# dither, d is uniform in +-s/2, whatever is read, half a step or more from the ends of the grid.  Where a quotient errs
# by up to eta steps, so does the mean of d, for that of the code of (v + u) / s + eta is v / s + eta: so what intervals
# are wider than a step is added in full, and no chance.  Rounding by itself has no chance in it: there the statement
# is a model.
#
# Below: all 2^12 signs of d = +-r.

u, signs = rng.uniform(0.2, 1, 12), np.array(list(itertools.product((-1, 1), repeat=12)))
sums, power = np.abs(signs @ u), float(np.sum(u**2))
for delta in (0.5, 0.1, 0.01, 0.001):
    assert np.mean(sums >= math.sqrt(2 * math.log(2 / delta) * power)) <= delta

# Means elsewhere than in the middle break it.  Toward zero, errors lie within a step to both sides of 0, and those of
# numbers above 0 about minus half a step: so for these modes no chance is claimed.

assert 64 * Fraction(1, 2) > math.sqrt(2 * math.log(2 / 0.01) * 64 * 1)  # 64 numbers above 0, in steps: radius 1 each

# Errors that are not independent break it: all alike, they add up to the full radius, always.

assert float(np.sum(u)) > math.sqrt(2 * math.log(2 / 0.1) * power)

# %% Theorem 4 (what float32 does to a network).  With no quantizer, the same pieces have rests of roundings alone:
# for a Conv or a Gemm, L a - a_out as recorded, and gamma |L| (|a| + |e|) for the other run.  So what of an error is
# due to rounding is bounded by itself.
#
# Proof.  Lemmas 2 and 6, and theorem 1.

dense = Node("y", "Gemm", ("x",), {"in_features": 64, "out_features": 8}, {"weight": "W"})
W = rng.normal(0, 1, (8, 64)).astype(np.float32)
graph = Graph("dense", InputSpec("x", (64,)), "y", (dense,), {"W": W})
x = rng.normal(0, 1, (3, 64)).astype(np.float32)
e = x.astype(np.float64) @ W.T.astype(np.float64) - rq.forward(graph, x)  # an exact run beside the recorded one
box = bound_error(graph, QuantPlan(), x).affine["y"]
assert ((box.low <= e) & (e <= box.high)).all()
assert (box.magnitude <= 2.001 * gamma(66, p) * (np.abs(x) @ np.abs(W).T)).all()
assert point(x).known

# A batch norm is its line k x + c here.  A run that takes off the mean first rounds larger numbers:

norm = Node(
    "y", "BatchNorm", ("x",), {"channels": 1, "eps": 1.0}, {role: role for role in ("gamma", "beta", "mean", "var")}
)
moments = {"gamma": 1.0, "beta": 1000.0, "mean": 1000.0, "var": 0.0}
graph = Graph("norm", InputSpec("x", (1,)), "y", (norm,), {k: np.array([v], np.float32) for k, v in moments.items()})
tiny_x, shift = np.array([[0.001]], np.float32), np.float32(1000)
assert (
    bound_error(graph, QuantPlan(), tiny_x).affine["y"].magnitude.max()
    < 1e-8
    < np.max(np.abs(tiny_x - shift + shift - tiny_x))
)
