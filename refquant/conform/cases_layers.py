"""Families of hard inputs for layers of integer networks: requantization, products, convolutions, add, pool.

Letters: acc accumulators, f the factor s_a s_w / s_y, a and b codes, z zero points.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.fixedpoint import double_round, quantize_multiplier, single_round
from .case import F32, Case, Family

__all__ = ["FAMILIES"]

Generator = np.random.Generator
Cases = Iterator[Case]

# ---- requantize: alone, and at the end of a product ---------------------------------------------------------------


def _as_products(acc: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes a (n, K) and b (K, 1) of int8 whose sums of products are the accumulators."""
    values = np.asarray(acc, np.int64)
    K = int(np.abs(values).max(initial=0)) // (100 * 127) + 2
    a, b, rest = np.zeros((values.size, K), np.int64), np.full((K, 1), 127), values.copy()
    for k in range(K - 1):
        a[:, k] = np.clip(np.round(rest / 127), -100, 100)
        rest -= 127 * a[:, k]
    a[:, -1], b[-1] = rest, 1
    return a, b


def _requantizing(
    acc: Any,
    z: int = 0,
    comment: str = "",
    layers: bool = True,
    semantics: Mapping[str, Any] | None = None,
    **scales: Any,
) -> Cases:
    """The case for accumulators, and as the results of a matmul and of a 1x1 convolution."""
    more: dict[str, Any] = {"semantics": semantics or {}, "comment": comment}
    kept: dict[str, Any] = {n: np.asarray(v, np.float64 if n == "multiplier" else F32) for n, v in scales.items()}
    inputs: dict[str, Any] = {"acc": np.asarray(acc, np.int64), "zero_point": np.asarray(z, np.int64)}
    yield Case("requantize", {**inputs, **kept}, **more)
    if not layers:
        return
    if "multiplier" in kept:  # one input scale of 1 and one output scale of 1 keep the factor, if float32 holds it
        factor = float(kept["multiplier"])
        if float(F32(factor)) != factor:
            return
        kept = {"input_scale": F32(1), "weight_scale": F32(factor), "output_scale": F32(1)}
    a, b = _as_products(inputs["acc"].ravel())
    zero = np.asarray(0)
    tail = {"y_scale": kept["output_scale"], "y_zero_point": np.asarray(z)}
    first = {"a": a, "a_scale": kept["input_scale"], "a_zero_point": zero}
    yield Case(
        "qlinear_matmul",
        {**first, "b": b, "b_scale": kept["weight_scale"], "b_zero_point": zero, **tail},
        **more,
    )
    x = a.T[None, :, :, None]  # (1, K, n, 1)
    yield Case(
        "qlinear_conv",
        {
            "x": x,
            "x_scale": kept["input_scale"],
            "x_zero_point": zero,
            "w": b.reshape(1, -1, 1, 1),
            "w_scale": kept["weight_scale"],
            "w_zero_point": zero,
            **tail,
            "bias": np.zeros(1, np.int64),
        },
        **more,
    )


def _accumulators(rng: Generator) -> Cases:
    for f in (0.00317, 0.0123, 0.3):
        acc = rng.integers(-int(150 / f), int(150 / f), 48)
        z = int(rng.integers(-20, 20))
        yield from _requantizing(acc, z, "random accumulators", multiplier=float(F32(f)))
        near = np.rint((np.arange(-120, 120, 5) + 0.5) / float(F32(f))).astype(np.int64)
        yield from _requantizing(near, 0, "accumulators next to ties", multiplier=float(F32(f)))
    for z in (0, 1, -3):
        yield from _requantizing(np.arange(-41, 42), z, f"products on ties, zero point {z}", multiplier=0.5)
    semantics = {"rounding": "half_away"}
    yield from _requantizing(np.arange(-9, 10), 0, "ties that go away from zero", semantics=semantics, multiplier=0.5)
    far = [-260, -258, -257, -256, -255, 253, 254, 255, 256, 257, 2000, -2000, 70000, -70000]
    for z in (0, 4, -9):
        yield from _requantizing(far, z, "around and beyond both ends", multiplier=0.5)
    yield from _requantizing([7984, -7984], 0, "tensorflow#25087", layers=False, multiplier=1583594044 / 2**40)
    for f in (0.00123, 0.0071, 0.0213, 0.11):
        factor = float(F32(f))
        m, shift = quantize_multiplier(factor)
        acc = np.arange(-int(100 / f), int(100 / f))
        parted = acc[single_round(acc, m, shift) != double_round(acc, m, shift)]
        yield from _requantizing(rng.permutation(parted)[:24], 0, "one rounding and two part", multiplier=factor)
    for e in (1, 2, 3):  # acc m is an odd multiple of 2^30
        f = 2.0**-e * (1 + 2.0**-9)
        acc = np.arange(-240, 240)
        ties = np.concatenate([acc * 512 + 256, [128, -128, 384, -384]])
        some = ties[np.abs(ties * f) < 2.0**20]
        yield from _requantizing(some[::16], 0, "the doubling high product on a tie", multiplier=f * 2.0**-8)
        yield from _requantizing(np.arange(-60, 60), 0, "the same, unscaled", multiplier=f)


def _multipliers(rng: Generator) -> Cases:
    """Factors at which the multiplier of 31 bits rounds up to 2^31, and their neighbours."""
    for f in (0.5, np.nextafter(0.5, 0), np.nextafter(1.0, 0), 1.0, 1 - 2.0**-32, 1 - 2.0**-33, np.nextafter(0.25, 0)):
        yield from _requantizing(np.arange(-129, 130), 0, f"factor {float(f)!r}", layers=False, multiplier=float(f))
    made = 0
    while made < 6:  # a unit of the multiplier's last place moves a product over a tie
        a, w, y = (rng.uniform(*ends) for ends in ((0.004, 0.01), (0.004, 0.01), (0.1, 1)))
        scales: dict[str, Any] = {"input_scale": F32(a), "weight_scale": F32(w), "output_scale": F32(y)}
        factor = float(F32(a)) * float(F32(w)) / float(F32(y))
        m, shift = quantize_multiplier(factor)
        cut = np.floor(np.frexp(factor)[0] * 2.0**31).astype(np.int64)
        near = np.rint((np.arange(-120, 120) + 0.5) / factor).astype(np.int64)
        found = near[double_round(near, m, shift) != double_round(near, cut, shift)]
        if len(found):
            made += 1
            yield from _requantizing(found, 0, "the multiplier's last bit decides", **scales)


def _wide_accumulators(rng: Generator) -> Cases:
    acc = np.array([2**31 - 1, -(2**31), 2**30, -(2**30), 2**24 + 1, -(2**24) - 1, 2**27 + 3, 0])
    for f in (2.0**-24, 1e-7, 3.1e-8):
        yield from _requantizing(acc, 0, "accumulators at the ends of int32", layers=False, multiplier=f)
    half = 2**23
    halves = [half, -half, half - 1, 1 - half, 3 * half - 1]
    yield from _requantizing(halves, 0, "next to 1/2", multiplier=2.0**-24)


def _factor_order(rng: Generator) -> Cases:
    """Scales for which the orders of computing s_a s_w / s_y in float32 differ, with accumulators that show it."""
    yield from _requantizing(
        [585],
        -126,
        "tensorflow#102943",
        input_scale=0.05296124517917633,
        weight_scale=0.024093778803944588,
        output_scale=0.11484327912330627,
    )
    made = 0
    while made < 10:
        a, w, y = rng.uniform(0.01, 0.1, 3).astype(F32)
        ways = [F32(a * w) / y, a * F32(w / y), w * F32(a / y), F32(a * w) * F32(F32(1) / y)]
        if len(set(ways)) < 3:
            continue
        f = float(a) * float(w) / float(y)
        acc = np.round((np.arange(0, 120) + 0.5) / f).astype(np.int64)
        codes = np.stack([*(np.rint(acc.astype(F32) * m) for m in ways), np.rint(acc * f)])
        apart = acc[np.any(codes != codes[0], axis=0)]
        if apart.size:
            made += 1
            scales = {"input_scale": a, "weight_scale": w, "output_scale": y}
            yield from _requantizing(apart[:12], 0, "orders of the factor part", **scales)


# ---- products -------------------------------------------------------------------------------------------------


def _multiplying(a: Any, b: Any, z_a: int, z_b: Any, comment: str, *, a_signed: bool, b_signed: bool = True) -> Cases:
    """The sums alone, by digits, and as a 1x1 convolution; with scales, as layers."""
    A, B = np.asarray(a, np.int64), np.asarray(b, np.int64)
    zeros = {"a_zero_point": np.asarray(z_a), "b_zero_point": np.asarray(z_b)}
    options = {"a_signed": a_signed, "b_signed": b_signed}
    yield Case("matmul_integer", {"a": A, "b": B, **zeros}, options=options, comment=comment)
    yield Case("matmul_terms", {"a": A, "b": B, **zeros}, options=options, comment=comment)
    sums = np.abs((A - z_a) @ (B - np.asarray(z_b))).max(initial=1)
    scales = {"a_scale": F32(0.5), "b_scale": F32(0.25), "y_scale": F32(0.125 * max(sums, 1) / 100)}
    tail = {"y_zero_point": np.asarray(3)}
    yield Case("qlinear_matmul", {"a": A, "b": B, **zeros, **scales, **tail}, options=options, comment=comment)
    if np.ndim(z_b):
        return
    conv = {
        "x": A.T[None, :, :, None],
        "w": B.T[:, :, None, None],
        "x_zero_point": np.asarray(z_a),
        "w_zero_point": np.asarray(z_b),
    }
    options = {"x_signed": a_signed, "w_signed": b_signed}
    yield Case("conv_integer", conv, options=options, comment=comment)
    more = {
        "x_scale": F32(0.5),
        "w_scale": F32(0.25),
        "y_scale": scales["y_scale"],
        "bias": np.zeros(B.shape[1], np.int64),
    }
    yield Case("qlinear_conv", {**conv, **more, **tail}, options=options, comment=comment)


def _products(rng: Generator) -> Cases:
    for signed in (True, False):
        a, b = rng.integers(-60 if signed else 0, 61, (3, 7)), rng.integers(-60, 61, (7, 4))
        yield from _multiplying(a, b, 0, 0, "random codes, an odd number of products", a_signed=signed)
    a, b = rng.integers(0, 100, (3, 6)), rng.integers(0, 100, (6, 4))
    yield from _multiplying(a, b, 17, 0, "a zero point of the input", a_signed=False, b_signed=False)
    yield from _multiplying(a, b, 0, 20, "a zero point of the weights", a_signed=False, b_signed=False)
    yield from _multiplying(a, b, 3, [1, 2, 3, 4], "a zero point a column", a_signed=False, b_signed=False)


def _pair_sums(rng: Generator) -> Cases:
    a = np.full((2, 6), 255)
    b = np.array([[127, -128, 127], [127, -128, 1], [127, -128, 2], [127, -128, 3], [1, 0, 0], [1, 5, 7]])
    yield from _multiplying(a, b, 0, 0, "pairs of products beyond 32,767", a_signed=False)
    a = np.array([[255, 255, 0, 0], [128, 129, 255, 3]])
    b = np.array([[64, 65], [65, 64], [127, 127], [127, -128]])
    yield from _multiplying(a, b, 128, 0, "pairs next to 32,767", a_signed=False)


def _long_sums(rng: Generator) -> Cases:
    for n, last, comment in (
        (300, 127, "a sum beyond 16 bits"),
        (700, 127, "a sum beyond 2^23"),
        (1100, 126, "a sum beyond 2^24 that no float32 holds"),
    ):
        a, b = np.full((1, n), 127), np.full((n, 1), 127)
        b[-1, 0] = last
        yield from _multiplying(a, b, 0, 0, comment, a_signed=True)
    sums = [2**24 + 2**17 + 1, 2**24 + 3 * 2**17 - 1, -(2**24) - 2**17 - 1]
    s: dict[str, Any] = {"input_scale": 2.0**-9, "weight_scale": 2.0**-9, "output_scale": 1}
    layers = _requantizing(sums, 0, "a unit beyond 2^24 decides", **s)
    yield from (case for case in layers if case.op != "requantize")


def _int32_sums(rng: Generator) -> Cases:
    n = 132_106  # of -128 x 127: below -2^31
    a, b = np.full((1, n), -128), np.full((n, 1), 127)
    yield from _multiplying(a, b, 0, 0, "a sum below the least int32", a_signed=True)


# ---- convolutions ---------------------------------------------------------------------------------------------


def _convolving(
    rng: Generator, shape: tuple[int, ...], kernel: tuple[int, ...], z: int, comment: str, **options: Any
) -> Cases:
    x, w = rng.integers(0, 101, shape), rng.integers(-60, 61, kernel)
    inputs = {"x": x, "w": w, "x_zero_point": np.asarray(z), "w_zero_point": np.asarray(0)}
    options = {"x_signed": False, **options}
    yield Case("conv_integer", inputs, options=options, comment=comment)
    scales = {
        "x_scale": F32(0.031),
        "w_scale": rng.uniform(0.001, 0.02, kernel[0]).astype(F32),
        "y_scale": F32(0.3),
        "y_zero_point": np.asarray(101),
        "bias": rng.integers(-20000, 20000, kernel[0]),
    }
    yield Case("qlinear_conv", {**inputs, **scales}, signed=False, options=options, comment=comment)


def _padded(rng: Generator) -> Cases:
    yield from _convolving(rng, (1, 3, 6, 6), (4, 3, 3, 3), 0, "3x3, no padding")
    yield from _convolving(rng, (1, 2, 5, 5), (3, 2, 3, 3), 117, "padding holds the zero point", padding=(1, 1, 1, 1))


def _asymmetric(rng: Generator) -> Cases:
    options = {"padding": (2, 0, 0, 1), "stride": (2, 1)}
    yield from _convolving(rng, (1, 2, 5, 6), (3, 2, 3, 3), 0, "padding 2, 0, 0, 1, stride 2, 1", **options)


def _dilated(rng: Generator) -> Cases:
    yield from _convolving(rng, (1, 2, 7, 7), (2, 2, 3, 3), 0, "dilation 2", dilation=(2, 2))


def _grouped(rng: Generator) -> Cases:
    yield from _convolving(rng, (1, 4, 5, 5), (6, 2, 3, 3), 0, "two groups", groups=2)
    yield from _convolving(rng, (1, 4, 5, 5), (8, 1, 3, 3), 0, "depthwise, two outputs a channel", groups=4)


def _biases(rng: Generator) -> Cases:
    x, w = rng.integers(0, 101, (1, 2, 3, 3)), rng.integers(-60, 61, (4, 2, 1, 1))
    for bias in ([40_000, -40_000, 32_768, -32_769], [9_000_000, -9_000_000, 2**23, -(2**23) - 1]):
        inputs = {
            "x": x,
            "w": w,
            "x_zero_point": np.asarray(0),
            "w_zero_point": np.asarray(0),
            "x_scale": F32(0.5),
            "w_scale": F32(0.5),
            "y_scale": F32(0.25 * np.abs(bias).max() / 90),
            "y_zero_point": np.asarray(128),
            "bias": np.asarray(bias),
        }
        options = {"x_signed": False}
        yield Case("qlinear_conv", inputs, signed=False, options=options, comment="biases beyond 16 or 24 bits")


def _columns(rng: Generator) -> Cases:
    for s in ((0.5, 0.5, 0.5), (0.013, 0.37, 0.61)):
        inputs = {
            "a": rng.integers(-60, 61, (6, 3)),
            "b": rng.integers(-40, 41, (3, 5)),
            "a_zero_point": np.asarray(3),
            "b_zero_point": np.asarray(0),
            "a_scale": F32(s[0]),
            "b_scale": F32(s[1]) * np.array([1, 2, 0.5, 1.5, 0.7], F32),
            "y_scale": F32(s[2] * 40),
            "y_zero_point": np.asarray(1),
        }
        yield Case("qlinear_matmul", inputs, comment="a scale a column")


# ---- add, pool ------------------------------------------------------------------------------------------------


def _adding(
    a: Any, b: Any, s: tuple[float, float, float], z: tuple[int, int, int], comment: str, **semantics: Any
) -> Case:
    inputs: dict[str, Any] = {"a": np.asarray(a, np.int64), "b": np.asarray(b, np.int64)}
    for name, scale, zero in zip(("a", "b", "y"), s, z, strict=True):
        inputs |= {f"{name}_scale": F32(scale), f"{name}_zero_point": np.asarray(zero)}
    return Case("qlinear_add", inputs, semantics=semantics, comment=comment)


def _adds(rng: Generator) -> Cases:
    a, b = rng.integers(-128, 128, 96), rng.integers(-128, 128, 96)
    for s in ((0.03, 0.07, 0.11), (0.011, 0.3, 0.37), (0.1, 0.13, 0.25)):
        yield _adding(a, b, s, (3, -5, 7), "random codes, three scales")
    made = 0
    while made < 6:  # where the ways to add part
        s3 = rng.uniform(0.01, 0.1, 3).astype(F32)
        s3[2] = s3[:2].sum() * F32(1.1)
        p, q = (v.ravel() for v in np.meshgrid(np.arange(-128, 128, 3), np.arange(-128, 128, 5)))
        exact = np.rint(p * (float(s3[0]) / float(s3[2])) + q * (float(s3[1]) / float(s3[2])))
        single = np.rint((p.astype(F32) * s3[0] + q.astype(F32) * s3[1]) / s3[2])
        apart = np.flatnonzero(exact != single)
        if apart.size:
            made += 1
            t = (float(s3[0]), float(s3[1]), float(s3[2]))
            yield _adding(p[apart[:8]], q[apart[:8]], t, (0, 0, 0), "float32 and exact sums part")


def _add_ties(rng: Generator) -> Cases:
    a, b = (v.ravel() for v in np.meshgrid(np.arange(-6, 7), np.arange(-6, 7)))
    yield _adding(a, b, (0.5, 0.25, 1.0), (0, 0, 0), "sums on ties")
    yield _adding(a, b, (0.5, 0.5, 1.0), (0, 0, 1), "sums on ties, an odd zero point")
    yield _adding(a, b, (0.5, 0.25, 1.0), (0, 0, 0), "ties that go away from zero", rounding="half_away")


def _add_ends(rng: Generator) -> Cases:
    a = np.array([127, 127, -128, -128, 100, -100])
    for z in (0, 9):
        yield _adding(a, a, (0.5, 0.5, 0.5), (0, 0, z), "both far on one side")


def _pooling(q: Any, z: int, comment: str, **options: Any) -> Case:
    inputs = {"x": np.asarray(q, np.int64), "zero_point": np.asarray(z)}
    return Case("average_pool", inputs, options=options, comment=comment)


def _pools(rng: Generator) -> Cases:
    yield _pooling(rng.integers(-128, 128, (1, 2, 6, 6)), 0, "nine to a window", kernel=(3, 3))
    for z in (0, 3):
        yield _pooling(-np.arange(1, 49).reshape(1, 1, 2, 24), z, "negative sums, on and off ties", kernel=(2, 2))


def _pool_padding(rng: Generator) -> Cases:
    q = rng.integers(-128, 128, (1, 1, 5, 5))
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}
    for include in (False, True):
        yield _pooling(q, -18, "padding counts or does not", **window, count_include_pad=include)


def _large_windows(rng: Generator) -> Cases:
    q = np.full((1, 1, 20, 20), 127)
    yield _pooling(q, 0, "400 codes of 127: beyond 16 bits", kernel=(20, 20))
    yield _pooling(-q - 1, 0, "400 codes of -128", kernel=(20, 20))


def _reciprocals(rng: Generator) -> Cases:
    """Means on ties for counts that are no powers of two: a product by the rounded reciprocal misses them."""
    for n in (6, 10, 14, 18, 22, 26):
        sums = np.array([n // 2 * (2 * k + 1) for k in range(-25, 25)])
        sums = sums[np.abs(sums) <= 127 * n]
        q = np.zeros((1, len(sums), 1, n), np.int64)
        for i, total in enumerate(sums.tolist()):
            each, rest = divmod(total, n)
            q[0, i, 0] = each
            q[0, i, 0, :rest] += 1
        yield _pooling(q, 0, f"means on ties, {n} to a window", kernel=(1, n))


FAMILIES: dict[str, Family] = {
    "accumulator": Family(
        "edge",
        "products on ties, beyond the ends, where one rounding and two part",
        "0.3 to 2 % of activations are off by one, or negative ones alone",
        _accumulators,
    ),
    "multiplier": Family(
        "edge", "factors next to powers of two", "a multiplier of 2^31 overflows: results are negated", _multipliers
    ),
    "wide-accumulator": Family(
        "edge", "accumulators at the ends of int32", "their low bits, or their high ones, are lost", _wide_accumulators
    ),
    "factor-order": Family(
        "edge",
        "orders of computing s_a s_w / s_y that part in float32",
        "rare off-by-one without a pattern (tensorflow#102943)",
        _factor_order,
    ),
    "product": Family("typical", "random codes, zero points", "a constant is added to every output", _products),
    "pair-sum": Family(
        "edge", "pairs of products around 32,767", "accuracy collapses on some machines only", _pair_sums
    ),
    "long-sum": Family(
        "edge", "sums beyond 16, 23 and 24 bits", "narrow accumulators wrap, float32 ones round", _long_sums
    ),
    "int32-sum": Family("edge", "a sum below -2^31", "it wraps to the other sign, or saturates", _int32_sums),
    "padding": Family("edge", "a border that must hold the zero point", "edges of images are dark", _padded),
    "asymmetric-padding": Family("edge", "other padding on each side", "images move by a pixel", _asymmetric),
    "dilation": Family("edge", "a dilated kernel", "a smaller field of view", _dilated),
    "groups": Family("edge", "grouped and depthwise convolutions", "channels are mixed up", _grouped),
    "bias": Family("edge", "biases beyond 16 and 24 bits", "large biases are clipped", _biases),
    "column": Family("edge", "a scale a column", "columns are scaled by each other's factor", _columns),
    "add": Family("typical", "random codes, three scales", "skip connections drift", _adds),
    "add-tie": Family("edge", "sums on ties", "off by one after every skip connection", _add_ties),
    "add-end": Family("edge", "both inputs far on one side", "skip connections turn around", _add_ends),
    "pool": Family("typical", "negative sums, on and off ties", "means of negative values are off by one", _pools),
    "pool-padding": Family("edge", "padding that counts or does not", "edges of images are dark", _pool_padding),
    "pool-large": Family("edge", "sums beyond 16 bits", "global pools wrap", _large_windows),
    "pool-reciprocal": Family(
        "edge",
        "means on ties, counts that are no powers of two",
        "off by one by a multiplication instead of a division",
        _reciprocals,
    ),
}
"""flag -> family."""
