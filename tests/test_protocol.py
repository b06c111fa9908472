"""Programs as backends: a right one conforms; whatever a wrong one does is said, ends in time, and costs one test."""

import io
import json
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.conform import program, protocol
from refquant.conform.operations import Request, evaluate
from refquant.conform.packs import Pack, level_one
from refquant.conform.program import Program
from refquant.conform.protocol import HELLO, outputs_of, read_answers, read_hello, read_reply, request_lines, serve
from refquant.conform.verify import Declined, Failed, Report, verify

PROFILE, OPS = "onnx@21", ["dequantize"]

RIGHT = """
import sys
from refquant.conform.operations import evaluate
from refquant.conform.protocol import serve
serve(evaluate, sys.stdin.buffer, lambda line: (sys.stdout.buffer.write(line), sys.stdout.flush()))
"""

FAULTY = """
import json, os, sys, time
one = {"dtype": "float32", "shape": [1], "data": ["0x1p+0"]}
def say(text): sys.stdout.write(text); sys.stdout.flush()
def outputs(**a): say(json.dumps({"id": "3", "outputs": {"x": one | a}}) + "\\n")
for line in sys.stdin:
    data = json.loads(line)
    if "protocol" in data:
        say(json.dumps(data) + "\\n")
        continue
    answer = json.dumps({"id": data["id"], "declined": "no"}) + "\\n"
    if data["id"] == "3":
        exec(sys.argv[1])
    else:
        say(answer)
"""
"""Declines everything; does what its argument says at the third request."""

FAULTS = {  # what is done: what is said of it
    "os.abort()": "died of SIGABRT",
    "print('no memory', file=sys.stderr); sys.exit(3)": "ended with status 3; it said: 'no memory'",
    "sys.exit()": "ended with status 0",
    "time.sleep(99)": "no whole line within",
    "say(answer[:-5]); time.sleep(99)": "no whole line within",
    "say(answer[:-5]); sys.exit()": 'amid the line \'{"id": "3",',
    "sys.stdout.close(); os.close(1); time.sleep(99)": "closed its output",
    "say('Illegal instruction' + chr(10))": "'Illegal instruction', but should be a line with one JSON object",
    "say(chr(10))": "a line with one JSON object",
    "sys.stdout.buffer.write(bytes([255, 254, 10])); sys.stdout.flush()": "xff",
    "say('[' * 100_000 + chr(10))": "a line with one JSON object",
    "say('9' * 10_000 + chr(10))": "a line with one JSON object",
    "say(answer.replace('id', 'ID'))": "with the id of its request",
    "say(answer.replace('3', '30'))": "an answer to '30', but should be to '3'",
    "say(answer + answer)": "an answer to '3', but should be to '4'",
    "[say('x' * 65_536) for _ in range(10_000)]": "bytes without the end of a line",
    "say(answer.replace('declined', 'refused'))": "fields id, refused",
    "outputs(data=['0x1p+0', '0x1p+0'])": "data of 2",
    "outputs(data=[], shape=[1])": "data of 0",
    "outputs(data=['1.0'])": "'1.0'",
    "outputs(data=[1.0])": "1.0",
    "outputs(data=['0x1p+2000'])": "0x1p+2000",
    "outputs(dtype='float8')": "float8",
    "outputs(shape=[2 ** 40])": "shape",
    "outputs(shape=[-1])": "shape",
    "outputs(shape=[True])": "shape",
    "outputs(unit='V')": "unit",
}


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def python(tmp_path: Path, source: str, *arguments: str) -> list[str]:
    (tmp_path / "client.py").write_text(source)
    return [sys.executable, str(tmp_path / "client.py"), *arguments]


def run(
    command: str | list[str], pack: Pack, ops: list[str] = OPS, profile: str = PROFILE, seconds: float = 1
) -> Report:
    with Program(command, timeout=seconds) as backend:
        return verify(backend, pack, profile, ops=ops)


# ---- programs -------------------------------------------------------------------------------------------------


def test_a_right_program_conforms_to_every_profile(pack: Pack, tmp_path: Path) -> None:
    with Program(python(tmp_path, RIGHT)) as backend:
        for profile in pack.profiles:
            report = verify(backend, pack, profile)
            assert report.conforms, str(report)
            assert report.count("right") == len(report.verdicts)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_costs_one_test(
    fault: str, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PATIENCE", 0.2)
    monkeypatch.setattr(program, "MOST_BYTES", 1 << 20)
    report = run(python(tmp_path, FAULTY, fault), pack)
    (failed,) = (v for v in report.verdicts if v.status == "failed")
    assert FAULTS[fault] in failed.findings[0]
    assert report.count("declined") == len(report.verdicts) - 1
    assert not report.conforms


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("false", "ended with status 1"),
        ("true", "ended with status 0"),
        ("echo hello", "'hello'"),
        (f"echo '{json.dumps({'protocol': 'refquant-9'})}'", "refquant-9"),
        ("yes", "'y'"),
        ("cat", "fields id, inputs"),
    ],
)
def test_a_program_that_never_answers_is_given_up(command: str, text: str, pack: Pack) -> None:
    report = run(command, pack)
    assert report.count("failed") == len(report.verdicts)
    first, last = report.verdicts[0], report.verdicts[-1]
    assert text in first.findings[0]
    if command != "cat":  # whose answers are wrong, each at once
        assert "given up after 5 failures" in last.findings[0]


def test_a_program_that_reads_nothing_is_given_up(pack: Pack, tmp_path: Path) -> None:
    source = f"import time\nprint({HELLO.decode().strip()!r}, flush=True)\ntime.sleep(99)"
    begin = monotonic()
    report = run(python(tmp_path, source), pack, ["network"], "seed-nearest@1", 0.5)  # requests that fill the pipe
    assert report.count("failed") == 3
    assert monotonic() - begin < 20


def test_what_a_program_started_is_ended_too(pack: Pack) -> None:
    begin = monotonic()
    report = run(["sh", "-c", "sleep 99 & sleep 99"], pack, ["requantize"], seconds=0.2)
    assert "within 0.2 s" in report.verdicts[0].findings[0]
    assert monotonic() - begin < 10


def test_an_interruption_ends_the_program_at_once() -> None:
    begin, backend = monotonic(), Program("sleep 99").__enter__()
    life = backend._life
    backend.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert life is not None
    assert life.process.poll() is not None
    assert monotonic() - begin < 10


@pytest.mark.parametrize("command", ["/nowhere/kernel", "", "/"])
def test_a_program_that_cannot_be_started_is_an_error(command: str) -> None:
    with pytest.raises(rq.FileError, match="a program that starts"), Program(command):
        pass


# ---- streams --------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(pack: Pack) -> list[bytes]:
    """The lines of a right answer to the operations."""
    written: list[bytes] = []
    serve(evaluate, io.BytesIO(b"".join(request_lines(pack, PROFILE, OPS))), written.append)
    return written


def verdicts(lines: list[bytes], pack: Pack) -> Report:
    return verify(read_answers(io.BytesIO(b"".join(lines)), pack, PROFILE), pack, PROFILE, ops=OPS)


def test_a_right_stream_conforms_in_any_order(answers: list[bytes], pack: Pack) -> None:
    assert verdicts(answers, pack).conforms
    assert verdicts([answers[0], *answers[:0:-1]], pack).conforms
    assert verdicts([*answers[:-1], answers[-1][:-1]], pack).conforms  # a last line without its end


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", "no answer"),
        (b"Killed\n", "no answer; there is: 'Killed'"),
        (b'{"id": "onnx@21/\n', "no answer; there is: "),
        (b'{"id": "tflite-double@1/code-000", "declined": ""}\n', "an answer to 'tflite-double@1/code-000'"),
        (b'{"id": 3, "declined": ""}\n', "with the id of its request"),
        (b"x" * (protocol.MOST_BYTES + 9) + b"\n", "no answer; there is: ''"),
    ],
)
def test_a_line_that_is_no_answer_fails_one_test(line: bytes, text: str, answers: list[bytes], pack: Pack) -> None:
    report = verdicts([*answers[:5], line, *answers[6:]], pack)
    (failed,) = (v for v in report.verdicts if v.status == "failed")
    assert text in failed.findings[0]
    assert report.count("right") == len(report.verdicts) - 1


def test_two_answers_to_one_test_fail_it(answers: list[bytes], pack: Pack) -> None:
    report = verdicts([*answers, answers[3]], pack)
    assert [v.findings for v in report.verdicts if v.status == "failed"] == [("answered twice",)]


def test_a_stream_that_ends_early_fails_the_rest(answers: list[bytes], pack: Pack) -> None:
    report = verdicts([*answers[:5], answers[5][:30]], pack)
    assert report.count("right") == 4
    assert report.count("failed") == len(report.verdicts) - 4


@pytest.mark.parametrize("first", [b"", b"{}\n", b'{"protocol": "refquant-2"}\n', b"\xff\n"])
def test_a_stream_without_a_hello_is_an_error(first: bytes, answers: list[bytes], pack: Pack) -> None:
    with pytest.raises(rq.FileError, match=r"refquant-1|JSON"):
        read_answers(io.BytesIO(b"".join([first, *answers[1:]]) if first else b""), pack, PROFILE)


# ---- lines ----------------------------------------------------------------------------------------------------


def test_requests_name_the_outputs_that_are_judged(pack: Pack) -> None:
    for profile in pack.profiles:
        for _, asked in pack.requests(profile):
            assert set(outputs_of(asked.request)) == set(asked.expected.outputs)


def test_floats_arrive_to_the_last_bit() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)  # every float16
    request = Request("quantize", rq.QuantSpec(8), {"x": bits, "scale": np.float64(0.1), "zero_point": 0})
    seen: list[Request] = []

    def keep(r: Request) -> dict[str, Any]:
        seen.append(r)
        return {"codes": r.inputs["x"]}

    written: list[bytes] = []
    serve(keep, io.BytesIO(HELLO + protocol.request_line("a", request)), written.append)
    _, answer = read_reply(written[1])
    assert isinstance(answer, dict)
    same = answer["codes"].view(np.uint16) == bits.view(np.uint16)
    assert np.all(same | (np.isnan(bits) & np.isnan(answer["codes"])))
    assert float(seen[0].inputs["scale"]) == 0.1


@pytest.mark.parametrize(("answer", "reason"), [(None, ""), (Declined("later"), "later")])
def test_a_served_function_may_decline(answer: Any, reason: str) -> None:
    written: list[bytes] = []
    request = Request("quantize", rq.QuantSpec(8), {"x": np.ones(1), "scale": 1.0, "zero_point": 0})
    serve(lambda r: answer, io.BytesIO(HELLO + protocol.request_line("a", request)), written.append)
    assert read_reply(written[1]) == ("a", Declined(reason))


def test_a_hello_of_another_version_is_refused() -> None:
    read_hello(HELLO)
    for line in (b"", b"hello\n", b"[]\n", b'{"protocol": "refquant-2"}\n', b'{"protocol": "refquant-1", "x": 1}\n'):
        with pytest.raises(rq.FileError):
            read_hello(line)
    assert isinstance(read_reply(b'{"id": "1"}')[1], Failed)
