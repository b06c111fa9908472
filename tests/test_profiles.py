"""Profiles: each is a valid spec with its source, and inputs on which neighbours differ."""

import numpy as np
import pytest

import refquant as rq
from refquant.errors import ArgumentError
from refquant.quant.profiles import PROFILES
from refquant.quant.requantize import HOWS


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_makes_specs(name: str) -> None:
    row = PROFILES[name]
    assert row.source
    assert row.quirk
    assert row.requantize in HOWS
    for bits in row.bits or (2, 4, 8, 16):
        for signed in (True, False):
            spec = rq.profile(name, bits=bits, signed=signed, dtype=(row.dtypes or ("float32",))[0])
            assert (spec.bits, spec.signed, spec.overflow) == (bits, signed, "saturate")


def codes(name: str, x: float, scale: float = 1.0, z: float = 0, **keywords: object) -> int:
    return int(rq.quantize(np.float32(x), np.float32(scale), z, spec=rq.profile(name, **keywords)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "scale", "z", "expected"),
    [
        (2.5, 1.0, 0, {"onnx@21": 2, "tflite-double@1": 3, "seed-floor@1": 2, "qonnx-half_down@1": 2, "qonnx-up@1": 3}),
        (-2.5, 1.0, 1, {"onnx@21": -1, "qonnx@1": -2, "brevitas@1": -2, "gemmlowp@1": -2, "brecq@1": -1}),
        (-0.5, 1.0, 3, {"onnx@21": 3, "pytorch@2": 2, "pytorch-fake@2": 3, "seed-floor@1": 2, "tflite-single@1": 2}),
        (-2.6, 1.0, 0, {"qonnx-ceil@1": -2, "qonnx-floor@1": -3, "qonnx-up@1": -3, "qonnx-down@1": -2}),
        (1000.0, 1.0, 0, {"onnx@10": 127, "pytorch@2": 127, "lapq@1": 127}),
    ],
    ids=["positive tie", "odd zero point", "negative tie, odd zero point", "direction", "saturation"],
)
def test_profiles_part_here(x: float, scale: float, z: float, expected: dict[str, int]) -> None:
    assert {name: codes(name, x, scale, z) for name in expected} == expected


def test_division_and_reciprocal_part_next_to_a_tie() -> None:
    """x is the float32 nearest to 64.5 s; the reciprocal's error moves the product off the tie."""
    found = 0
    for k in range(1, 2000):
        s = np.float32(k / 4096 + 0.01)
        x = np.float32(64.5 * float(s))
        found += codes("onnx@21", float(x), float(s)) != codes("pytorch-fake@2", float(x), float(s))
    assert found > 0


def test_one_and_two_roundings_of_the_zero_point_part() -> None:
    """PyTorch per tensor fuses the zero point into the product, per channel it does not."""
    rng = np.random.default_rng(0)
    s = np.float32(0.0371)
    x = ((rng.integers(-100, 100, 50_000) + 0.5) * float(s)).astype(np.float32)
    a, b = (rq.quantize(x, s, 3, spec=rq.profile(name)) for name in ("pytorch@2", "pytorch-channel@2"))
    assert 0 < np.count_nonzero(a != b) < 0.05 * x.size
    assert np.abs(a - b).max() == 1


def test_the_type_of_the_scale_divides_from_version_23_on() -> None:
    x, s = np.float16(2049.0), np.float16(0.5)  # 4098 steps: beyond the integers of float16 next to it
    spec = {v: rq.profile(f"onnx@{v}", bits=16, dtype="float16") for v in (21, 23)}
    assert spec[21].quotient == "float32"
    assert spec[23].quotient == "float16"
    assert rq.profile("onnx@23", dtype="float16", precision="float32").quotient == "float32"
    x, s = np.float16(1000.0), np.float16(0.3)
    assert rq.quantize(x, s, spec=spec[21]) == 3333
    assert rq.quantize(x, s, spec=spec[23]) == 3332


def test_lapq_is_a_mid_rise_grid() -> None:
    """Levels -alpha to alpha in 2^b - 1 steps: the zero point (2^b - 1) / 2 is no integer, 0 is no level."""
    spec = rq.profile("lapq@1", bits=2, signed=False)
    alpha = 3.0
    levels = rq.dequantize(np.arange(4), 2 * alpha / 3, 1.5, spec=spec)
    assert levels.tolist() == [-3.0, -1.0, 1.0, 3.0]
    assert rq.quantize([-9.0, -0.1, 0.1, 9.0], 2.0, 1.5, spec=spec).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "keywords", "text"),
    [
        ("onnx@10", {"bits": 4}, "bits=4"),
        ("onnx@10", {"dtype": "float16"}, "dtype='float16'"),
        ("onnx@21", {"precision": "float16"}, "left out"),
        ("onnx@23", {"precision": "float64"}, "precision='float64'"),
        ("onnx@22", {}, "profile='onnx@22'"),
    ],
)
def test_refusals(name: str, keywords: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rq.profile(name, **keywords)  # type: ignore[arg-type]
