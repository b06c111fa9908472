"""Arrays, semantics and requests as JSON: back to the last bit, and nothing else is read."""

import json
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

import refquant as rq
from refquant.conform.operations import Request
from refquant.conform.packs import level_one
from refquant.conform.wire import (
    FLOATS,
    INTEGERS,
    array_from_json,
    array_to_json,
    options_from_json,
    request_from_json,
    request_to_json,
    semantics_from_json,
    semantics_to_json,
)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Bit for bit, all NaN being one."""
    if a.dtype.kind != "f":
        return a.shape == b.shape and bool(np.all(a == b))
    return a.shape == b.shape and bool(
        np.all((np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b))))
    )


@given(st.sampled_from((*INTEGERS, *FLOATS)).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0))))
def test_an_array_comes_back(a: NDArray[Any]) -> None:
    back = array_from_json(through_json(array_to_json(a)))
    assert same(a, back)
    assert back.dtype.name in (a.dtype.name, "int32" if a.dtype.name == "int64" else "")


def test_every_float16_and_every_kind_of_float64_comes_back() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert same(halves, array_from_json(through_json(array_to_json(halves))))
    edges = np.array([0.0, 5e-324, 2.2e-308, np.finfo(float).tiny, np.finfo(float).max, np.inf, 1 + 2**-52])
    for v in (edges, -edges):
        assert same(v, array_from_json(through_json(array_to_json(v))))


def test_every_request_of_level_1_comes_back() -> None:
    pack = level_one()
    for profile in pack.profiles:
        for test, asked in pack.requests(profile):
            if asked.request.op == "network":
                continue  # large, and like the others
            a, b = asked.request, request_from_json(through_json(request_to_json(asked.request)))
            assert (a.op, a.spec, a.integer, dict(a.options)) == (b.op, b.spec, b.integer, b.options), test.id
            assert set(a.inputs) == set(b.inputs)
            assert all(same(np.asarray(v), b.inputs[n]) for n, v in a.inputs.items()), test.id


ONE = {"dtype": "float32", "shape": [1], "data": ["0x1.8p+0"]}
ARRAYS: dict[str, dict[str, Any]] = {
    "an unknown field": {"unit": "V"},
    "a decimal float": {"data": ["1.5"]},
    "a number for a float": {"data": [1.5]},
    "an integer for a float": {"data": [1]},
    "upper case": {"data": ["0X1.8P+0"]},
    "a space": {"data": [" 0x1p+0"]},
    "a float that is not normalized": {"data": ["0x3p+0"]},
    "more digits than a float64 has": {"data": ["0x1.00000000000001p+0"]},
    "a float too large for float64": {"data": ["0x1p+2000"]},
    "a float too large for float32": {"data": ["0x1p+128"]},
    "a float too small for float64": {"dtype": "float64", "data": ["0x1p-1080"]},
    "a float half lost in float64": {"dtype": "float64", "data": ["0x1.8p-1074"]},
    "a float too small for float32": {"data": ["0x1p-150"]},
    "a float too fine for float16": {"dtype": "float16", "data": ["0x1.001p+0"]},
    "an integer beyond": {"dtype": "int8", "data": [128]},
    "a flag for an integer": {"dtype": "int8", "data": [True]},
    "a float for an integer": {"dtype": "int8", "data": [1.0]},
    "a text for an integer": {"dtype": "int8", "data": ["1"]},
    "data that is a text": {"data": "0x1p+0"},
    "data that is an object": {"data": {}},
    "too many entries": {"data": ["0x1p+0"] * 2},
    "too few entries": {"shape": [3], "data": ["0x1p+0"] * 2},
    "an entry for none": {"shape": [0]},
    "a shape that is a number": {"shape": 1},
    "a shape of floats": {"shape": [1.0]},
    "a shape of flags": {"shape": [True]},
    "a negative shape": {"shape": [-1]},
    "a huge shape": {"shape": [1 << 40]},
    "nine axes": {"shape": [1] * 9},
    "no dtype": {"dtype": None},
    "a list for a dtype": {"dtype": ["float32"]},
    "an unknown dtype": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("damage", ARRAYS)
def test_nothing_else_is_an_array(damage: str) -> None:
    with pytest.raises(rq.FileError):
        array_from_json({**ONE, **ARRAYS[damage]}, "here")


@pytest.mark.parametrize("data", [None, 1, "x", [], [1], {}, {"dtype": "int8"}])
def test_nothing_else_is_an_array_at_all(data: Any) -> None:
    with pytest.raises(rq.FileError):
        array_from_json(data)


def test_what_cannot_be_written_is_an_error() -> None:
    for a in (np.array([1j]), np.array(["a"]), np.array([True]), np.ones(1, np.longdouble)):
        with pytest.raises(rq.ArgumentError):
            array_to_json(a)


REQUESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown field": lambda d: d.update(hint="x"),
    "no inputs": lambda d: d.pop("inputs"),
    "inputs that are a list": lambda d: d.update(inputs=[]),
    "an unknown operation": lambda d: d.update(op="quantise"),
    "an operation that is a list": lambda d: d.update(op=["quantize"]),
    "other semantics": lambda d: d.update(semantics="2"),
    "semantics as a number": lambda d: d.update(semantics=1),
    "a spec without bits": lambda d: d["spec"].pop("bits"),
    "bits that are a text": lambda d: d["spec"].update(bits="8"),
    "an unknown rounding": lambda d: d["spec"].update(rounding="nearest"),
    "an unknown granularity": lambda d: d["spec"].update(granularity={"kind": "PerRow"}),
    "a spec that is null": lambda d: d.update(spec=None),
    "an integer spec with another field": lambda d: d["integer"].update(x=1),
    "an option that is a float": lambda d: d["options"].update(a=1.5),
    "an option that is an object": lambda d: d["options"].update(a={}),
    "an option that is a long list": lambda d: d["options"].update(a=[1] * 9),
    "options that are a list": lambda d: d.update(options=[]),
}


@pytest.mark.parametrize("damage", REQUESTS)
def test_nothing_else_is_a_request(damage: str) -> None:
    data = request_to_json(Request("quantize", rq.QuantSpec(8), {"x": np.ones(1)}, {"a": (1, 2)}))
    assert request_from_json(through_json(data)).options == {"a": (1, 2)}
    data = through_json(data)
    REQUESTS[damage](data)
    with pytest.raises(rq.FileError):
        request_from_json(data)


def test_semantics_come_back_and_options_become_tuples() -> None:
    spec = rq.QuantSpec(4, False, granularity=rq.PerGroup(-1, 32), rounding="half_away")
    integer = rq.IntegerSpec(requantize="double-round", accumulator_bits=24)
    assert semantics_from_json(through_json(semantics_to_json(spec, integer)), "here") == (spec, integer)
    assert options_from_json({"kernel": [2, 2], "rule": "x", "pad": True}, "here") == {
        "kernel": (2, 2),
        "rule": "x",
        "pad": True,
    }
