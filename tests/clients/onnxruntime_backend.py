"""ONNX Runtime as a backend: `refquant verify --callable onnxruntime_backend:linear --profile onnxruntime-cpu@1.32`.

Its QuantizeLinear and DequantizeLinear, and two graphs of elementary operators that exporters write instead.
"""

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from refquant.conform.operations import Request
from refquant.quant.granularity import PerChannel, PerGroup

TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
    (16, True): TensorProto.INT16,
    (16, False): TensorProto.UINT16,
}


def run(nodes: list[Any], constants: dict[str, Any], x: Any, output: str) -> Any:
    """The output of a graph whose input is x."""
    fed = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    result = helper.make_tensor_value_info(output, TensorProto.UNDEFINED, None)
    result.ClearField("type")  # inferred
    held = [a if isinstance(a, TensorProto) else numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "backend", [fed], [result], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([output], {"x": x})[0]


def asked(request: Request) -> tuple[Any, Any, Any]:
    """x, scale and zero point, where ONNX has the semantics; NotImplementedError elsewhere."""
    if request.op not in ("quantize", "fake_quantize"):
        raise NotImplementedError(request.op)
    x, s, z = (np.asarray(request.inputs[name]) for name in ("x", "scale", "zero_point"))
    spec = request.spec
    if x.dtype not in (np.float32, np.float16) or s.dtype != x.dtype or (spec.bits, spec.signed) not in TYPES:
        raise NotImplementedError(f"{x.dtype} with a scale of {s.dtype}")
    if (spec.overflow, spec.nan, spec.dequantize, spec.narrow) != ("saturate", "qmin", "scale-difference", False):
        raise NotImplementedError("other semantics")
    return x, s, z


def linear(request: Request) -> Any:
    """QuantizeLinear, and DequantizeLinear after it."""
    x, s, z = asked(request)
    spec = request.spec
    attributes: dict[str, Any] = {}
    if isinstance(spec.granularity, (PerChannel, PerGroup)):
        attributes["axis"] = spec.granularity.axis
    if isinstance(spec.granularity, PerGroup):
        attributes["block_size"] = spec.granularity.size
    kind = TYPES[spec.bits, spec.signed]
    constants = {"s": s, "z": helper.make_tensor("z", kind, z.shape, z.ravel().tolist())}
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes)]
    if request.op == "quantize":
        nodes.append(helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.INT32))
        return run(nodes, constants, x, "codes")
    nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes))
    return run(nodes, constants, x, "y")


def elementary(request: Request, nodes: list[Any]) -> Any:
    """q = nodes of x, s and 1 / s; codes = clip(q + z)."""
    x, s, z = asked(request)
    if s.ndim or x.dtype != np.float32 or np.isnan(x).any():
        raise NotImplementedError("float32, one scale and no NaN")
    floats = {"s": s, "z": z, "low": request.spec.qmin, "high": request.spec.qmax, "half": 0.5, "one": 1}
    nodes = [
        *nodes,
        helper.make_node("Add", ["q", "z"], ["moved"]),
        helper.make_node("Clip", ["moved", "low", "high"], ["real"]),
        helper.make_node("Cast", ["real"], ["codes"], to=TensorProto.INT32),
        helper.make_node("Sub", ["real", "z"], ["difference"]),
        helper.make_node("Mul", ["difference", "s"], ["y"]),
    ]
    output = "codes" if request.op == "quantize" else "y"
    return run(nodes, {n: np.asarray(v, np.float32) for n, v in floats.items()}, x, output)


def reciprocal(request: Request) -> Any:
    """x times 1 / s where ONNX divides."""
    nodes = [
        helper.make_node("Div", ["one", "s"], ["inverse"]),
        helper.make_node("Mul", ["x", "inverse"], ["quotient"]),
        helper.make_node("Round", ["quotient"], ["q"]),
    ]
    return elementary(request, nodes)


def half_added(request: Request) -> Any:
    """floor(x / s + 1/2) where ONNX rounds ties to even."""
    nodes = [
        helper.make_node("Div", ["x", "s"], ["quotient"]),
        helper.make_node("Add", ["quotient", "half"], ["sum"]),
        helper.make_node("Floor", ["sum"], ["q"]),
    ]
    return elementary(request, nodes)
