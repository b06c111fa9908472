"""The problem of the seed, made precise: what is maximised, under what, over what; and answers to its review notes.

Letters: v a value, alpha a step, Q_min, Q_max >= 0 integers, v- its code, v^ = alpha v- what it stands for; W_1 ... W_n
the parameters of a model M, T_i the number of low-bit terms of parameter i, F the quality, P the complexity, P_0 its
limit.

The draft asks for arg max over alpha_1 ... alpha_n of F(M(Q(W_1, alpha_1), ..., Q(W_n, alpha_n))) subject to P <= P_0.

The problem as it stands in this project:

    maximise  F(alpha, T)   over scales alpha > 0 and term counts T >= 1   subject to  P(T) <= P_0,

F the share of held-out images whose class is right (top-1), P the bit operations of an image, MACs x weight bits x
activation bits x terms of both, summed over layers.  What is optimised is never the held-out F itself but a surrogate
on calibration images, named with each answer: squared error of a tensor, of a layer's output, or the calibration
loss.

The experiment in three sentences.  Batch norms are folded, ranges and sensitivities come from unlabelled images of the
training split, and every choice (scales, codes, counts) is made from these alone.  For each limit P_0 the plan that the
surrogate prefers is fixed and then run once on the test images, which nothing has seen.  Reported are F with its
interval, agreement with the float network, P and the bits of the weights, from one term to weights that are exact.
"""

import itertools
import math
from fractions import Fraction

import numpy as np

import refquant as rq
from refquant.net.graph import Graph, InputSpec, Node
from refquant.ptq.complexity import complexity
from refquant.quant.multiterm import encode_ladder, rest_of

F = Fraction

# %% Lemma 1 (the quantizer is well defined).  The draft's three cases overlap at v / alpha = -Q_min and at Q_max, and
# give one code there; together they are clip(floor(v / alpha), -Q_min, Q_max).
#
# Proof.  At an integer floor is that integer, which both cases name.  Below -Q_min floor is below it too, and is
# clipped to it; from Q_max on floor is at least Q_max.  Between, floor lies within, as the bounds are integers.


def draft(v: Fraction, alpha: Fraction, low: int, high: int) -> set[int]:
    """All codes that the three cases name."""
    r = v / alpha
    return {
        code
        for code, case in ((-low, r <= -low), (r.__floor__(), -low <= r <= high), (high, r >= high))
        if case
    }  # fmt: skip


for v, alpha in itertools.product([F(k, 6) for k in range(-40, 41)], (F(1), F(2, 3))):
    assert draft(v, alpha, 4, 3) == {rq.quantize_exact(v, alpha, 0, rq.profile("seed-floor@1", bits=3))}

# Where an assumption is dropped: with bounds that are no integers the cases disagree.

r, high = F(5, 2), F(5, 2)
assert r.__floor__() != high

# The brackets are floor as printed, while the methods that the draft builds on round to nearest.  Both are profiles
# here; floor alone costs a bit (07, lemma 4).  "Product of two numbers?" asks the review: yes, and alpha v- is the
# same.

assert F(3) * F(2, 3) == F(2, 3) * F(3)
assert rq.quantize_exact(2.75, 1.0, 0, rq.profile("seed-floor@1", bits=4)) == 2
assert rq.quantize_exact(2.75, 1.0, 0, rq.profile("seed-nearest@1", bits=4)) == 3

# %% Lemma 2 (the constraint is vacuous as drafted).  P depends on bits and counts, and on no alpha.  So over alpha
# alone either every point is feasible or none is, and the maximum under P <= P_0 does not depend on P_0.

W = np.array([[3, -5, 7, 1], [2, 6, -8, 4], [-1, 7, 5, -3]], np.float32) / np.float32(8)
DENSE = Node("z", "Gemm", ("x",), {"in_features": 4, "out_features": 3}, {"weight": "W"})
graph = Graph("line", InputSpec("x", (4,)), "z", (DENSE,), {"W": W})


def plan(terms: int, alpha: float = 0.5) -> rq.QuantPlan:
    """The weight as a ladder of 2-bit digits by floor, the first scale alpha."""
    spec = rq.QuantSpec(2, rounding="floor")
    return rq.QuantPlan({"z": encode_ladder(W, alpha, spec=spec, terms=terms, rest=rest_of(spec))})


assert len({complexity(graph, plan(1, alpha)) for alpha in (0.5, 1.0, 3.0)}) == 1

# %% Lemma 3 (counts make it a problem).  P rises strictly with every count; the problem has a feasible point exactly if
# P_0 >= P(1, ..., 1), and the best F under P_0 does not fall as P_0 rises.
#
# Proof.  P is a sum of positive costs times counts.  A larger P_0 has more feasible points.

costs = [complexity(graph, plan(terms)).bit_operations for terms in (1, 2, 3, 4)]
assert costs == [costs[0] * k for k in (1, 2, 3, 4)]

# %% Lemma 4 (a best scale exists).  The squared error of a tensor as a function of alpha > 0 attains its minimum, with
# rounding to nearest and with floor, unless its infimum is sum v^2, which it tends to as alpha goes to 0.
#
# Proof.  It is continuous between breakpoints.  For nearest it is continuous there too (04).  For floor the code of v
# jumps at alpha = |v| / k; there v / alpha is an integer, the code is exact and the error of v is 0, so the value at
# the breakpoint is at most the limits from both sides: the function is lower semicontinuous.  Towards 0 all is clipped
# and x^ goes to 0: the limit is sum v^2.  Towards infinity values above 0 get the code 0, and for floor those below get
# -1 and an error without limit; in both cases the limit is at least sum v^2 again.  On a compact interval between, a
# lower semicontinuous function attains its minimum.


def sse(values: list[Fraction], alpha: Fraction) -> Fraction:
    spec = rq.profile("seed-floor@1", bits=2)
    return sum(((v - alpha * rq.quantize_exact(v, alpha, 0, spec)) ** 2 for v in values), F(0))


VALUES = [F(3), F(-2), F(1), F(-5)]
for v, k in itertools.product(VALUES, (1, 2)):
    at, near = abs(v) / k, F(1, 10**6)
    assert sse(VALUES, at) <= min(sse(VALUES, at - near), sse(VALUES, at + near)) + F(1, 10**4)
assert abs(sse(VALUES, F(1, 10**6)) - sum(v * v for v in VALUES)) < F(1, 10**3)
assert sse(VALUES, F(10**6)) > 10**6

# It jumps, so that a minimum can sit on a breakpoint which is no float: `solve_scale` looks at the floats beside it.

assert sse([F(-2)], F(2)) == 0 < F(1) < sse([F(-2)], F(2) - F(1, 1000))

# %% Theorem (a continuous family from one term to lossless).  Give every channel its own count, from 1 to the least
# that is exact.  Then (a) all counts 1 is the single-term method; (b) all counts at their top are exact, where
# weights lie on a dyadic grid; (c) between any two feasible values of P there is, walking one count at a time, a
# chain of plans whose P rises by no more than the dearest channel's one term.
#
# Proof.  (a) by definition.  (b) slicing (05, lemma 2): weights that are multiples of 2^-k below 2^m in magnitude need
# ceil((m + k + 1) / b) terms of b bits.  (c) raise counts one by one: each step adds one channel's cost, and P is their
# sum.  So P is a knob in steps of that cost over P(1, ..., 1): continuous in practice for layers of many channels.

exact = plan(2)  # multiples of 1/8 of magnitude at most 1: k = 3, m = 0, four bits, two terms of two bits
assert math.ceil((0 + 3 + 1) / 2) == 2
assert np.array_equal(exact.weights["z"].decode(), W)
x = np.array([[1, -2, 0.5, 3], [0.1, 0.2, -0.3, 0.4]], np.float32)
assert np.array_equal(rq.forward(graph, x, exact, mode="fake"), rq.forward(graph, x))
assert not np.array_equal(plan(1).weights["z"].decode(), W)

per_channel = rq.encode_terms(
    W, spec=rq.QuantSpec(2, rounding="floor", granularity=rq.PerChannel(0)), terms=2, method="greedy"
)
costs = []
for counts in ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2)):
    shaped = np.array(counts).reshape(per_channel.counts.shape)
    costs.append(complexity(graph, rq.QuantPlan({"z": per_channel.truncated(shaped)})).bit_operations)
assert [b - a for a, b in itertools.pairwise(costs)] == [costs[0] // 3] * 3

# In units of one layer's cost, the step of a layer with C channels is 1 / C: the knob of 64 channels moves by 1.6 %.

assert F(costs[1] - costs[0], costs[0]) == F(1, 3)

# %% Theorem (the surrogate's problem is solved).  Where the surrogate is a sum of errors, one for each item by its
# count, the problem is a multiple-choice knapsack; `allocate` gives its exact optimum with a bound, here against
# every choice.

error = [[9.0, 4.0, 1.0], [7.0, 6.0, 0.5], [5.0, 1.0, 0.9]]
cost = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 2.0, 3.0]]
for budget in (4.0, 6.0, 8.0, 10.0):
    solved = rq.allocate(np.array(error), np.array(cost), budget)
    every = [
        sum(error[i][t] for i, t in enumerate(choice))
        for choice in itertools.product(range(3), repeat=3)
        if sum(cost[i][t] for i, t in enumerate(choice)) <= budget
    ]
    assert float(solved.objective) == min(every)
    assert solved.certified

# %% Where it stops: the surrogate is not F.  A weight of less squared error can give the wrong class.  Two classes with
# scores w_1 . x and w_2 . x: the finer rounding errs less in all, and where x looks it errs more.

x0 = [F(1), F(0)]
w1, w2 = [F(11, 10), F(4)], [F(1), F(0)]
finer, coarser = [F(9, 10), F(4)], [F(12, 10), F(3)]  # two candidates for w1


def squared(u: list[Fraction], w: list[Fraction]) -> Fraction:
    return sum(((a - b) ** 2 for a, b in zip(u, w, strict=True)), F(0))


def score(w: list[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(w, x0, strict=True)), F(0))


assert squared(finer, w1) < squared(coarser, w1)
assert score(w1) > score(w2)
assert score(finer) < score(w2) < score(coarser)

# Nor do losses of single layers add up at low bits (docs/curvature.md), so that a sum of them is a model, too.

# %% Answers to the review notes of the draft, in their order.
#
# 1. A shorter title: "From one low-bit term to lossless: post-training quantization with term counts".
# 2. and the two that follow, literature for costs, quantization in general, training-aware and post-training methods:
#    REFERENCES.md, "What the draft's review asks for".
# 6. How the experiment is made: the three sentences above.
# 7. Spaces between "if" and formulas: cases are written "code, if condition".
# 8. alpha v-, as a product of two numbers: lemma 1.
# 9. Quality and complexity: F and P above; P in `refquant/ptq/complexity.py`, with the bits of weights, their scales
#    counted, and low-bit MACs beside it; F with a Wilson interval and a paired comparison in `refquant/ptq/study.py`.
# "Without significant degradation" and "lossless": five kinds, each with its reference (09).
# "Errors can accumulate layer by layer": how much, and from where (07).

# The test images are not those of the training split that choices are made from:

data = rq.load_data("fashion-mnist")
seen = {image.tobytes() for image in data.calibration.x}
assert len(data.test.x) == 10_000
assert sum(image.tobytes() in seen for image in data.test.x) == 0
