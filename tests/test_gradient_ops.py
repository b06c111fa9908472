"""Every op's derivative: against differences, which are exact on integers, and each rule against its transpose.

Letters: v tangents, u cotangents, J the Jacobian.  Where an op is made of lines, (f(x + v/2) - f(x - v/2)) is J v as
long as no kink lies between the two, and on integers all of it is exact in float64: equality, no tolerance.  Where it
is analytic, the imaginary part of f(x + i h v) / h is J v up to h^2, which is nothing for h = 2^-100.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from refquant.net.op import Op, Point, Rule, Slot, images_last
from refquant.net.ops import OPS
from refquant.net.ops_norm import BATCH_NORM_TRAINING

_place = importlib.util.spec_from_file_location("net_ops", Path(__file__).with_name("test_net_ops.py"))
assert _place is not None
assert _place.loader is not None
net_ops = importlib.util.module_from_spec(_place)
_place.loader.exec_module(net_ops)

Reals = NDArray[np.float64]
UNIT = 2.0**-53


@dataclass
class Case:
    """An op at a point.  step: tangents and cotangents are multiples of it.  fixed: params left out."""

    op: Op
    inputs: list[Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    step: int = 1
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.attrs = self.op.read_attrs(self.attrs)
        self.inputs = [np.asarray(x, np.float64) for x in self.inputs]
        self.params = {role: np.asarray(a, np.float64) for role, a in self.params.items()}

    @property
    def slots(self) -> dict[Slot, Reals]:
        params: dict[Slot, Reals] = {role: a for role, a in self.params.items() if role not in self.fixed}
        return {**dict(enumerate(self.inputs)), **params}

    def at(self, moved: Mapping[Slot, Any] | None = None) -> Point:
        """The point, or one moved by tangents of some slots."""
        moved = moved or {}
        still = 0j if any(np.iscomplexobj(v) for v in moved.values()) else 0.0
        inputs = [x + moved.get(i, still) for i, x in enumerate(self.inputs)]
        return self.op.at(self.attrs, {role: a + moved.get(role, still) for role, a in self.params.items()}, inputs)


def integers(rng: np.random.Generator, shape: tuple[int, ...], most: int = 8) -> Reals:
    return rng.integers(-most, most + 1, shape).astype(np.float64)


def check_rules(case: Case, seed: int = 0) -> None:
    """Nothing is returned; asserts that jvp is the difference and vjp its transpose, exactly, slot by slot and all.

    Also that both orders of memory give the same, and that record gives what forward gives.
    """
    rng, at = np.random.default_rng(seed), case.at()
    rule = case.op.derivative
    assert np.array_equal(at.output, case.op.forward(case.attrs, case.params, case.inputs))
    last = case.op.at(case.attrs, case.params, [images_last(x) for x in case.inputs])
    u = case.step * integers(rng, at.output.shape, 999)  # a dot product is hardly ever 0
    tangents = {slot: case.step * integers(rng, a.shape, 1) for slot, a in case.slots.items()}
    cotangents = rule.vjp(at, u, list(tangents))
    assert set(cotangents) == set(tangents)
    total = np.zeros_like(at.output)
    for slot, v in tangents.items():
        moved = rule.jvp(at, {slot: v})
        assert np.array_equal(moved, case.at({slot: v / 2}).output - case.at({slot: -v / 2}).output), f"jvp of {slot}"
        back = rule.vjp(last, images_last(u), [slot])[slot]
        assert back.shape == v.shape
        assert (back * v).sum() == (u * moved).sum(), f"vjp of {slot}"
        assert np.array_equal(back, cotangents[slot]), f"vjp of {slot} among others, or in another order of memory"
        total = total + moved
    assert np.array_equal(rule.jvp(last, tangents), total), "jvp of all together"


# ---- ops made of lines ----------------------------------------------------------------------------------------


def no_kink(rng: np.random.Generator, shape: tuple[int, ...]) -> Reals:
    """Integers next to the kinks of Relu and Relu6, and beyond, but not on them."""
    return np.asarray(rng.choice([-9, -1, 1, 2, 5, 7, 20], shape).astype(np.float64))


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> Reals:
    return np.asarray(rng.permutation(math.prod(shape)).reshape(shape) - 5.0)


WINDOW = {"kernel": [2, 3], "stride": [2, 1], "padding": [1, 0, 0, 2]}
ALL_COUNTS = 36
"""A multiple of every number of pixels that a window of up to 3 x 3 averages."""


def cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    conv = {"in_channels": 4, "out_channels": 6, "groups": 2, "dilation": [1, 2], **WINDOW}
    moments = {"gamma": [8, -4, 16], "beta": [1, 0, 5], "mean": [2, -3, 0], "var": [3, 15, 0]}  # eps + var: powers of 4
    batch = rng.integers(-9, 10, (3, 2, 4, 5)).astype(np.float64)
    return {
        "Conv": Case(
            OPS["Conv"],
            [integers(rng, (3, 4, 5, 6))],
            conv,
            {"weight": integers(rng, (6, 2, 2, 3)), "bias": integers(rng, (6,))},
        ),
        "Gemm": Case(
            OPS["Gemm"],
            [integers(rng, (3, 4))],
            {"in_features": 4, "out_features": 2},
            {"weight": integers(rng, (2, 4)), "bias": integers(rng, (2,))},
        ),
        "BatchNorm": Case(
            OPS["BatchNorm"], [integers(rng, (2, 3, 2, 4))], {"channels": 3, "eps": 1.0}, moments, fixed=("var",)
        ),
        "Relu": Case(OPS["Relu"], [no_kink(rng, (3, 4))]),
        "Relu6": Case(OPS["Relu6"], [no_kink(rng, (3, 4))]),
        "Add": Case(OPS["Add"], [batch, batch + 1]),
        "Concat": Case(OPS["Concat"], [batch, batch[:, :1], 2 * batch]),
        "MaxPool": Case(OPS["MaxPool"], [distinct(rng, (2, 3, 5, 6))], WINDOW),
        "AveragePool": Case(OPS["AveragePool"], [ALL_COUNTS * batch], WINDOW, step=ALL_COUNTS),
        "GlobalAvgPool": Case(OPS["GlobalAvgPool"], [20 * batch], step=20),
        "Flatten": Case(OPS["Flatten"], [batch]),
    }


@pytest.mark.parametrize("name", cases())
def test_rules_are_differences_and_each_others_transpose(name: str) -> None:
    for seed in range(3):
        check_rules(cases()[name], seed)


def test_every_op_is_checked() -> None:
    assert set(cases()) | {"Softmax"} == set(OPS)


@given(net_ops.convolutions(), st.integers(0, 99))
@pytest.mark.guarantee(
    "Both derivatives of convolutions, by input, weight and bias, are differences, exactly: padding, groups, dilation",
    kind="sampled",
)
def test_convolutions(case: tuple[dict[str, Any], Any, Any, Any], seed: int) -> None:
    attrs, weight, bias, x = case
    check_rules(Case(OPS["Conv"], [x], attrs, {"weight": weight, "bias": bias}), seed)
    check_rules(Case(OPS["Conv"], [x], attrs, {"weight": weight}), seed)


@given(net_ops.windows(pool=True), st.integers(0, 99), st.booleans())
@pytest.mark.guarantee("Both derivatives of max and average pools are differences, exactly", kind="sampled")
def test_pools(window: tuple[dict[str, Any], tuple[int, int]], seed: int, count_include_pad: bool) -> None:
    attrs, size = window
    x = distinct(np.random.default_rng(seed), (2, 2, *size))
    check_rules(Case(OPS["MaxPool"], [x], attrs), seed)
    average = {**attrs, "count_include_pad": count_include_pad}
    check_rules(Case(OPS["AveragePool"], [ALL_COUNTS * x], average, step=ALL_COUNTS), seed)


@pytest.mark.parametrize(("N", "C", "O", "groups"), [(3, 40, 8, 1), (70, 96, 96, 96), (2000, 2, 3, 1)])
def test_convolutions_in_blocks(N: int, C: int, O: int, groups: int) -> None:
    """Larger than a block of patches: rows, and parts of a row, one by one."""
    rng = np.random.default_rng(1)
    attrs = {"in_channels": C, "out_channels": O, "groups": groups, "kernel": [3, 3], "stride": [1, 2]}
    x, weight = integers(rng, (N, C, 12, 13), 2), integers(rng, (O, C // groups, 3, 3), 2)
    check_rules(Case(OPS["Conv"], [x], {**attrs, "padding": [1, 1]}, {"weight": weight, "bias": np.zeros(O)}))


def scaled(rule: Rule, vjp: float = 1.0, jvp: float = 1.0) -> Rule:
    """A wrong rule: everything it gives, times a number."""
    return Rule(
        lambda at, u, wanted: {slot: vjp * part for slot, part in rule.vjp(at, u, wanted).items()},
        lambda at, v: jvp * rule.jvp(at, v),
    )


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("fault", [{"vjp": 2.001 / 2}, {"jvp": 2.001 / 2}, {"vjp": -1.0, "jvp": -1.0}])
def test_a_planted_factor_is_caught(name: str, fault: dict[str, float]) -> None:
    case = cases()[name]
    with pytest.raises(AssertionError):
        check_rules(replace(case, op=replace(case.op, derivative=scaled(case.op.derivative, **fault))))


# ---- analytic ops ---------------------------------------------------------------------------------------------

TINY = 2.0**-100


def analytic_case(name: str, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    if name == "Softmax":
        return Case(OPS["Softmax"], [rng.uniform(-4, 4, (2, 3, 4))], {"axis": 2})
    x = rng.uniform(-4, 4, (4, 3, 2, 2))
    params = {"gamma": [2.0, -0.5, 1.0], "beta": [1.0, 0.0, 5.0], "mean": [9.0, 9.0, 9.0], "var": [9.0, 9.0, 9.0]}
    return Case(BATCH_NORM_TRAINING, [x], {"channels": 3, "eps": 0.01}, params, fixed=("mean", "var"))


def complex_step(case: Case, slot: Slot, v: Reals) -> Reals:
    """J v."""
    y: Reals = case.at({slot: 1j * TINY * v}).output.imag / TINY
    return y


def check_analytic(case: Case, tolerance: float, seed: int = 0) -> None:
    """Nothing is returned; asserts that jvp is the complex step for every basis tangent, and vjp the transpose."""
    at, rule = case.at(), case.op.derivative
    for slot, a in case.slots.items():
        basis = np.eye(a.size).reshape(a.size, *a.shape)
        J = np.array([rule.jvp(at, {slot: v}).ravel() for v in basis])
        assert np.abs(J - [complex_step(case, slot, v).ravel() for v in basis]).max() <= tolerance, f"jvp of {slot}"
        units = np.eye(at.output.size).reshape(-1, *at.output.shape)
        Jt = np.array([rule.vjp(at, u, [slot])[slot].ravel() for u in units])
        assert np.abs(J.T - Jt).max() <= tolerance, f"vjp of {slot}"


SOFTMAX_ERROR = 9 * 24 * UNIT
"""n = 4 classes, |x| <= 4.  An exponent is at most 8 and errs by 8 u, exp by 2 u more, a sum of n by (n - 1) u more and
the quotient by u: p errs relatively by (2 * 10 + n) u = 24 u.  An entry p_i (delta_ij - p_j) errs by 3 of these.  The
complex step takes the same steps, for values and for their derivatives: at most twice that, so 9 together."""

NORM_ERROR = 4 * 70 * (16 + 4) * UNIT
"""L = 16 values a channel, |x| <= 4, deviations above 1 (asserted), |gamma| <= 2; g = (L + 4) u.  A mean errs by 4 g,
a centred value d by 5 g, v relatively by (2 * 5 + 1) g, r by half of that and two roundings, 6 g.  As |x^| <= sqrt(L)
= 4, x^ = d r errs by (5 + 4 * 7) g = 33 g.  An entry gamma r (delta - 1/L - x^ x^'/L) errs by 2 (2 * 4 * 33/16 + 2) g
in the bracket and 2 * 6 * 2.1 g outside: below 70 g.  The complex step takes the same steps for values and for their
derivatives, with three roundings for one in products: at most three times that, so four together."""


@pytest.mark.parametrize(("name", "tolerance"), [("Softmax", SOFTMAX_ERROR), ("training", NORM_ERROR)])
@pytest.mark.guarantee("Derivatives of softmax and of batch norm in training are complex steps", kind="sampled")
def test_analytic_rules(name: str, tolerance: float) -> None:
    for seed in range(5):
        case = analytic_case(name, seed)
        assert name == "Softmax" or np.all(case.at().memory.var > 1)
        check_analytic(case, tolerance)


@pytest.mark.parametrize(("name", "tolerance"), [("Softmax", SOFTMAX_ERROR), ("training", NORM_ERROR)])
@pytest.mark.parametrize("fault", [{"vjp": 2.001 / 2}, {"jvp": 2.001 / 2}])
def test_a_planted_factor_in_an_analytic_rule_is_caught(name: str, tolerance: float, fault: dict[str, float]) -> None:
    case = analytic_case(name)
    with pytest.raises(AssertionError):
        check_analytic(replace(case, op=replace(case.op, derivative=scaled(case.op.derivative, **fault))), tolerance)


@pytest.mark.parametrize("fault", [1.0, 2.001 / 2])
def test_batch_norm_by_its_variance(fault: float) -> None:
    """f(v) = gamma (x - m) (v + 1)^(-1/2) + beta: a central difference errs by h^2/6 |f^(3)| + 4 u |f| / (2 h)."""
    case = cases()["BatchNorm"]
    x, (gamma, _, mean, var) = case.inputs[0], case.params.values()
    h = 2.0**-14
    most = np.abs(gamma[:, None, None] * (x - mean[:, None, None])).max()
    tolerance = h**2 / 6 * 15 / 8 * most / (var.min() + 1 - h) ** 3.5 + 4 * UNIT * 2 * (most + 5) / (2 * h)
    rule, basis = scaled(case.op.derivative, fault, fault), np.eye(3)
    moved = np.array([rule.jvp(case.at(), {"var": v}) for v in basis])
    exact = np.array([(case.at({"var": h * v}).output - case.at({"var": -h * v}).output) / (2 * h) for v in basis])
    assert (np.abs(moved - exact).max() <= tolerance) == (fault == 1)
    u = integers(np.random.default_rng(0), x.shape)
    back, terms = rule.vjp(case.at(), u, ["var"])["var"], (u * moved).reshape(3, -1)
    # both are sums of 16 products of the same factors, in another order
    assert np.all(np.abs(back - terms.sum(axis=1)) <= 2 * (16 + 4) * UNIT * np.abs(terms).sum(axis=1))


# ---- conventions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "x", "slopes"),
    [
        ("Relu", [-1, -0.0, 0.0, 5e-324, 1], [0, 0, 0, 1, 1]),
        ("Relu6", [-1, 0.0, 3, 6, 7], [0, 0, 1, 0, 0]),
    ],
)
@pytest.mark.guarantee("At their kinks Relu and Relu6 have slope 0", kind="checked")
def test_slopes_at_kinks(op: str, x: list[float], slopes: list[float]) -> None:
    at, ones = Case(OPS[op], [[x]]).at(), np.ones((1, 5))
    assert OPS[op].derivative.jvp(at, {0: ones}).tolist() == [slopes]
    assert OPS[op].derivative.vjp(at, ones, [0])[0].tolist() == [slopes]


@pytest.mark.guarantee("A tied maximum moves with the first tap that holds it", kind="checked")
def test_ties_of_max_pool() -> None:
    at = Case(OPS["MaxPool"], [[[[[1, 7, 7], [7, 7, 7], [0, 7, 2]]]]], {"kernel": [2, 2], "stride": [1, 1]}).at()
    assert at.output.tolist() == [[[[7, 7], [7, 7]]]]
    u = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])
    first = [[0, 11, 0], [100, 1000, 0], [0, 0, 0]]
    assert OPS["MaxPool"].derivative.vjp(at, u, [0])[0].tolist() == [[first]]
    v = np.arange(9.0).reshape(1, 1, 3, 3)
    assert OPS["MaxPool"].derivative.jvp(at, {0: v}).tolist() == [[[[1, 1], [3, 4]]]]


def test_padding_of_max_pool_gets_nothing() -> None:
    at = Case(OPS["MaxPool"], [[[[[-7.0]]]]], {"kernel": [2, 2], "stride": [1, 1], "padding": [1, 1]}).at()
    assert OPS["MaxPool"].derivative.vjp(at, np.ones((1, 1, 2, 2)), [0])[0].tolist() == [[[[4]]]]


def test_training_does_not_read_the_measured_moments() -> None:
    case = analytic_case("training")
    zero = case.op.derivative.vjp(case.at(), np.ones((4, 3, 2, 2)), ["mean", "var"])
    assert {slot: part.tolist() for slot, part in zero.items()} == {"mean": [0, 0, 0], "var": [0, 0, 0]}
    assert not case.op.derivative.jvp(case.at(), {"mean": np.ones(3)}).any()


@pytest.mark.parametrize("name", [*cases(), "Softmax", "training"])
def test_no_images_have_derivatives(name: str) -> None:
    case = cases()[name] if name in cases() else analytic_case(name)
    none = replace(case, inputs=[x[:0] for x in case.inputs])
    at, rule = none.at(), case.op.derivative
    back = rule.vjp(at, np.zeros(at.output.shape), list(none.slots))
    assert {slot: part.shape for slot, part in back.items()} == {slot: a.shape for slot, a in none.slots.items()}
    assert not any(part.any() for part in back.values())
    assert rule.jvp(at, {slot: np.ones(a.shape) for slot, a in none.slots.items()}).shape == at.output.shape


@pytest.mark.parametrize("name", cases())
def test_float32_stays_float32(name: str) -> None:
    case = cases()[name]
    params = {role: a.astype(np.float32) for role, a in case.params.items()}
    at = case.op.at(case.attrs, params, [x.astype(np.float32) for x in case.inputs])
    slots: list[Slot] = [*range(len(case.inputs)), *params]
    assert at.output.dtype == np.float32
    assert {a.dtype for a in case.op.derivative.vjp(at, at.output, slots).values()} == {np.dtype(np.float32)}
    tangents: dict[Slot, Any] = {slot: a.astype(np.float32) for slot, a in case.slots.items()}
    assert case.op.derivative.jvp(at, tangents).dtype == np.float32
