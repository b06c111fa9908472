"""How errors pile up: an identity, a forecast that is exact where its model is, and why low bits couple layers.

Letters: a_l the activations of layer l, z_l = W_l a_{l-1} + b_l, a_l = phi(z_l); hats are what the quantized network
has in their places; e z_l = z^_l - z_l, e_l = a^_l - a_l; dW_l = W^_l - W_l; d_l what the quantizer of a_l adds;
alpha a step; G_l the diagonal matrix of secant slopes; u_j the contribution of source j to the error of the output; E
a mean.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

import refquant as rq
from refquant.net.gradient import pullback
from refquant.net.loss import cross_entropy
from refquant.theory.accumulate import attribute_error
from refquant.theory.curvature import layer_traces
from refquant.theory.distortion import distortion_of_cells
from refquant.theory.mismatch import TAILS
from refquant.theory.pair import images_of, pair_of
from refquant.theory.ratios import Ratio, harmonic, product
from refquant.theory.scales import separability

F = Fraction
Vector = list[Fraction]
Matrix = list[Vector]
rng = np.random.default_rng(7)


def matvec(W: Matrix, v: Vector) -> Vector:
    return [sum((w * x for w, x in zip(row, v, strict=True)), F(0)) for row in W]


def plus(*vectors: Vector) -> Vector:
    return [sum(parts, F(0)) for parts in zip(*vectors, strict=True)]


def minus(u: Vector, v: Vector) -> Vector:
    return [a - b for a, b in zip(u, v, strict=True)]


def relu(v: Vector) -> Vector:
    return [max(x, F(0)) for x in v]


def eighths(*shape: int) -> np.ndarray:
    """Random multiples of 1/8, as Fractions."""
    drawn = rng.integers(-12, 13, shape)
    return np.asarray(np.vectorize(lambda k: F(int(k), 8), otypes=[object])(drawn))


# %% Lemma 1 (secant slopes).  Of a function of one variable that does not fall and is nowhere steeper than 1, such as
# ReLU and ReLU6, the slope (phi(z^) - phi(z)) / (z^ - z), taken as 0 where z^ = z, lies in [0, 1], and
# phi(z^) - phi(z) = slope (z^ - z), exactly, however far apart the two are.
#
# Proof.  The second is the definition.  As phi does not fall, numerator and denominator have one sign; as it is nowhere
# steeper than 1, the numerator is no larger.


def slopes(z: Vector, moved: Vector) -> Vector:
    pairs = zip(z, moved, relu(z), relu(moved), strict=True)
    return [(fb - fa) / (b - a) if b != a else F(0) for a, b, fa, fb in pairs]


for a, b in itertools.product([F(k, 4) for k in range(-6, 7)], repeat=2):
    (slope,) = slopes([a], [b])
    assert 0 <= slope <= 1
    assert slope * (b - a) == max(b, F(0)) - max(a, F(0))

# A derivative in its place is exact only where no kink lies between:

assert 1 * (F(-1) - F(1)) != max(F(-1), F(0)) - max(F(1), F(0))

# %% Lemma 2 (max pool).  Let the maximum of a window be x_i before and x^_j after, g = x_i - x_j and g^ = x^_j -
# x^_i. Then max x^ - max x = (1 - lambda) e_i + lambda e_j with lambda = g^ / (g + g^) in [0, 1], any lambda where
# both are 0.
#
# Proof.  g, g^ >= 0, as i and j win.  e_j - e_i = (x^_j - x^_i) - (x_j - x_i) = g^ + g.  The change is x^_j - x_i =
# (x^_i + g^) - x_i = e_i + g^ = e_i + lambda (g + g^).

one_place_is_wrong = 0
for _ in range(2000):
    x, moved = eighths(2, 4).tolist()
    i, j = x.index(max(x)), moved.index(max(moved))
    g, g2 = x[i] - x[j], moved[j] - moved[i]
    lam = g2 / (g + g2) if g + g2 else F(0)
    e = minus(moved, x)
    assert 0 <= lam <= 1
    assert max(moved) - max(x) == (1 - lam) * e[i] + lam * e[j]
    one_place_is_wrong += max(moved) - max(x) not in (e[i], e[j])
assert one_place_is_wrong > 500  # neither place alone will do

# %% Theorem 1 (telescoping identity).  The error of layer l is
#
#     e z_l = W_l e_{l-1} + dW_l a^_{l-1} + db_l,   e_l = G_l e z_l + d_l,
#
# so the error of the output is the sum of what each source injects, carried on by the linear maps G_k W_k that follow.
#
# Proof.  W^ a^ - W a = W (a^ - a) + (W^ - W) a^, and lemma 1; d_l is added at the quantized value.  Each step is linear
# in what comes in, so parts stay apart: unfold from the last layer to the first.


def network(x: Vector, layers: list[tuple[Matrix, Matrix, Vector, Vector]]) -> tuple[list[Vector], Vector]:
    """Contributions of all weights and activations in order, and the error, of alternating layers W and ReLU."""
    a = moved = x
    parts: list[Vector] = []
    for n, (W, W2, b, d) in enumerate(layers):
        z, z2 = plus(matvec(W, a), b), plus(matvec(W2, moved), b)
        injected = matvec([minus(r, s) for r, s in zip(W2, W, strict=True)], moved)
        parts = [*(matvec(W, u) for u in parts), injected]
        assert plus(*parts) == minus(z2, z)
        if n == len(layers) - 1:
            return parts, minus(z2, z)
        G = slopes(z, z2)
        parts = [[g * v for g, v in zip(G, u, strict=True)] for u in parts] + [d]
        a, moved = relu(z), plus(relu(z2), d)
    raise AssertionError("no layers")


for _ in range(50):
    sizes = [3, 4, 4, 2]
    layers = [(eighths(o, i).tolist(), eighths(o, i).tolist(), eighths(o).tolist(), eighths(o).tolist())
              for i, o in itertools.pairwise(sizes)]  # fmt: skip
    contributions, error = network(eighths(3).tolist(), layers)
    assert len(contributions) == 5
    assert plus(*contributions) == error  # exactly: weights of any size, errors of any size

# %% Corollary (shares and the Gram matrix).  With K_ij = E u_i u_j the mean squared error is the sum of all K_ij, and
# share_j = E u_j e / E|e|^2 sums to 1 where e is not 0.  A share may be negative: a source that cancels others.
#
# Proof.  e = sum u_j in both places of E e e, and in one.

total = sum((c * c for c in error), F(0))
K = [[sum((a * b for a, b in zip(u, v, strict=True)), F(0)) for v in contributions] for u in contributions]
assert sum(map(sum, K)) == total
shares = [sum((a * b for a, b in zip(u, error, strict=True)), F(0)) / total for u in contributions]
assert sum(shares) == 1
cancelling = [[F(3)], [F(-1)]]
assert [u[0] * F(2) / F(4) for u in cancelling] == [F(3, 2), F(-1, 2)]

# The program does the same for every op, in floats, to their rounding (tests/test_accumulate.py has the zoo):

graph, data = rq.load_network("mlp"), rq.load_data("fashion-mnist")
plan = rq.quantize_network(graph, data.calibration.x[:8], bits=(3, 3), method="absmax")
found = attribute_error(graph, plan, data.test.x[:2])
assert found.residual <= 1e-12
assert abs(sum(found.shares.values()) - 1) <= 1e-12

# %% Where an assumption is dropped: measuring sources one at a time explains no total.  Two errors in two layers that
# cancel have an alone-error each, and none together.

first_error, second_error = F(1, 4), F(-1, 5)
assert (1 + first_error) * (1 + second_error) == 1
assert 1 + first_error != 1
assert 1 + second_error != 1

# %% Lemma 3 (subtractive dither).  Let u be uniform over a step alpha, centred at 0, and Q rounding to nearest without
# limits.  Then the error Q(x + u) - u - x is uniform over a step, centred at 0, whatever x is.
#
# Proof.  As a function of u it is minus u - (Q(x + u) - x): it falls with slope -1 and jumps by alpha once, where x + u
# meets a threshold; so it takes each value of the interval once.  With a dither of n equally likely values, spaced
# alpha / n, it takes n values so spaced once each: variance alpha^2 / 12 (1 - 1 / n^2), about a centre within
# alpha / (2 n) of 0, and at 0 where x is a multiple of alpha / n and n is even.

N = 4
DITHER = [F(2 * k + 1, 2 * N) - F(1, 2) for k in range(N)]


def nearest(v: Fraction) -> Fraction:
    return F((v + F(1, 2)).__floor__())


for x in [F(k, 24) for k in range(-40, 41)]:
    errors = [nearest(x + u) - u - x for u in DITHER]
    centre = sum(errors, F(0)) / N
    assert abs(centre) <= F(1, 2 * N)
    assert centre == 0 or (x * N).denominator > 1
    assert sum(((e - centre) ** 2 for e in errors), F(0)) / N == F(1, 12) * (1 - F(1, N * N))

# Dither that is not taken off again has a variance that depends on x: 0 on the grid, for a dither below half a step.

assert {sum(((nearest(x + u) - x) ** 2 for u in DITHER), F(0)) / N for x in (F(0), F(1, 2))} == {F(0), F(1, 4)}

# %% Theorem 2 (variance recursion).  In a linear network whose activations carry independent noise of variances D_l,
# the covariance of the error follows C_l = W_l (C_{l-1} + D_{l-1}) W_l^T, so that
#
#     E|e_L|^2 = sum over l and i of |J_l[:, i]|^2 sigma_{l,i}^2,   J_l = W_L ... W_{l+1}.
#
# Proof.  The error is the sum of J_l d_l (theorem 1 with dW = 0 and slopes 1), of independent parts with mean 0; the
# covariance of a sum of independent parts is the sum of theirs, and that of J d is J D J^T, with trace
# sum |J[:, i]|^2 sigma_i^2.

# Every combination of the dithers of four values in two layers, none left out.  All that is quantized is a multiple of
# 1/4, as rows of V have two odd entries and errors are odd multiples of 1/8: centres are 0, and the two sides equal.

X, V, U = [F(1, 4), F(3, 4)], [[F(1), F(-3)], [F(3), F(1)]], [[F(1), F(2)]]
clean, power = matvec(U, matvec(V, X)), F(0)
for u in itertools.product(DITHER, repeat=4):
    first = [nearest(x + s) - s for x, s in zip(X, u[:2], strict=True)]
    second = [nearest(z + s) - s for z, s in zip(matvec(V, first), u[2:], strict=True)]
    power += minus(matvec(U, second), clean)[0] ** 2 / N**4
J0, J1 = matvec([list(column) for column in zip(*V, strict=True)], U[0]), U[0]
assert power == F(1, 12) * (1 - F(1, N * N)) * sum((j * j for j in J0 + J1), F(0))

# %% Where assumptions are dropped.  A ReLU between makes it first order: noise of +-1 about a value of 1/2 is cut at 0,
# and the forecast with the slope at 1/2 is too large; about -1/2 it is too small; with noise below 1/2 it is exact.

for centre, size, holds in ((F(1, 2), F(1), False), (F(-1, 2), F(1), False), (F(1, 2), F(1, 4), True)):
    errors = [relu([centre + s * size])[0] - relu([centre])[0] for s in (F(-1), F(1))]
    slope = F(int(centre > 0))
    assert (sum((e * e for e in errors), F(0)) / 2 == slope * size**2) == holds

# Equal values err equally: n of them that are averaged keep the noise of one, not the n-th part.

n, flat = 5, F(3, 10)
shared = [flat - nearest(flat)] * n
assert (sum(shared, F(0)) / n) ** 2 == shared[0] ** 2
assert (sum(shared, F(0)) / n) ** 2 != shared[0] ** 2 / n

# %% Lemma 4 (floor's bias beside values on the grid).  Over whole cells floor has bias -alpha / 2 and mean square
# alpha^2 / 3, four times the alpha^2 / 12 of rounding to nearest.  Where a share p of the values lies on the grid, a
# constant that takes off the bias leaves (1 - p) alpha^2 / 12 + p (1 - p) alpha^2 / 4.
#
# Proof.  The error is uniform on (-alpha, 0], or 0 with probability p: E d = -(1 - p) alpha / 2, E d^2 =
# (1 - p) alpha^2 / 3, and (1 - p) / 3 - (1 - p)^2 / 4 = (1 - p) / 12 + p (1 - p) / 4.

for p in [F(k, 12) for k in range(13)]:
    assert (1 - p) / 3 - (1 - p) ** 2 / 4 == (1 - p) / 12 + p * (1 - p) / 4 <= F(4, 3) / 12
assert (
    abs(distortion_of_cells(1.0, rounding="floor").mse - 4 * distortion_of_cells(1.0, rounding="half_even").mse) < 1e-15
)

# %% Theorem 3 (products).  For independent factors with E (x^ - x)^2 = NSR E x^2 and E x x^ = (1 + beta) E x^2, the
# ratio of the product is prod (1 + 2 beta_i + NSR_i) - 2 prod (1 + beta_i) + 1.
#
# Proof.  E x^^2 = E (x + d)^2 = (1 + 2 beta + NSR) E x^2.  Of independent factors, E of a product is the product of E:
# expand E (prod x^ - prod x)^2 = E prod x^^2 - 2 E prod x x^ + E prod x^2, and divide by E prod x^2.

FACTORS = [[(3, 4), (-1, -1), (2, 1)], [(5, 5), (1, 2)], [(-2, -1), (7, 6), (1, 1)]]


def ratio(pairs: list[tuple[int, int]]) -> tuple[Fraction, Fraction]:
    energy = F(sum(x * x for x, _ in pairs))
    return sum((q - x) ** 2 for x, q in pairs) / energy, sum(x * (q - x) for x, q in pairs) / energy


whole = [(math.prod(x for x, _ in c), math.prod(q for _, q in c)) for c in itertools.product(*FACTORS)]
known = [ratio(pairs) for pairs in FACTORS]
exact_form = math.prod(1 + 2 * b + r for r, b in known) - 2 * math.prod(1 + b for _, b in known) + 1
assert ratio(whole)[0] == exact_form

# %% Corollary (noise and least squares).  Noise of mean 0, independent of the signal, has beta = 0: 1 + NSR multiplies.
# Scales of least squared error have beta = -NSR: 1 - NSR multiplies.
#
# Proof.  1 + 2 beta + NSR is 1 + NSR, or 1 - NSR = 1 + beta.  The scale of least squared error makes d orthogonal to
# x^, as alpha q = x^ is the projection of x onto q: E x^ d = 0, that is beta + NSR = 0, for E x d + E d^2 = 0.

codes = [1, -1, 2, 0, 1]
values = [F(3, 2), F(-5, 4), F(9, 4), F(1, 8), F(2, 3)]
alpha = sum((c * x for c, x in zip(codes, values, strict=True)), F(0)) / sum(c * c for c in codes)
d = [alpha * c - x for c, x in zip(codes, values, strict=True)]
assert sum((x * e for x, e in zip(values, d, strict=True)), F(0)) == -sum((e * e for e in d), F(0))
r = F(1, 10)
assert 1 - math.prod([1 - r] * 2) == math.prod([1 - r] * 2) - 2 * math.prod([1 - r] * 2) + 1

# %% Corollary (harmonic rule).  To first order in the ratios, with beta = 0, NSR = sum NSR_i: 1 / SQNR adds up, and n
# factors alike lose 10 log10 n dB.  The sum is never above the exact form, and below it by at most
# exp(sum) - 1 - sum.
#
# Proof.  prod (1 + r_i) >= 1 + sum r_i, and prod (1 + r_i) <= exp(sum r_i).

for n, nsr in itertools.product((2, 5, 20), (1e-1, 1e-3, 1e-6)):
    alike = [Ratio(nsr)] * n
    gap, s = product(alike) - harmonic(alike), n * nsr
    assert -1e-15 <= gap <= math.expm1(s) - s + 1e-15
    assert abs(10 * math.log10(harmonic(alike) / nsr) - 10 * math.log10(n)) <= 1e-9

# For layers it is a model: their terms would have to be uncorrelated, and the signs of weights average noise that is
# not.  A sum of two values with one and the same error has twice the noise power of two independent errors:

assert (F(1) + F(1)) ** 2 == 2 * (F(1) ** 2 + F(1) ** 2)

# %% Theorem 4 (low bits couple layers).  What the sum of single effects misses of a product with independent noise is
# prod (1 + r_i) - 1 - sum r_i = sum over pairs of r_i r_j and higher terms.  Relative to the sum it is at most
# (exp(s) - 1 - s) / s with s = sum r_i, about s / 2: a bit less in each factor makes it four times as large.
#
# Proof.  Expand the product; bound it by the exponential; r is alpha^2 / 12 over the signal's power, and a bit less
# doubles alpha.


def missed(bits: int, factors: int = 6) -> float:
    r = (2.0 / 2**bits) ** 2 / 12 / (1 / 3)  # uniform on [-1, 1]
    return product([Ratio(r)] * factors) / harmonic([Ratio(r)] * factors) - 1


for bits in range(3, 9):
    assert 3.9 < missed(bits) / missed(bits + 1) < 4.6
assert missed(8) < 1e-3 < 0.1 < missed(2)

# In one layer: W^ a^ - W a = W e + dW a + dW e; the last term, which neither error has alone, has power r_w r_a, that
# is at most half of the larger ratio relative to r_w + r_a.

for rw, ra in itertools.product([F(k, 16) for k in range(1, 9)], repeat=2):
    assert rw * ra / (rw + ra) <= max(rw, ra) / 2

# %% Lemma 5 (Fisher and Gauss-Newton).  For logits z and the cross-entropy, S = diag(p) - p p^T is E (p - y)(p - y)^T
# over labels y drawn from p: J^T S J, of any weights, is the Fisher matrix.
#
# Proof.  E y = p and E y y^T = diag(p), so E (p - y)(p - y)^T = p p^T - 2 p p^T + diag(p).

P = [F(1, 2), F(1, 3), F(1, 6)]
for i, j in itertools.product(range(3), repeat=2):
    drawn = sum((P[y] * (P[i] - (i == y)) * (P[j] - (j == y)) for y in range(3)), F(0))
    assert drawn == P[i] * (i == j) - P[i] * P[j]

# With the true labels it is another matrix.  Both traces, by one image's gradients:

x, y = data.test.x[:1], np.asarray(data.test.y)[:1]
trace = layer_traces(graph, x, y)["gemm2"]
pair = pair_of(graph, rq.QuantPlan())
tape = pair.run(images_of(graph, x), graph.output, ())
squares = [
    float(np.sum(pullback(tape, cross_entropy(tape.output, [k]).cotangent, ["gemm2:weight"])["gemm2:weight"] ** 2))
    for k in range(10)
]
p = np.exp(tape.output[0] - tape.output[0].max())
assert abs(float(p / p.sum() @ squares) / trace.gauss_newton - 1) <= 1e-9
assert abs(squares[int(y[0])] / trace.empirical_fisher - 1) <= 1e-9

# %% Lemma 6 (separability index).  For independent x and z of one law, the mean of
# f(x) (f(x) + (m - 1) f(z) - sum over j of f(z with x_j for z_j)) is V - sum V_j, V = Var f, V_j = Var E[f | x_j]: 0
# exactly if f is a sum of functions of one variable each.
#
# Proof.  With M = E f: E f(x)^2 = V + M^2, E f(x) f(z) = M^2, and f(x) and f(z with x_j) are independent given x_j, so
# the mean of their product is E E[f | x_j]^2 = V_j + M^2.  Together V + M^2 + (m - 1) M^2 - sum (V_j + M^2).  By the
# decomposition of f into uncorrelated parts of 0, 1, 2, ... variables, V - sum V_j is the variance of the parts of two
# and more.

POINTS = [F(0), F(1), F(2)]  # equally likely, three variables: all pairs of points, none left out


def index(f: Callable[..., Fraction]) -> Fraction:
    mean = F(0)
    for x in itertools.product(POINTS, repeat=3):
        for z in itertools.product(POINTS, repeat=3):
            mixed = sum((f(*(x[k] if k == j else z[k] for k in range(3))) for j in range(3)), F(0))
            mean += f(*x) * (f(*x) + 2 * f(*z) - mixed)
    return mean / 3**6


assert index(lambda a, b, c: a**3 - 2 * b + c * c) == 0
assert index(lambda a, b, c: a * b + c) == F(4, 9)  # that of (a - 1)(b - 1): (2/3)^2
sampled = separability(lambda s: float(s[0] * s[1] + s[2]), np.zeros(3), np.ones(3), samples=4000, rng=rng)
assert abs(sampled.interaction - 1 / 144) <= 5 * sampled.standard_error

# %% Lemma 7 (tails).  Let S be a sum of independent terms, uniform and centred, of variance v together.  Then
# P(S >= g) <= v / (2 g^2), and P(S >= g) <= exp(-g^2 / (6 v)).
#
# Proof.  S is symmetric, so P(S >= g) is half of P(|S| >= g), which Chebyshev's inequality bounds by v / g^2.  A
# uniform term of variance s lies in an interval of squared width 12 s: Hoeffding's inequality exp(-2 g^2 / sum of
# squared widths) gives exp(-2 g^2 / (12 v)).

for g in [F(k, 40) for k in range(1, 20)]:  # one term, of width 1: P(S >= g) = 1/2 - g
    tail, v = F(1, 2) - g, F(1, 12)
    assert tail <= v / (2 * g * g)
    assert float(tail) <= math.exp(-float(g * g / (6 * v)))
    assert float(tail) <= float(TAILS["chebyshev"](np.array(float(g)), np.array(1 / 12))) * (1 + 1e-12)

# The Gaussian tail is no bound, not even within the model: one term, g = 0.4.

assert float(TAILS["gaussian"](np.array(0.4), np.array(1 / 12))) < 0.1

# %% None of it bounds a given network on a given image: rounding's error is no noise.  Here twelve values err by almost
# half a step, all to one side; independent noise of their variance, 1 together, adds up so with less than 3 in 1,000.

errors = [nearest(F(499, 1000)) - F(499, 1000)] * 12
assert sum(errors, F(0)) == -F(5988, 1000)
assert math.exp(-(5.988**2) / 6) < 0.003
