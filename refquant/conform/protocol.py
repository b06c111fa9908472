"""Any program as a backend: requests and answers as lines of JSON, version refquant-1.

Each line is one object.  The program hears a hello and says hello; then each request has one answer (from a
stream or a file, in any order):

    {"protocol": "refquant-1"}
    {"id": ..., "op": ..., "semantics", "spec", "integer", "options", "inputs": {name: array}, "outputs": [name, ...]}
    {"id": ..., "outputs": {name: array}}    or    {"id": ..., "declined": "why"}

An array is {"dtype", "shape", "data"}: row after row, integers as numbers, floats as text, hexadecimal as C99 has it
(%a), or nan, inf, -inf; data of one entry stands for all.  `outputs` of a request names what is wanted.  `program`
runs a program and talks to it; here are the lines alone, and the talk through a pipe or a file, where an id is
PROFILE/TEST, so that answers to another profile are not mistaken for answers to this one.
"""

import json
import reprlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, TypeAlias

from ..errors import FileError, complaint
from ..net.fold import fold_batch_norm
from ..zoo import load_network
from .operations import OPERATIONS, Request
from .packs import Pack
from .verify import Backend, Declined, Failed
from .wire import Array, array_to_json, arrays_from_json, exactly, request_from_json, request_to_json

__all__ = [
    "HELLO",
    "MOST_BYTES",
    "Answer",
    "outputs_of",
    "read_answers",
    "read_hello",
    "read_reply",
    "request_line",
    "request_lines",
    "serve",
]

PROTOCOL = "refquant-1"
HELLO = b'{"protocol": "refquant-1"}\n'

MOST_BYTES = 1 << 26
"""No line may be longer."""

Answer: TypeAlias = dict[str, Array] | Declined | Failed


# ---- lines ----------------------------------------------------------------------------------------------------


def _object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a line; raises FileError for anything else."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise FileError(complaint(shown(line), "a line with one JSON object", where))
    return data


def shown(line: bytes) -> str:
    """The beginning of a line, for a message.

    >>> shown(b"Segmentation fault")
    "'Segmentation fault'"
    """
    text = line[:200].decode("utf-8", "backslashreplace").rstrip("\n")
    return repr(text[:80] + ("..." if len(text) > 80 else ""))


def read_hello(line: bytes, where: str = "hello") -> None:
    """Raises FileError for any line but a hello of this version.

    >>> read_hello(HELLO)
    """
    if _object(line, where) != {"protocol": PROTOCOL}:
        raise FileError(complaint(shown(line), HELLO.decode().strip(), where))


def outputs_of(request: Request) -> tuple[str, ...]:
    """The names of a request's outputs; of a network every tensor's.

    >>> from ..quant.spec import QuantSpec
    >>> outputs_of(Request("quantize", QuantSpec(8), {}))
    ('codes',)
    """
    if request.op != "network":
        return OPERATIONS[request.op].outputs
    return tuple(fold_batch_norm(load_network(request.options["network"])).shapes)


def request_line(name: str, request: Request) -> bytes:
    """A request under an id, as a line.

    >>> from ..quant.spec import QuantSpec
    >>> request_line("7", Request("quantize", QuantSpec(8), {}))[:29]
    b'{"id": "7", "op": "quantize",'
    """
    data = {"id": name, **request_to_json(request), "outputs": list(outputs_of(request))}
    return json.dumps(data).encode() + b"\n"


def read_reply(line: bytes, where: str = "answer") -> tuple[str, Answer]:
    """The id of an answer, and the answer: outputs, `Declined`, or `Failed` where what stands beside the id is none.

    Raises FileError for a line that is no object with an id: nobody knows what it answers.

    >>> read_reply(b'{"id": "7", "outputs": {"codes": {"dtype": "int8", "shape": [2], "data": [1, 2]}}}')
    ('7', {'codes': array([1, 2], dtype=int8)})
    >>> read_reply(b'{"id": "7", "declined": "no such kernel"}')
    ('7', Declined(reason='no such kernel'))
    """
    data = _object(line, where)
    name = data.get("id")
    if not isinstance(name, str):
        raise FileError(complaint(shown(line), "an answer with the id of its request", where))
    try:
        if "declined" in data:
            return name, Declined(str(exactly(data, ("id", "declined"), where)["declined"]))
        return name, arrays_from_json(exactly(data, ("id", "outputs"), where)["outputs"], where)
    except FileError as error:
        return name, Failed(str(error))


# ---- through a pipe, or a file --------------------------------------------------------------------------------


def request_lines(pack: Pack, profile: str, ops: Collection[str] | None = None) -> Iterator[bytes]:
    """Hello, and a line for each test of a profile, of some operations or (None) of all.

    Raises ArgumentError for a profile that the pack does not have.

    >>> from .packs import level_one
    >>> hello, first, *_ = request_lines(level_one(), "onnx@21", ["requantize"])
    >>> json.loads(first)["id"].startswith("onnx@21/")
    True
    """
    chosen = list(pack.requests(profile))
    yield HELLO
    for test, asked in chosen:
        if ops is None or asked.request.op in ops:
            yield request_line(f"{profile}/{test.id}", asked.request)


def _lines(source: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Lines with their places, of which one that is too long is left empty."""
    number = 0
    while line := source.readline(MOST_BYTES + 1):
        number += 1
        whole = line if len(line) <= MOST_BYTES else b""
        while line and not line.endswith(b"\n"):
            line = source.readline(MOST_BYTES + 1)
        yield f"line {number}", whole


def read_answers(source: BinaryIO, pack: Pack, profile: str) -> dict[str, Answer]:
    """By the id of a test: the answer of a stream, or how it failed, for every test of a profile.

    What a line without a known id may have been is said with each test that has no answer, or two.

    Raises FileError where the stream does not begin with a hello.

    >>> import io
    >>> from .packs import level_one
    >>> found = read_answers(io.BytesIO(HELLO + b"Killed"), level_one(), "onnx@21")
    >>> next(iter(found.values())).reason.partition(",")[0]
    "no answer; there is: 'Killed'"
    """
    lines = _lines(source)
    read_hello(next(lines, ("", b""))[1], "answers, line 1")
    asked = {f"{profile}/{test.id}": test.id for test, _ in pack.requests(profile)}
    found: dict[str, Answer] = {}
    strays: list[str] = []
    for where, line in lines:
        try:
            name, answer = read_reply(line, where)
        except FileError as error:
            strays.append(str(error))
            continue
        test = asked.get(name)
        if test is None:
            strays.append(complaint(f"an answer to {reprlib.repr(name)}", "to a test of the profile", where))
        else:
            found[test] = Failed("answered twice") if test in found else answer
    note = f"; there is: {strays[0]}" + (f", and {len(strays) - 1} more" if strays[1:] else "") if strays else ""
    return {test: found.get(test, Failed(f"no answer{note}")) for test in asked.values()}


# ---- the other side, in Python --------------------------------------------------------------------------------


def _reply(backend: Backend, data: dict[str, Any]) -> dict[str, Any]:
    """The answer to the JSON of a request."""
    wanted = data.pop("outputs")
    name = data.pop("id")
    try:
        answer = backend(request_from_json(data))
    except NotImplementedError as error:
        answer = Declined(str(error))
    if answer is None or isinstance(answer, Declined):
        return {"id": name, "declined": answer.reason if answer else ""}
    outputs = answer if isinstance(answer, dict) else {wanted[0]: answer}
    return {"id": name, "outputs": {n: array_to_json(a) for n, a in outputs.items()}}


def serve(backend: Backend, source: BinaryIO, write: Callable[[bytes], object]) -> None:
    """Answer requests until they end: what makes a program of a Python function.

    backend: as for `verify`.  source: lines of requests.  write: called with each line of answers; it should flush.

    Raises FileError for what is no request of this version.

    >>> import io
    >>> serve(lambda request: None, io.BytesIO(HELLO), print)
    b'{"protocol": "refquant-1"}\\n'
    """
    read_hello(source.readline())
    write(HELLO)
    while line := source.readline():
        write(json.dumps(_reply(backend, _object(line, "request"))).encode() + b"\n")
