"""Named, versioned semantics: one row a profile, with its source and its known quirks."""

from collections.abc import Callable
from dataclasses import dataclass

from ..arith.formats import FORMATS
from ..errors import ArgumentError, complaint, one_of
from .spec import QuantSpec

__all__ = ["PROFILES", "Profile", "profile", "profiles"]


@dataclass(frozen=True)
class Profile:
    """One vendor's or paper's rule: where it is written, what surprises in it, and the spec it means.

    make(bits, signed, dtype, precision): dtype is that of the scale, precision an explicit attribute.
    bits, dtypes: those that the rule is stated for (empty: any).  requantize: how its integer layers come back
    to codes (`refquant.requantize`), where the vendor has them.
    """

    source: str
    quirk: str
    make: Callable[[int, bool, str, str | None], QuantSpec]
    bits: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    precisions: tuple[str, ...] = ()
    requantize: str = "exact"


def _spec(
    rounding: str = "half_even",
    quotient: str = "exact",
    order: str = "after",
    nan: str = "raise",
    dequantize: str = "scale-difference",
) -> Callable[[int, bool, str, str | None], QuantSpec]:
    """A spec of these choices for any width; quotient "dtype" is the type of the scale, or an explicit precision."""

    def make(bits: int, signed: bool, dtype: str, precision: str | None) -> QuantSpec:
        named = (precision or dtype) if quotient == "dtype" else precision or quotient
        return QuantSpec(bits, signed, False, rounding, named, zero_point_order=order, nan=nan, dequantize=dequantize)

    return make


_ONNX_TYPES = ("float32", "float16", "bfloat16")
_QONNX_MODES = {
    "": "half_even",  # ROUND, ROUND_HALF_EVEN
    "-ceil": "ceil",
    "-floor": "floor",
    "-up": "away_from_zero",
    "-down": "toward_zero",
    "-half_up": "half_away",
    "-half_down": "half_toward_zero",
}
"""Suffix for QONNX's rounding_mode -> ours; its HALF_UP and HALF_DOWN speak of magnitudes."""

PROFILES: dict[str, Profile] = {
    "seed-floor@1": Profile(
        source="Zharikov and Sedova, Flexible continuous modification for post-training quantization, section 2",
        quirk="the brackets are read literally as floor: not idempotent on floats, bias -scale/2",
        make=_spec("floor"),
        dtypes=(),
    ),
    "seed-nearest@1": Profile(
        source="the same, with the rounding of the literature it builds on",
        quirk="ties to even",
        make=_spec(),
        dtypes=(),
    ),
    "onnx@10": Profile(
        source="ONNX QuantizeLinear, versions 10 and 13",
        quirk="float32 only; the text names no NaN and no precision of the division",
        make=_spec(quotient="float32"),
        bits=(8,),
        requantize="float32",
    ),
    "onnx@21": Profile(
        source="ONNX QuantizeLinear, versions 19 and 21",
        quirk="no precision of the division is named: float32 here also for float16, as runtimes read it",
        make=_spec(quotient="float32"),
        bits=(4, 8, 16),
        dtypes=_ONNX_TYPES,
        requantize="float32",
    ),
    "onnx@23": Profile(
        source="ONNX QuantizeLinear, version 23",
        quirk="the type of y_scale, or the attribute `precision`, is that of the division: float16 quotients above "
        "2,048 are not exact integers",
        make=_spec(quotient="dtype"),
        bits=(4, 8, 16),
        dtypes=_ONNX_TYPES,
        precisions=_ONNX_TYPES,
        requantize="float32",
    ),
    "onnx@25": Profile(
        source="ONNX QuantizeLinear, version 25",
        quirk="as version 23, with 2-bit types",
        make=_spec(quotient="dtype"),
        bits=(2, 4, 8, 16),
        dtypes=_ONNX_TYPES,
        precisions=_ONNX_TYPES,
        requantize="float32",
    ),
    "onnx-reference@1.23": Profile(
        source="onnx.reference of onnx 1.23, op_quantize_linear",
        quirk="divides in the type of the scale at every version; casts to int32 before it clips, so quotients from "
        "2^31 on become the least code; its QLinearConv and QLinearMatMul add the zero point before rounding",
        make=_spec(quotient="dtype", nan="qmin"),
        bits=(2, 4, 8, 16),
        dtypes=("float32", "float16"),
        requantize="float32",
    ),
    "onnxruntime-cpu@1.32": Profile(
        source="ONNX Runtime 1.32, CPU provider, by experiment (tests/second_opinion)",
        quirk="float16 is divided in float32 up to version 21, in float16 from version 23: say precision='float16'; "
        "NaN becomes the least code of signed types",
        make=_spec(quotient="float32", nan="qmin"),
        bits=(2, 4, 8, 16),
        dtypes=("float32", "float16"),
        precisions=("float32", "float16"),
        requantize="float32",
    ),
    "pytorch@2": Profile(
        source="PyTorch 2, quantize_per_tensor on CPU with FMA, by experiment (tests/second_opinion)",
        quirk="x times the float32 reciprocal of the scale plus the zero point in one rounding (a fused multiply-add), "
        "then rounding to an integer: odd zero points move ties",
        make=_spec(quotient="fused-reciprocal-float32", order="before"),
        bits=(8,),
    ),
    "pytorch-channel@2": Profile(
        source="PyTorch 2, quantize_per_channel on CPU, by experiment (tests/second_opinion)",
        quirk="as quantize_per_tensor, but product and sum are rounded one after the other",
        make=_spec(quotient="reciprocal-float32", order="before"),
        bits=(8,),
    ),
    "pytorch-fake@2": Profile(
        source="PyTorch 2, fake_quantize_per_tensor_affine and per_channel_affine on CPU, by experiment",
        quirk="x times the float32 reciprocal of the scale, rounded alone; the zero point is added after",
        make=_spec(quotient="reciprocal-float32"),
    ),
    "tflite-double@1": Profile(
        source="TensorFlow Lite reference kernels: AffineQuantize; MultiplyByQuantizedMultiplier, default build",
        quirk="ties away from zero; layers requantize by two roundings, 0.3 to 2 % of codes one off the real product",
        make=_spec("half_away", "float32"),
        bits=(8, 16),
        requantize="double-round",
    ),
    "tflite-single@1": Profile(
        source="the same, built with TFLITE_SINGLE_ROUNDING",
        quirk="ties away from zero; layers requantize by one rounding, ties toward +inf",
        make=_spec("half_away", "float32"),
        bits=(8, 16),
        requantize="single-round",
    ),
    "tflite-float@1": Profile(
        source="TensorFlow Lite kernels that requantize in float (XNNPACK delegate, later FULLY_CONNECTED)",
        quirk="ties away from zero in AffineQuantize, the float path of layers rounds ties to even",
        make=_spec("half_away", "float32"),
        bits=(8, 16),
        requantize="float32",
    ),
    **{
        f"qonnx{suffix}@1": Profile(
            source="QONNX 1.0, custom_op/general/quant, rounding_mode " + (suffix[1:].upper() if suffix else "ROUND"),
            quirk="the zero point, a real, is added before rounding; HALF_UP and HALF_DOWN speak of magnitudes",
            make=_spec(rounding, "float32", "before"),
        )
        for suffix, rounding in _QONNX_MODES.items()
    },
    "gemmlowp@1": Profile(
        source="gemmlowp, doc/quantization_example: Quantize",
        quirk="the zero point is added in float32 before rounding; ties away from zero",
        make=_spec("half_away", "float32", "before"),
        bits=(8,),
        requantize="double-round",
    ),
    "brevitas@1": Profile(
        source="Brevitas 0.13, core/quant/int_base: IntQuant.to_int",
        quirk="the zero point is added before rounding: odd ones move ties",
        make=_spec("half_even", "float32", "before"),
    ),
    "lapq@1": Profile(
        source="LAPQ (Nahshan et al. 2021), released code, uniform quantization",
        quirk="a mid-rise grid: 2^b levels from -alpha to alpha, 0 is none of them; the zero point is real, "
        "alpha / step = (2^b - 1) / 2, and codes are unsigned",
        make=_spec("half_even", "float32", "before"),
    ),
    "adaquant@1": Profile(
        source="AdaQuant (Hubara et al. 2021), released code, UniformQuantize",
        quirk="the real minimum is subtracted before rounding, snapped to the grid; clip comes before round",
        make=_spec("half_even", "float32", "before"),
    ),
    "brecq@1": Profile(
        source="BRECQ (Li et al. 2021), released code, UniformAffineQuantizer",
        quirk="the quotient is rounded alone, then the zero point is added",
        make=_spec("half_even", "float32"),
    ),
}


def profiles() -> tuple[str, ...]:
    """The names of all profiles.

    >>> "seed-floor@1" in profiles()
    True
    """
    return tuple(PROFILES)


def profile(
    name: str, *, bits: int = 8, signed: bool = True, dtype: str = "float32", precision: str | None = None
) -> QuantSpec:
    """The semantics that a named profile gives to codes of this width, per tensor.

    dtype names the float type of the scale (float16, bfloat16, float32, float64), precision an explicit
    precision attribute, for profiles whose rule depends on them.

    Raises ArgumentError for an unknown name, and for a width, a type or a precision that the rule has not.

    >>> profile("seed-floor@1", bits=4).rounding, profile("onnx@23", dtype="float16").quotient
    ('floor', 'float16')
    """
    row = PROFILES[one_of(name, PROFILES, "profile", "profile")]
    for what, got, known in (
        ("bits", bits, row.bits),
        ("dtype", dtype, row.dtypes or tuple(FORMATS)),
        ("precision", precision, row.precisions),
    ):
        if got not in known and not (what == "bits" and not known) and not (what == "precision" and got is None):
            should = f"one of {', '.join(map(str, known))}" if known else "left out"
            raise ArgumentError(complaint(f"{what}={got!r}", should, f"profile {name}"))
    return row.make(bits, signed, dtype, precision)
