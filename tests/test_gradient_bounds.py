"""How far rounding can take derivatives of networks, derived; and the zoo's networks held to it.

Letters: u the unit roundoff of float64, gamma_n = n u / (1 - n u).  On a line y = L(sources) of a run: x its sources,
x' their tangents along a direction v, w the cotangent of y, w' how it moves along v; |L| the derivative of the line
with every factor replaced by its magnitude.

A line's sums of n products come out as if every product had been changed by gamma_n relatively (Higham 2002, section
3.1), in whatever order they are added: y errs by at most gamma_n E, its tangent by gamma_n |L| |x'|, the cotangents of
its sources by gamma_n |L|^T |w|.  What an error at a line does to a number further on is, to first order, its product
with that number's derivative there.  So, for the number <w, J v> = <J^T w, v>, either way of computing it errs by

    tangent errors:  sum over lines of gamma_n <|w|, |L| |x'|>,

and if w comes from a loss, and the values that all this is taken at are computed themselves, by this more:

    value errors:    sum over lines of gamma_n <|w'|, E>.

Second-order terms are u times as small; all bounds take half as much again for them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.net.fold import fold_batch_norm
from refquant.net.gradient import Tape, pullback, pushforward, run, trained
from refquant.net.graph import Graph
from refquant.net.loss import cross_entropy
from refquant.net.op import Op, Point, Rule
from refquant.net.ops import OPS
from refquant.net.ops_norm import BATCH_NORM_TRAINING
from refquant.net.ops_quantize import FAKE_QUANTIZE
from refquant.net.program import transform
from refquant.net.wiring import Line

Reals = NDArray[np.float64]
Values = Mapping[str, Any]

UNIT = 2.0**-53
SECOND_ORDER = 1.5


def gamma(n: int) -> float:
    return n * UNIT / (1 - n * UNIT)


# ---- lines ----------------------------------------------------------------------------------------------------


def roundings(line: Line, at: Point) -> int:
    """At least as many as a product meets in the line: the longest sum, by value, tangent or cotangent, and a few."""
    images_and_positions = at.output.size // at.output.shape[1]
    longest = images_and_positions
    if "weight" in at.params:
        W = at.params["weight"]
        longest = max(longest, W[0].size, W.size // W.shape[1])
    if line.op in (OPS["GlobalAvgPool"], FAKE_QUANTIZE):
        longest = at.inputs[0].size
    return int(longest) + 16


def absolute(line: Line, at: Point) -> Point:
    """The point with magnitudes in the places of factors, for ops whose derivative is made of factors that it reads."""
    if line.op not in (OPS["Conv"], OPS["Gemm"], OPS["BatchNorm"]):
        return at
    params = {role: -np.abs(a) if role == "mean" else np.abs(a) for role, a in at.params.items()}
    return at._replace(params=params, inputs=[np.abs(x) for x in at.inputs])


def derivative_terms(line: Line, at: Point, moved: Mapping[Any, Reals]) -> Reals:
    """|L| times nonnegative tangents of slots."""
    if line.op is BATCH_NORM_TRAINING:
        return training_terms(at, moved)
    if line.op is FAKE_QUANTIZE:
        return quantizer_terms(at, moved)
    parts = [np.abs(line.op.derivative.jvp(absolute(line, at), {slot: t})) for slot, t in moved.items()]
    return np.asarray(sum(parts))


EXACT = [OPS[name] for name in ("Relu", "Relu6", "MaxPool", "Flatten", "Concat")]


def value_terms(line: Line, at: Point) -> Reals:
    """E."""
    if line.op in EXACT:
        return np.zeros_like(at.output)
    if line.op is BATCH_NORM_TRAINING:
        return norm_terms(at).value
    if line.op is FAKE_QUANTIZE:
        return np.abs(at.output)
    point = absolute(line, at)
    return np.asarray(line.op.forward(at.attrs, point.params, [np.abs(x) for x in at.inputs]))


class NormTerms(NamedTuple):
    """Of a batch norm in training: x^, r, and in units of gamma_n the errors of x^, of r relatively, and of y."""

    normal: Reals
    r: Reals
    of_normal: Reals
    of_r: Reals
    value: Reals


def _mean(a: Reals) -> Reals:
    return np.asarray(a.mean(axis=(0, 2, 3), keepdims=True))


def norm_terms(at: Point) -> NormTerms:
    """A mean errs by mean|x|, a centred value d by |x| + mean|x| = D, v by mean(2 |d| D) + v, r relatively by half of
    that over v + eps, and 2, and x^ = d r by r D + |x^| (of r)."""
    x, (gamma_, beta, _, _) = at.inputs[0], (a[:, None, None] for a in at.params.values())
    d = x - _mean(x)
    v, D = _mean(d * d), np.abs(x) + _mean(np.abs(x))
    r = 1 / np.sqrt(v + at.attrs["eps"])
    of_r = (_mean(2 * np.abs(d) * D) + v) * r**2 / 2 + 2
    of_normal = r * D + np.abs(d) * r * (of_r + 1)
    return NormTerms(d * r, r, of_normal, of_r, np.abs(gamma_) * of_normal + np.abs(gamma_ * d * r) + np.abs(beta))


def training_terms(at: Point, moved: Mapping[Any, Reals]) -> Reals:
    """y' = gamma r (x' - mean x' - x^ mean(x^ x')) + gamma' x^ + beta': the magnitudes, and what x^ and r err by."""
    terms, scale = norm_terms(at), np.abs(at.params["gamma"])[:, None, None]
    normal, total = np.abs(terms.normal), np.zeros_like(at.output)
    if 0 in moved:
        t = moved[0]
        along = _mean(normal * t)
        plain = t + _mean(t) + normal * along
        total = total + scale * terms.r * (plain * (1 + terms.of_r) + terms.of_normal * along)
        total = total + scale * terms.r * normal * _mean(terms.of_normal * t)
    if "gamma" in moved:
        total = total + moved["gamma"][:, None, None] * (normal + terms.of_normal)
    if "beta" in moved:
        total = total + moved["beta"][:, None, None]
    return total


def quantizer_terms(at: Point, moved: Mapping[Any, Reals]) -> Reals:
    """By x the derivative is 1 or 0; by s it is (c - z) - [inside] x / s; by z it is -s or 0."""
    total, spread = np.zeros_like(at.output), at.attrs["spec"].granularity.spread
    s = spread(at.params["scale"], at.output.shape)
    for slot, t in moved.items():
        by = {0: at.memory, "scale": np.abs(at.output / s) + np.abs(at.inputs[0] / s), "zero_point": ~at.memory * s}
        total = total + (t if slot == 0 else spread(t, at.output.shape)) * by[slot]
    return total


# ---- runs -----------------------------------------------------------------------------------------------------


def tangent_errors(tape: Tape, w: Values, moved: Values) -> float:
    """Either way of computing <w, J v> errs by at most this; w, moved: cotangents and tangents of all values."""
    total = 0.0
    for line in tape.lines:
        at = tape.points[line.name]
        tangents = {slot: np.abs(moved[name]) for slot, name in line.sources.items() if np.any(moved[name])}
        if tangents:
            total += gamma(roundings(line, at)) * float(
                np.sum(np.abs(w[line.name]) * derivative_terms(line, at, tangents))
            )
    return SECOND_ORDER * total


def value_errors(tape: Tape, w_moved: Values) -> float:
    """By so much more errs a number whose derivatives by the lines' values are these."""
    total = 0.0
    for line in tape.lines:
        at = tape.points[line.name]
        total += gamma(roundings(line, at)) * float(np.sum(np.abs(w_moved[line.name]) * value_terms(line, at)))
    return SECOND_ORDER * total


def loss_errors(z: Reals, labels: Any, moved: Reals) -> float:
    """Cross entropy's cotangent (p - y) / N errs by (2 |z| + classes + 8) u (p + y) / N: exponents err relatively."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    each = (p / p.sum(axis=1, keepdims=True) + np.eye(z.shape[1])[labels]) / len(z)
    return SECOND_ORDER * gamma(int(2 * np.abs(z).max()) + z.shape[1] + 8) * float(np.sum(each * np.abs(moved)))


class Slope(NamedTuple):
    """The derivative of a loss along a direction, from its gradient, and what any float64 program may err by."""

    value: float
    error: float


def slope(tape: Tape, labels: Any, v: Values, again: Any) -> Slope:
    """Of cross entropy with these labels, along v; again: from values by name to the run at them.

    How cotangents move along v is a difference over a step of 2^-24, right to about as many bits; a kink in between,
    or a code of a quantizer that changes, would add to it and make the bound larger.
    """
    h, everything = 2.0**-24, list(tape.values)

    def cotangents(run_: Tape) -> dict[str, Reals]:
        return pullback(run_, cross_entropy(run_.output, labels).cotangent, everything)

    w, moved = cotangents(tape), pushforward(tape, v, everything)
    ends = [cotangents(again({name: tape.values[name] + way * t for name, t in v.items()})) for way in (h, -h)]
    w_moved = {name: (ends[0][name] - ends[1][name]) / (2 * h) for name in everything}
    error = tangent_errors(tape, w, moved) + value_errors(tape, w_moved)
    return Slope(
        sum(float(np.sum(w[name] * t)) for name, t in v.items()),
        error + loss_errors(tape.output, labels, moved[tape.result]),
    )


# ---- the zoo --------------------------------------------------------------------------------------------------


def zoo_images(graph: Graph, count: int) -> Reals:
    return np.asarray(transform(graph.input, rq.load_data("fashion-mnist").calibration.x[:count]).astype(np.float64))


def directions(tape: Tape, names: tuple[str, ...], rng: np.random.Generator) -> dict[str, Reals]:
    """A random tangent for each name, of its value's size (1 where that is 0)."""
    return {n: rng.normal(size=tape.values[n].shape) * (np.abs(tape.values[n]).max() or 1.0) for n in names}


def check_transpose(tape: Tape, names: tuple[str, ...], rng: np.random.Generator) -> float:
    """The relative tolerance; asserts <u, J v> = <J^T u, v> up to it, for random u at the output and v at names."""
    v, u = directions(tape, names, rng), rng.normal(size=tape.output.shape)
    everything = list(tape.values)
    moved, w = pushforward(tape, v, everything), pullback(tape, u, everything)
    forth = float(np.sum(u * moved[tape.result]))
    products = [(w[name] * v[name]).ravel() for name in names]
    back = float(sum(product.sum() for product in products))
    sums = gamma(u.size) * np.sum(np.abs(u * moved[tape.result]))
    sums += sum(gamma(a.size + len(products)) * np.sum(np.abs(a)) for a in products)
    tolerance = 2 * tangent_errors(tape, w, moved) + float(sums)
    assert abs(forth - back) <= tolerance, f"{abs(forth - back):.3g} > {tolerance:.3g}"
    return tolerance / abs(forth)


@pytest.mark.parametrize("training", [False, True], ids=["as it runs", "in training"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.guarantee(
    "In the embedded networks the vector-Jacobian product is the transpose of the Jacobian-vector product, to rounding",
    kind="checked",
)
def test_zoo_transposes(name: str, training: bool) -> None:
    graph, rng = rq.load_network(name), np.random.default_rng(0)
    tape = run(graph, {graph.input.name: zoo_images(graph, 4)}, training=training)
    for names in [(graph.input.name,), trained(graph), *((array,) for array in trained(graph)[::5])]:
        assert check_transpose(tape, names, rng) < 1e-7  # so the test says something


@pytest.mark.parametrize("op", ["Conv", "BatchNorm", "Relu", "Add", "GlobalAvgPool", "Gemm"])
@pytest.mark.parametrize("side", ["vjp", "jvp"])
def test_a_planted_factor_is_caught(op: str, side: str) -> None:
    """One line's rule, wrong by a factor 1 + 1e-6."""
    graph, rng = rq.load_network("resnet"), np.random.default_rng(0)
    tape = run(graph, {graph.input.name: zoo_images(graph, 4)})
    last = [line.name for line in tape.lines if line.op is OPS[op]][-1]
    lines = tuple(line._replace(op=wrong(line.op, side)) if line.name == last else line for line in tape.lines)
    with pytest.raises(AssertionError):
        check_transpose(tape._replace(lines=lines), trained(graph), rng)


def wrong(op: Op, side: str) -> Op:
    def vjp(at: Point, u: Any, wanted: Any) -> Any:
        return {slot: (1 + 1e-6) * part for slot, part in op.derivative.vjp(at, u, wanted).items()}

    def jvp(at: Point, v: Any) -> Any:
        return (1 + 1e-6) * op.derivative.jvp(at, v)

    rule = Rule(vjp, op.derivative.jvp) if side == "vjp" else Rule(op.derivative.vjp, jvp)
    return replace(op, derivative=rule)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.guarantee("A run of an embedded network is `forward`, up to what rounding can do", kind="checked")
def test_a_run_is_forward(name: str) -> None:
    """Both in float32, whose u is 2^29 times that of float64, against float64: along random cotangents of tensors."""
    graph, rng = rq.load_network(name), np.random.default_rng(2)
    _, trace = rq.forward(graph, rq.load_data("fashion-mnist").calibration.x[:4], trace=True)
    wide = run(graph, {graph.input.name: zoo_images(graph, 4)})
    narrow = run(graph, {graph.input.name: zoo_images(graph, 4).astype(np.float32)})
    for tensor in list(graph.shapes)[1:]:
        u = rng.normal(size=wide.values[tensor].shape)
        tolerance = 2**29 * value_errors(wide, pullback(wide, {tensor: u}, list(wide.values)))
        for found in (trace[tensor], narrow.values[tensor]):
            assert found.dtype == np.float32
            error = abs(float(np.sum(u * (found - wide.values[tensor]))))
            assert error <= tolerance
            assert tolerance < 0.1 * np.abs(u * wide.values[tensor]).sum()


# ---- by complex steps -----------------------------------------------------------------------------------------

TINY = 2.0**-100


def complex_slope(graph: Graph, x: Reals, labels: Any, v: Values, training: bool) -> float:
    """The derivative of cross entropy along v by arrays, from values alone: its imaginary part at + i 2^-100 v."""
    moved = {name: graph.arrays[name] + 1j * TINY * t for name, t in v.items()}
    z = run(graph, {graph.input.name: x + 0j}, moved, training=training).output
    shifted = z - z.max(axis=1, keepdims=True)
    each = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(z)), labels]
    return float(each.mean().imag / TINY)


def check_slope(graph: Graph, training: bool, fault: float = 1.0) -> None:
    """Nothing is returned; asserts that the gradient along random directions is the complex step, to rounding."""
    x, labels, rng = zoo_images(graph, 4), [0, 3, 7, 9], np.random.default_rng(1)

    def again(params: Values) -> Tape:
        return run(graph, {graph.input.name: x}, params, training=training)

    tape = again({})
    for names in [trained(graph), *((array,) for array in trained(graph)[::4])]:
        v = directions(tape, names, rng)
        ours = slope(tape, labels, v, again)
        theirs = complex_slope(graph, x, labels, v, training)
        tolerance = (1 + 3) * ours.error  # a product of complex numbers has three roundings for one
        assert tolerance < 1e-6 * max(abs(theirs), 1e-3)
        assert abs(fault * ours.value - theirs) <= tolerance, f"{names}: {ours.value} {theirs} {tolerance}"


@pytest.mark.parametrize("training", [False, True], ids=["as it runs", "in training"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.guarantee(
    "Loss gradients of the embedded networks, batch norms in training too, are complex steps of the loss, to rounding",
    kind="checked",
)
def test_zoo_gradients_are_complex_steps(name: str, training: bool) -> None:
    graph = rq.load_network(name)
    if not training:  # arrays of a batch norm are then taken to float64, which complex numbers are not
        graph = fold_batch_norm(graph)
    check_slope(graph, training)


def test_a_planted_factor_in_a_gradient_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_slope(rq.load_network("mlp"), training=False, fault=2.001 / 2)
