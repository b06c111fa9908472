"""Sweeps: the step function is the definition, planted faults are found, nothing but rule and answers matters."""

import json
import multiprocessing
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import refquant as rq
from refquant.conform import step_function
from refquant.conform.deviations import DEVIATIONS
from refquant.conform.exhaustive import BLOCK, BLOCKS, diagnose_sweep, sweep
from refquant.conform.golden import golden
from refquant.conform.operations import Request, evaluate
from refquant.conform.requests import integer_of
from refquant.conform.step_function import ScalarRule, Steps, steps

RULE = ScalarRule("quantize", rq.profile("onnx@21"), 0.1, 3)
SOME = range(983, 986)  # around 0.25
RULES = {
    "onnx@21": RULE,
    "seed-floor@1": ScalarRule("quantize", rq.profile("seed-floor@1", bits=4), 0.37),
    "gemmlowp@1": ScalarRule("quantize", rq.profile("gemmlowp@1", signed=False), 0.1, 101),
    "qonnx@1": ScalarRule("quantize", rq.profile("qonnx@1", bits=4), 0.3, 0.75),
    "pytorch@2": ScalarRule("quantize", rq.profile("pytorch@2"), 1.0, -7),
    "pytorch-fake@2": ScalarRule("fake_quantize", rq.profile("pytorch-fake@2"), 0.1, 3),
    "a subnormal scale": ScalarRule("quantize", rq.QuantSpec(8), 2.0**-148),
    "a huge scale": ScalarRule("quantize", rq.QuantSpec(8, nan="qmin"), 3e38),
    "requantize": ScalarRule("requantize", rq.QuantSpec(8), 0.00037, -5),
    "tflite-double@1": ScalarRule("requantize", rq.QuantSpec(8), 0.00037, -5, integer_of("tflite-double@1")),
    "tflite-single@1": ScalarRule("requantize", rq.QuantSpec(8), 2.5e-8, 0, integer_of("tflite-single@1")),
    "onnx@21, int32": ScalarRule("requantize", rq.QuantSpec(8), 1.7, 9, integer_of("onnx@21")),
}


@lru_cache
def known(name: str) -> Steps:
    return steps(RULES[name])


def with_deviation(rule: ScalarRule, name: str) -> Any:
    return lambda request: evaluate(request, DEVIATIONS[name].change)


# ---- what is expected -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15)
@given(data=st.data())
@pytest.mark.guarantee(
    "The step functions that sweeps expect answers from are the definition's.", "sampled", "Q1-Q6, D1-D2, N3"
)
def test_the_step_function_is_the_definition(name: str, data: st.DataObject) -> None:
    rule = RULES[name]
    at = known(name)
    near = st.sampled_from(range(at.at.size)).map(lambda i: int(at.at[i : i + 1].view(np.uint32)[0]))
    bits = st.one_of(st.integers(0, 2**32 - 1), st.builds(lambda b, d: (b + d) % 2**32, near, st.integers(-2, 2)))
    x = np.array(data.draw(st.lists(bits, min_size=1, max_size=20)), np.uint32).view(rule.names.dtype)
    x = x[~np.isnan(x)] if rule.spec.nan == "raise" else x
    if x.size:
        should = golden(rule.request(x))[rule.names.output]
        assert np.array_equal(at(x).view(np.uint32), should.astype(rule.names.result).view(np.uint32))


@pytest.mark.guarantee(
    "On every 9,973rd of the 2^32 bit patterns and a step's ends, each array form is the step function.",
    "sampled",
    "Q, N3",
)
@pytest.mark.parametrize("name", RULES)
def test_the_array_form_is_the_step_function_everywhere(name: str) -> None:
    rule = RULES[name]
    bits = np.arange(0, 2**32, 9973, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([bits.view(rule.names.dtype), known(name).edges])
    x = x[~np.isnan(x)] if rule.spec.nan == "raise" else x
    got = evaluate(rule.request(x))[rule.names.output].astype(rule.names.result)
    assert np.array_equal(got.view(np.uint32), known(name)(x).view(np.uint32))


def test_an_array_form_that_errs_makes_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_function, "evaluate", with_deviation(RULE, "ties away"))
    with pytest.raises(rq.CertificateError, match="one code on each step"):
        steps(RULE)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "dequantize"},
        {"scale": 0.0},
        {"scale": 1e39},
        {"scale": float("nan")},
        {"spec": rq.QuantSpec(17)},
        {"spec": rq.QuantSpec(8, overflow="wrap")},
        {"spec": rq.QuantSpec(8, rounding="stochastic")},
    ],
)
def test_a_rule_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(rq.ArgumentError):
        ScalarRule(**{"op": "quantize", "spec": rq.QuantSpec(8), "scale": 1.0, **change})


# ---- planted faults -------------------------------------------------------------------------------------------


def one_bit_pattern(request: Request) -> Any:
    """Wrong at a single input: the float32 next above 0.265625."""
    codes = evaluate(request)["codes"]
    return codes + (request.inputs["x"].view(np.uint32) == 0x3E880001)


def test_one_wrong_answer_among_millions_is_found() -> None:
    blocks = range(0x3E8, 0x3E9)
    found = sweep(RULE, one_bit_pattern, blocks=blocks)
    assert (found.wrong, found.inputs, found.conforms) == (1, BLOCK, False)
    assert [(m.input, m.got) for m in found.first] == [(0x3E880001, 7)]
    assert "0x1.1000020000000p-2 (0.2656250298023224): got 7, should be 6" in str(found)
    assert sweep(RULE, evaluate, blocks=blocks).conforms
    assert sweep(RULE, evaluate, blocks=blocks).digest != found.digest


@pytest.mark.parametrize(
    ("name", "deviation", "blocks"),
    [
        ("pytorch@2", "ties away", range(1024, 1026)),
        ("onnx@21", "reciprocal", range(0x404, 0x406)),
        ("pytorch-fake@2", "truncation", range(1016, 1018)),
        ("tflite-double@1", "requantized by one rounding", range(0, 1)),
    ],
)
def test_diagnosis_names_what_is_planted(name: str, deviation: str, blocks: range) -> None:
    backend = with_deviation(RULES[name], deviation)
    found = sweep(RULES[name], backend, blocks=blocks)
    assert found.wrong > 0
    named = [way for e in diagnose_sweep(found, backend).explanations for way in (e.deviations, *e.same)]
    assert (deviation,) in named


def test_a_float_that_differs_in_the_sign_of_zero_is_wrong() -> None:
    rule = RULES["pytorch-fake@2"]
    found = sweep(rule, lambda r: -(-evaluate(r)["y"] + np.float32(0)), blocks=range(2048, 2049))
    assert found.wrong == found.inputs == BLOCK


# ---- nothing but rule and answers -----------------------------------------------------------------------------


@pytest.mark.guarantee(
    "The result of a sweep does not depend on chunks, executors, or where it was interrupted.", "sampled", ""
)
def test_chunks_and_executors_do_not_matter(tmp_path: Path) -> None:
    backend = one_bit_pattern
    blocks = range(0x3E7, 0x3EB)
    whole = sweep(RULE, backend, blocks=blocks).to_json()
    assert sweep(RULE, backend, blocks=blocks, chunk=1 << 16).to_json() == whole
    with ThreadPoolExecutor(3) as threads:
        assert sweep(RULE, backend, blocks=blocks, executor=threads).to_json() == whole
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        assert (
            sweep(RULE, evaluate, blocks=blocks, executor=processes).digest
            == sweep(RULE, evaluate, blocks=blocks).digest
        )
    for b in blocks:  # one at a time, through a file
        sweep(RULE, backend, blocks=range(b, b + 1), state=tmp_path / "state", name="one")
    calls: list[Any] = []
    assert sweep(RULE, calls.append, blocks=blocks, state=tmp_path / "state", name="one").to_json() == whole
    assert not calls


class Backwards(Executor):
    """Does the last call first."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, fn, args))
        if len(self.waiting) == len(SOME):
            for waiting, f, a in reversed(self.waiting):
                waiting.set_result(f(*a))
        return future


def test_the_order_in_which_blocks_end_does_not_matter() -> None:
    whole = sweep(RULE, with_deviation(RULE, "truncation"), blocks=SOME)
    again = sweep(RULE, with_deviation(RULE, "truncation"), blocks=SOME, executor=Backwards())
    assert again.to_json() == whole.to_json()
    assert whole.wrong > 0


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    asked: list[int] = []

    def dies(request: Request) -> Any:
        asked.append(int(request.inputs["x"].view(np.uint32)[0]) // BLOCK)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return evaluate(request)

    state, told = tmp_path / "state", list[int]()
    with pytest.raises(KeyboardInterrupt):
        sweep(RULE, dies, blocks=SOME, state=state)
    found = sweep(RULE, dies, blocks=SOME, state=state, progress=told.append)
    assert asked == [*SOME, SOME[-1]]
    assert told == [2 * BLOCK, BLOCK]
    assert found.to_json() == sweep(RULE, evaluate, blocks=SOME).to_json()
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda r: None,
        lambda r: 1 // 0,
        lambda r: evaluate(r)["codes"][:-1],
        lambda r: evaluate(r)["codes"] * 1.0,
        lambda r: {"y": evaluate(r)["codes"]},
        lambda r: evaluate(r)["codes"].astype(np.int64) + 2**33,
    ],
)
def test_no_answer_is_an_error_that_says_where(answer: Any) -> None:
    with pytest.raises(rq.ArgumentError, match="0x3d700000"):
        sweep(RULE, answer, blocks=SOME)


def test_nan_is_left_out_or_asked_as_the_rule_says() -> None:
    last = range(BLOCKS - 1, BLOCKS)  # NaN alone
    assert sweep(RULE, evaluate, blocks=last).inputs == 0
    assert not sweep(RULE, evaluate, blocks=last).conforms
    found = sweep(RULES["a huge scale"], evaluate, blocks=last)
    assert found.inputs == BLOCK
    assert found.conforms


@pytest.mark.parametrize("change", [{"blocks": range(0, 5000)}, {"blocks": range(3, 3)}, {"chunk": 3}, {"chunk": 0}])
def test_bad_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(rq.ArgumentError):
        sweep(RULE, evaluate, **change)


# ---- state files ----------------------------------------------------------------------------------------------


def _damaged(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


DAMAGES: dict[str, Any] = {
    "another rule": lambda d: d["rule"].update(scale="0x1p+0"),
    "another backend": lambda d: d.update(backend="other"),
    "another schema": lambda d: d.update(schema="x"),
    "an unknown field": lambda d: d.update(more=1),
    "no blocks": lambda d: d.pop("done"),
    "a block that is none": lambda d: d["done"].update({"5000": d["done"]["983"]}),
    "a digest that is none": lambda d: d["done"]["983"].__setitem__(3, "zz"),
    "a negative count": lambda d: d["done"]["983"].__setitem__(1, -1),
    "wrong answers without any": lambda d: d["done"]["983"].__setitem__(1, 2),
    "a list": lambda d: d.update(done=[]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_of_something_else_is_refused(damage: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    sweep(RULE, evaluate, blocks=range(983, 984), state=state)
    _damaged(state, DAMAGES[damage])
    before = state.read_text()
    with pytest.raises(rq.FileError):
        sweep(RULE, evaluate, blocks=range(983, 984), state=state)
    assert state.read_text() == before


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"\xff{")
    for place in ("state", "", "no/state"):
        with pytest.raises(rq.FileError):
            sweep(RULE, evaluate, blocks=range(983, 984), state=tmp_path / place)
