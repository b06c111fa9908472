"""QONNX, Brevitas, gfloat and ml_dtypes, where integers of theirs are ours."""

from collections.abc import Callable
from typing import Any

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp
from brevitas.core.quant import IntQuant
from gfloat.formats import format_info_ocp_int8
from qonnx.custom_op.general.quant import quant

import refquant as rq

QONNX = {
    "qonnx@1": ("ROUND", "HALF_EVEN"),
    "qonnx-ceil@1": ("CEIL",),
    "qonnx-floor@1": ("FLOOR",),
    "qonnx-up@1": ("UP",),
    "qonnx-down@1": ("DOWN",),
    "qonnx-half_up@1": ("HALF_UP",),
    "qonnx-half_down@1": ("HALF_DOWN",),
}


def test_every_mode_of_qonnx_has_a_profile() -> None:
    assert set(QONNX) == {name for name in rq.profiles() if name.startswith("qonnx")}


@pytest.mark.guarantee("QONNX Quant, each rounding mode", kind="second opinion", clauses="Q3 Q4")
@pytest.mark.parametrize("profile", QONNX)
@pytest.mark.parametrize("z", [0.0, 1.0, 2.5])
def test_qonnx(profile: str, z: float, near_ties: Callable[..., Any], agree: Callable[..., None]) -> None:
    for mode in QONNX[profile]:
        for bits, signed, narrow in ((8, True, False), (4, True, True), (3, False, False)):
            spec = rq.profile(profile, bits=bits, signed=signed)
            if narrow:
                from dataclasses import replace

                spec = replace(spec, narrow=True)
            scale = np.float32(0.1234567)
            x = near_ties(scale, 20_000, reach=2 << bits)
            theirs = quant(x, scale, np.float32(z), np.float32(bits), signed, narrow, mode)
            agree(f"qonnx/{mode} {z} {bits}", rq.fake_quantize(x, scale, z, spec=spec), theirs)


@pytest.mark.guarantee("Brevitas IntQuant", kind="second opinion", clauses="Q3 Q4")
def test_brevitas(near_ties: Callable[..., Any], agree: Callable[..., None]) -> None:
    quantizer = IntQuant(
        narrow_range=False,
        signed=True,
        input_view_impl=Identity(),
        float_to_int_impl=RoundSte(),
        tensor_clamp_impl=TensorClamp(),
    )
    for scale in map(np.float32, (0.1234567, 0.0371)):
        for z in (0, 3, -5):
            x = near_ties(scale)
            with torch.no_grad():
                theirs = quantizer.to_int(
                    torch.tensor(scale), torch.tensor(float(z)), torch.tensor(8.0), torch.tensor(x)
                )
            agree(f"brevitas/{z}", rq.quantize(x, scale, z, spec=rq.profile("brevitas@1")), theirs.numpy())


@pytest.mark.guarantee("gfloat's OCP INT8", kind="second opinion", clauses="Q4")
def test_gfloat_int8(near_ties: Callable[..., Any], agree: Callable[..., None]) -> None:
    """The OCP INT8 element: codes of 8 bits with step 2^-6; ties to even, saturating."""
    x = near_ties(2.0**-6, 100_000, np.float64)
    theirs = gfloat.round_ndarray(format_info_ocp_int8, x, gfloat.RoundMode.TiesToEven, sat=True)
    agree("gfloat/int8", rq.fake_quantize(x, 2.0**-6, spec=rq.QuantSpec(8)), theirs)


def test_ml_dtypes_int4(agree: Callable[..., None]) -> None:
    codes = np.arange(-8, 8)
    agree("ml_dtypes/int4 values", codes, codes.astype(ml_dtypes.int4).astype(int))
    x = np.array([0.6, 1.5, -1.7, 7.9])
    agree("ml_dtypes/int4 conversion", rq.quantize(x, 1.0, spec=rq.QuantSpec(4)), x.astype(ml_dtypes.int4).astype(int))
    truncated = rq.quantize(x, 1.0, spec=rq.QuantSpec(4, rounding="toward_zero", overflow="wrap"))
    agree("ml_dtypes/int4 truncation", truncated, x.astype(ml_dtypes.int4).astype(int))


@pytest.mark.guarantee("ml_dtypes bfloat16 conversions", kind="second opinion", clauses="Q2")
def test_ml_dtypes_bfloat16(agree: Callable[..., None]) -> None:
    from refquant.arith.formats import from_bfloat16_bits, to_bfloat16, to_bfloat16_bits

    bits = np.arange(0x7F80, dtype=np.uint16)
    values = bits.view(ml_dtypes.bfloat16)
    agree("ml_dtypes/bfloat16 values", from_bfloat16_bits(bits), values.astype(np.float32))
    x = (np.random.default_rng(0).integers(0, 0x7F7F0000, 200_000).astype(np.uint32)).view(np.float32)
    agree("ml_dtypes/bfloat16 rounding", to_bfloat16(x), x.astype(ml_dtypes.bfloat16).astype(np.float32))
    agree("ml_dtypes/bfloat16 bits", to_bfloat16_bits(x), x.astype(ml_dtypes.bfloat16).view(np.uint16))
