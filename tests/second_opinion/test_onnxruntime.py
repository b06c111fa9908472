"""ONNX Runtime and onnx.reference, on inputs at and next to ties."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import refquant as rq
from refquant.net.integer import accumulators
from refquant.net.ops import OPS
from refquant.net.products import Operand

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16}
FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
OUTPUTS = {"QuantizeLinear": 1, "DynamicQuantizeLinear": 3}


def model(op: str, inputs: dict[str, Any], kinds: list[int], opset: int, **attrs: Any) -> onnx.ModelProto:
    """One node; the first input is fed, the others are constants."""
    first, *rest = inputs
    outputs = [f"y{i}" for i in range(len(kinds))]
    node = helper.make_node(op, list(inputs), outputs, **attrs)
    fed = helper.np_dtype_to_tensor_dtype(inputs[first].dtype)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(first, fed, None)],
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(outputs, kinds, strict=True)],
        [numpy_helper.from_array(inputs[name], name) for name in rest],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def runtime(made: onnx.ModelProto, x: NDArray[Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def reference(made: onnx.ModelProto, x: NDArray[Any]) -> list[Any]:
    return list(ReferenceEvaluator(made).run(None, {made.graph.input[0].name: x}))


GRAINS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "tensor": (rq.PerTensor(), ()),
    "channel": (rq.PerChannel(0), (8,)),
    "block": (rq.PerGroup(1, 125), (8, 100)),
}


@pytest.mark.guarantee(
    "ONNX Runtime QuantizeLinear on 100,000 inputs next to ties a case: opsets, types, granularities",
    kind="second opinion",
    clauses="Q2 Q4 Q5 Q6",
)
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", [10, 21, 23])
@pytest.mark.parametrize("grain", GRAINS)
def test_quantize_linear(
    kind: str, dtype: str, opset: int, grain: str, near_ties: Callable[..., Any], agree: Callable[..., None]
) -> None:
    if opset == 10 and (dtype == "float16" or kind == "int16" or grain != "tensor"):
        return  # version 10 has neither
    rng = np.random.default_rng(opset)
    granularity, shape = GRAINS[grain]
    scale = rng.uniform(0.01, 0.5, shape).astype(dtype)
    spread = granularity.spread(scale, (8, 12500)) if shape else scale
    reach = 4000 if kind == "int16" else 300
    x = near_ties(np.broadcast_to(spread, (8, 12500)).ravel(), 100_000, np.dtype(dtype).type, reach).reshape(8, 12500)
    z = rng.integers(0, 100, shape).astype(kind)
    attrs = {"axis": granularity.axis} if shape else {}
    if grain == "block":
        attrs["block_size"] = 125
    made = model("QuantizeLinear", {"x": x, "s": scale, "z": z}, [TYPES[kind]], opset, **attrs)
    bits, signed = int(kind[-2:].strip("t")), kind.startswith("i")
    profile, precision = "onnxruntime-cpu@1.32", "float16" if dtype == "float16" and opset >= 23 else None
    spec = replace(
        rq.profile(profile, bits=bits, signed=signed, dtype=dtype, precision=precision), granularity=granularity
    )
    ours = rq.quantize(x, scale, z.astype(np.int64), spec=spec)
    agree(f"onnxruntime/QuantizeLinear {kind} {dtype} {opset} {grain}", ours, runtime(made, x)[0])
    if opset >= 21 and (dtype == "float32" or opset == 23):
        text = replace(rq.profile(f"onnx@{opset}", bits=bits, signed=signed, dtype=dtype), granularity=granularity)
        agree("onnx text", rq.quantize(x, scale, z.astype(np.int64), spec=text), ours)
    if grain == "tensor" and opset != 10:
        mine = replace(
            rq.profile("onnx-reference@1.23", bits=bits, signed=signed, dtype=dtype), granularity=granularity
        )
        by_reference = reference(made, x)[0]
        agree(
            f"onnx-reference/{kind} {dtype} {opset}", rq.quantize(x, scale, z.astype(np.int64), spec=mine), by_reference
        )
        if dtype == "float16" and opset == 21 and kind == "int8":
            agree("onnx-reference/float16 at opset 21", ours, by_reference)


@pytest.mark.guarantee("ONNX Runtime DequantizeLinear", kind="second opinion", clauses="D1 D2")
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("grain", GRAINS)
def test_dequantize_linear(kind: str, dtype: str, grain: str, agree: Callable[..., None]) -> None:
    rng = np.random.default_rng(3)
    granularity, shape = GRAINS[grain]
    scale = rng.uniform(1e-4, 3, shape).astype(dtype)
    limits = np.iinfo(kind)
    q = rng.integers(limits.min, limits.max + 1, (8, 12500)).astype(kind)
    z = rng.integers(limits.min, limits.max + 1, shape).astype(kind)
    attrs = {"axis": granularity.axis} if shape else {}
    if grain == "block":
        attrs["block_size"] = 125
    made = model("DequantizeLinear", {"q": q, "s": scale, "z": z}, [FLOATS[dtype]], 21, **attrs)
    spec = replace(rq.profile("onnx@21", bits=limits.bits, signed=limits.min < 0), granularity=granularity)
    ours = rq.dequantize(q, scale, z.astype(np.int64), spec=spec, dtype=dtype)
    theirs = runtime(made, q)[0]
    agree(f"onnxruntime/DequantizeLinear {kind} {dtype} {grain}", ours, theirs)
    with np.errstate(over="ignore"):  # float16 may overflow
        twice = rq.dequantize(q, scale, z.astype(np.int64), spec=spec).astype(dtype)  # float32 first: what is listed
    agree(f"onnxruntime/by way of float32 {kind} {dtype} {grain}", twice, theirs)


def test_specials(agree: Callable[..., None]) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e-45, 3e38, 3e9, -3e9, 1e20], np.float32)
    made = model("QuantizeLinear", {"x": x, "s": np.float32(1), "z": np.int8(3)}, [TensorProto.INT8], 21)
    ours = rq.quantize(x, 1.0, 3, spec=rq.profile("onnxruntime-cpu@1.32"))
    agree("onnxruntime/specials", ours, runtime(made, x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference casts infinity to int32, which is what is listed
        agree("onnx-reference/beyond int32", ours, reference(made, x)[0])


@pytest.mark.guarantee(
    "ONNX Runtime DynamicQuantizeLinear: scales, zero points, codes", kind="second opinion", clauses="R8"
)
def test_dynamic_quantize_linear(agree: Callable[..., None]) -> None:
    rng = np.random.default_rng(4)
    spec = rq.profile("onnx@10", signed=False)
    for i in range(300):
        x = (rng.normal(rng.uniform(-2, 2), rng.uniform(0.01, 3), 400) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
        scale, z = rq.range_parameters(x.min(), x.max(), spec=spec, rule="onnx-dynamic")
        made = model("DynamicQuantizeLinear", {"x": x}, [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8], 11)
        q, s, zero = runtime(made, x)
        agree(f"onnxruntime/DynamicQuantizeLinear scale {i}", scale, s)
        agree(f"onnxruntime/DynamicQuantizeLinear zero point {i}", z, zero)
        agree(f"onnxruntime/DynamicQuantizeLinear codes {i}", rq.quantize(x, scale, z, spec=spec), q)


def test_dynamic_quantize_linear_of_zeros(agree: Callable[..., None]) -> None:
    x = np.zeros(4, np.float32)
    made = model("DynamicQuantizeLinear", {"x": x}, [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8], 11)
    scale, z = rq.range_parameters(0.0, 0.0, spec=rq.QuantSpec(8, signed=False), rule="onnx-dynamic")
    assert [scale, z] == [1.0, 0]
    agree("onnxruntime/zeros", [scale, z], runtime(made, x)[1:])


@pytest.mark.guarantee("ONNX Runtime QLinearMatMul", kind="second opinion", clauses="N1 N3")
@pytest.mark.parametrize("z", [0, 1, -3], ids=lambda z: f"zero point {z}")
def test_q_linear_mat_mul(z: int, agree: Callable[..., None]) -> None:
    """Scales that are powers of two make every half-integer a true tie; others come next to them."""
    rng = np.random.default_rng(5)
    for sa, sb, sy in ((0.5, 0.5, 0.5), (0.25, 1.0, 1.0), (0.013, 0.37, 0.61)):
        a = rng.integers(-128, 128, (400, 3)).astype(np.int8)
        b = rng.integers(-128, 128, (3, 250)).astype(np.int8)
        s = [np.float32(v) for v in (sa, sb, sy)]
        inputs = {
            "a": a,
            "sa": s[0],
            "za": np.int8(3),
            "b": b,
            "sb": s[1],
            "zb": np.int8(0),
            "sy": s[2],
            "zy": np.int8(z),
        }
        made = model("QLinearMatMul", inputs, [TensorProto.INT8], 21)
        acc = (a.astype(np.int64) - 3) @ b.astype(np.int64)
        factor = np.float64(s[0] * s[1] / s[2])  # float32, left to right
        ours = rq.requantize(acc, factor, z, spec=rq.profile("onnxruntime-cpu@1.32"), how="float32")
        agree(f"onnxruntime/QLinearMatMul {z} {sa}", ours, runtime(made, a)[0])
        if z == 1 and sa == 0.5:
            agree("onnx-reference/QLinearMatMul zero point before rounding", ours, reference(made, a)[0])


@pytest.mark.guarantee("ONNX Runtime QLinearConv", kind="second opinion", clauses="N1 N2 N3")
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_q_linear_conv(per_channel: bool, agree: Callable[..., None]) -> None:
    rng = np.random.default_rng(6)
    x = rng.integers(0, 256, (4, 3, 40, 40)).astype(np.uint8)
    w = rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8)
    bias = rng.integers(-20000, 20000, 16).astype(np.int32)
    sx, sy = np.float32(0.031), np.float32(0.9)
    sw = rng.uniform(0.001, 0.02, 16).astype(np.float32) if per_channel else np.float32(0.011)
    zw = np.zeros(16, np.int8) if per_channel else np.int8(0)
    inputs = {
        "x": x,
        "sx": sx,
        "zx": np.uint8(117),
        "w": w,
        "sw": sw,
        "zw": zw,
        "sy": sy,
        "zy": np.uint8(101),
        "b": bias,
    }
    made = model("QLinearConv", inputs, [TensorProto.UINT8], 10, pads=[1, 0, 2, 1], strides=[1, 2])
    attrs = {
        "in_channels": 3,
        "out_channels": 16,
        "kernel": (3, 3),
        "stride": (1, 2),
        "padding": (1, 0, 2, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    byte = rq.QuantSpec(8, signed=False)
    acc = accumulators(
        OPS["Conv"], attrs, Operand(w.astype(float), rq.QuantSpec(8)), Operand(x.astype(float), byte), z_x=117.0
    )
    acc = (acc + bias[:, None, None]).astype(np.int64)
    factor = (sx * sw / sy).astype(np.float64)
    spec = replace(rq.profile("onnxruntime-cpu@1.32", signed=False), granularity=rq.PerChannel(1))
    ours = rq.requantize(acc, np.broadcast_to(factor, 16), 101, spec=spec, how="float32")
    agree(f"onnxruntime/QLinearConv {per_channel}", ours, runtime(made, x)[0])


@pytest.mark.guarantee("ONNX Runtime MatMulInteger and ConvInteger", kind="second opinion", clauses="N1")
def test_integer_products(agree: Callable[..., None]) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 256, (300, 64)).astype(np.uint8), rng.integers(0, 256, (64, 350)).astype(np.uint8)
    made = model("MatMulInteger", {"a": a, "b": b, "za": np.uint8(12), "zb": np.uint8(200)}, [TensorProto.INT32], 10)
    byte = rq.QuantSpec(8, signed=False)
    w, x = Operand(b.T.astype(float), byte), Operand(a.astype(float), byte)
    for product in ("exact", "two-terms", "signed-terms"):
        ours = accumulators(OPS["Gemm"], {}, w, x, np.array(200.0), 12.0, product)
        agree(f"onnxruntime/MatMulInteger {product}", ours, runtime(made, a)[0])
    image, kernel = (
        rng.integers(0, 256, (2, 3, 20, 20)).astype(np.uint8),
        rng.integers(0, 256, (4, 3, 3, 3)).astype(np.uint8),
    )
    made = model(
        "ConvInteger", {"x": image, "w": kernel, "zx": np.uint8(99)}, [TensorProto.INT32], 10, pads=[1, 1, 1, 1]
    )
    attrs = {
        "in_channels": 3,
        "out_channels": 4,
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1, 1, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    ours = accumulators(
        OPS["Conv"], attrs, Operand(kernel.astype(float), byte), Operand(image.astype(float), byte), z_x=99.0
    )
    agree("onnxruntime/ConvInteger", ours, runtime(made, image)[0])
