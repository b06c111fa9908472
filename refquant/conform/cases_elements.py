"""Families of hard inputs for operations element by element: quantize, dequantize, ranges, gradients.

Letters: s scale, z zero point, k code, x input, q codes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..quant.granularity import PerChannel, PerGroup
from .case import F32, Case, Family, ends, floats_beside, near_ties

__all__ = ["FAMILIES"]

Generator = np.random.Generator
Cases = Iterator[Case]

WIDTHS = ((8, True), (8, False), (4, True), (4, False))
BOTH = ("quantize", "fake_quantize")

# ---- quantize -------------------------------------------------------------------------------------------------


def _quantizing(x: Any, s: Any, z: Any = 0, ops: tuple[str, ...] = BOTH, **more: Any) -> Cases:
    for op in ops:
        yield Case(op, {"x": np.asarray(x), "scale": np.asarray(s, F32), "zero_point": np.asarray(z, np.int64)}, **more)


def _ties(rng: Generator) -> Cases:
    for bits, signed in WIDTHS:
        low, high = ends(bits, signed)
        width: dict[str, Any] = {"bits": bits, "signed": signed}
        s = F32(rng.uniform(0.01, 0.1))
        x = (rng.uniform(low, high, 64) * s).astype(F32)
        yield from _quantizing(x, s, **width, comment="random values over the range")
        for t in (1.0, 0.25):
            x = ((np.arange(max(low, -20), min(high, 20)) + 0.5) * t).astype(F32)
            yield from _quantizing(x, t, **width, comment=f"(k + 1/2) {t}, exactly")
        for s in (F32(0.1), F32(0.0371)):
            x = near_ties(float(s), low, high)
            yield from _quantizing(x, s, ops=("quantize",), **width, comment=f"floats around (k + 1/2) {s}")
    for s in (F32(0.1), F32(1), *floats_beside([0.0625, 8.0]).ravel()):
        x = near_ties(float(s), -9, 9)
        yield from _quantizing(x, s, comment=f"floats around (k + 1/2) {s}, such as 0.49999997")


def _odd_zero_points(rng: Generator) -> Cases:
    for bits, signed, z in ((8, True, 3), (8, True, -7), (8, False, 101), (4, True, 1), (4, False, 7)):
        low, high = ends(bits, signed)
        x = (np.arange(max(low, -9), min(high, 9)) + 0.5) * 0.5
        yield from _quantizing(x.astype(F32), 0.5, z, bits=bits, signed=signed, comment=f"ties with zero point {z}")


def _range_ends(rng: Generator) -> Cases:
    for bits, signed in WIDTHS:
        low, high = ends(bits, signed)
        for z in (0, 2) if signed else (0, 5):
            k = np.array([low - z - 1, low - z - 0.5, low - z, high - z, high - z + 0.5, high - z + 1])
            for s in (F32(0.5), F32(0.0123)):
                x = floats_beside(k * float(s)).ravel()
                yield from _quantizing(x, s, z, bits=bits, signed=signed, comment="around both ends of the range")
        far = np.array([1.5, 2.3, 10.0, 1000.0]) * (high - low)
        x = np.concatenate([far, -far, [3e4, -3e4]]).astype(F32)
        for z in (0, 6):
            yield from _quantizing(x, 1.0, z, bits=bits, signed=signed, comment="far beyond both ends")
            semantics = {"overflow": "wrap"}
            yield from _quantizing(x, 1.0, z, bits=bits, signed=signed, semantics=semantics, comment="codes that wrap")


def _beyond_int32(rng: Generator) -> Cases:
    x = np.array([2.0**31, -(2.0**31), 3e9, -3e9, 1e20, -1e20, 2.0**31 - 128, -(2.0**31) - 256, 3e38, -3e38], F32)
    for signed in (True, False):
        for z in (0, 5):
            yield from _quantizing(x, 1.0, z, signed=signed, comment="quotients at and beyond the ends of int32")


def _infinity(rng: Generator) -> Cases:
    for signed, z in ((True, 0), (True, -9), (False, 0)):
        x = np.array([np.inf, -np.inf, 1.0], F32)
        yield from _quantizing(x, 0.5, z, signed=signed, comment="infinities saturate")


def _nan(rng: Generator) -> Cases:
    for signed, z in ((True, 1), (True, 11), (False, 7)):
        x = np.array([np.nan, 1.0, -1.0], F32)
        yield from _quantizing(x, 0.5, z, signed=signed, comment="NaN, where the profile names its code")
        for code in ("zero", "qmin"):
            semantics = {"nan": code}
            yield from _quantizing(x, 0.5, z, signed=signed, semantics=semantics, comment="NaN becomes a named code")


def _negative_zero(rng: Generator) -> Cases:
    for z in (0, 3):
        yield from _quantizing(np.array([-0.0, 0.0], F32), 0.5, z, comment="-0 is 0: its code is z, its real +0")


def _subnormal(rng: Generator) -> Cases:
    tiny = F32(2.0**-149)
    x = np.array([3, -3, 5, -5, 77, 100], F32) * tiny
    yield from _quantizing(x, 2 * tiny, comment="subnormal values and a subnormal scale")
    yield from _quantizing(x[-2:] * F32(2.0**16), F32(2.0**-127), comment="subnormal values, half the least normal")


def _extreme_scales(rng: Generator) -> Cases:
    for s in (F32(3e38), F32(1.7e38), F32(2.0**-126), F32(3e-38), F32(7e4), F32(3e-8)):
        k = np.array([0.4, 0.6, 1.4, -1.4, 2.6, 100.3, -129.0])
        x = np.clip(k * float(s), -3.4e38, 3.4e38).astype(F32)
        yield from _quantizing(x, s, comment=f"scale {s}: its reciprocal, or its half-precision form, is lost")


def _other_types(rng: Generator) -> Cases:
    wide = near_ties(0.1 * 1.0, -40, 40, np.float64)
    yield from _quantizing(wide, F32(0.1), ops=("quantize",), comment="float64 next to ties")
    beside = (np.arange(-20, 20) + 0.5) * float(F32(0.1)) * (1 + 2.0**-40)
    semantics = {"quotient": "float64"}
    yield from _quantizing(beside, F32(0.1), semantics=semantics, comment="float64 that a float32 would make ties")
    half = np.float16(0.1)
    x = near_ties(float(half), -100, 100, np.float16)
    inputs = {"x": x, "scale": half, "zero_point": np.asarray(0)}
    yield Case("quantize", inputs, options={"scale_type": "float16"}, comment="float16 next to ties")
    x = (np.arange(2040, 2060) + 0.5).astype(F32) * F32(0.25)
    yield from _quantizing(x, 0.25, bits=16, comment="quotients above 2,048, which float16 cannot hold")


def _dequantizing(q: Any, s: Any, z: Any, **more: Any) -> Case:
    inputs = {"codes": np.asarray(q, np.int64), "scale": np.asarray(s, F32), "zero_point": np.asarray(z, np.int64)}
    return Case("dequantize", inputs, **more)


def _channels(rng: Generator) -> Cases:
    s, z = np.array([0.1, 0.2, 0.4, 0.8], F32), np.array([0, 1, -2, 3])
    x, q = rng.uniform(-9, 9, (4, 4)).astype(F32), rng.integers(5, 128, (4, 4))
    for axis in (0, 1):
        grain = PerChannel(axis)
        yield from _quantizing(x, s, z, granularity=grain, comment="two axes of equal length")
        yield _dequantizing(q, s, z, granularity=grain, comment="two axes of equal length")
    x3 = rng.uniform(-9, 9, (2, 4, 3)).astype(F32)
    yield from _quantizing(x3, s, z, granularity=PerChannel(1), comment="a middle axis")


def _groups(rng: Generator) -> Cases:
    x, q = rng.uniform(-9, 9, (2, 7)).astype(F32), rng.integers(5, 128, (2, 7))
    for size, groups in ((3, 3), (5, 2)):
        s, z = rng.uniform(0.05, 0.5, (2, groups)).astype(F32), rng.integers(-3, 4, (2, groups))
        grain, comment = PerGroup(1, size), f"7 elements in groups of {size}"
        yield from _quantizing(x, s, z, granularity=grain, comment=comment)
        yield _dequantizing(q, s, z, granularity=grain, comment=comment)


def _shapes(rng: Generator) -> Cases:
    for shape in ((0,), (2, 0), (1,), (1, 1), (1, 3), ()):
        x = rng.uniform(0.1, 9, shape).astype(F32)
        yield from _quantizing(x, 0.5, comment=f"shape {shape}")


# ---- dequantize -----------------------------------------------------------------------------------------------


def _codes(rng: Generator) -> Cases:
    for bits, signed in WIDTHS:
        low, high = ends(bits, signed)
        for z in (low, high, 3):
            every = np.arange(low, high + 1)
            yield _dequantizing(every, F32(0.1), z, bits=bits, signed=signed, comment="every code")
    semantics = {"dequantize": "difference-of-products"}
    for z in (3, -77):
        yield _dequantizing(
            np.arange(-128, 128), F32(0.1), z, semantics=semantics, comment="products, then a difference"
        )
        yield from _quantizing(
            np.arange(-3, 4, dtype=F32), F32(0.1), z, semantics=semantics, comment="products, then a difference"
        )


def _half_results(rng: Generator) -> Cases:
    """Products next to a float16 tie, on the other side of it after a rounding to float32."""
    q, found = np.arange(-32768, 32768), 0
    while found < 8:
        s = F32(rng.uniform(0.01, 1))
        exact = q.astype(np.float64) * float(s)
        with np.errstate(over="ignore"):
            astray = q[exact.astype(np.float16) != exact.astype(F32).astype(np.float16)]
        if astray.size:
            found += 1
            options = {"dtype": "float16"}
            yield _dequantizing(astray[:4], s, 0, bits=16, options=options, comment="astray by way of float32")


def _extreme_results(rng: Generator) -> Cases:
    yield _dequantizing([1, -1, 3, 100], F32(2.0**-149), 0, comment="subnormal products")
    yield _dequantizing([127, -128], F32(3e38), 0, comment="products beyond float32 are infinite")


# ---- ranges ---------------------------------------------------------------------------------------------------

RULE_NAMES = (
    "affine",
    "symmetric",
    "symmetric-full",
    "symmetric-half",
    "affine-away",
    "affine-float32",
    "affine-as-given",
    "onnx-dynamic",
    "torch-affine",
    "torch-symmetric",
    "tflite",
    "power-of-two-up",
    "power-of-two-nearest",
    "power-of-two-floor",
)


def _ranging(lo: Any, hi: Any, comment: str, **more: Any) -> Cases:
    for rule in RULE_NAMES:
        inputs = {"lo": np.asarray(lo, F32), "hi": np.asarray(hi, F32)}
        yield Case("range_parameters", inputs, options={"rule": rule}, comment=comment, **more)


def _ranges(rng: Generator) -> Cases:
    lo, hi, m = -rng.uniform(0.1, 5, 24), rng.uniform(0.1, 5, 24), np.arange(1, 12)
    for signed in (True, False):
        yield from _ranging(lo, hi, "ranges that hold 0", signed=signed)
    yield from _ranging(-(m / 2), 255 - m / 2, "zero points on ties", signed=False)
    yield from _ranging(-(m / 2), 14 - m / 2, "zero points on ties", bits=4)
    yield from _ranging([-1.149, -4.0, -1.0, -128.0], [2.533, 1.0, 0.99, 127.0], "ends of unlike size")


def _one_sided(rng: Generator) -> Cases:
    lo = np.array([2.0, 0.5, 0.0, -3.0, -7.5, -1.0, 100.0])
    hi = np.array([3.0, 8.0, 1.0, -2.0, -0.25, 0.0, 101.0])
    for signed in (True, False):
        yield from _ranging(lo, hi, "ranges beside 0", signed=signed)


def _degenerate(rng: Generator) -> Cases:
    yield from _ranging([0.0, 0.0, -1e-12], [0.0, 1e-30, 1e-12], "no extent, or almost none", signed=False)


def _powers(rng: Generator) -> Cases:
    e = 2.0 ** np.arange(-3, 4)
    near = floats_beside(e * 127).ravel()
    yield from _ranging(-near, near, "largest magnitudes next to 127 times a power of two")
    near = floats_beside(e).ravel()
    yield from _ranging(-near / 3, near, "largest magnitudes next to powers of two")


def _dynamic(rng: Generator) -> Cases:
    def case(x: Any, comment: str) -> Case:
        return Case(
            "dynamic_quantize",
            {"x": np.asarray(x, F32)},
            signed=False,
            options={"rule": "onnx-dynamic"},
            comment=comment,
        )

    for _ in range(6):
        yield case(rng.normal(0.3, 1, 16), "random values")
    yield case(rng.uniform(1, 2, 16), "values above 0 alone")
    for m in (1.5, 2.5, 7.0):  # scale 1: the zero point on a tie, or odd
        inner = near_ties(1.0, -3, 9)
        yield case([-m, 255 - m, *inner[(inner > -m) & (inner < 255 - m)]], f"lowest {-m}: the zero point decides")
    s = F32(0.1)
    span = F32(s * 255)
    yield case([0, span, *near_ties(float(span) / 255, 0, 255)], "floats next to ties of the scale that comes out")


# ---- gradients ------------------------------------------------------------------------------------------------


def _gradients(rng: Generator) -> Cases:
    def case(x: Any, s: float, z: int, comment: str, **semantics: Any) -> Case:
        values = np.asarray(x, np.float64)
        g = np.round(rng.normal(0, 1, values.shape) * 64 + 0.5) / 64
        inputs = {"x": values, "cotangent": g, "scale": np.asarray(s, np.float64), "zero_point": np.asarray(z)}
        return Case("gradient", inputs, bits=4, semantics=semantics, comment=comment)

    yield case(rng.uniform(-9, 9, 24), 0.75, 0, "inside and outside")
    low, high = ends(4, True)
    for z in (0, 2):
        k = np.array([-1, -0.75, -0.5, -0.25, 0, 0.5])
        yield case((np.concatenate([low + k, high - k]) - z) * 0.5, 0.5, z, "where rounding brings x back inside")
    yield case((np.arange(-5, 5) + 0.5) * 0.5, 0.5, 0, "at ties")
    yield case((np.arange(-5, 5) + 0.5) * 0.5, 0.5, 0, "at ties that go away from zero", rounding="half_away")


FAMILIES: dict[str, Family] = {
    "tie": Family(
        "edge",
        "x / s at k + 1/2, and at the floats around it",
        "off by one on coarse inputs such as images, and on 0.001 to 5 % of others, without a pattern",
        _ties,
    ),
    "odd-zero-point": Family("edge", "ties with an odd zero point", "half of all ties move", _odd_zero_points),
    "range-end": Family(
        "edge", "around both ends of the range, and far beyond", "extreme codes are lost, or turn around", _range_ends
    ),
    "beyond-int32": Family(
        "special", "quotients that no int32 holds", "the largest inputs become the smallest", _beyond_int32
    ),
    "infinity": Family("special", "infinite inputs", "an overflow upstream becomes a zero, or a minimum", _infinity),
    "nan": Family("special", "NaN", "an invalid value is read as a valid code", _nan),
    "negative-zero": Family("special", "-0", "bit-exact comparisons fail, 1 / x changes sign", _negative_zero),
    "subnormal": Family("special", "subnormal values and scales", "flushed to zero, or divided by zero", _subnormal),
    "extreme-scale": Family(
        "edge",
        "scales whose reciprocal or half-precision form over- or underflows",
        "whole tensors become 0, or saturate",
        _extreme_scales,
    ),
    "other-type": Family(
        "edge",
        "float64 and float16 next to ties, quotients above 2,048",
        "off by one after a silent conversion",
        _other_types,
    ),
    "channel": Family(
        "edge", "per channel, two axes of equal length", "another channel's scale, without an error", _channels
    ),
    "group": Family(
        "edge", "groups that do not divide the axis", "the last group is read with another's scale", _groups
    ),
    "shape": Family("special", "empty tensors, size 1, no axes", "a crash, or a result of another shape", _shapes),
    "code": Family("typical", "every code, zero points at the ends", "differences wrap in the code's width", _codes),
    "half-result": Family("edge", "float16 results next to a tie", "rounded twice: one unit off", _half_results),
    "extreme-result": Family(
        "special", "subnormal and infinite products", "flushed to zero, or a finite number", _extreme_results
    ),
    "range": Family(
        "typical", "ranges that hold 0, zero points on ties", "a whole tensor is shifted by one code", _ranges
    ),
    "range-one-sided": Family("edge", "ranges beside 0", "0 is not representable: padding adds a constant", _one_sided),
    "range-degenerate": Family(
        "special", "no extent, or almost none", "a division by zero, or scales of 1e-40", _degenerate
    ),
    "range-power": Family(
        "edge",
        "largest magnitudes next to powers of two",
        "a power-of-two scale is twice too large, or clips",
        _powers,
    ),
    "dynamic": Family(
        "typical", "quantized by a tensor's own range", "scales at run time differ from the specification's", _dynamic
    ),
    "gradient": Family(
        "edge", "at ties, at the ends, outside", "weights at the clip never move, or never stop", _gradients
    ),
}
"""flag -> family."""
