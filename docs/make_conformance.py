"""Make docs/conformance.md: what level 1 kills, beside the ONNX node suite, and what diagnosis names.

python docs/make_conformance.py  (needs the package onnx)
"""

import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests
from pages import table
from tqdm import tqdm

from refquant.conform.deviations import DEVIATIONS, applicable, pairs
from refquant.conform.examine import Examined, examine
from refquant.conform.judge import Expected
from refquant.conform.mutants import MUTANTS, Mutant, kill_matrix, matrix_text, notices
from refquant.conform.operations import OPERATIONS, Request, evaluate
from refquant.conform.packs import Asked, Pack, level_one
from refquant.conform.verify import verify
from refquant.quant.granularity import PerChannel, PerGroup
from refquant.quant.integer_spec import IntegerSpec
from refquant.quant.profiles import profile

HERE = Path(__file__).parent
PAIRS = 12
"""Pairs examined of each operation."""

# ---- the node suite, as requests ------------------------------------------------------------------------------

T = onnx.TensorProto
WIDTHS = {
    **{T.UINT8: (8, False), T.INT8: (8, True), T.UINT16: (16, False), T.INT16: (16, True)},
    **{T.UINT4: (4, False), T.INT4: (4, True), T.UINT2: (2, False), T.INT2: (2, True)},
}
OPS = {
    "QuantizeLinear": ("quantize", ("x", "scale", "zero_point"), ("codes",)),
    "DequantizeLinear": ("dequantize", ("codes", "scale", "zero_point"), ("x",)),
    "DynamicQuantizeLinear": ("dynamic_quantize", ("x",), ("codes", "scale", "zero_point")),
    "MatMulInteger": ("matmul_integer", ("a", "b", "a_zero_point", "b_zero_point"), ("acc",)),
    "ConvInteger": ("conv_integer", ("x", "w", "x_zero_point", "w_zero_point"), ("acc",)),
    "QLinearMatMul": (
        "qlinear_matmul",
        ("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point"),
        ("codes",),
    ),
    "QLinearConv": (
        "qlinear_conv",
        ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias"),
        ("codes",),
    ),
}
"""ONNX operator -> operation, its inputs in order, its outputs."""


def array(a: Any) -> np.ndarray:
    v = onnx.numpy_helper.to_array(a) if isinstance(a, T) else np.asarray(a)
    return v if v.dtype in (np.float16, np.float32, np.float64) else v.astype(np.int64)


def node_suite() -> Iterator[Asked]:
    """The cases of the suite whose codes are integers, as requests under the semantics of its opset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loader computes overflows of other ops on purpose
        cases = load_model_tests(kind="node")
    for case in cases:
        node, graph = case.model.graph.node[0], case.model.graph
        if node.op_type not in OPS or len(graph.node) > 1:
            continue
        op, names, outputs = OPS[node.op_type]
        kinds = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
        codes = {"dequantize": kinds[0], "quantize": kinds[-1], "dynamic_quantize": T.UINT8}.get(op, kinds[-1])
        if op.endswith("_integer"):
            codes = kinds[0]
        if codes not in WIDTHS:
            continue  # floats as codes
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for given, expected in case.data_sets:
            ins = dict(zip(names, map(array, given), strict=False))
            outs = dict(zip(outputs, map(array, expected), strict=True))
            batches = len(ins["a"]) if np.ndim(ins.get("a")) == 3 else 0
            for i in range(batches):  # requests multiply matrices, one at a time
                one = {n: v[i] if v.ndim == 3 else v for n, v in ins.items()}
                yield asked(op, one, attrs, WIDTHS[codes], kinds, {n: v[i] for n, v in outs.items()})
            if not batches:
                yield asked(op, ins, attrs, WIDTHS[codes], kinds, outs)


def asked(op: str, inputs: dict[str, np.ndarray], attrs: dict[str, Any], width: Any, kinds: Any, out: Any) -> Asked:
    spec = profile("onnx@25" if op in ("quantize", "dequantize") else "onnx@21", bits=width[0], signed=width[1])
    options: dict[str, Any] = {}
    if op in ("quantize", "dequantize"):
        axis, s, x = attrs.get("axis", 1), inputs["scale"], next(iter(inputs.values()))
        if attrs.get("block_size"):
            spec = replace(spec, granularity=PerGroup(axis, attrs["block_size"]))
        elif s.ndim:
            spec = replace(spec, granularity=PerChannel(axis % x.ndim))
        inputs.setdefault("zero_point", np.zeros(s.shape, np.int64))
        inputs["zero_point"] = inputs["zero_point"].reshape(s.shape)
        options = {"dtype": out["x"].dtype.name} if op == "dequantize" else {}
    elif op == "dynamic_quantize":
        options = {"rule": "onnx-dynamic"}
    else:
        a, b = ("x", "w") if "conv" in op else ("a", "b")
        inputs.setdefault(f"{b}_zero_point", np.asarray(0))
        signed = [WIDTHS[k][1] for k in (kinds[0], kinds[3 if op.startswith("qlinear") else 1])]
        options = {f"{a}_signed": signed[0], f"{b}_signed": signed[1]}
        if "conv" in op:
            options |= {"padding": [int(p) for p in attrs["pads"]]} if "pads" in attrs else {}
            inputs.setdefault("bias", np.zeros(len(inputs["w"]), np.int64)) if op == "qlinear_conv" else None
        inputs = {
            n: v.ravel()[0] if n.endswith(("scale", "zero_point")) and v.size == 1 else v for n, v in inputs.items()
        }
    return Asked(Request(op, spec, inputs, options, IntegerSpec(accumulator_overflow="wrap")), Expected(out), ())


def killed_by_suite() -> tuple[int, dict[Mutant, bool]]:
    """How many requests the suite makes, and which mutants of its operations it notices."""
    requests = list(node_suite())
    for a in requests:
        assert not notices(a, {}), a.request.op  # the suite and the reference agree
    ops = {a.request.op for a in requests}
    return len(requests), {
        m: any(
            notices(a, DEVIATIONS[m.deviation].change)
            for a in requests
            if a.request.op == m.op and applicable(a.request, DEVIATIONS[m.deviation])
        )
        for m in MUTANTS
        if m.op in ops
    }


# ---- the document ---------------------------------------------------------------------------------------------


def beside_the_suite(matrix: dict[Mutant, set[str]]) -> str:
    count, suite = killed_by_suite()
    rows = []
    for op in dict.fromkeys(m.op for m in suite):
        mine = [m for m in suite if m.op == op]
        rows.append([op, len(mine), sum(suite[m] for m in mine), sum(bool(matrix[m]) for m in mine)])
    rows.append(["all", *(sum(row[i] for row in rows) for i in (1, 2, 3))])
    return (
        "\n## Beside the ONNX node suite\n\nThe mutants of the operations that the node suite of onnx "
        f"{onnx.__version__} has, held to its {count} requests with integer codes (compared exactly, which is stricter "
        "than its own tolerance) and to level 1. Killed:\n\n"
        + table(["operation", "mutants", "node suite", "level 1"], rows)
    )


def diagnosed(pack: Pack) -> str:
    rows = []
    for op in OPERATIONS:
        mine = [m for m in MUTANTS if m.op == op]
        found = [examine(pack, op, (m.deviation,)) for m in tqdm(mine, desc=op, leave=False)]
        shown = [e for e in found if e is not None]
        kinds = Counter(kind_of(e) for e in shown)
        both = pairs(m.deviation for m in mine)
        rng = np.random.default_rng(5)
        picked = [both[i] for i in rng.permutation(len(both))[:PAIRS]]
        seen = [e for e in (examine(pack, op, pair) for pair in tqdm(picked, desc=op, leave=False)) if e is not None]
        rows.append(
            [
                *(op, len(mine), sum(e.named for e in shown)),
                *(kinds["alone"], kinds["class"], kinds["next"], kinds["open"]),
                f"{sum(e.named for e in seen)} of {len(seen)}" if seen else "",
            ]
        )
    total = ["all", *(sum(row[i] for row in rows) for i in range(1, 7))]
    both = [tuple(map(int, row[7].split(" of "))) for row in rows if row[7]]
    rows.append([*total, f"{sum(a for a, _ in both)} of {sum(b for _, b in both)}"])
    head = ["operation", "mutants", "named", "alone", "in a class", "with a next input", "without one", "pairs named"]
    return (
        "\n## Diagnosis\n\nEvery mutant plays the backend; diagnosis sees one test on which it shows and others of the "
        "same semantics, 4,096 elements at most (of whole networks one test). *Alone*: the one explanation. *In a "
        "class*: one of several that are proved to be the same function at these parameters. *With a next input*: one "
        "of several, and an input that tells them apart is given; *without one*: none was found. Pairs: "
        f"{PAIRS} drawn of each operation; those that show nowhere, or as one of the two alone, are left out.\n\n"
        + table(head, rows)
    )


def kind_of(e: Examined) -> str:
    if len(e.diagnosis.explanations) == 1:
        return "class" if e.diagnosis.explanations[0].same else "alone"
    return "next" if e.diagnosis.next_input is not None else "open"


def stories() -> str:
    rows = []
    for name, d in sorted(DEVIATIONS.items(), key=lambda row: row[1].code):
        rows.append([d.code, name, d.story, len(d.ops), ", ".join(d.threads[:4])])
    return "\n## The deviations\n\n" + table(["code", "name", "what it does", "operations", "public reports"], rows)


def main() -> None:
    """Write conformance.md beside this file."""
    pack = level_one()
    matrix = kill_matrix(pack)
    requests = sum(len(t.asked) for t in pack.tests)
    profiles = sorted({p for t in pack.tests for a in t.asked for p in a.profiles})
    start = time.process_time()
    report = verify(evaluate, pack, "onnx@21")
    seconds = time.process_time() - start
    assert report.conforms
    dead = sum(bool(by) for by in matrix.values())
    head = (
        "# What the packs notice, and what diagnosis names\n\nMade by `docs/make_conformance.py`. A mutant is one "
        "operation with one deviation of the catalogue (`refquant/conform/deviations.toml`).\n\n"
        f"Level 1 has {len(pack.tests)} tests in {len(pack.notes)} families, {requests} requests with their expected "
        f"values, for {len(profiles)} profiles: {', '.join(f'`{p}`' for p in profiles)}. Verifying one profile took "
        f"{seconds:.1f} s of processor time with the product's own pipelines as the backend. It kills {dead} of "
        f"{len(matrix)} mutants.\n"
    )
    body = "\n## Family by operation\n\nMutants killed; *alone*: by this family only.\n\n" + matrix_text(
        matrix, pack.notes
    )
    parts = [head, beside_the_suite(matrix), diagnosed(pack), body + "\n", stories()]
    (HERE / "conformance.md").write_text("".join(parts), encoding="utf-8")
    print(json.dumps({"killed": dead, "mutants": len(matrix)}))


if __name__ == "__main__":
    main()
