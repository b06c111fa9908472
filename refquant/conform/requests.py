"""Cases asked under named semantics: which profiles speak of an operation, and what a profile makes of a case."""

from dataclasses import replace

from ..errors import ArgumentError
from ..quant.integer_spec import IntegerSpec
from ..quant.profiles import PROFILES, profile
from .case import Case
from .operations import Request

__all__ = ["PACK_PROFILES", "integer_of", "request_of"]

PACK_PROFILES = (
    "seed-nearest@1",
    "seed-floor@1",
    "onnx@21",
    "onnx@23",
    "onnxruntime-cpu@1.32",
    "pytorch@2",
    "pytorch-channel@2",
    "pytorch-fake@2",
    "tflite-double@1",
    "tflite-single@1",
    "tflite-float@1",
    "qonnx@1",
    "gemmlowp@1",
    "brevitas@1",
)
"""The profiles whose answers packs hold."""

ONE = "seed-nearest@1"

SPOKEN: dict[str, tuple[str, ...]] = {
    "quantize": PACK_PROFILES,
    "fake_quantize": PACK_PROFILES,
    "dequantize": ("onnx@21",),
    "range_parameters": (ONE,),  # a rule says it all
    "dynamic_quantize": ("onnx@21",),
    "requantize": (ONE, "onnx@21", "tflite-double@1", "tflite-single@1", "gemmlowp@1"),
    "matmul_integer": (ONE,),
    "conv_integer": (ONE,),
    "qlinear_matmul": (ONE, "onnx@21", "tflite-double@1", "tflite-single@1"),
    "qlinear_conv": (ONE, "onnx@21", "tflite-double@1", "tflite-single@1"),
    "qlinear_add": (ONE, "onnx@21", "tflite-double@1"),
    "average_pool": (ONE, "tflite-double@1"),
    "encode_terms": (ONE, "seed-floor@1"),
    "decode_terms": (ONE,),
    "matmul_terms": (ONE,),
    "gradient": (ONE,),
    "solve_scale": (ONE,),
    "allocate": (ONE,),
    "network": (ONE, "tflite-double@1"),
}
"""operation -> the profiles that have a rule of their own for it."""

_ADD = {"onnx@21": "float32", "onnx@23": "float32", "onnxruntime-cpu@1.32": "float32"}


def integer_of(name: str) -> IntegerSpec:
    """The integer semantics of a profile: how its layers requantize, add and pool; accumulators wrap.

    >>> integer_of("tflite-double@1").requantize
    'double-round'
    """
    how = PROFILES[name].requantize
    fixed = how.endswith("round")
    return IntegerSpec(
        accumulator_overflow="wrap",
        requantize=how,
        factor="float32" if how == "float32" else "float64",
        add="fixed-point" if fixed else _ADD.get(name, "exact"),
        pool="half_away" if fixed else "exact",
    )


def request_of(case: Case, name: str) -> Request | None:
    """The case under a profile's semantics; None where the profile does not speak of it.

    >>> from .cases import cases
    >>> request_of(cases("tie")[0], "tflite-double@1").spec.rounding
    'half_away'
    """
    if name not in SPOKEN[case.op]:
        return None
    dtype = case.options.get("scale_type", "float32")
    try:
        spec = profile(name, bits=case.bits, signed=case.signed, dtype=dtype)
    except ArgumentError:
        return None
    if case.op not in ("quantize", "dequantize", "fake_quantize", "dynamic_quantize"):
        spec = replace(spec, quotient="exact", zero_point_order="after")
    spec = replace(spec, granularity=case.granularity, **case.semantics)
    return Request(case.op, spec, case.inputs, case.options, integer_of(name))
