"""Quantizers as ops that may stand between a tensor, or a weight, and who reads it.

Letters: x input, s scale, z zero point, k the code before saturation, c the code, x^ = s (c - z).

A quantizer is a staircase: its derivative is 0 or does not exist.  What its rule gives is the exact derivative of a
surrogate, with the residual rho = k - z - x/s of rounding and the side of saturation frozen at the point:
x^ = x + s rho where k is a code (inside), s (qmin - z) or s (qmax - z) where k lies beyond.  So

    by x: 1 inside (straight through), 0 beyond;   by s: rho inside, c - z beyond;   by z: 0 inside, -s beyond.

Sources: by x, Bengio et al. 2013 (arXiv 1308.3432); by s, Esser et al. 2019 (LSQ, arXiv 1902.08153), who let the
inside end at the outermost codes, while here, as the quantizer rounds and then saturates, it ends half a step beyond.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.rounding import round_array
from ..quant.arguments import parameters, shaped
from ..quant.quantizer import dequantize, fake_quantize, quantize
from ..quant.spec import QuantSpec
from .op import Array, Attr, Attrs, Op, Param, Params, Point, Rule, Shape, Slot, Tangents

__all__ = ["DEQUANTIZE", "FAKE_QUANTIZE", "FAKE_QUANTIZE_RANGE"]


def _spec(value: object) -> QuantSpec | None:
    if not isinstance(value, QuantSpec) or value.bits > MOST_BITS:
        return None
    return value if value.overflow == "saturate" and value.rounding != "stochastic" else None


MOST_BITS = 24
"""float32 holds all codes of so many bits."""

SPEC = Attr(f"a QuantSpec of at most {MOST_BITS} bits that saturates and whose rounding is deterministic", _spec)


def _same_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    return shapes[0]


def _any_shape(attrs: Attrs) -> Shape:
    """A param's shape depends on the tensor: `quant.arguments.shaped` checks it where the op is run."""
    return ()


def _spread(at: Point, parameter: Array, what: str) -> Array:
    """A parameter in the type of the output, broadcastable against it."""
    return shaped(np.asarray(parameter), what, at.output.shape, at.attrs["spec"]).astype(at.output.dtype, copy=False)


def _gathered(at: Point, role: str, g: Array) -> Array:
    """The transpose of `_spread`: the sum of g over the elements that share a parameter."""
    wanted = np.shape(at.params[role])
    if not wanted:
        return np.asarray(g.sum())
    return np.asarray(at.attrs["spec"].granularity.rows(g).sum(axis=1).reshape(wanted))


# ---- FakeQuantize ---------------------------------------------------------------------------------------------


def _fake(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    return fake_quantize(inputs[0], params["scale"], params["zero_point"], spec=attrs["spec"])


def _reals_of(codes: NDArray[Any], params: Params, spec: QuantSpec, x: Array) -> Array:
    """`dequantize` in x's type, float32 or float64: where clause D2 is one product of that type, without its care."""
    s, z = (np.asarray(params[role]) for role in ("scale", "zero_point"))
    if s.dtype != x.dtype or spec.zero_point_order != "after" or spec.dequantize != "scale-difference":
        return dequantize(codes, s, z, spec=spec, dtype=x.dtype)
    S, Z = shaped(s, "scale", x.shape, spec), shaped(z.astype(codes.dtype), "zero_point", x.shape, spec)
    y: Array = (codes - Z).astype(x.dtype)  # exact: at most MOST_BITS
    y *= S
    return y


def _fake_record(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> tuple[Array, NDArray[np.bool_]]:
    """The output, the same bits as `fake_quantize`; and where x lies inside."""
    spec, x = attrs["spec"], inputs[0]
    s, z = parameters(params["scale"], params["zero_point"], x.shape, spec, "FakeQuantize")
    if _in_float32(spec, s, x):
        return _float32_record(x, s, z.astype(np.float32), spec)
    wide = replace(spec, bits=31, signed=True, narrow=False)
    k = quantize(x, params["scale"], params["zero_point"], spec=wide)
    codes = np.clip(k, spec.qmin, spec.qmax)
    return _reals_of(codes, params, spec, x), codes == k


def _in_float32(spec: QuantSpec, s: Array, x: Array) -> bool:
    """Whether clauses Q2 and D2 are one operation of float32 each, on numbers."""
    plain = spec.quotient, spec.zero_point_order, spec.dequantize
    return (
        plain == ("float32", "after", "scale-difference") and x.dtype == s.dtype == np.float32 and not np.isnan(x).any()
    )


def _float32_record(x: Array, s: Array, z: Array, spec: QuantSpec) -> tuple[Array, NDArray[np.bool_]]:
    """The same bits, without a number wider than float32: codes are exact in it, and what it rounds lies beyond."""
    with np.errstate(over="ignore", under="ignore"):
        k = np.asarray(round_array(x / s, spec.rounding))
    k = k + z
    y = np.clip(k, spec.qmin, spec.qmax)
    inside = y == k
    y -= z
    y *= s
    return y, inside


def _by_scale(at: Point) -> Array:
    """rho inside, c - z beyond: (x^ - x [inside]) / s."""
    y: Array = at.output - at.inputs[0] * at.memory
    y /= _spread(at, at.params["scale"], "scale")
    return y


def _by_zero_point(at: Point) -> Array:
    y: Array = ~at.memory * -_spread(at, at.params["scale"], "scale")
    return y


def _fake_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    rows: dict[Slot, Callable[[], Array]] = {
        0: lambda: u * at.memory,
        "scale": lambda: _gathered(at, "scale", u * _by_scale(at)),
        "zero_point": lambda: _gathered(at, "zero_point", u * _by_zero_point(at)),
    }
    return {slot: rows[slot]() for slot in wanted}


def _fake_jvp(at: Point, v: Tangents) -> Array:
    rows: dict[Slot, Callable[[Array], Array]] = {
        0: lambda t: t * at.memory,
        "scale": lambda t: _spread(at, t, "scale") * _by_scale(at),
        "zero_point": lambda t: _spread(at, t, "zero_point") * _by_zero_point(at),
    }
    return reduce(np.add, [rows[slot](tangent) for slot, tangent in v.items()])


FAKE_QUANTIZE = Op(
    _same_shape,
    _fake,
    Rule(_fake_vjp, _fake_jvp),
    {"spec": SPEC},
    {"scale": Param(_any_shape), "zero_point": Param(_any_shape)},
    record=_fake_record,
)
"""`refquant.fake_quantize` with params `scale` and `zero_point`; its rule is straight through, and LSQ's."""


# ---- FakeQuantize by a range ----------------------------------------------------------------------------------


def _from_range(attrs: Attrs, params: Params) -> tuple[dict[str, Array], Array]:
    """The scale and zero point of a range, and where the zero point is not held at an end of the grid."""
    spec, R, m = attrs["spec"], np.asarray(params["extent"]), np.asarray(params["minimum"])
    s = R / R.dtype.type(spec.qmax - spec.qmin)
    k = np.rint(spec.qmin - m.astype(np.float64) / s)
    z = np.clip(k, spec.qmin, spec.qmax)
    return {"scale": s, "zero_point": z}, np.asarray(z == k)


def _range_record(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> tuple[Array, NDArray[np.bool_]]:
    return _fake_record(attrs, _from_range(attrs, params)[0], inputs)


def _inner(at: Point) -> tuple[Point, dict[str, Array]]:
    """The point of FakeQuantize inside, and the derivatives of its params: s by R, z by s, z by m."""
    params, free = _from_range(at.attrs, at.params)
    s, m = params["scale"], np.asarray(at.params["minimum"])
    steps = np.asarray(at.attrs["spec"].qmax - at.attrs["spec"].qmin, s.dtype)
    return at._replace(params=params), {"s by R": 1 / steps, "z by s": free * m / s**2, "z by m": free * (-1 / s)}


def _range_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    inside, by = _inner(at)
    found = _fake_vjp(inside, u, [0] if 0 in wanted else [])
    if {"extent", "minimum"} & set(wanted):
        of = _fake_vjp(inside, u, ["scale", "zero_point"])
        found["extent"] = by["s by R"] * (of["scale"] + by["z by s"] * of["zero_point"])
        found["minimum"] = by["z by m"] * of["zero_point"]
    return {slot: found[slot] for slot in wanted}


def _range_jvp(at: Point, v: Tangents) -> Array:
    inside, by = _inner(at)
    s = by["s by R"] * v.get("extent", np.zeros_like(inside.params["scale"]))
    z = by["z by s"] * s + by["z by m"] * v.get("minimum", np.zeros_like(s))
    return _fake_jvp(inside, {**({0: v[0]} if 0 in v else {}), "scale": s, "zero_point": z})


FAKE_QUANTIZE_RANGE = Op(
    _same_shape,
    lambda attrs, params, inputs: _fake(attrs, _from_range(attrs, params)[0], inputs),
    Rule(_range_vjp, _range_jvp),
    {"spec": SPEC},
    {"extent": Param(_any_shape), "minimum": Param(_any_shape)},
    record=_range_record,
)
"""FakeQuantize of a range: params `extent` R, > 0, and `minimum` m; s = R / (qmax - qmin), z = qmin - m/s, rounded.

The zero point's rounding is straight through, too: its rule is the derivative of the surrogate with the residual of
z frozen as well; where z is held at an end of the grid it does not move.  Source: the parametrization of AdaQuant,
Hubara et al. 2021.
"""


# ---- Dequantize -----------------------------------------------------------------------------------------------


def _dequantize(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    c, spec = inputs[0], attrs["spec"]
    s, z = (shaped(np.asarray(params[role]), role, c.shape, spec) for role in ("scale", "zero_point"))
    y: Array = ((c - z) * s).astype(c.dtype, copy=False)
    return y


def _dequantize_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    s, z = (_spread(at, at.params[role], role) for role in ("scale", "zero_point"))
    rows: dict[Slot, Callable[[], Array]] = {
        0: lambda: u * s,
        "scale": lambda: _gathered(at, "scale", u * (at.inputs[0] - z)),
        "zero_point": lambda: _gathered(at, "zero_point", u * -s),
    }
    return {slot: rows[slot]() for slot in wanted}


def _dequantize_jvp(at: Point, v: Tangents) -> Array:
    s, z = (_spread(at, at.params[role], role) for role in ("scale", "zero_point"))
    rows: dict[Slot, Callable[[Array], Array]] = {
        0: lambda t: t * s,
        "scale": lambda t: _spread(at, t, "scale") * (at.inputs[0] - z),
        "zero_point": lambda t: np.broadcast_to(_spread(at, t, "zero_point") * -s, at.output.shape),
    }
    return reduce(np.add, [rows[slot](tangent) for slot, tangent in v.items()])


DEQUANTIZE = Op(
    _same_shape,
    _dequantize,
    Rule(_dequantize_vjp, _dequantize_jvp),
    {"spec": SPEC},
    {"scale": Param(_any_shape), "zero_point": Param(_any_shape)},
)
"""s (c - z) of codes c that stay, held as floats, with params `scale` and `zero_point`; its derivative is exact."""
