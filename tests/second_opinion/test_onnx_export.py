"""Golden tests as ONNX test cases: held to ONNX's checker, its reference evaluator and ONNX Runtime."""

import doctest
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernelError

import refquant as rq
from refquant.cli import main
from refquant.conform.packs import Pack, level_one
from refquant.interop import onnx as export
from refquant.interop.onnx import OnnxCase, onnx_case, write_onnx_cases

PROFILES = ("onnx@21", "onnx@23")

NO_SATURATION = "refquant: QuantizeLinear says saturate; the reference casts to int32 before it clips"
IN_FLOAT64 = (
    "neither: the text names no arithmetic; the reference takes the product in float64, ONNX Runtime in float32"
)
REFERENCE = {  # family, operation: who is right; a line without a disagreement is an error too
    ("beyond-int32", "quantize"): NO_SATURATION,
    ("beyond-int32", "fake_quantize"): NO_SATURATION,
    ("infinity", "quantize"): NO_SATURATION,
    ("infinity", "fake_quantize"): NO_SATURATION,
    ("other-type", "quantize"): "neither: version 21 names no precision; the reference divides in float16",
    **{
        (family, op): IN_FLOAT64
        for family in ("accumulator", "wide-accumulator", "factor-order", "long-sum")
        for op in ("qlinear_matmul", "qlinear_conv")
    },
}


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def cases(pack: Pack, profile: str) -> list[tuple[str, str, str, OnnxCase]]:
    found = []
    for test in pack.tests:
        asked = test.under(profile) or test.under("seed-nearest@1")
        if asked is None or (profile not in asked.profiles and not asked.request.op.endswith("_integer")):
            continue
        case = onnx_case(test.id, asked, profile)
        if not isinstance(case, str):
            found.append((test.family, asked.request.op, test.id, case))
    return found


def equal(got: list[Any], should: list[TensorProto]) -> bool:
    pairs = [(np.asarray(g), numpy_helper.to_array(s)) for g, s in zip(got, should, strict=True)]
    return all(
        g.shape == s.shape and np.array_equal(g.astype(np.float64), s.astype(np.float64), equal_nan=True)
        for g, s in pairs
    )


def inputs(case: OnnxCase) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in case.inputs}


@pytest.mark.guarantee(
    "ONNX's reference evaluator agrees with every exported test but those of listed families.",
    "second opinion",
    "Q, D, N",
)
def test_the_reference_evaluator_agrees_but_for_what_is_listed(pack: Pack) -> None:
    agreed, others = Counter[str](), Counter[tuple[str, str]]()
    for family, op, _, case in cases(pack, "onnx@21"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of casts that do not fit
            same = equal(ReferenceEvaluator(case.model).run(None, inputs(case)), case.outputs)
        if same:
            agreed[op] += 1
        else:
            others[family, op] += 1
    assert set(others) == set(REFERENCE)
    assert set(agreed) == set(export.OPERATORS)
    assert agreed.total() > 280


def in_eight_bits(model: onnx.ModelProto, case: OnnxCase) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """4-bit inputs as constants, 4-bit outputs cast to 8 bits: ONNX Runtime's binding passes neither."""
    four = (TensorProto.INT4, TensorProto.UINT4)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    narrow = [t for t in case.inputs if t.data_type in four]
    graph.initializer.extend(narrow)
    kept = [i for i in graph.input if i.name not in {t.name for t in narrow}]
    del graph.input[:]
    graph.input.extend(kept)
    if graph.output[0].type.tensor_type.elem_type in four:
        graph.node.append(helper.make_node("Cast", ["y0"], ["wide"], to=TensorProto.INT8))
        shape = [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("wide", TensorProto.INT8, shape))
    return made, {name: a for name, a in inputs(case).items() if name in {i.name for i in kept}}


@pytest.mark.guarantee(
    "ONNX Runtime agrees with every exported test that it has a kernel for.", "second opinion", "Q, D, N"
)
@pytest.mark.parametrize("profile", PROFILES)
def test_onnx_runtime_agrees_with_all_that_it_runs(pack: Pack, profile: str) -> None:
    agreed, missing, wrong = 0, Counter[str](), []
    for family, _, name, case in cases(pack, profile):
        model, given = in_eight_bits(case.model, case)
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except NoKernelError:
            missing[family] += 1
            continue
        if equal(session.run(None, given), case.outputs):
            agreed += 1
        else:
            wrong.append(name)
    assert not wrong
    assert agreed >= {"onnx@21": 323, "onnx@23": 192}[profile]
    assert set(missing) <= {"product", "pair-sum"}  # pairs of types without a kernel


def test_a_planted_fault_is_noticed(pack: Pack) -> None:
    _, _, _, case = next(c for c in cases(pack, "onnx@21") if c[1] == "quantize")
    out = numpy_helper.to_array(case.outputs[0]).copy()
    out.ravel()[0] += 1
    wrong = [numpy_helper.from_array(out, "y0")]
    assert equal(ReferenceEvaluator(case.model).run(None, inputs(case)), case.outputs)
    assert not equal(ReferenceEvaluator(case.model).run(None, inputs(case)), wrong)


@pytest.mark.parametrize("profile", PROFILES)
def test_folders_are_whole_and_the_same_bytes(pack: Pack, profile: str, tmp_path: Path) -> None:
    some = Pack(1, tuple(t for t in pack.tests if t.family in ("tie", "dynamic", "padding", "budget")), pack.notes)
    found = write_onnx_cases(some, tmp_path / "a", profile)
    assert write_onnx_cases(some, tmp_path / "b", profile) == found
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {f"test_{n.replace('-', '_')}" for n in found.written}
    assert len(found.written) > 30
    assert all(found.left_out.values())
    name, asked = next((t.id, t.under(profile)) for t in pack.tests if t.id == found.written[0])
    folder = tmp_path / "a" / f"test_{name.replace('-', '_')}"
    assert asked is not None
    model = onnx.load(folder / "model.onnx")
    assert model.opset_import[0].version == int(profile.partition("@")[2])
    read = [onnx.load_tensor(folder / "test_data_set_0" / f"input_{i}.pb") for i in range(len(model.graph.input))]
    first = asked.request.inputs["x"]
    assert np.array_equal(numpy_helper.to_array(read[0]), first)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("")
    with pytest.raises(rq.FileError):
        write_onnx_cases(some, tmp_path / "a", profile)


def test_what_onnx_cannot_say_is_left_out_with_its_reason(pack: Pack) -> None:
    by_id = {t.id: t.under("onnx@21") for t in pack.tests}
    reasons = Counter(c for n, a in by_id.items() if a is not None and isinstance(c := onnx_case(n, a), str))
    assert set(reasons) == {
        "no operator",
        "semantics of its own",
        "results of another type than the scale's",
        "no operator of float64",
    }
    asked = next(a for a in by_id.values() if a is not None)
    with pytest.raises(rq.ArgumentError, match=r"onnx@21, onnx@23"):
        onnx_case("x", asked, "pytorch@2")


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "--onnx", str(tmp_path / "cases"), "--profile", "onnx@23"]) == 0
    assert "left out: no operator" in capsys.readouterr().out
    assert len(list((tmp_path / "cases").iterdir())) > 150
    assert main(["pack", "--onnx", str(tmp_path / "cases"), "--profile", "pytorch@2"]) == 2


def test_examples_run() -> None:
    assert doctest.testmod(export).failed == 0
    assert doctest.testmod(export).attempted > 1
