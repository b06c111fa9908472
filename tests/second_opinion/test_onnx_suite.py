"""All 45 quantization cases of the ONNX node suite, compared exactly and not at its tolerance."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

import refquant as rq
from refquant.net.integer import accumulators
from refquant.net.ops import OPS
from refquant.net.products import Operand

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the loader computes overflows of other ops on purpose
    CASES = {
        case.name: case
        for case in load_model_tests(kind="node")
        if any(
            node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
            or node.op_type.startswith("QLinear")
            or node.op_type.endswith("Integer")
            for node in case.model.graph.node
        )
    }

FLOATS_AS_CODES = {
    f"test_{op}_{kind}"
    for op in ("quantizelinear", "dequantizelinear")
    for kind in ("e4m3fn", "e5m2", "float4e2m1", "e4m3fn_float16", "e4m3fn_zero_point")
}
"""Out of scope: codes that are floats."""

WIDTHS = {
    onnx.TensorProto.UINT8: (8, False),
    onnx.TensorProto.INT8: (8, True),
    onnx.TensorProto.UINT16: (16, False),
    onnx.TensorProto.INT16: (16, True),
    onnx.TensorProto.UINT4: (4, False),
    onnx.TensorProto.INT4: (4, True),
    onnx.TensorProto.UINT2: (2, False),
    onnx.TensorProto.INT2: (2, True),
}


def granularity(attrs: dict[str, Any], scale: Any, x: Any) -> rq.PerTensor | rq.PerChannel | rq.PerGroup:
    axis = attrs.get("axis", 1)
    if attrs.get("block_size"):
        return rq.PerGroup(axis, attrs["block_size"])
    return rq.PerChannel(axis % x.ndim) if np.ndim(scale) else rq.PerTensor()


def spec_of(kind: int, grain: Any, profile: str = "onnx@25") -> rq.QuantSpec:
    from dataclasses import replace

    bits, signed = WIDTHS[kind]
    return replace(rq.profile(profile, bits=bits, signed=signed), granularity=grain)


def plain(a: Any) -> Any:
    """An array; the suite keeps narrow types as protocol buffers."""
    return onnx.numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else np.asarray(a)


def integers(a: Any) -> Any:
    return plain(a).astype(np.int64)


def dynamic(x: Any) -> list[Any]:
    spec = rq.profile("onnx@10", signed=False)
    scale, z = rq.range_parameters(x.min(), x.max(), spec=spec, rule="onnx-dynamic")
    return [rq.quantize(x, scale, z, spec=spec), scale, z]


def matmul(a: Any, za: Any, b: Any, zb: Any) -> Any:
    return (integers(a) - integers(za)) @ (integers(b) - integers(zb))


def conv(x: Any, zx: Any, w: Any, zw: Any, attrs: dict[str, Any]) -> Any:
    pads = attrs.get("pads", [0] * 4)
    ours = {
        "in_channels": x.shape[1],
        "out_channels": w.shape[0],
        "kernel": w.shape[2:],
        "stride": tuple(attrs.get("strides", (1, 1))),
        "padding": tuple(pads),
        "dilation": tuple(attrs.get("dilations", (1, 1))),
        "groups": attrs.get("group", 1),
    }
    byte = rq.QuantSpec(8, signed=False)
    wide = Operand(integers(w).astype(float), byte), Operand(integers(x).astype(float), byte)
    zeros = integers(zw).astype(float) * np.ones(len(w)), float(integers(zx).ravel()[0])
    return accumulators(OPS["Conv"], ours, *wide, *zeros)


def answer(node: onnx.NodeProto, inputs: list[Any], kinds: list[int]) -> list[Any]:
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    op = node.op_type
    if op == "QuantizeLinear":
        x, scale = inputs[:2]
        spec = spec_of(kinds[-1], granularity(attrs, scale, x))
        return [
            rq.quantize(x, scale, integers(inputs[2]).reshape(np.shape(scale)) if len(inputs) > 2 else 0, spec=spec)
        ]
    if op == "DequantizeLinear":
        q, scale = integers(inputs[0]), inputs[1]
        spec = spec_of(kinds[0], granularity(attrs, scale, q))
        z = integers(inputs[2]).reshape(np.shape(scale)) if len(inputs) > 2 else 0
        return [rq.dequantize(q, scale, z, spec=spec, dtype=scale.dtype)]
    if op == "MatMulInteger":
        return [matmul(inputs[0], inputs[2], inputs[1], inputs[3])]
    if op == "ConvInteger":
        return [conv(inputs[0], inputs[2], inputs[1], inputs[3] if len(inputs) > 3 else 0, attrs)]
    a, sa, za, b, sb, zb, sy, zy = inputs[:8]
    acc = matmul(a, za, b, zb) if op == "QLinearMatMul" else conv(a, za, b, zb, attrs)
    factor = np.float64(sa).ravel()[0] * np.float64(sb).ravel()[0] / np.float64(sy).ravel()[0]
    spec = spec_of(kinds[-1], rq.PerTensor(), "onnx@21")
    return [rq.requantize(acc.astype(np.int64), factor, int(integers(zy).ravel()[0]), spec=spec)]


def test_there_are_45() -> None:
    assert len(CASES) == 45


@pytest.mark.guarantee(
    "All 45 quantization cases of the ONNX node suite, exactly (float codes left out)",
    kind="second opinion",
    clauses="Q2 Q4 Q5 Q6 D2 N1 N3",
)
@pytest.mark.parametrize("name", sorted(CASES))
def test_node_case(name: str, agree: Callable[..., None]) -> None:
    case = CASES[name]
    graph = case.model.graph
    kinds = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    if name in FLOATS_AS_CODES:
        floats = {onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2, onnx.TensorProto.FLOAT4E2M1}
        assert floats & set(kinds), "listed as floats, but it is integers"
        return
    for inputs, outputs in case.data_sets:
        if name.endswith("_expanded") or graph.node[0].op_type == "DynamicQuantizeLinear":
            ours = dynamic(inputs[0])
        else:
            ours = answer(graph.node[0], list(inputs), kinds)
        assert len(ours) == len(outputs)
        for index, (mine, theirs) in enumerate(zip(ours, outputs, strict=True)):
            agree(f"{name}/{index}", mine, plain(theirs).astype(np.float64))
