"""Secants: what an op does to a difference of inputs, exactly, as a linear map.

Letters: x and x^ two inputs of an op f, y = f(x), y^ = f(x^), e = x^ - x; a secant is a linear S with S e = y^ - y.

A derivative is the secant of two points that coincide; a secant has no remainder.  Each op of a network gets one,
with its transpose, in the form of a derivative's `Rule`: then the interpreters of `net.gradient` carry differences of
any size through a network exactly, and carry each part of a difference by itself.

- Relu, Relu6: the slope (y^ - y) / (x^ - x) of each element, 0 where x^ = x; it lies in [0, 1].
- MaxPool: in a window whose maximum is first in place i and then in place j, y^ - y = (1 - lambda) e_i + lambda e_j
  with lambda = g^ / (g + g^), g = x_i - x_j and g^ = x^_j - x^_i, the leads of the two winners, both >= 0; 0 where both
  are 0.  So lambda lies in [0, 1].  Neither place alone will do.
- Softmax: log y^ - log y = e - c with one number c for all, and y^_i - y_i = L_i (log y^_i - log y_i) with L_i the
  logarithmic mean of y_i and y^_i; all y sum to 1, so c = sum L_i e_i / sum L_i: S = diag(L) - L L^T / sum L,
  symmetric.
- Conv, Gemm: W^ x^ - W x = W e + (W^ - W) x^, or W^ e + (W^ - W) x (see `ORDERS`).
- The others are linear: their derivative is their secant.

Proofs: proofs/07_accumulation.py.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import ArgumentError, complaint, one_of
from ..net.gradient import Tape
from ..net.graph import Graph
from ..net.op import Array, Point, Rule, symmetric
from ..net.ops import OPS

__all__ = ["LINEAR", "ORDERS", "SECANTS", "secant_tape"]

Secant = Callable[[Point, Point, Rule], Rule]
"""(the float point, the quantized point, the op's derivative) -> the secant between the two; the rule's own point
is not read."""

# ---- nonlinear ops --------------------------------------------------------------------------------------------


def _elementwise(at: Point, moved: Point, derivative: Rule) -> Rule:
    e = moved.inputs[0] - at.inputs[0]
    slope = np.divide(moved.output - at.output, e, out=np.zeros_like(e), where=e != 0)
    return symmetric(lambda _, v: v * slope)


def _max_pool(at: Point, moved: Point, derivative: Rule) -> Rule:
    """The derivative picks the place of the maximum: so it reads x^_i and x_j, and so the secant mixes the two."""
    lead = at.output - derivative.jvp(moved, {0: at.inputs[0]})
    new_lead = moved.output - derivative.jvp(at, {0: moved.inputs[0]})
    both = lead + new_lead
    new = np.divide(new_lead, both, out=np.zeros_like(both), where=both > 0)
    old = 1 - new
    return Rule(
        lambda _, u, wanted: {0: derivative.vjp(at, u * old, [0])[0] + derivative.vjp(moved, u * new, [0])[0]},
        lambda _, v: old * derivative.jvp(at, v) + new * derivative.jvp(moved, v),
    )


def _log_softmax(x: Array, axis: int) -> Array:
    shifted = x - x.max(axis=axis, keepdims=True)
    y: Array = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return y


def _softmax(at: Point, moved: Point, derivative: Rule) -> Rule:
    """The logarithmic mean of a <= b, t = log(b / a), is b (1 - exp(-t)) / t: no cancellation, no overflow."""
    axis = at.attrs["axis"]
    first, second = (_log_softmax(point.inputs[0], axis) for point in (at, moved))
    t = np.abs(second - first)
    factor = np.divide(-np.expm1(-t), t, out=np.ones_like(t), where=t > 0)
    L = np.exp(np.maximum(first, second)) * factor
    total = L.sum(axis=axis, keepdims=True)

    def product(_: Point, v: Array) -> Array:
        y: Array = L * (v - (L * v).sum(axis=axis, keepdims=True) / total)
        return y

    return symmetric(product)


SECANTS: dict[str, Secant] = {"Relu": _elementwise, "Relu6": _elementwise, "MaxPool": _max_pool, "Softmax": _softmax}
"""The secant of each op that is not linear in its inputs."""

LINEAR = ("Conv", "Gemm", "BatchNorm", "Add", "Concat", "AveragePool", "GlobalAvgPool", "Flatten")
"""The ops that are linear in their inputs, up to a constant, and in their weight and bias."""

# ---- a network of secants -------------------------------------------------------------------------------------

ORDERS: dict[str, Callable[[Point, Point], Point]] = {
    "perturbed": lambda at, moved: at._replace(inputs=moved.inputs),
    "mirrored": lambda at, moved: at._replace(params=moved.params),
}
"""Where the two factors of a product W x are taken.

perturbed: W e + dW x^: weight errors meet quantized activations, and float weights carry on what came before: the
order of a network that is quantized from its input to its output.
mirrored: W^ e + dW x: weight errors meet float activations, and quantized weights carry on what came before.
The error that a quantizer adds to an activation is the one at its quantized value, Q(x^) - x^, in both: the secant of a
quantizer itself has slopes up to a step over nothing, and would carry roundings with them.
"""


def secant_tape(graph: Graph, at: Tape, moved: Tape, order: str) -> Tape:
    """The run `at` with secants to the run `moved` in the places of derivatives.

    Its `pushforward` carries errors, however large, to the output exactly, and `pullback` is its transpose: with all
    errors of weights, biases and quantizers as tangents it gives moved.output - at.output, up to rounding.
    at, moved: of `Pair.run`, lines of the same names; at float throughout.

    Raises ArgumentError for an unknown order and for an op that has no secant here.
    """
    one_of(order, ORDERS, "order", "secants")
    kinds = {node.name: node.op for node in graph.nodes}
    lines, points = [], {}
    for line in at.lines:
        kind, here, there = kinds.get(line.name, ""), at.points[line.name], moved.points[line.name]
        rule = line.op.derivative
        if kind in SECANTS:
            rule = SECANTS[kind](here, there, rule)
        elif kind not in (*LINEAR, ""):  # a line that is no node reads through the identity
            known = ", ".join((*SECANTS, *LINEAR))
            raise ArgumentError(complaint(f"node {line.name} of op {kind}", f"one of {known}", "secants"))
        lines.append(line._replace(op=replace(line.op, derivative=rule)))
        points[line.name] = ORDERS[order](here, there) if kind and OPS[kind].linear else here
    return at._replace(lines=tuple(lines), points=points)
