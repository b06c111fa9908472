"""How far a quantizer may take a value: bounds on d = Q(v) - v for every v of a box.

Letters: s scale, z zero point, k the code before saturation, bottom = s (qmin - z) and top = s (qmax - z) the ends of
the grid; rho the error of rounding to an integer and eta that of the quotient and the zero point, both in steps.

Unsaturated, s (k - z) - v lies in s [rho_low - eta, rho_high + eta].  Saturation moves it back onto [bottom, top], so
that d is at least the smaller of s (rho_low - eta) and top - v, and at most the larger of s (rho_high + eta) and
bottom - v: a clip's excess appears only where v lies beyond the grid.  The output's rounding comes on top.

Proofs: proofs/08_bounds.py.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..arith.formats import SHAPES
from ..errors import ArgumentError, complaint
from ..quant.arguments import parameters
from ..quant.quantizer import fake_quantize
from ..quant.spec import QuantSpec
from .box import Box, meet, point
from .rounding_error import LARGE, TINY, UNITS, gamma

__all__ = [
    "ROUNDING",
    "check_quantizer",
    "grid_ends",
    "noise_radius",
    "on_grid",
    "quantizer_error",
    "quantizer_image",
]

Reals = NDArray[np.float64]

ROUNDING: dict[str, tuple[float, float]] = {
    "half_even": (-0.5, 0.5),
    "half_away": (-0.5, 0.5),
    "half_toward_zero": (-0.5, 0.5),
    "half_up": (-0.5, 0.5),
    "half_down": (-0.5, 0.5),
    "floor": (-1.0, 0.0),
    "ceil": (0.0, 1.0),
    "toward_zero": (-1.0, 1.0),
    "away_from_zero": (-1.0, 1.0),
}
"""From a mode (clause Q4) to where its result less its operand may lie."""

QUOTIENT_ROUNDINGS = 6
"""At most so many meet a quotient: x, s and z converted, a reciprocal, a product, a sum."""


def check_quantizer(spec: QuantSpec, where: str) -> None:
    """Nothing is returned; raises ArgumentError for a quantizer that does not saturate or that rounds at random.

    One that wraps is not monotone: an error may be as large as the grid.
    """
    if spec.overflow == "wrap" or spec.rounding not in ROUNDING:
        got = f"a quantizer with overflow={spec.overflow!r}, rounding={spec.rounding!r}"
        raise ArgumentError(complaint(got, "saturating (or raising), and deterministic", where))


def _quotient_error(spec: QuantSpec, s: Reals, z: Reals, ends: Reals) -> Reals:
    """eta; infinite where the arithmetic of the quotient may overflow or lose digits of the scale.

    ends: the largest |s (q - z)|.
    """
    if spec.quotient == "exact":
        return np.zeros(np.broadcast_shapes(s.shape, z.shape))
    shape = SHAPES[spec.quotient.removeprefix("fused-").removeprefix("reciprocal-")]
    u, least, most = 2.0**-shape.p, 2.0 ** (shape.least + shape.p - 1), 2.0 ** (shape.limit - 1)
    steps = ends / s + 1 + np.abs(z)
    normal = (s >= least) & (1 / s >= least) & (1 / s <= most) & (ends + s <= most) & (steps <= most)
    eta = gamma(QUOTIENT_ROUNDINGS, u) * steps + 2 * least * (1 + 1 / s)
    return np.asarray(np.where(normal & (eta < 1), eta, np.inf))


def quantizer_error(
    spec: QuantSpec, scale: NDArray[np.generic], zero_point: NDArray[np.generic], v: Box, to: str
) -> Box:
    """Where Q(v) - v may lie for every v of a box, whichever way codes are rounded within the error of the mode.

    scale, zero_point: as in `refquant.quantize`.  to: the type of the output, "float32" or "float64".

    Raises ArgumentError as `check_quantizer` and `quantize`.

    >>> v = Box(np.array([0.1, 5.0]), np.array([0.2, 6.0]))
    >>> d = quantizer_error(QuantSpec(3), np.array(1.0), np.array(0), v, "float64")
    >>> d.low.round(9).tolist(), d.high.round(9).tolist()  # 6 becomes 3
    ([-0.5, -3.0], [0.5, -2.0])
    """
    check_quantizer(spec, "quantizer_error")
    s, z = parameters(scale, zero_point, v.low.shape, spec, "quantizer_error")
    s, z = s.astype(np.float64), z.astype(np.float64)
    slack = 1 + gamma(8)
    bottom, top = s * (spec.qmin - z), s * (spec.qmax - z)
    ends = np.maximum(np.abs(bottom), np.abs(top)) * slack
    products = ends if spec.dequantize == "scale-difference" else 2 * (ends + 2 * s * np.abs(z))
    out = slack * (UNITS[to] * products + gamma(4) * ends) + np.where(products < LARGE[to], TINY[to], np.inf)
    low, high = ROUNDING[spec.rounding]
    eta = _quotient_error(spec, s, z, ends)
    with np.errstate(invalid="ignore"):
        inside = Box(s * (low - eta), s * (high + eta))
    excess = point(top) - v, point(bottom) - v
    d = Box(np.minimum(inside.low, excess[0].low), np.maximum(inside.high, excess[1].high))
    onto_grid = Box(bottom, top) - v
    return meet(d, onto_grid).widened(out)


def grid_ends(
    spec: QuantSpec, scale: NDArray[np.generic], zero_point: NDArray[np.generic], shape: tuple[int, ...]
) -> Box:
    """bottom and top, broadcastable against a tensor of this shape; rounded, by at most gamma(3) of their size.

    >>> grid_ends(QuantSpec(3), np.array(0.5), np.array(1), (2,))
    Box(low=array(-2.5), high=array(1.))
    """
    s, z = parameters(scale, zero_point, shape, spec, "grid_ends")
    S, Z = s.astype(np.float64), z.astype(np.float64)
    return Box(np.asarray(S * (spec.qmin - Z)), np.asarray(S * (spec.qmax - Z)))


def on_grid(spec: QuantSpec, scale: NDArray[np.generic], zero_point: NDArray[np.generic], v: Box) -> NDArray[np.bool_]:
    """Where a box lies between the ends of the grid, as computed: no value is clipped there.

    >>> on_grid(QuantSpec(3), np.array(1.0), np.array(0), point(np.array([-5.0, 3.0]))).tolist()
    [False, True]
    """
    ends = grid_ends(spec, scale, zero_point, v.low.shape)
    return np.asarray((v.low >= ends.low) & (v.high <= ends.high))


def noise_radius(spec: QuantSpec, scale: NDArray[np.generic], zero_point: NDArray[np.generic], v: Box, d: Box) -> Reals:
    """Half a step where the errors d of `quantizer_error` may be noise about the middle of their box, 0 elsewhere.

    They may not where a value may be clipped or an end of the grid cuts the box, where nothing is known of the
    quotient, and in modes toward zero and away from it: there errors of numbers of one sign lie to one side.
    What a box is wider than a step is due to the quotient and the output: it moves the mean, and is no chance.

    >>> v, s, z = point(np.array([0.2, 3.0])), np.array(1.0), np.array(0)
    >>> noise_radius(QuantSpec(3), s, z, v, quantizer_error(QuantSpec(3), s, z, v, "float32")).tolist()
    [0.5, 0.0]
    """
    low, high = ROUNDING[spec.rounding]
    if high - low > 1:
        return np.zeros_like(v.low)
    s, z = (p.astype(np.float64) for p in parameters(scale, zero_point, v.low.shape, spec, "noise_radius"))
    ends = grid_ends(spec, scale, zero_point, v.low.shape)
    eta = _quotient_error(spec, s, z, ends.magnitude * (1 + gamma(8)))
    whole = (d.low <= s * (low - eta)) & (d.high >= s * (high + eta))
    return np.where(whole & on_grid(spec, scale, zero_point, v), s / 2, 0.0)


def quantizer_image(
    spec: QuantSpec, scale: NDArray[np.generic], zero_point: NDArray[np.generic], v: Box, to: str
) -> Box:
    """Between which values Q(v) lies for every v of type `to` in a box: those at its ends, as Q is monotone.

    Raises ArgumentError as `check_quantizer` and `quantize`.

    >>> v = Box(np.array([0.6]), np.array([1.2]))
    >>> quantizer_image(QuantSpec(3), np.array(1.0), np.array(0), v, "float32")
    Box(low=array([1.]), high=array([1.]))
    """
    check_quantizer(spec, "quantizer_image")
    spec = replace(spec, overflow="saturate")  # the same, where no error is raised
    ends = (_to_type(v.low, to, -np.inf), _to_type(v.high, to, np.inf))
    return Box(*(fake_quantize(end, scale, zero_point, spec=spec).astype(np.float64) for end in ends))


def _to_type(v: Reals, to: str, way: float) -> NDArray[np.floating]:
    """v in a type, rounded towards `way`."""
    x = v.astype(to)
    beyond = (x < v) if way > 0 else (x > v)
    return np.asarray(np.where(beyond, np.nextafter(x, np.asarray(way, x.dtype)), x))
