"""Lossless, in five senses: what each says, against which reference, what it implies, and what it does not.

Letters: z the logits of the float run, y its class (the first of the largest), e the error of the quantized run's
logits, g_i = (z_y + e_y) - (z_i + e_i) the gap to class i; N images, k of them whose classes differ.

Against the float network:
- code-exact: every weight is the sum of its terms, bit for bit, and activations stay float;
- class-certified, on a set: of every image it is proved, from the float run, that its class cannot change;
- class-equal, on a set: in a run, no image's class changed;
- statistically equivalent: a confidence interval of the difference of accuracies lies inside +-delta.
Against the 8-bit integer network:
- output-exact: its integer outputs, bit for bit.
"""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
from scipy.stats import beta, binom

import refquant as rq
from refquant.net.fold import fold_batch_norm
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.theory.bounds import bound_error
from refquant.theory.certificate import certify, coverage

rng = np.random.default_rng(9)


def line(W: list[list[float]], name: str = "z", of: str = "x") -> tuple[Node, dict[str, np.ndarray]]:
    """A Gemm with this weight, and its array."""
    w = np.array(W, np.float32)
    return Node(name, "Gemm", (of,), {"in_features": w.shape[1], "out_features": len(w)}, {"weight": name + "W"}), {
        name + "W": w
    }


def network(*layers: tuple[Node, dict[str, np.ndarray]]) -> Graph:
    arrays = {name: w for _, part in layers for name, w in part.items()}
    nodes = tuple(node for node, _ in layers)
    return Graph("proof", InputSpec("x", (next(iter(arrays.values())).shape[1],)), nodes[-1].name, nodes, arrays)


def quantizer(scale: float, bits: int = 8) -> ActivationQuantizer:
    return ActivationQuantizer(rq.QuantSpec(bits), np.array(scale), np.array(0))


# %% Lemma 1 (code-exact).  If every weight decodes to the float weight, bit for bit, and nothing else is quantized, the
# quantized network's tensors are those of the float network with its batch norms folded, bit for bit, for every input.
#
# Proof.  Both runs perform the same operations on the same numbers.  When weights are multiples of 2^-k below 2^m, some
# T terms do it (`05_terms.py`, lemma 4).
#
# Below: 7-bit weights as two terms of 4 bits.

W = (rng.integers(-64, 64, (3, 5)) / 64).tolist()
graph, x = network(line(W)), rng.normal(0, 1, (50, 5)).astype(np.float32)
signed, unsigned = rq.QuantSpec(4, rounding="floor"), rq.QuantSpec(4, signed=False, rounding="floor")
codes = np.floor(np.array(W) * 64).astype(int)
high = codes >> 4
terms = rq.MultiTerm(np.array([high, codes - 16 * high]), np.array([0.25, 2.0**-6]), (signed, unsigned), np.array(2))
exact = QuantPlan({"z": terms})
assert terms.decode().tobytes() == graph.arrays["zW"].tobytes()
assert rq.forward(graph, x, exact, "fake").tobytes() == rq.forward(graph, x).tobytes()

# Where a batch norm is not folded in the float run, that run rounds otherwise, and last bits differ without a plan:

norm = Node("n", "BatchNorm", ("z",), {"channels": 3, "eps": 0.1}, {k: k for k in ("gamma", "beta", "mean", "var")})
moments = {k: rng.uniform(0.5, 2, 3).astype(np.float32) for k in norm.params.values()}
normed = Graph("normed", graph.input, "n", (*graph.nodes, norm), {**graph.arrays, **moments})
assert (rq.forward(normed, x, QuantPlan(), "fake") != rq.forward(normed, x)).any()
folded = fold_batch_norm(normed)
assert rq.forward(normed, x, QuantPlan(), "fake").tobytes() == rq.forward(folded, x).tobytes()

# With one term the logits differ, and so they do, with both, where activations are quantized, too:

assert (rq.forward(graph, x, QuantPlan({"z": terms.truncated(1)}), "fake") != rq.forward(graph, x)).any()
assert (rq.forward(graph, x, replace(exact, activations={"x": quantizer(0.1)}), "fake") != rq.forward(graph, x)).any()

# %% Theorem 1 (certificate).  Let E hold every error e that the quantized run may have, as far as the float run tells.
# If g_i > 0 for every i != y and every e in E, the class of the quantized run is y.
#
# Proof.  The run's own e is in E, so z_y + e_y is above every other logit.
#
# The converse is false: a class may stay without a certificate.

fed, weight = line([[1.0, 0.2], [0.2, 1.0]], "h"), line([[3.0, -2.0], [-2.0, 3.0]], "z", "h")
graph, plan = network(fed, weight), QuantPlan(activations={"h": quantizer(0.25)})
x = rng.uniform(-2, 2, (200, 2)).astype(np.float32)
found = certify(graph, plan, x)
same = rq.forward(graph, x, plan, "fake").argmax(axis=1) == found.classes
assert same[found.certified].all()
assert 0 < found.certified.sum() < same.sum() < len(x)

# By hand: g = 5 (h_1 - h_2) up to sign, and each h may err by an eighth: certified exactly where |h_1 - h_2| > 1/4.

h = x.astype(np.float64) @ np.array([[1.0, 0.2], [0.2, 1.0]])
margin = np.abs(h[:, 0] - h[:, 1]) - 0.25
assert (found.certified == (margin > 0))[np.abs(margin) > 1e-4].all()

# And no more: of all errors within half a step, some change the class of every image without a certificate.

for image in np.flatnonzero(~found.certified & (margin < -1e-3)):
    d = np.array(list(itertools.product((-0.125, 0.125), repeat=2)))
    moved = (h[image] + d) @ np.array([[3.0, -2.0], [-2.0, 3.0]])
    assert (moved.argmax(axis=1) != found.classes[image]).any()

# %% Lemma 2 (a gap is one form).  The least g_i over E is at least the difference of the bounds on the two logits, and
# often above it: errors that both logits have cancel in g_i.

common = network(line([[1.0, 1.0], [1.0, -1.0]], "h"), line([[4.0, 1.0], [4.0, -1.0]], "z", "h"))
half = QuantPlan(activations={"h": quantizer(0.5)})
both, logits = certify(common, half, [[1.3, 0.3]]), bound_error(common, half, [[1.3, 0.3]])
z = logits.reference["z"][0]
apart = z[0] + logits.affine["z"].low[0, 0] - z[1] - logits.affine["z"].high[0, 1]
assert both.certified.all()
assert apart < 0 < both.gaps[0, 1]

# %% Lemma 3 (what a set does not say).  Class-equal on a set says nothing of other images.  A certificate of a region
# does: neither class can be another anywhere in it.
#
# Below: a network of one number.  Two images keep their classes, one between them does not.

one = network(line([[1.0], [2.0]], "h"), line([[1.0, 0.0], [0.0, 0.5]], "z", "h"))
one = replace(one, arrays={**one.arrays, "zW": np.array([[1.05, 0.0], [0.0, 0.5]], np.float32)})
coarse = QuantPlan(activations={"h": quantizer(0.5)})
line_of_images = (np.arange(1, 400) / 100).astype(np.float32)[:, None]
differ = rq.forward(one, line_of_images, coarse, "fake").argmax(axis=1) != rq.forward(one, line_of_images).argmax(
    axis=1
)
kept = np.flatnonzero(~differ)
assert differ.any()
assert any(differ[i:j].any() for i, j in itertools.pairwise(kept))
middles = line_of_images[::10]
covered = certify(graph, plan, np.concatenate([x[:60]]), radius=0.05)
assert covered.certified.any()
for corner in itertools.product((-0.05, 0, 0.05), repeat=2):
    near = (x[:60] + np.array(corner) * (1 - 2.0**-18)).astype(np.float32)
    for logits_there in (rq.forward(graph, near), rq.forward(graph, near, plan, "fake")):
        assert (logits_there.argmax(axis=1) == covered.classes)[covered.certified].all()

# %% Theorem 2 (statistical equivalence).  Let k of N independent images have another class in the quantized run, and U
# be the upper end of Clopper and Pearson's interval: P(Binomial(N, U) <= k) = alpha.  If U <= delta, the accuracies on
# the images' distribution differ by at most delta, with confidence 1 - alpha; no labels are needed.
#
# Proof.  Whether an image is classified rightly can only differ where its class does, so |difference| <= p, the
# probability of another class; and U >= p with probability at least 1 - alpha.  For if U(k) < p, then k is at most the
# largest such k, k0, and P(Binomial(N, p) <= k0) <= P(Binomial(N, U(k0)) <= k0) = alpha.


def upper(k: int, N: int, alpha: float) -> float:
    return 1.0 if k == N else float(beta.ppf(1 - alpha, k + 1, N - k))


for N, alpha in ((25, 0.05), (60, 0.01)):
    ends = np.array([upper(k, N, alpha) for k in range(N + 1)])
    assert abs(binom.cdf(3, N, ends[3]) - alpha) < 1e-9
    for p in np.arange(0.01, 1, 0.01):
        assert binom.pmf(np.arange(N + 1), N, p)[ends < p].sum() <= alpha + 1e-12

assert upper(0, 10_000, 0.05) < 3.0e-4  # no class changed in 10,000: accuracies within 0.03 points

# A test that does not reject proves nothing: of 20 images, 3 for the worse and none for the better give McNemar's exact
# test p = 0.25, while accuracies may differ by a third.

assert 2 * binom.cdf(0, 3, 0.5) == 0.25
assert upper(3, 20, 0.05) > 0.34

# And the set must not have been used to fit: here the scale is chosen so that no image of one half changes its class.


def changed(scale: float, images: np.ndarray) -> int:
    made = QuantPlan(activations={"h": quantizer(scale)})
    return int((rq.forward(graph, images, made, "fake").argmax(1) != rq.forward(graph, images).argmax(1)).sum())


few, others = x[:10], x[10:]
scales = [s for s in np.geomspace(0.05, 2, 60) if changed(float(s), few) == 0]
assert max(changed(float(s), others) for s in scales) > 0

# %% Lemma 4 (output-exact).  With q = 16 h + l and q' = 16 h' + l', 4-bit terms of codes less zero points, a sum of
# products is four sums: 256 sum h h' + 16 (sum h l' + sum l h') + sum l l'.  So two terms of 4 bits give the 8-bit
# integer network's sums exactly, and what follows from them: its outputs, bit for bit.
#
# Proof.  Distributivity, in integers; `03_integer_network.py`, theorem 4, has the ranges of h and l.

for _ in range(100):
    q, w = rng.integers(-128, 128, 64), rng.integers(-128, 128, 64)
    (h1, l1), (h2, l2) = (np.divmod(v, 16) for v in (q, w))
    assert 256 * (h1 @ h2) + 16 * (h1 @ l2 + l1 @ h2) + l1 @ l2 == q @ w

# %% Theorem 3 (not one chain).  Code-exact implies class-certified on every set of images without ties (roundings are
# bounded, too: without gaps that small), and class-equal on every set, where batch norms are folded; class-certified
# implies class-equal on that set.  No other of the implications between the five holds in general.
#
# Proof.  The first: e = 0 but for roundings, and none by lemma 1; the second is theorem 1.  For the others, by example:
# class-equal without a certificate, theorem 1; class-certified with other logits, below; statistically equivalent with
# changed classes, k = 1 of 10,000 below; class-equal on a set that is too small, U = 0.26 for none of 10.
# Output-exact has another reference: an 8-bit integer network may itself have other classes than the float network.

exact_found = coverage(network(line(W)), exact, rng.normal(0, 1, (50, 5)).astype(np.float32))
assert exact_found.certified == exact_found.agreeing == 50
loose = found.certified & (rq.forward(graph, x, plan, "fake") != rq.forward(graph, x)).any(axis=1)
assert loose.any()  # certified, and yet its logits are others
assert upper(1, 10_000, 0.05) < 0.001
assert upper(0, 10, 0.05) > 0.25
close = Fraction(1), Fraction(129, 128)  # logits of the float network: class 1
tied = [rq.quantize_exact(v, 0.1, 0, rq.QuantSpec(8)) for v in close]
assert tied[0] == tied[1]  # codes of the integer network: class 0, the first
