"""A backend held to a scalar rule on every input there is: all 2^32 bit patterns of a float32 or an int32.

Inputs come in 4,096 blocks of 2^20 in the order of their bit patterns; a block is the unit of work, of resuming, and
of the digest.  What is expected comes from the definition (`step_function`), so nothing that is swept judges itself.
The result is a function of the rule and the answers alone: not of the executor, the order in which blocks end, the
size of the arrays a backend is given, or interruptions.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, FileError, RefquantError, complaint
from .diagnose import diagnose_requests
from .diagnosis import Diagnosis
from .step_function import ScalarRule, Steps, steps
from .verify import Backend, Declined, Failed
from .wire import exactly

__all__ = ["BLOCK", "BLOCKS", "Block", "Mismatch", "Sweep", "diagnose_sweep", "sweep"]

Array = NDArray[Any]

BLOCK = 1 << 20
"""Inputs of a block."""

BLOCKS = 1 << 12
"""Blocks of all inputs."""

SHOWN = 8
"""Mismatches that are kept of each block, and shown of all."""

AHEAD = 64
"""Blocks that are given to an executor at a time."""

PROBES = 1024
"""Mismatches that a diagnosis looks at, evenly spread."""

SCHEMA = "refquant-sweep-1"


class Mismatch(NamedTuple):
    """The bit pattern of an input, and that of the wrong answer to it."""

    input: int
    got: int


class Block(NamedTuple):
    """What came of a block: inputs asked, wrong answers, the first of them, and the SHA-256 of all answers."""

    inputs: int
    wrong: int
    first: tuple[Mismatch, ...]
    digest: str


# ---- one block ------------------------------------------------------------------------------------------------

_steps: Callable[[ScalarRule], Steps] = lru_cache(maxsize=4)(steps)


def _inputs(rule: ScalarRule, start: int, stop: int) -> Array:
    """The inputs with bit patterns from start to stop - 1, without NaN where the rule refuses it."""
    x = np.arange(start, stop, dtype=np.uint64).astype(np.uint32).view(rule.names.dtype)
    return x[~np.isnan(x)] if x.dtype.kind == "f" and rule.spec.nan == "raise" else x


def _asked(rule: ScalarRule, backend: Backend, x: Array) -> Array:
    """The backend's answers, as int32 or float32; raises ArgumentError where it has none."""
    where = f"{rule.op}, inputs {int(x.view(np.uint32)[0]):#010x} and on"
    try:
        answer: Any = backend(rule.request(x))
    except RefquantError:
        raise
    except Exception as error:  # whatever a backend raises is a finding about it
        answer = Failed(f"{type(error).__name__}: {error}")
    if answer is None or isinstance(answer, (Declined, Failed)):
        got = answer.reason if answer else "none"
        raise ArgumentError(complaint(f"no answer ({got})", "an answer to every input", where))
    a = np.asarray(answer.get(rule.names.output) if isinstance(answer, dict) else answer)
    kinds = "iu" if rule.names.result == np.int32 else "f"
    if a.shape != x.shape or a.dtype.kind not in kinds:
        should = f"{'integers' if kinds == 'iu' else 'floats'} of shape {x.shape}"
        raise ArgumentError(complaint(f"{a.dtype} of shape {a.shape}", should, where))
    with np.errstate(over="ignore", invalid="ignore"):
        held = a.astype(rule.names.result)
        if np.any((held != a) & ~((a != a) & (kinds == "f"))):
            got = f"{a.dtype} beyond {held.dtype}"
            raise ArgumentError(complaint(got, f"answers that {held.dtype} holds", where))
    return held


def sweep_block(rule: ScalarRule, backend: Backend, block: int, chunk: int) -> Block:
    """One block, asked in arrays of `chunk` inputs."""
    expected, digest, inputs, wrong = _steps(rule), hashlib.sha256(), 0, 0
    first: list[Mismatch] = []
    for start in range(block * BLOCK, (block + 1) * BLOCK, chunk):
        x = _inputs(rule, start, start + chunk)
        if not x.size:
            continue
        got = _asked(rule, backend, x)
        differ = np.flatnonzero(got.view(np.uint32) != expected(x).view(np.uint32))
        digest.update(got.astype(got.dtype.newbyteorder("<"), copy=False).tobytes())
        inputs, wrong = inputs + x.size, wrong + differ.size
        for i in differ[: SHOWN - len(first)].tolist():
            first.append(Mismatch(int(x.view(np.uint32)[i]), int(got.view(np.uint32)[i])))
    return Block(inputs, wrong, tuple(first), digest.hexdigest())


# ---- what came of all -----------------------------------------------------------------------------------------


def _shown(bits: int, dtype: Any) -> str:
    v = np.array(bits, np.uint32).view(dtype)[()]
    return f"{float(v).hex()} ({v})" if np.isfinite(v) and np.dtype(dtype).kind == "f" else str(v)


@dataclass(frozen=True, eq=False)
class Sweep:
    """What came of a sweep.

    blocks: (first, one past the last).  inputs: how many were asked.  wrong: how many answers are.  first: the first
    mismatches, in the order of bit patterns.  found: the first mismatch of each block that has one.  digest: SHA-256
    over the digests of the blocks: equal exactly for equal answers.
    """

    rule: ScalarRule
    blocks: tuple[int, int]
    inputs: int
    wrong: int
    first: tuple[Mismatch, ...]
    found: tuple[Mismatch, ...]
    digest: str

    @property
    def conforms(self) -> bool:
        """Whether something was asked and every answer is right."""
        return self.inputs > 0 and self.wrong == 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rule": self.rule.to_json(),
            "blocks": list(self.blocks),
            "inputs": self.inputs,
            "wrong": self.wrong,
            "conforms": self.conforms,
            "first": [self._row(m) for m in self.first],
            "digest": self.digest,
        }

    def _row(self, m: Mismatch) -> dict[str, str]:
        names = self.rule.names
        x = np.array([m.input], np.uint32).view(names.dtype)
        should = int(_steps(self.rule)(x).view(np.uint32)[0])
        shown = {"got": _shown(m.got, names.result), "should_be": _shown(should, names.result)}
        return {"bits": f"{m.input:#010x}", names.first: _shown(m.input, names.dtype), **shown}

    def __str__(self) -> str:
        part = "" if self.blocks == (0, BLOCKS) else f" (blocks {self.blocks[0]} to {self.blocks[1] - 1} of {BLOCKS})"
        lines = [f"{self.rule.op}: {self.wrong} of {self.inputs} inputs{part} have a wrong answer"]
        for m in self.first:
            row = self._row(m)
            lines.append(f"  {row[self.rule.names.first]}: got {row['got']}, should be {row['should_be']}")
        return "\n".join([*lines, f"digest {self.digest}"])


def _joined(rule: ScalarRule, blocks: range, done: dict[int, Block]) -> Sweep:
    all_ = [done[b] for b in blocks]
    first = tuple(islice((m for b in all_ for m in b.first), SHOWN))
    found = tuple(b.first[0] for b in all_ if b.first)
    digest = hashlib.sha256(b"".join(bytes.fromhex(b.digest) for b in all_)).hexdigest()
    ends = (blocks.start, blocks.stop)
    return Sweep(rule, ends, sum(b.inputs for b in all_), sum(b.wrong for b in all_), first, found, digest)


# ---- resuming -------------------------------------------------------------------------------------------------


def _header(rule: ScalarRule, name: str) -> dict[str, Any]:
    return {"schema": SCHEMA, "rule": rule.to_json(), "backend": name}


def _save(path: Path, header: dict[str, Any], done: dict[int, Block]) -> None:
    """Written beside and renamed: the file is whole, old or new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps({**header, "done": {str(b): done[b] for b in sorted(done)}}) + "\n")
        beside.replace(path)
    except OSError as error:
        raise FileError(complaint(f"{error.strerror or error}", "a file that can be written", str(path))) from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _count(v: Any, most: int) -> int:
    if type(v) is not int or not 0 <= v <= most:
        raise ValueError
    return v


def _read_block(data: Any) -> Block:
    inputs, wrong, first, digest = data
    kept = tuple(Mismatch(_count(x, 2**32 - 1), _count(got, 2**32 - 1)) for x, got in first)
    if len(bytes.fromhex(digest)) != 32 or len(kept) != min(_count(wrong, BLOCK), SHOWN):
        raise ValueError
    return Block(_count(inputs, BLOCK), wrong, kept, digest)


def _load(path: Path, header: dict[str, Any]) -> dict[int, Block]:
    """The blocks that an interrupted sweep has done; none where there is no file."""
    where, todo = str(path), "name another file, or remove this one"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        fields = exactly(data, (*header, "done"), where)
        done = {_count(int(b), BLOCKS - 1): _read_block(v) for b, v in fields["done"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileError(complaint(f"{error.strerror or error}", "a file that can be read", where)) from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise FileError(complaint("something else", "the state of a sweep", where, todo)) from None
    for key, value in header.items():
        if fields[key] != value:
            raise FileError(complaint(f"the state of another {key}", f"{json.dumps(value)}", where, todo))
    return done


# ---- all blocks -----------------------------------------------------------------------------------------------


class _Here(Executor):
    """An executor that works at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _finished(
    executor: Executor, calls: Iterator[tuple[int, tuple[Any, ...]]], ahead: int
) -> Iterator[tuple[int, Block]]:
    """Results as they come, with few blocks given out at a time; what was not begun is cancelled at the end."""
    running: dict[Future[Block], int] = {}
    try:
        while True:
            for block, args in islice(calls, ahead - len(running)):
                running[executor.submit(sweep_block, *args)] = block
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()


def sweep(
    rule: ScalarRule,
    backend: Backend,
    *,
    blocks: range = range(BLOCKS),
    chunk: int = BLOCK,
    executor: Executor | None = None,
    state: Path | None = None,
    name: str = "",
    progress: Callable[[int], object] | None = None,
) -> Sweep:
    """A backend's answers to all inputs of some blocks (all 2^32 if not said), against the rule by definition.

    backend: a function of a `Request` of many inputs, as for `verify`; for an executor of processes it must be
    picklable, such as `refquant.conform.commands.Filter`.  chunk: inputs of a request, a power of two up to 2^20.
    executor: any `concurrent.futures.Executor`, None to work here.  state: a file that is written after blocks and
    read at the beginning, so that a sweep that was killed goes on where it was; `name` says there whose answers they
    are.  progress: called with the inputs of each block that ends, those of an earlier run at first.

    Float answers are right to the bit.  Inputs that are NaN are left out where the rule refuses them.

    Raises ArgumentError for blocks or a chunk that are none, and where the backend has no answer of the right kind and
    shape: the blocks before stay in `state`.  FileError for a state of something else.

    >>> from .operations import evaluate
    >>> from ..quant.spec import QuantSpec
    >>> sweep(ScalarRule("quantize", QuantSpec(8), 0.1), evaluate, blocks=range(1020, 1022)).conforms
    True
    """
    if not (blocks.step == 1 and 0 <= blocks.start < blocks.stop <= BLOCKS):
        raise ArgumentError(complaint(f"blocks={blocks}", f"a range within 0 to {BLOCKS}", "sweep"))
    if chunk < 1 or BLOCK % chunk:
        raise ArgumentError(complaint(f"chunk={chunk}", f"a divisor of {BLOCK}", "sweep"))
    header = _header(rule, name)
    done = {} if state is None else _load(state, header)
    told = progress if progress is not None else lambda n: None
    told(sum(done[b].inputs for b in blocks if b in done))
    calls = ((b, (rule, backend, b, chunk)) for b in blocks if b not in done)
    results = _finished(executor or _Here(), calls, AHEAD if executor else 1)
    unsaved = 0
    try:
        for block, result in results:
            done[block], unsaved = result, unsaved + 1
            told(result.inputs)
            if state is not None and unsaved >= 16:
                _save(state, header, done)
                unsaved = 0
    finally:
        results.close()  # type: ignore[attr-defined]  # a generator
        if state is not None and unsaved:
            _save(state, header, done)
    return _joined(rule, blocks, done)


def diagnose_sweep(result: Sweep, backend: Backend) -> Diagnosis:
    """What a sweep's wrong answers have in common: the backend is asked again, at the ends of every step, at
    mismatches of all blocks, and beside them.

    >>> from .operations import evaluate
    >>> from ..quant.spec import QuantSpec
    >>> def away(request): return evaluate(request, {"rounding": "half_away"})
    >>> found = sweep(ScalarRule("quantize", QuantSpec(8), 0.5), away, blocks=range(1000, 1001))
    >>> found.wrong, diagnose_sweep(found, away).explanations[0].name
    (1, 'ties away')
    """
    rule = result.rule
    spread = result.found[:: -(-len(result.found) // PROBES) or 1]
    bits = np.array([m.input for m in (*result.first, *spread)], np.int64)
    near = (bits[:, None] + np.array([-1, 0, 1])).ravel() % 2**32
    edges = _steps(rule).edges
    step = -(-edges.size // (2 * PROBES))
    x = np.concatenate([near.astype(np.uint32).view(rule.names.dtype), edges[::step]])
    x = x[~np.isnan(x)] if x.dtype.kind == "f" else x
    request = rule.request(np.unique(x.view(np.uint32)).view(rule.names.dtype))
    return diagnose_requests([request], [{rule.names.output: _asked(rule, backend, request.inputs[rule.names.first])}])
