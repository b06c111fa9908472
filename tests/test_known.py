"""Known deviations: a line excuses exactly the answers that it predicts; whatever else is wrong comes out."""

import numpy as np
import pytest

import refquant as rq
from refquant.conform.deviations import DEVIATIONS
from refquant.conform.known import excuse, read_known
from refquant.conform.operations import Request, evaluate
from refquant.conform.packs import Pack, level_one
from refquant.conform.verify import verify

X = np.array([0.5, 1.5, 2.5, -0.5, 300.0], np.float32)
REQUEST = Request("quantize", rq.QuantSpec(8), {"x": X, "scale": np.float32(1), "zero_point": 3})
AWAY = "quantize | ties away | the unit has no other mode"


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def test_lines_are_read() -> None:
    text = f"# ours\n\n{AWAY}\n  requantize |shift ties up with wraps|  a | b  \n"
    first, second = read_known(text)
    assert (first.op, first.deviations, first.reason) == ("quantize", ("ties away",), "the unit has no other mode")
    assert (second.deviations, second.reason) == (("shift ties up", "wraps"), "a | b")
    assert str(first) == AWAY
    assert read_known(str(second)) == (second,)
    assert read_known("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize | ties away", "OPERATION | DEVIATION | REASON"),
        ("quantize | ties away | ", "OPERATION | DEVIATION | REASON"),
        ("ties away", "OPERATION | DEVIATION | REASON"),
        ("quantise | ties away | x", "quantise"),
        ("quantize | ties astray | x", "ties astray"),
        ("quantize | kernel flipped | x", "kernel flipped"),  # which is a convolution's
        ("quantize | | x", "deviation ''"),
        (f"{AWAY}\n{AWAY} now", "twice"),
    ],
)
def test_a_line_that_says_nothing_is_an_error(text: str, message: str) -> None:
    with pytest.raises(rq.FileError, match="line") as error:
        read_known(text, "file")
    assert message in str(error.value)


def test_a_line_excuses_what_it_predicts_and_nothing_else() -> None:
    (line,) = known = read_known(AWAY)
    away = evaluate(REQUEST, {"rounding": "half_away"})["codes"]
    assert away.tolist() != evaluate(REQUEST)["codes"].tolist()
    assert excuse(known, REQUEST, {"codes": away}) == excuse(known, REQUEST, away) == line
    for i in range(len(X)):  # one more fault, anywhere
        other = away.copy()
        other[i] -= 1
        assert excuse(known, REQUEST, {"codes": other}) is None
    assert excuse(known, REQUEST, {"q": away}) is None
    assert excuse(known, REQUEST, away[:-1]) is None
    assert excuse(known, REQUEST, None) is None
    assert excuse((), REQUEST, away) is None
    elsewhere = Request("fake_quantize", REQUEST.spec, REQUEST.inputs)
    assert excuse(known, elsewhere, {"y": evaluate(elsewhere, {"rounding": "half_away"})["y"]}) is None


def test_two_deviations_on_a_line_act_together() -> None:
    both = evaluate(REQUEST, {"rounding": "half_away", "overflow": "wrap"})
    assert excuse(read_known("quantize | ties away | a\nquantize | wraps | b"), REQUEST, both) is None
    assert excuse(read_known("quantize | ties away with wraps | a"), REQUEST, both) is not None


OPS = ["quantize", "fake_quantize", "requantize"]


@pytest.mark.parametrize("name", ["ties away", "clip, then zero point", "narrow range", "reciprocal", "wraps"])
def test_the_lines_that_diagnosis_suggests_excuse_the_backend(name: str, pack: Pack) -> None:
    change = DEVIATIONS[name].change

    def backend(request: Request) -> object:
        return evaluate(request, change)

    ops = [op for op in OPS if op in DEVIATIONS[name].ops]
    wrong = verify(backend, pack, "onnx@21", ops=ops)
    assert wrong.count("wrong") > 0
    known = read_known("\n".join(f"{op} | {name} | planted" for op in wrong.diagnoses))
    report = verify(backend, pack, "onnx@21", ops=ops, known=known)
    assert report.conforms
    assert report.count("excused") == wrong.count("wrong")


def test_a_second_fault_does_not_hide_behind_a_first(pack: Pack) -> None:
    def backend(request: Request) -> object:
        return evaluate(request, {"rounding": "half_away", "grid": "narrow"})

    report = verify(backend, pack, "onnx@21", ops=["quantize"], known=read_known(AWAY))
    assert not report.conforms
    assert report.count("excused") > 0  # where the second does not show
    assert report.count("wrong") > 0


def test_a_stale_line_is_an_error(pack: Pack) -> None:
    report = verify(evaluate, pack, "onnx@21", ops=["quantize"], known=read_known(AWAY))
    assert report.count("right") == len(report.verdicts)
    assert not report.conforms
    assert f"stale: no answer is explained by: {AWAY}" in str(report)
    elsewhere = verify(evaluate, pack, "onnx@21", ops=["dequantize"], known=read_known(AWAY))
    assert elsewhere.conforms  # nobody asked
