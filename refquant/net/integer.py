"""A network run on integers alone, from the codes of its input to the codes of its output: clauses N1 to N5.

Letters: d = q - z the difference of a code and its zero point, s a scale, x for what is read, y for what is
made, acc an accumulator.  A tensor's reals are s d; every op makes integers k in steps of s_y, and then the code
of an element is k + z_y, saturated.  All integers are held as float64, in which they are exact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.combination import round_combination
from ..arith.fixedpoint import double_round, quantize_multiplier, single_round
from ..arith.quotient import exact_position
from ..arith.rounding import round_array
from ..errors import ArgumentError, CodeOverflowError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.quantizer import into_range, quantize
from ..quant.requantize import checked_factor, rescaler
from .edges import Edge, edges_of, layer_of, planned
from .graph import Graph, Node
from .op import Attrs, Op
from .ops import OPS
from .ops_pool import padded, taps
from .plan import QuantPlan
from .products import PRODUCTS, Operand, per_output
from .program import Program, interpret

__all__ = ["RULES", "SPARE", "accumulators", "integer_program"]

Reals = NDArray[np.float64]
Step = Callable[[Sequence[Reals]], Reals]


class Setting(NamedTuple):
    """What a rule may look at: the folded graph, its plan, the quantizer of every tensor, the integer spec."""

    graph: Graph
    plan: QuantPlan
    edges: Mapping[str, Edge]
    spec: IntegerSpec

    def where(self, node: Node) -> str:
        """How errors call a node."""
        return f"node {node.name} of {self.graph.name}"


# ---- N1, N2: Conv and Gemm ------------------------------------------------------------------------------------


def accumulators(
    op: Op,
    attrs: Attrs,
    w: Operand,
    x: Operand,
    z_w: Reals | float = 0.0,
    z_x: float = 0.0,
    product: str = "exact",
    where: str = "accumulators",
) -> Reals:
    """The sums of (q_x - z_x)(q_w - z_w) of a Conv or Gemm, integers as float64, shape (N, O, ...).

    Products are those of raw codes, by the name of clause N1; pixels of padding hold z_x.  z_w: one, or one an
    output.  Exact for `exact` and the digits.

    Raises ArgumentError where sums could reach 2^53.

    >>> from ..quant.spec import QuantSpec
    >>> gemm, byte = OPS["Gemm"], QuantSpec(8, signed=False)
    >>> w, x = Operand(np.array([[1.0, -2.0]]), QuantSpec(8)), Operand(np.array([[7.0, 3.0]]), byte)
    >>> accumulators(gemm, {"in_features": 2, "out_features": 1}, w, x, z_x=3.0).tolist()
    [[4.0]]
    """
    K = w.codes[0].size if len(w.codes) else 0
    bound = K * _reach(w.codes, z_w) * _reach(np.array([x.spec.qmin, x.spec.qmax]), z_x)
    if bound >= 2**53:
        raise ArgumentError(complaint(f"sums that may reach {bound:.3g}", "below 2^53", where, "take fewer bits"))
    X = x.codes
    if "padding" in attrs:
        X = padded(attrs, X, z_x)
        attrs = {**attrs, "padding": (0, 0, 0, 0)}
    acc = PRODUCTS[product](op, attrs, w, Operand(X, x.spec))
    acc = acc - z_x * per_output(w.codes.reshape(len(w.codes), -1).sum(axis=1), acc.ndim)
    if np.any(z_w):
        sums = PRODUCTS["exact"](op, attrs, Operand(np.ones_like(w.codes), w.spec), Operand(X - z_x, x.spec))
        acc = acc - per_output(np.asarray(z_w), acc.ndim) * sums
    return np.asarray(acc)


def _reach(codes: Reals, zero_point: Reals | float) -> float:
    """At least the largest magnitude of a code, of a zero point and of their difference."""
    return float(np.abs(codes).max(initial=0.0) + np.max(np.abs(zero_point), initial=0.0))


def held(acc: Reals, spec: IntegerSpec, where: str) -> Reals:
    """Accumulators as a register of `spec.accumulator_bits` bits holds them.

    Raises CodeOverflowError where they do not fit and `spec.accumulator_overflow` is "raise".

    >>> held(np.array([40000.0]), IntegerSpec(accumulator_bits=16, accumulator_overflow="wrap"), "here").tolist()
    [-25536.0]
    """
    half = 2.0 ** (spec.accumulator_bits - 1)
    beyond = int(np.count_nonzero((acc < -half) | (acc >= half)))
    if not beyond:
        return acc
    if spec.accumulator_overflow == "raise":
        got = f"{beyond} accumulators from {acc.min():.0f} to {acc.max():.0f}"
        todo = "widen accumulator_bits, or name what happens: accumulator_overflow='wrap' or 'saturate'"
        raise CodeOverflowError(complaint(got, f"of {spec.accumulator_bits} bits", where, todo))
    if spec.accumulator_overflow == "saturate":
        return np.clip(acc, -half, half - 1)
    return np.mod(acc + half, 2 * half) - half


def _linear(at: Setting, node: Node) -> Step:
    read, made = at.edges[node.inputs[0]], at.edges[node.name]
    layer = layer_of(at.graph, node, at.plan, read, at.spec)
    axes = len(at.graph.shapes[node.name]) + 1
    bias, where = per_output(layer.bias, axes), at.where(node)
    factor = per_output(_factor(read.scale * layer.scale, made, at.spec), axes)
    to_output = rescaler(factor, at.spec.requantize, made.spec.rounding, where)

    def step(inputs: Sequence[Reals]) -> Reals:
        w, x = Operand(layer.codes, layer.spec), Operand(inputs[0] + read.zero_point, read.spec)
        acc = accumulators(OPS[node.op], node.attrs, w, x, 0.0, read.zero_point, at.spec.product, where)
        return to_output(held(acc + bias, at.spec, f"clause N1, {where}"))

    return step


# ---- N3: one scale to another ---------------------------------------------------------------------------------


def _factor(scale: Reals | float, made: Edge, spec: IntegerSpec) -> Reals:
    """scale / s_y in the named arithmetic; 0, infinite or NaN where it has no such number."""
    kind = {"float64": np.float64, "float32": np.float32}[spec.factor]
    with np.errstate(all="ignore"):
        return np.asarray(np.asarray(scale, kind) / kind(made.scale), np.float64)


def _exact_factor(read: Edge, made: Edge, where: str) -> Reals:
    """s_x / s_y in float64, for the operations that round once whatever the spec's factor."""
    with np.errstate(over="ignore", under="ignore"):
        return checked_factor(np.asarray(read.scale / np.float64(made.scale)), where)


def _rescaled(at: Setting, node: Node, tensor: str) -> Callable[[Reals], Reals]:
    """From differences of a tensor that the node reads to integers in steps of its output."""
    made = at.edges[node.name]
    factor = _factor(at.edges[tensor].scale, made, at.spec)
    return rescaler(factor, at.spec.requantize, made.spec.rounding, at.where(node))


def _homogeneous(at: Setting, node: Node) -> Step:
    """f(s d) = s f(d) for s > 0: the op itself, on differences."""
    to_output, op = _rescaled(at, node, node.inputs[0]), OPS[node.op]
    return lambda inputs: to_output(np.asarray(op.forward(node.attrs, {}, inputs)))


def _relu6(at: Setting, node: Node) -> Step:
    made = at.edges[node.name]
    six = float(quantize(6.0, made.scale, int(made.zero_point), spec=made.spec)) - made.zero_point
    to_output = _rescaled(at, node, node.inputs[0])
    return lambda inputs: np.minimum(to_output(np.maximum(inputs[0], 0.0)), six)


def _concat(at: Setting, node: Node) -> Step:
    each = [_rescaled(at, node, tensor) for tensor in node.inputs]
    op = OPS[node.op]

    def step(inputs: Sequence[Reals]) -> Reals:
        parts = [to_output(d) for to_output, d in zip(each, inputs, strict=True)]
        return np.asarray(op.forward(node.attrs, {}, parts))

    return step


# ---- N4: add --------------------------------------------------------------------------------------------------


def _add_exact(at: Setting, node: Node, first: Edge, second: Edge, made: Edge) -> Step:
    f, g = (_exact_factor(edge, made, at.where(node)) for edge in (first, second))
    return lambda inputs: round_combination([(inputs[0], f), (inputs[1], g)], made.spec.rounding)


def _add_float32(at: Setting, node: Node, first: Edge, second: Edge, made: Edge) -> Step:
    scales = np.array([edge.scale for edge in (first, second, made)])
    s, t, u = checked_factor(scales, at.where(node), "scale").astype(np.float32)

    def step(inputs: Sequence[Reals]) -> Reals:
        a, b = (d.astype(np.float32) for d in inputs)
        with np.errstate(over="ignore"):  # to an infinity, which saturates
            return round_array(np.asarray((a * s + b * t) / u), made.spec.rounding).astype(np.float64)

    return step


SPARE = 20
"""Bits to spare in the fixed-point add.  Source: TensorFlow Lite, reference kernel of ADD for 8 bits."""


def _add_fixed(at: Setting, node: Node, first: Edge, second: Edge, made: Edge) -> Step:
    where, how = at.where(node), at.spec.requantize
    for tensor, edge in zip(node.inputs, (first, second), strict=True):
        reach = max(edge.spec.qmax - edge.zero_point, edge.zero_point - edge.spec.qmin)
        if reach >= 2 ** (31 - SPARE):
            got = f"add='fixed-point' of {tensor}, whose {edge.spec.bits}-bit codes are up to {reach:.0f} from zero"
            raise ArgumentError(complaint(got, f"below 2^{31 - SPARE} from it", where, "take add='exact', or 8 bits"))
    round_product = single_round if how == "single-round" else double_round
    twice = 2 * max(first.scale, second.scale)
    f, g = (quantize_multiplier(edge.scale / twice, where) for edge in (first, second))
    h = quantize_multiplier(twice / (2.0**SPARE * made.scale), where)

    def step(inputs: Sequence[Reals]) -> Reals:
        a, b = (d.astype(np.int64) << SPARE for d in inputs)
        total = round_product(a, *f, where) + round_product(b, *g, where)
        return round_product(total, *h, where).astype(np.float64)

    return step


ADDS = {"exact": _add_exact, "float32": _add_float32, "fixed-point": _add_fixed}


def _add(at: Setting, node: Node) -> Step:
    first, second = (at.edges[tensor] for tensor in node.inputs)
    return ADDS[at.spec.add](at, node, first, second, at.edges[node.name])


# ---- N5: average pool -----------------------------------------------------------------------------------------


def _window_sums(node: Node, d: Reals) -> tuple[Reals, Reals]:
    """The sums of d over each window, and the number of elements that count there."""
    if node.op == "GlobalAvgPool":
        return d.sum(axis=(2, 3), keepdims=True), np.asarray(float(math.prod(d.shape[2:])))
    real = np.ones((1, 1, *d.shape[2:]))
    count: Any = reduce(np.add, taps(node.attrs, real, float(node.attrs["count_include_pad"])))
    total: Any = reduce(np.add, taps(node.attrs, d, 0))
    return total, count


def _average(at: Setting, node: Node) -> Step:
    read, made, division = at.edges[node.inputs[0]], at.edges[node.name], at.spec.pool
    factor, to_output = _exact_factor(read, made, at.where(node)), _rescaled(at, node, node.inputs[0])

    def step(inputs: Sequence[Reals]) -> Reals:
        total, count = _window_sums(node, inputs[0])
        if division == "exact":
            return round_combination([(total, factor)], made.spec.rounding, count)
        codes = total + read.zero_point * count  # of raw codes; padding that counts holds the zero point
        k = round_array(exact_position(codes, count), division).astype(np.float64)
        return to_output(k - read.zero_point)

    return step


# ---- the network ----------------------------------------------------------------------------------------------

RULES: dict[str, Callable[[Setting, Node], Step]] = {
    "Conv": _linear,
    "Gemm": _linear,
    "Relu": _homogeneous,
    "Relu6": _relu6,
    "MaxPool": _homogeneous,
    "Flatten": _homogeneous,
    "Concat": _concat,
    "Add": _add,
    "AveragePool": _average,
    "GlobalAvgPool": _average,
}
"""op -> its integer rule: from differences d of its inputs to integers k in steps of its output."""


def integer_program(graph: Graph, plan: QuantPlan) -> Program:
    """The program of `forward(mode="integer")`: its tensors are int32 codes.

    Raises ArgumentError for an op without an integer rule, for a plan of another network or that leaves a tensor
    or a weight unquantized (see `refquant.QuantPlan`), and for scales whose factors no rule can use; when it
    runs, ArgumentError for integers that do not fit fixed point, CodeOverflowError as its integer spec says.
    """
    spec = plan.integer
    if spec is None:
        todo = "make it with quantize_network(..., integer=refquant.IntegerSpec())"
        raise ArgumentError(complaint("a plan without an IntegerSpec", "one with", "forward(mode='integer')", todo))
    graph = planned(graph, plan)
    strange = [f"{node.name} ({node.op})" for node in graph.nodes if node.op not in RULES]
    if strange:
        got, should = f"{', '.join(strange)}", f"only {', '.join(RULES)}, and BatchNorm that folds"
        raise ArgumentError(complaint(got, should, f"forward(mode='integer') of {graph.name}"))
    at = Setting(graph, plan, edges_of(graph, plan), spec)
    steps = {node.name: RULES[node.op](at, node) for node in graph.nodes}
    entry = at.edges[graph.input.name]

    def enter(x: NDArray[np.float32]) -> Reals:
        return np.asarray(quantize(x, entry.scale, int(entry.zero_point), spec=entry.spec) - entry.zero_point)

    def step(node: Node, inputs: Sequence[Reals]) -> Reals:
        made = at.edges[node.name]
        z = np.asarray(made.zero_point)
        return np.asarray(into_range(steps[node.name](inputs), z, made.spec) - z)

    def show(name: str, d: Reals) -> NDArray[np.int32]:
        return (d + at.edges[name].zero_point).astype(np.int32)

    return interpret(graph, np.int32, enter, step, show)
