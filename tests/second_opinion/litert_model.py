"""Int8 TFLite models of a few ops, built by hand from the runtime's schema, and run by its reference kernels."""

import warnings
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

OPTIONS = {
    "QUANTIZE": ("QuantizeOptions", schema.QuantizeOptionsT),
    "FULLY_CONNECTED": ("FullyConnectedOptions", schema.FullyConnectedOptionsT),
    "CONV_2D": ("Conv2DOptions", schema.Conv2DOptionsT),
    "ADD": ("AddOptions", schema.AddOptionsT),
    "AVERAGE_POOL_2D": ("Pool2DOptions", schema.Pool2DOptionsT),
    "RESHAPE": ("ReshapeOptions", schema.ReshapeOptionsT),
}
TYPES = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32"}


class Tensor(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    scale: Any = None  # one, or one a channel along `axis`
    zero_point: int = 0
    data: NDArray[Any] | None = None
    axis: int = 0


class Step(NamedTuple):
    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def _tensor(name: str, tensor: Tensor, buffers: list[Any]) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.type = (
        name.encode(),
        list(tensor.shape),
        getattr(schema.TensorType, TYPES[tensor.dtype]),
    )
    made.buffer = 0
    if tensor.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data, tensor.dtype).tobytes(), np.uint8)
        made.buffer = len(buffers)
        buffers.append(buffer)
    if tensor.scale is not None:
        scales = np.atleast_1d(np.asarray(tensor.scale, np.float32))
        q = schema.QuantizationParametersT()
        q.scale, q.zeroPoint, q.quantizedDimension = scales.tolist(), [tensor.zero_point] * len(scales), tensor.axis
        made.quantization = q
    return made


def build(tensors: dict[str, Tensor], steps: list[Step], inputs: list[str], outputs: list[str]) -> bytes:
    """The bytes of a model whose activations are `tensors`, those with data being constants."""
    model, graph, names = schema.ModelT(), schema.SubGraphT(), list(tensors)
    buffers = [schema.BufferT()]
    graph.tensors = [_tensor(name, tensor, buffers) for name, tensor in tensors.items()]
    graph.inputs, graph.outputs = [names.index(n) for n in inputs], [names.index(n) for n in outputs]
    codes = sorted({step.op for step in steps})
    model.operatorCodes, graph.operators = [], []
    for op in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, op)
        code.version = {
            "QUANTIZE": 1,
            "FULLY_CONNECTED": 4,
            "CONV_2D": 3,
            "ADD": 2,
            "AVERAGE_POOL_2D": 2,
            "RESHAPE": 1,
        }[op]
        model.operatorCodes.append(code)
    for step in steps:
        operator = schema.OperatorT()
        operator.opcodeIndex = codes.index(step.op)
        operator.inputs, operator.outputs = [names.index(n) for n in step.inputs], [names.index(step.output)]
        kind, options = OPTIONS[step.op]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = options()
        for key, value in step.attrs.items():
            setattr(operator.builtinOptions, key, value)
        graph.operators.append(operator)
    model.version, model.subgraphs, model.buffers = 3, [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run(model: bytes, inputs: list[NDArray[Any]], *, reference: bool = True) -> list[NDArray[Any]]:
    """The outputs of the runtime's reference (or default) kernels."""
    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter announces its successor
        interpreter = Interpreter(model_content=model, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]
