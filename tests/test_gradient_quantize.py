"""Quantizers as ops: their values are the quantizer's, their derivatives those of surrogates, exactly.

Letters: x input, s scale, z zero point, k the code before saturation, rho = k - z - x/s the residual of rounding.
Numbers are dyadic, so that reals, quotients and residuals are exact in float64, and surrogates are affine in each of
their arguments, so that central differences are their derivatives: equality, no tolerance.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.net.gradient import pullback, run
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.op import Op, Point, Rule, Slot, images_last
from refquant.net.ops_quantize import DEQUANTIZE, FAKE_QUANTIZE, FAKE_QUANTIZE_RANGE
from refquant.net.wiring import Through

Reals = NDArray[np.float64]


def at(op: Op, spec: rq.QuantSpec, x: Any, **params: Any) -> Point:
    return op.at(op.read_attrs({"spec": spec}), {role: np.asarray(a) for role, a in params.items()}, [x])


# ---- values ---------------------------------------------------------------------------------------------------

ROUNDINGS = ("half_even", "half_away", "half_up", "floor", "ceil", "toward_zero", "away_from_zero")
QUOTIENTS = ("exact", "float32", "reciprocal-float32")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.guarantee("The quantizer op gives the bits of `fake_quantize`, next to ties too", kind="sampled")
def test_values_are_those_of_fake_quantize(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = (rng.integers(-12, 13, (6, 5, 4, 3)) / 2 * 0.1).astype(dtype)
    x = np.where(rng.random(x.shape) < 0.3, np.nextafter(x, np.inf, dtype=dtype), x)
    x[0, 0, 0] = [np.inf, -np.inf, -0.0]
    grains: list[Any] = [(rq.PerTensor(), ()), (rq.PerChannel(1), (5,)), (rq.PerGroup(1, 2), (6, 3, 4, 3))]
    kinds = itertools.product(ROUNDINGS, QUOTIENTS, ("after", "before"), ("scale-difference", "difference-of-products"))
    for (rounding, quotient, order, dequantize), (grain, shape) in itertools.product(kinds, grains):
        spec = rq.QuantSpec(3, False, False, rounding, quotient, order, "saturate", "raise", dequantize, grain)
        s = rng.uniform(0.05, 0.2, shape).astype(rng.choice([np.float32, dtype]))
        z = rng.integers(0, 8, shape) if order == "after" else rng.uniform(0, 7, shape)
        for z_dtype in (z.dtype, dtype):
            found = at(FAKE_QUANTIZE, spec, images_last(x), scale=s, zero_point=z.astype(z_dtype)).output
            expected = rq.fake_quantize(x, s, z.astype(z_dtype), spec=spec)
            assert found.dtype == dtype
            assert np.array_equal(found, expected), spec


@pytest.mark.parametrize("nan", ["zero", "qmin", "qmax"])
def test_nan_goes_by_the_spec(nan: str) -> None:
    spec = rq.QuantSpec(3, nan=nan)
    x = np.array([[np.nan, 0.3]])
    found = at(FAKE_QUANTIZE, spec, x, scale=np.array(0.25), zero_point=np.array(1.0)).output
    assert np.array_equal(found, rq.fake_quantize(x, 0.25, 1, spec=spec))
    with pytest.raises(rq.NotANumberError):
        at(FAKE_QUANTIZE, rq.QuantSpec(3), x, scale=np.array(0.25), zero_point=np.array(1.0))


@pytest.mark.parametrize(
    "spec", [rq.QuantSpec(3, overflow="wrap"), rq.QuantSpec(3, rounding="stochastic"), rq.QuantSpec(25), 8, None]
)
def test_specs_without_such_a_derivative_are_refused(spec: Any) -> None:
    node = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    graph = Graph("line", InputSpec("x", (1,)), "y", (node,), {"w": np.ones((1, 1), np.float32)})
    way = Through(FAKE_QUANTIZE, {"spec": spec}, {"scale": "s", "zero_point": "z"})
    with pytest.raises(rq.ArgumentError, match="at most 24 bits"):
        run(graph, {"x": np.ones((1, 1))}, {"s": np.array(1.0), "z": np.array(0)}, through={"x": way})


def test_a_range_is_a_scale_and_a_zero_point() -> None:
    spec, x = rq.QuantSpec(2), np.linspace(-2, 2, 41).reshape(1, -1)
    for m, z in [(-1.5, 1), (-0.7, -1), (-0.8, 0), (0.5, -2), (-9.0, 1)]:  # codes -2..1, s = 1/2: z = -2 - 2 m, held
        found = at(FAKE_QUANTIZE_RANGE, spec, x, extent=np.array(1.5), minimum=np.array(m)).output
        assert np.array_equal(found, rq.fake_quantize(x, 0.5, z, spec=spec)), m


# ---- derivatives ----------------------------------------------------------------------------------------------


def surrogate(spec: rq.QuantSpec, x0: Fraction, s0: Fraction, z0: Fraction) -> Callable[..., Fraction]:
    """(x, s, z) -> x^ with the residual and the side of saturation of (x0, s0, z0), by the definition of the code."""
    k = rq.quantize_exact(x0, s0, z0, replace(spec, bits=31, signed=True))
    if spec.qmin <= k <= spec.qmax:
        rho = k - z0 - x0 / s0
        return lambda x, s, z: x + s * rho
    end = spec.qmin if k < spec.qmin else spec.qmax
    return lambda x, s, z: s * (end - z)


def surrogate_of_range(spec: rq.QuantSpec, x0: Fraction, R0: Fraction, m0: Fraction) -> Callable[..., Fraction]:
    """(x, R, m) -> x^, with the zero point's residual, or its end of the grid, frozen as well."""
    n = spec.qmax - spec.qmin
    exact = spec.qmin - m0 * n / R0
    z0 = Fraction(round(exact))  # to nearest, ties to even
    held = min(max(z0, Fraction(spec.qmin)), Fraction(spec.qmax))
    inner = surrogate(spec, x0, R0 / n, held)

    def of(x: Fraction, R: Fraction, m: Fraction) -> Fraction:
        return inner(x, R / n, spec.qmin - m * n / R + (z0 - exact) if held == z0 else held)

    return of


def slopes(frozen: Callable[..., Fraction], point: tuple[Fraction, ...], steps: tuple[Fraction, ...]) -> list[Fraction]:
    """Central differences by each argument."""
    found = []
    for i, h in enumerate(steps):
        ends = [frozen(*(v + (way * h if i == j else 0) for j, v in enumerate(point))) for way in (1, -1)]
        found.append((ends[0] - ends[1]) / (2 * h))
    return found


def check_surrogate(op: Op, spec: rq.QuantSpec, x: Reals, params: dict[str, Fraction], frozen: Any) -> None:
    """Nothing is returned; asserts that both rules are the differences of the surrogate, element by element."""
    here = at(op, spec, x.reshape(1, -1), **{role: np.array(float(v)) for role, v in params.items()})
    roles: list[Slot] = [0, *params]
    for i, value in enumerate(x):
        point = (Fraction(float(value)), *params.values())
        # a range enters as a quotient by R, of which s (qmin - z) keeps none: all surrogates are affine
        expected = slopes(frozen(spec, *point), point, (Fraction(1, 8),) * len(point))
        u = np.zeros((1, len(x)))
        u[0, i] = 1
        back = op.derivative.vjp(here, u, roles)
        assert [back[0][0, i], *(back[role] for role in params)] == expected, (value, params)
        forth = [op.derivative.jvp(here, {role: u if role == 0 else np.array(1.0)})[0, i] for role in roles]
        assert forth == expected, (value, params)


EIGHTHS = np.arange(-40, 41) / 8  # with s = 1/2: ties, half steps beyond the ends, far beyond

SPECS = [
    rq.QuantSpec(3),
    rq.QuantSpec(2, signed=False),
    rq.QuantSpec(3, narrow=True, rounding="half_away"),
    rq.QuantSpec(3, rounding="floor"),
    rq.QuantSpec(3, zero_point_order="before"),
]


@pytest.mark.parametrize("spec", SPECS, ids=["int3", "uint2", "narrow, half away", "floor", "zero point before"])
@pytest.mark.guarantee(
    "Straight-through and LSQ rules are exact derivatives of the surrogate with the residual frozen",
    kind="sampled",
    clauses="Q4 Q5 Q6 D2",
)
def test_rules_are_those_of_the_surrogate(spec: rq.QuantSpec) -> None:
    for s, z in itertools.product((Fraction(1, 2), Fraction(1, 4)), (0, 1)):
        zero_point = Fraction(z, 2 if spec.zero_point_order == "before" else 1)
        check_surrogate(FAKE_QUANTIZE, spec, EIGHTHS, {"scale": s, "zero_point": zero_point}, surrogate)


@pytest.mark.guarantee(
    "The rule of a quantizer by its range is the surrogate's with the zero point's residual frozen too",
    kind="sampled",
    clauses="Q4 Q5 Q6 D2",
)
def test_rules_of_ranges_are_those_of_the_surrogate() -> None:
    """One bit: codes 0 and 1, n = 1, so that s = R / n is exact; m on the grid, off it, and held at either end."""
    spec = rq.QuantSpec(1, signed=False)
    for m in (-1, Fraction(-5, 8), Fraction(-1, 2), Fraction(-1, 4), 0, Fraction(3, 4), -3):
        params = {"extent": Fraction(1), "minimum": Fraction(m)}
        check_surrogate(FAKE_QUANTIZE_RANGE, spec, EIGHTHS, params, surrogate_of_range)


def test_lsq_by_hand() -> None:
    """u = x / s in -2.5 .. 4: inside round(u) - u, beyond the ends the end itself; by x 1 and 0."""
    x = np.array([[-1.25, -0.625, 0.125, 0.375, 0.875, 1.0, 2.0]])
    here = at(FAKE_QUANTIZE, rq.QuantSpec(2), x, scale=np.array(0.5), zero_point=np.array(0.0))
    back = [FAKE_QUANTIZE.derivative.jvp(here, {slot: np.ones(np.shape(a))}) for slot, a in ((0, x), ("scale", 1.0))]
    assert here.output.tolist() == [[-1, -0.5, 0, 0.5, 0.5, 0.5, 0.5]]
    assert back[0].tolist() == [[1, 1, 1, 1, 0, 0, 0]]  # -2.5 rounds to -2, even: inside; 1.75 rounds to 2, beyond
    assert back[1].tolist() == [[0.5, 0.25, -0.25, 0.25, 1, 1, 1]]


def wrong_rules() -> dict[str, Rule]:
    good = FAKE_QUANTIZE.derivative

    def everywhere(here: Point, u: Any, wanted: Any) -> Any:
        return {**good.vjp(here, u, wanted), **({0: u} if 0 in wanted else {})}

    def no_ends(here: Point, u: Any, wanted: Any) -> Any:
        found = good.vjp(here, u, wanted)
        return {**found, **({"scale": (u * here.memory).sum() * found["scale"]} if "scale" in wanted else {})}

    def no_zero_point(here: Point, u: Any, wanted: Any) -> Any:
        return {slot: part * (slot != "zero_point") for slot, part in good.vjp(here, u, wanted).items()}

    def doubled(here: Point, v: Any) -> Any:
        return 2.001 / 2 * good.jvp(here, v)

    return {
        "straight through everywhere": Rule(everywhere, good.jvp),
        "no slope by the scale beyond": Rule(no_ends, good.jvp),
        "none by the zero point": Rule(no_zero_point, good.jvp),
        "a factor": Rule(good.vjp, doubled),
    }


@pytest.mark.parametrize("kind", wrong_rules())
def test_planted_rules_are_caught(kind: str) -> None:
    bad = replace(FAKE_QUANTIZE, derivative=wrong_rules()[kind])
    params = {"scale": Fraction(1, 2), "zero_point": Fraction(1)}
    with pytest.raises(AssertionError):
        check_surrogate(bad, rq.QuantSpec(3), EIGHTHS, params, surrogate)


@pytest.mark.parametrize("op", [FAKE_QUANTIZE, DEQUANTIZE], ids=["fake", "dequantize"])
@pytest.mark.parametrize(
    ("grain", "shape"), [(rq.PerTensor(), ()), (rq.PerChannel(1), (5,)), (rq.PerGroup(1, 2), (4, 3, 2))], ids=str
)
@pytest.mark.parametrize("one", [False, True], ids=["all", "one for all"])
def test_both_rules_match_for_every_granularity(op: Op, grain: Any, shape: tuple[int, ...], one: bool) -> None:
    """Dyadic numbers: both sides of <u, J v> = <J^T u, v> are exact."""
    rng = np.random.default_rng(0)
    x, shape = rng.integers(-40, 41, (4, 5, 2)) / 8.0, () if one else shape
    x = np.floor(x) if op is DEQUANTIZE else x
    spec = rq.QuantSpec(3, granularity=grain)
    here = at(op, spec, x, scale=2.0 ** rng.integers(-2, 1, shape), zero_point=rng.integers(-2, 3, shape).astype(float))
    slots: dict[Slot, Any] = {0: x}
    slots.update(here.params)
    v: dict[Slot, Any] = {slot: rng.integers(-3, 4, np.shape(a)) * 1.0 for slot, a in slots.items()}
    u = rng.integers(-3, 4, x.shape) * 1.0
    back = op.derivative.vjp(here, u, list(v))
    for slot, t in v.items():
        assert np.shape(back[slot]) == np.shape(t)
        moved = op.derivative.jvp(here, {slot: t})
        assert moved.shape == x.shape
        assert (back[slot] * t).sum() == (u * moved).sum()
    total = sum(op.derivative.jvp(here, {slot: t}) for slot, t in v.items())
    assert np.array_equal(op.derivative.jvp(here, v), total)
    assert any(np.any(back[slot]) for slot in back)


def test_both_rules_of_ranges_match_for_every_channel() -> None:
    """Codes 0..3, n = 3: only 1/n is rounded, and then products with it and sums."""
    rng = np.random.default_rng(0)
    x, spec = rng.integers(-40, 41, (4, 5, 2)) / 8.0, rq.QuantSpec(2, signed=False, granularity=rq.PerChannel(1))
    R, m = 3 * 2.0 ** rng.integers(-2, 1, 5), np.array([-0.25, -1.5, 1.0, -9.0, -0.625])
    here = at(FAKE_QUANTIZE_RANGE, spec, x, extent=R, minimum=m)
    rule, u = FAKE_QUANTIZE_RANGE.derivative, rng.integers(1, 9, x.shape) * 1.0
    for slot, t in (("extent", rng.integers(1, 4, 5)), ("minimum", rng.integers(1, 4, 5)), (0, u)):
        moved, back = rule.jvp(here, {slot: t * 1.0}), rule.vjp(here, u, [slot])[slot]
        assert back.shape == t.shape
        assert back.any()
        most = np.abs(u * moved).sum()
        assert abs((back * t).sum() - (u * moved).sum()) <= 2 * (x.size + 8) * 2.0**-53 * most


def test_dequantized_codes_are_lines() -> None:
    spec, c = rq.QuantSpec(3, granularity=rq.PerChannel(0)), np.array([[-4.0, 0, 3], [1, 2, 3]])
    s, z = np.array([0.5, 2.0]), np.array([1.0, 0.0])
    here = at(DEQUANTIZE, spec, c, scale=s, zero_point=z)
    assert np.array_equal(here.output, rq.dequantize(c.astype(int), s, z, spec=spec, dtype=np.float64))
    v: dict[Slot, Any] = {"scale": np.array([1.0, 2.0]), "zero_point": np.array([4.0, -2.0])}
    for slot, t in v.items():
        ends = [
            at(DEQUANTIZE, spec, c, **{**here.params, str(slot): here.params[str(slot)] + way * t / 2}).output
            for way in (1, -1)
        ]
        assert np.array_equal(DEQUANTIZE.derivative.jvp(here, {slot: t}), ends[0] - ends[1])


def test_gradients_of_a_block_by_weights_scales_and_zero_points() -> None:
    """A Gemm whose input and weight are quantized: each derivative by hand."""
    node = Node("y", "Gemm", ("x",), {"in_features": 2, "out_features": 1}, {"weight": "w", "bias": "b"})
    arrays = {"w": np.float32([[0.75, -9.0]]), "b": np.ones(1, np.float32)}  # type: ignore[arg-type]  # nested numbers
    graph = Graph("line", InputSpec("x", (2,)), "y", (node,), arrays)  # type: ignore[arg-type]  # of arrays
    through = {
        "x": Through(FAKE_QUANTIZE, {"spec": rq.QuantSpec(3, False)}, {"scale": "sx", "zero_point": "zx"}),
        "w": Through(FAKE_QUANTIZE, {"spec": rq.QuantSpec(3)}, {"scale": "sw", "zero_point": "zw"}),
    }
    params = {"sx": np.array(0.5), "zx": np.array(1), "sw": np.array(1.0), "zw": np.array(0)}
    tape = run(graph, {"x": np.array([[1.125, -7.0]])}, params, through=through)
    # x / s = 2.25 -> code 3 -> 1.0, and -14 -> code 0, beyond -> -0.5; w = 0.75 -> 1, and -9 -> -4, beyond
    assert tape.values["x:read"].tolist() == [[1.0, -0.5]]
    assert tape.values["w:read"].tolist() == [[1.0, -4.0]]
    assert tape.output.tolist() == [[1 + 2 + 1]]
    back = pullback(tape, np.ones((1, 1)), ["x", "w", "b", *params])
    assert {name: a.tolist() for name, a in back.items()} == {
        "x": [[1.0, 0.0]],
        "w": [[1.0, 0.0]],
        "b": [1.0],
        "sx": 1 * -0.25 + -4 * -1,  # weights times (2 - 2.25), and times 0 - z
        "zx": -4 * -0.5,
        "sw": 1.0 * 0.25 + -0.5 * -4,
        "zw": -0.5 * -1.0,
    }
