"""Public reports of mismatches, reproduced from the figures that they give."""

import numpy as np
import pytest

import refquant as rq


@pytest.mark.guarantee("The figures of tensorflow#102943 are reproduced and explained", kind="checked", clauses="N3")
def test_tensorflow_102943() -> None:
    """An accumulator of 585 became -120, where fixed point and float64 give -119.

    The product of the float32 factor lands on the tie 6.5: a multiplier computed in float32, with ties to even,
    is one explanation; single against double rounding, the obvious one, is none.
    """
    s_x, s_w, s_y = map(np.float32, (0.05296124517917633, 0.024093778803944588, 0.11484327912330627))
    in_64 = float(s_x) * float(s_w) / float(s_y)
    spec = rq.QuantSpec(8)
    for how in ("exact", "single-round", "double-round"):
        assert rq.requantize(585, in_64, -126, spec=spec, how=how) == -119
    for in_32 in (s_x * s_w / s_y, s_x * (s_w / s_y), s_x * s_w * (np.float32(1) / s_y)):
        assert np.float32(585) * in_32 == 6.5
        assert rq.requantize(585, float(in_32), -126, spec=spec, how="float32") == -120
    away = rq.QuantSpec(8, rounding="half_away")
    assert rq.requantize(585, float(s_x * s_w / s_y), -126, spec=away, how="float32") == -119


@pytest.mark.guarantee("The figures of tensorflow#25087 are reproduced", kind="checked", clauses="N3")
def test_tensorflow_25087() -> None:
    """7984 x 1583594044 with shift -9: two roundings give 12, one gives 11; the real product is 11.4991."""
    for how, code in (("double-round", 12), ("single-round", 11), ("exact", 11), ("float32", 11)):
        assert rq.requantize(7984, 1583594044, spec=rq.QuantSpec(8), how=how, shift=-9) == code
