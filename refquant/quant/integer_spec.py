"""What an integer-only network does, as one frozen value: the parameters of clauses N1 to N5.

Letters: s_a, s_w, s_y the scales of a layer's input, weights and output, acc its accumulator.

N1, accumulators.  `product` says what a sum of products is: `exact`; `int16-pairs`, where the products of
neighbours along the inputs are added in pairs that saturate to int16 (a row's odd last one alone); or sums of
products of 4-bit digits, which equal the exact ones (`two-terms`: low digits unsigned; `signed-terms`: all
digits signed).  The sum with the bias is then held in `accumulator_bits` bits, by `accumulator_overflow`.
N2, bias: the integer that bias / (s_a s_w) rounds to by `bias_rounding`, in `bias_bits` bits.
N3, requantization: acc times the factor s_a s_w / s_y, computed in the arithmetic `factor`, by `requantize`
(see `refquant.requantize`); its rounding mode, where it has one, is that of the output's quantizer.  Fixed point
takes accumulators that fit 32 bits, and refuses others; a factor of 1 changes nothing.
N4, add: `exact` is one rounding of d_1 (s_1 / s_y) + d_2 (s_2 / s_y), factors in float64; `float32` adds
the reals and divides by s_y in float32; `fixed-point` scales both inputs to twice the larger scale with 20
bits to spare, adds, and scales back, in 32 bits: codes must be less than 2^11 from their zero points.
N5, average pool: `exact` is one rounding of sum(q - z) (s_x / s_y) / count; a rounding mode names the
division sum(q) / count of raw codes, requantized after that if the quantizers differ.
"""

import hashlib
import json
import reprlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.rounding import MODES
from ..errors import ArgumentError, complaint, instance_of, one_of
from .arguments import positive, reals
from .granularity import PerChannel
from .quantizer import quantized
from .requantize import HOWS
from .spec import QuantSpec, fields_from_json

__all__ = ["INTEGER_CHOICES", "IntegerSpec", "bias_codes", "quantize_bias"]

INTEGER_CHOICES: dict[str, tuple[str, ...]] = {
    "product": ("exact", "int16-pairs", "two-terms", "signed-terms"),
    "accumulator_overflow": ("raise", "wrap", "saturate"),
    "bias_rounding": MODES,
    "bias_overflow": ("raise", "saturate"),
    "requantize": HOWS,
    "factor": ("float64", "float32"),
    "add": ("exact", "float32", "fixed-point"),
    "pool": ("exact", *MODES),
}
"""The named values that each choice of an integer spec may take."""

_WIDTHS = {"accumulator_bits": (8, 48), "bias_bits": (8, 32)}


@dataclass(frozen=True)
class IntegerSpec:
    """The semantics of an integer-only network, validated once, printable, hashable, with a digest.

    product, accumulator_bits (8 to 48), accumulator_overflow: clause N1.  `raise` reports a final sum that
    does not fit; partial sums may pass the width and come back.  bias_bits (8 to 32), bias_rounding,
    bias_overflow: clause N2.  requantize, factor: clause N3.  add: clause N4.  pool: clause N5.

    Raises ArgumentError for an unknown name and a width out of range.

    >>> spec = IntegerSpec(requantize="double-round")
    >>> spec.accumulator_bits, IntegerSpec.from_json(spec.to_json()) == spec
    (32, True)
    """

    product: str = "exact"
    accumulator_bits: int = 32
    accumulator_overflow: str = "raise"
    bias_bits: int = 32
    bias_rounding: str = "half_even"
    bias_overflow: str = "raise"
    requantize: str = "exact"
    factor: str = "float64"
    add: str = "exact"
    pool: str = "exact"

    def __post_init__(self) -> None:
        for name, names in INTEGER_CHOICES.items():
            one_of(getattr(self, name), names, name, "IntegerSpec")
        for name, (least, most) in _WIDTHS.items():
            width = getattr(self, name)
            if type(width) is not int or not least <= width <= most:
                should = f"an integer from {least} to {most}"
                raise ArgumentError(complaint(f"{name}={reprlib.repr(width)}", should, "IntegerSpec"))

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "IntegerSpec":
        """The spec that `to_json` wrote; raises ArgumentError on unknown, missing or malformed fields."""
        return cls(**fields_from_json(cls, text))

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON form: equal exactly for equal specs."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def quantize_bias(
    bias: ArrayLike, input_scale: ArrayLike, weight_scale: ArrayLike, *, spec: IntegerSpec
) -> NDArray[np.int64]:
    """The integer codes of a layer's bias at scale s_a s_w (clause N2); int64, shape (outputs,).

    bias: reals, shape (outputs,).  input_scale: one real.  weight_scale: one real, or one an output.  The
    product of the scales is taken in float64, where that of two float32 is exact.  Empty gives empty.

    Raises CodeOverflowError where the codes do not fit `spec.bias_bits` and `spec.bias_overflow` is "raise";
    ArgumentError for scales, or a product of theirs, not finite and > 0; as `refquant.quantize` for the rest.

    >>> quantize_bias([1.0, -0.3], 0.5, [0.25, 0.125], spec=IntegerSpec()).tolist()
    [8, -5]
    """
    return bias_codes(bias, input_scale, weight_scale, spec, "quantize_bias")


def bias_codes(
    bias: ArrayLike, input_scale: ArrayLike, weight_scale: ArrayLike, spec: IntegerSpec, where: str
) -> NDArray[np.int64]:
    """What `quantize_bias` gives; its errors say that they come from `where`.

    >>> bias_codes([1.0], 0.5, 0.25, IntegerSpec(), "node y").tolist()
    [8]
    """
    instance_of(spec, IntegerSpec, "spec", where)
    b = reals(bias, "bias", where)
    s_a = positive(input_scale, "input_scale", where).astype(np.float64)
    s_w = positive(weight_scale, "weight_scale", where).astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        s = positive(s_a * s_w, "input_scale weight_scale", where)
    grid = QuantSpec(
        spec.bias_bits, rounding=spec.bias_rounding, overflow=spec.bias_overflow, granularity=PerChannel(0)
    )
    return quantized(b, s, 0, grid, where=where).astype(np.int64)
