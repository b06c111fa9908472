"""Golden tests as ONNX test cases: a model and protocol buffers, as ONNX's own backend tests are laid out.

    FOLDER/test_ID/model.onnx
    FOLDER/test_ID/test_data_set_0/input_0.pb ... output_0.pb

Any runner of ONNX backend tests takes them (onnx.backend.test.loader's "data" tests among them).  What ONNX has no
operator, type or attribute for is left out, with the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper

from ..conform.case import Case
from ..conform.operations import Request
from ..conform.packs import Asked, Pack
from ..conform.requests import request_of
from ..errors import ArgumentError, FileError, complaint
from ..quant.granularity import PerChannel, PerGroup, PerTensor

__all__ = ["Exported", "OnnxCase", "onnx_case", "write_onnx_cases"]

Array = NDArray[Any]

OPSETS = {"onnx@21": (21, 10), "onnx@23": (23, 11)}
"""profile -> (version of the operator set, version of the file format)."""

INTEGERS_ALONE = ("matmul_integer", "conv_integer")
"""Operations whose sums are the same under every profile: those of this one are exported."""

EXACT = "seed-nearest@1"


class _SkipError(Exception):
    """ONNX has no such thing; the reason."""


# ---- tensors --------------------------------------------------------------------------------------------------

_CODES = {
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (16, True): TensorProto.INT16,
    (16, False): TensorProto.UINT16,
}
_FLOATS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}


class _Value(NamedTuple):
    """A tensor and its ONNX type."""

    array: Array
    kind: int

    def proto(self, name: str) -> TensorProto:
        if self.kind in (TensorProto.INT4, TensorProto.UINT4):
            return helper.make_tensor(name, self.kind, self.array.shape, self.array.ravel().tolist())
        held = np.ascontiguousarray(self.array, helper.tensor_dtype_to_np_dtype(self.kind))
        return helper.make_tensor(name, self.kind, self.array.shape, held.tobytes(), raw=True)


def _real(a: Any) -> _Value:
    v = np.asarray(a)
    if v.dtype not in _FLOATS:
        raise _SkipError(f"no operator of {v.dtype}")
    return _Value(v, _FLOATS[v.dtype])


def _code(a: Any, bits: int, signed: bool) -> _Value:
    if (bits, signed) not in _CODES:
        raise _SkipError(f"no integers of {bits} bits")
    return _Value(np.asarray(a), _CODES[bits, signed])


def _int32(a: Any) -> _Value:
    return _Value(np.asarray(a), TensorProto.INT32)


# ---- operators ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Graph:
    """Nodes on inputs x0, x1, ..., with outputs y0, ..."""

    nodes: list[NodeProto]
    inputs: list[_Value]
    outputs: list[_Value]


def _one(op: str, inputs: list[_Value], outputs: list[_Value], **attributes: Any) -> _Graph:
    names = [f"x{i}" for i in range(len(inputs))], [f"y{i}" for i in range(len(outputs))]
    return _Graph([helper.make_node(op, *names, **attributes)], inputs, outputs)


def _granularity(request: Request) -> dict[str, int]:
    grain = request.spec.granularity
    if isinstance(grain, PerChannel):
        return {"axis": grain.axis}
    return {"axis": grain.axis, "block_size": grain.size} if isinstance(grain, PerGroup) else {}


def _parameters(request: Request) -> list[_Value]:
    spec = request.spec
    return [_real(request.inputs["scale"]), _code(request.inputs["zero_point"], spec.bits, spec.signed)]


Outputs = Mapping[str, Array]


def _quantize(request: Request, out: Outputs) -> _Graph:
    inputs = [_real(request.inputs["x"]), *_parameters(request)]
    codes = _code(out["codes"], request.spec.bits, request.spec.signed)
    return _one("QuantizeLinear", inputs, [codes], **_granularity(request))


def _dequantize(request: Request, out: Outputs) -> _Graph:
    codes = _code(request.inputs["codes"], request.spec.bits, request.spec.signed)
    inputs, x = [codes, *_parameters(request)], _real(out["x"])
    if x.kind != inputs[1].kind:
        raise _SkipError("results of another type than the scale's")
    return _one("DequantizeLinear", inputs, [x], **_granularity(request))


def _fake_quantize(request: Request, out: Outputs) -> _Graph:
    inputs, attributes = [_real(request.inputs["x"]), *_parameters(request)], _granularity(request)
    first = helper.make_node("QuantizeLinear", ["x0", "x1", "x2"], ["codes"], **attributes)
    second = helper.make_node("DequantizeLinear", ["codes", "x1", "x2"], ["y0"], **attributes)
    return _Graph([first, second], inputs, [_real(out["y"])])


def _dynamic_quantize(request: Request, out: Outputs) -> _Graph:
    outputs = [_code(out["codes"], 8, False), _real(out["scale"]), _code(out["zero_point"], 8, False)]
    return _one("DynamicQuantizeLinear", [_real(request.inputs["x"])], outputs)


def _pair(request: Request, first: str, second: str) -> tuple[list[_Value], list[_Value]]:
    """Both operands with their zero points, as codes of 8 bits."""
    found = []
    for n in (first, second):
        signed = bool(request.options.get(f"{n}_signed", True))
        found.append([_code(request.inputs[m], 8, signed) for m in (n, f"{n}_zero_point")])
    return found[0], found[1]


def _scaled(request: Request, first: str, second: str) -> list[_Value]:
    """Codes, scale and zero point of both operands, scale and zero point of the result."""
    spec, found = request.spec, list[_Value]()
    for n, (codes, zero) in zip((first, second), _pair(request, first, second), strict=True):
        scale = _real(request.inputs[f"{n}_scale"])
        if scale.array.ndim > zero.array.ndim:  # a scale each has a zero point each
            zero = _Value(np.broadcast_to(zero.array, scale.array.shape), zero.kind)
        found += [codes, scale, zero]
    y = [_real(request.inputs["y_scale"]), _code(request.inputs["y_zero_point"], spec.bits, spec.signed)]
    return [*found, *y]


def _windows(request: Request) -> dict[str, Any]:
    names = {"stride": "strides", "dilation": "dilations", "padding": "pads"}
    more = {names[n]: list(v) for n, v in request.options.items() if n in names}
    return {**more, "group": request.options.get("groups", 1)}


def _matmul_integer(request: Request, out: Outputs) -> _Graph:
    (a, z_a), (b, z_b) = _pair(request, "a", "b")
    return _one("MatMulInteger", [a, b, z_a, z_b], [_int32(out["acc"])])


def _conv_integer(request: Request, out: Outputs) -> _Graph:
    (x, z_x), (w, z_w) = _pair(request, "x", "w")
    return _one("ConvInteger", [x, w, z_x, z_w], [_int32(out["acc"])], **_windows(request))


def _qlinear_matmul(request: Request, out: Outputs) -> _Graph:
    codes = _code(out["codes"], request.spec.bits, request.spec.signed)
    return _one("QLinearMatMul", _scaled(request, "a", "b"), [codes])


def _qlinear_conv(request: Request, out: Outputs) -> _Graph:
    inputs = _scaled(request, "x", "w")
    if "bias" in request.inputs:
        inputs.append(_int32(request.inputs["bias"]))
    codes = _code(out["codes"], request.spec.bits, request.spec.signed)
    return _one("QLinearConv", inputs, [codes], **_windows(request))


OPERATORS: dict[str, Callable[[Request, Outputs], _Graph]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "fake_quantize": _fake_quantize,
    "dynamic_quantize": _dynamic_quantize,
    "matmul_integer": _matmul_integer,
    "conv_integer": _conv_integer,
    "qlinear_matmul": _qlinear_matmul,
    "qlinear_conv": _qlinear_conv,
}
"""operation -> its ONNX graph; others have no operator."""


# ---- a case ---------------------------------------------------------------------------------------------------


class OnnxCase(NamedTuple):
    """A model with its inputs and its outputs."""

    model: ModelProto
    inputs: list[TensorProto]
    outputs: list[TensorProto]


def _as_onnx_says(request: Request, profile: str) -> None:
    """A case may set its own semantics, which no operator would know of."""
    case = Case(request.op, {}, request.spec.bits, request.spec.signed, options=request.options)
    plain = request_of(case, profile)
    if plain is None or replace(request.spec, granularity=PerTensor()) != plain.spec:
        raise _SkipError("semantics of its own")


def _made(name: str, asked: Asked, profile: str, of: str) -> OnnxCase:
    if asked.request.op not in OPERATORS:
        raise _SkipError("no operator")
    _as_onnx_says(asked.request, of)
    graph = OPERATORS[asked.request.op](asked.request, asked.expected.outputs)
    opset, ir = OPSETS[profile]

    def infos(values: list[_Value], letter: str) -> list[Any]:
        return [
            helper.make_tensor_value_info(f"{letter}{i}", v.kind, list(v.array.shape)) for i, v in enumerate(values)
        ]

    made = helper.make_graph(graph.nodes, name, infos(graph.inputs, "x"), infos(graph.outputs, "y"))
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(made, producer_name="refquant", opset_imports=imports, ir_version=ir)
    inputs, outputs = (
        [v.proto(f"{letter}{i}") for i, v in enumerate(values)]
        for letter, values in (("x", graph.inputs), ("y", graph.outputs))
    )
    return OnnxCase(model, inputs, outputs)


def onnx_case(name: str, asked: Asked, profile: str = "onnx@21") -> OnnxCase | str:
    """One test as a model with inputs and outputs, or the reason why ONNX cannot say it.

    profile: onnx@21 or onnx@23, which set the version of the operators.  The model passes ONNX's checker.

    Raises ArgumentError for another profile.

    >>> from refquant.conform.judge import Expected
    >>> from refquant.quant.spec import QuantSpec
    >>> request = Request("quantize", QuantSpec(3), {})
    >>> onnx_case("one", Asked(request, Expected({}), ("onnx@21",)))
    'semantics of its own'
    """
    if profile not in OPSETS:
        raise ArgumentError(complaint(f"profile {profile!r}", f"one of {', '.join(OPSETS)}", "ONNX"))
    of = EXACT if asked.request.op in INTEGERS_ALONE else profile
    try:
        case = _made(name, asked, profile, of)
    except _SkipError as reason:
        return str(reason)
    checker.check_model(case.model, full_check=True)
    return case


# ---- a folder -------------------------------------------------------------------------------------------------


class Exported(NamedTuple):
    """The names of tests that were written, and of those left out with the reason."""

    written: list[str]
    left_out: dict[str, str]


def _write(path: Path, message: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message.SerializeToString(deterministic=True))
    except OSError as error:
        raise FileError(complaint(f"{error.strerror or error}", "a file that can be written", str(path))) from None


def write_onnx_cases(pack: Pack, folder: Path, profile: str = "onnx@21") -> Exported:
    """Every test of a pack that ONNX can say, as a folder each; the same pack gives the same bytes.

    Raises ArgumentError for another profile than onnx@21 and onnx@23, FileError for a folder that cannot be written.
    """
    written, left_out = list[str](), dict[str, str]()
    for test in pack.tests:
        asked = test.under(profile) or test.under(EXACT)
        if asked is None or (profile not in asked.profiles and asked.request.op not in INTEGERS_ALONE):
            continue
        case = onnx_case(test.id, asked, profile)
        if isinstance(case, str):
            left_out[test.id] = case
            continue
        place = folder / f"test_{test.id.replace('-', '_')}"
        _write(place / "model.onnx", case.model)
        for kind, tensors in (("input", case.inputs), ("output", case.outputs)):
            for i, tensor in enumerate(tensors):
                _write(place / "test_data_set_0" / f"{kind}_{i}.pb", tensor)
        written.append(test.id)
    return Exported(written, left_out)
