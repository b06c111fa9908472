"""A backend held to a pack: what it answers, declines, raises and overwrites; what the report says of it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.conform.deviations import DEVIATIONS
from refquant.conform.known import read_known
from refquant.conform.operations import OPERATIONS, Request, evaluate
from refquant.conform.packs import Pack, level_one
from refquant.conform.verify import Declined, Failed, Report, verify

PROFILE = "onnx@21"


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def other(op: str, otherwise: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """The reference, but for one operation."""
    return lambda request: otherwise(request) if request.op == op else evaluate(request)


def raising(error: Exception) -> Callable[[Request], Any]:
    def backend(request: Request) -> Any:
        raise error

    return backend


# ---- one verdict a test ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["seed-floor@1", "tflite-single@1", "gemmlowp@1"])
def test_the_reference_conforms(profile: str, pack: Pack) -> None:
    report = verify(evaluate, pack, profile)
    assert report.conforms
    assert report.count("right") == len(report.verdicts) == len(list(pack.requests(profile)))
    assert not report.diagnoses


@pytest.mark.parametrize(
    ("otherwise", "status", "text"),
    [
        (lambda r: None, "declined", ""),
        (lambda r: Declined("no unit for it"), "declined", "no unit for it"),
        (raising(NotImplementedError("not yet")), "declined", "not yet"),
        (lambda r: Failed("it burned"), "failed", "it burned"),
        (raising(ValueError("bad shape")), "failed", "ValueError: bad shape"),
        (raising(RecursionError()), "failed", "RecursionError"),
        (lambda r: 7.0, "wrong", "got shape ()"),
        (lambda r: "x", "wrong", "should be floats"),
        (lambda r: object(), "wrong", "should be floats"),
        (lambda r: (n for n in "ab"), "failed", "TypeError"),
        (lambda r: {"y": evaluate(r)["x"]}, "wrong", "got outputs y, should be x"),
        (lambda r: evaluate(r)["x"].astype(np.complex64), "wrong", "should be floats"),
        (lambda r: evaluate(r)["x"][..., None], "wrong", "got shape"),
        (lambda r: np.nan * evaluate(r)["x"], "wrong", "got nan"),
    ],
)
def test_one_operation_otherwise(otherwise: Callable[[Request], Any], status: str, text: str, pack: Pack) -> None:
    report = verify(other("dequantize", otherwise), pack, PROFILE, ops=["dequantize", "dynamic_quantize"])
    for v in report.verdicts:
        assert v.status == (status if v.asked.request.op == "dequantize" else "right")
        assert v.status == "right" or text in "".join(v.findings)
    assert report.conforms == (status == "declined")
    assert report.count(status) == 28


def test_who_declines_everything_does_not_conform(pack: Pack) -> None:
    report = verify(lambda request: None, pack, PROFILE)
    assert report.count("declined") == len(report.verdicts)
    assert not report.conforms
    assert "does not conform" in str(report)


def test_answers_that_are_missing_have_failed(pack: Pack) -> None:
    answers = {test.id: evaluate(asked.request) for test, asked in pack.requests(PROFILE)}
    assert verify(answers, pack, PROFILE).conforms
    gone = next(iter(answers))
    report = verify({k: v for k, v in answers.items() if k != gone}, pack, PROFILE)
    assert [(v.test.id, v.findings) for v in report.verdicts if v.status == "failed"] == [(gone, ("no answer",))]
    assert not report.conforms


@pytest.mark.parametrize("ops", [["quantise"], ["network"], []])
def test_no_test_is_an_error(ops: list[str], pack: Pack) -> None:
    with pytest.raises(rq.ArgumentError):
        verify(evaluate, pack, PROFILE, ops=ops)


def test_progress_hears_of_every_test(pack: Pack) -> None:
    heard: list[int] = []
    report = verify(evaluate, pack, PROFILE, ops=["dequantize", "requantize"], progress=heard.append)
    assert heard == [1] * len(report.verdicts)


# ---- backends that overwrite ----------------------------------------------------------------------------------


def test_a_backend_may_use_its_output_again(pack: Pack) -> None:
    held = np.zeros(1 << 16, np.int32)

    def one_buffer(request: Request) -> Any:
        codes = evaluate(request, {"rounding": "half_away"})["codes"]
        held[: codes.size] = codes.ravel()
        return held[: codes.size].reshape(codes.shape)

    report = verify(one_buffer, pack, PROFILE, ops=["quantize"])
    assert "ties away" in named(report, "quantize")


# ---- diagnoses ------------------------------------------------------------------------------------------------

PLANTED = [
    ("quantize", "zero point before rounding"),
    ("dequantize", "difference wraps"),
    ("dynamic_quantize", "scale by qmax"),
    ("requantize", "factor by reciprocal"),
    ("qlinear_matmul", "input zero point left out"),
    ("qlinear_conv", "dilation ignored"),
    ("qlinear_add", "each addend rounded"),
]


def named(report: Report, op: str) -> set[str]:
    """The explanations that every diagnosis of an operation has, with what is the same function as they are."""
    found = [
        {e.name for e in d.explanations} | {n for e in d.explanations for (n,) in e.same} for d in report.diagnoses[op]
    ]
    return set.intersection(*found)


@pytest.mark.parametrize(("op", "name"), PLANTED)
def test_a_planted_deviation_is_named(op: str, name: str, pack: Pack) -> None:
    report = verify(other(op, lambda r: evaluate(r, DEVIATIONS[name].change)), pack, PROFILE, ops=[op])
    assert report.count("wrong") > 0
    assert set(report.diagnoses) == {op}
    assert name in named(report, op)


def test_noise_is_not_explained(pack: Pack) -> None:
    rng = np.random.default_rng(5)

    def noisy(request: Request) -> Any:
        codes = evaluate(request)["codes"]
        return np.clip(codes + rng.integers(-1, 2, codes.shape), request.spec.qmin, request.spec.qmax)

    report = verify(noisy, pack, PROFILE, ops=["requantize"])
    assert [d.verdict for d in report.diagnoses["requantize"]] == ["none"] * len(report.diagnoses["requantize"])
    assert "none of the catalogue's deviations" in str(report)


# ---- the report -----------------------------------------------------------------------------------------------


def test_the_report_as_json_and_as_text(pack: Pack) -> None:
    report = verify(other("requantize", lambda r: evaluate(r, {"rounding": "half_away"})), pack, PROFILE)
    data = json.loads(json.dumps(report.to_json()))
    assert data["profile"] == PROFILE
    assert data["conforms"] is False
    assert sum(data["counts"].values()) == len(report.verdicts)
    assert {op: sum(row.values()) for op, row in data["operations"].items()} == {
        op: sum(v.asked.request.op == op for v in report.verdicts) for op in data["operations"]
    }
    assert set(data["operations"]) <= set(OPERATIONS)
    assert len(data["findings"]) == report.count("wrong") > 0
    assert all(text for texts in data["findings"].values() for text in texts)
    text = str(report)
    flags = {v.test.family for v in report.verdicts if v.status == "wrong"}
    assert all(str(pack.notes[flag]["effect"]) in text for flag in flags)
    assert text.splitlines()[-1].startswith(f"does not conform to {PROFILE}: ")


# ---- backends that are not what they seem ---------------------------------------------------------------------


def _quantized(request: Request) -> Any:
    return evaluate(request) if request.op == "quantize" else None


def test_a_backend_that_exits_fails() -> None:
    def leaves(request: Request) -> Any:
        raise SystemExit(0)

    report = verify(leaves, level_one(), "onnx@21", ops=["quantize"])
    assert not report.conforms
    assert report.count("failed") == len(report.verdicts)


def test_codes_as_floats_are_neither_right_nor_excused_nor_explained() -> None:
    def floats(request: Request) -> Any:
        outputs = evaluate(request, {"rounding": "half_away"})
        return {"codes": outputs["codes"].astype(np.float64)}

    known = read_known("quantize | ties away | the unit has no other mode")
    report = verify(floats, level_one(), "onnx@21", ops=["quantize"], known=known)
    assert report.count("wrong") == len(report.verdicts)
    found = next(iter(report.diagnoses["quantize"]))
    assert not found.conforms
    assert "codes is of float64" in str(found)


def test_a_backend_does_not_choose_its_tolerance() -> None:
    def narrow(request: Request) -> Any:
        return {name: a.astype(np.float16) for name, a in evaluate(request).items()}

    report = verify(narrow, level_one(), "seed-nearest@1", ops=["gradient"])
    assert report.count("wrong") == len(report.verdicts)
    assert "should be float32 or float64" in str(report)


def test_a_backend_may_write_into_what_it_is_given() -> None:
    def careless(request: Request) -> Any:
        found = evaluate(request)
        for a in request.inputs.values():
            np.asarray(a)[...] = 0
        return found

    pack = level_one()
    before = [{n: np.array(v) for n, v in a.request.inputs.items()} for _, a in pack.requests("onnx@21")]
    assert verify(careless, pack, "onnx@21", ops=["quantize"]).conforms
    after = [a.request.inputs for _, a in pack.requests("onnx@21")]
    assert all(
        np.array_equal(v, n[k], equal_nan=v.dtype.kind == "f")
        for m, n in zip(before, after, strict=True)
        for k, v in m.items()
    )
    assert verify(_quantized, pack, "onnx@21", ops=["quantize"]).conforms


def test_the_report_says_where_a_test_departs_from_the_profile() -> None:
    def saturates(request: Request) -> Any:
        return evaluate(request, {"overflow": "saturate"})

    assert "asked with overflow=wrap" in str(verify(saturates, level_one(), "onnx@21", ops=["quantize"]))
