"""A backend held to a pack: a verdict on every test, and what its wrong answers have in common.

A backend is any function from a `Request` to outputs by name (or one array); it returns None, or raises
NotImplementedError, for what it does not do.  What it declines is counted, never passed over: a backend conforms if it
answered at least one test and every answer is right or excused by a known deviation.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, complaint
from .case import Case
from .diagnose import diagnose_requests
from .diagnosis import Diagnosis
from .examine import MOST_ELEMENTS, same_semantics, up_to
from .judge import faults
from .known import Known, excuse
from .operations import OPERATIONS, Request
from .packs import Asked, Pack, PackTest
from .requests import request_of

__all__ = ["Backend", "Declined", "Failed", "Report", "Verdict", "answer_of", "judge_answer", "verify"]

Backend = Callable[[Request], Any]

STATUSES = ("right", "excused", "wrong", "failed", "declined")


class Declined(NamedTuple):
    """An answer that is none: the backend does not do this."""

    reason: str


class Failed(NamedTuple):
    """An answer that is none: a crash, a time-out, garbage."""

    reason: str


@dataclass(frozen=True, eq=False)
class Verdict:
    """What came of one test; status: one of `STATUSES`."""

    test: PackTest
    asked: Asked
    status: str
    findings: tuple[str, ...]
    answer: Any = None


@dataclass(frozen=True, eq=False)
class Report:
    """All verdicts; diagnoses by operation, for those with wrong answers; stale: known lines that excused nothing."""

    profile: str
    verdicts: tuple[Verdict, ...]
    diagnoses: Mapping[str, Sequence[Diagnosis]]
    effects: Mapping[str, str]
    stale: tuple[Known, ...] = ()

    def count(self, status: str) -> int:
        """How many tests came out so."""
        return sum(v.status == status for v in self.verdicts)

    @property
    def conforms(self) -> bool:
        """Something was answered, nothing wrongly, no known line is stale."""
        answered = self.count("right") + self.count("excused")
        return answered > 0 and not (self.count("wrong") or self.count("failed") or self.stale)

    def to_json(self) -> dict[str, Any]:
        """Plain data: counts an operation, every finding, every diagnosis."""
        return {
            "profile": self.profile,
            "conforms": self.conforms,
            "counts": {status: self.count(status) for status in STATUSES},
            "operations": self._table(),
            "findings": {v.test.id: list(v.findings) for v in self.verdicts if v.status in ("wrong", "failed")},
            "diagnoses": {op: [d.to_json() for d in found] for op, found in self.diagnoses.items()},
            "stale": [str(line) for line in self.stale],
        }

    def _table(self) -> dict[str, dict[str, int]]:
        rows = {op: Counter(v.status for v in self.verdicts if v.asked.request.op == op) for op in OPERATIONS}
        return {op: {s: row[s] for s in STATUSES} for op, row in rows.items() if row}

    def __str__(self) -> str:
        lines = [f"{'operation':18}" + "".join(f"{status:>10}" for status in STATUSES)]
        lines += [f"{op:18}" + "".join(f"{row[s] or '':>10}" for s in STATUSES) for op, row in self._table().items()]
        bad = [v for v in self.verdicts if v.status in ("wrong", "failed")]
        for flag in dict.fromkeys(v.test.family for v in bad):
            mine = [v for v in bad if v.test.family == flag]
            counts = ", ".join(f"{n} {status}" for status, n in Counter(v.status for v in mine).items())
            lines.append(f"{flag}: {counts}; the effect of this: {self.effects.get(flag, '')}")
            lines += [f"  {v.test.id} ({self._about(v)}): {'; '.join(v.findings)}" for v in mine[:3]]
        for found in self.diagnoses.values():
            lines += [str(d) for d in found]
        lines += [f"stale: no answer is explained by: {line}" for line in self.stale]
        total = ", ".join(f"{self.count(s)} {s}" for s in STATUSES if self.count(s))
        where = " where it answers" if self.count("declined") else ""
        verdict = f"conforms to {self.profile}{where}" if self.conforms else f"does not conform to {self.profile}"
        return "\n".join([*lines, f"{verdict}: {total or 'no tests'}"])

    def _about(self, v: Verdict) -> str:
        """What a test is about, and in which of the semantics it departs from the profile's own."""
        request = v.asked.request
        usual = request_of(Case(request.op, request.inputs, options=request.options), self.profile)
        said: list[str] = []
        for name in {f.name for f in fields(request.spec)} - {"bits", "signed", "granularity"} if usual else ():
            value = getattr(request.spec, name)
            said += [f"{name}={value}"] if usual and value != getattr(usual.spec, name) else []
        return v.test.comment + (f", asked with {', '.join(sorted(said))}" if said else "")


# ---- one answer -----------------------------------------------------------------------------------------------


def judge_answer(test: PackTest, asked: Asked, answer: Any, known: Sequence[Known] = ()) -> Verdict:
    """The verdict on one answer."""
    if answer is None or isinstance(answer, Declined):
        return Verdict(test, asked, "declined", (answer.reason,) if answer else ())
    if isinstance(answer, Failed):
        return Verdict(test, asked, "failed", (answer.reason,))
    found = faults(asked.request, asked.expected, answer)
    if not found:
        return Verdict(test, asked, "right", (), answer)
    line = excuse(known, asked.request, answer)
    if line is not None:
        return Verdict(test, asked, "excused", (str(line),), answer)
    return Verdict(test, asked, "wrong", tuple(found), answer)


def answer_of(backend: Backend, request: Request) -> Any:
    """What a backend gives; `Declined` for NotImplementedError, `Failed` for whatever else it raises, exits included.

    It is handed copies and its answer is copied: it may write into what it was given, and use its own arrays again.

    >>> from ..quant.spec import QuantSpec
    >>> answer_of(lambda request: 1 // 0, Request("quantize", QuantSpec(8), {}))
    Failed(reason='ZeroDivisionError: integer division or modulo by zero')
    """
    own = replace(request, inputs={name: np.array(a) for name, a in request.inputs.items()})
    try:
        return deepcopy(backend(own))
    except NotImplementedError as error:
        return Declined(str(error))
    except (Exception, SystemExit) as error:  # whatever a backend raises is a finding about it
        return Failed(f"{type(error).__name__}: {error}")


# ---- all of them ----------------------------------------------------------------------------------------------


def _elements(verdict: Verdict) -> int:
    return sum(a.size for a in verdict.asked.expected.outputs.values())


def _diagnoses(verdicts: Iterable[Verdict]) -> dict[str, list[Diagnosis]]:
    """For each operation with wrong answers, one diagnosis for each of the semantics that are alike but for widths."""
    groups: dict[str, list[Verdict]] = {}
    for v in verdicts:
        if v.status in ("right", "wrong"):
            groups.setdefault(same_semantics(v.asked.request), []).append(v)
    several = len({group[0].asked.request.op for group in groups.values()}) > 1
    found: dict[str, list[Diagnosis]] = {}
    for group in groups.values():
        op, wrong = group[0].asked.request.op, [v for v in group if v.status == "wrong"]
        if not wrong or (op == "network" and several):  # layers alone say more, and sooner
            continue
        chosen = up_to(MOST_ELEMENTS, wrong, (v for v in group if v.status == "right"), _elements)
        with suppress(ArgumentError):  # outputs of other names: the findings say so
            requests, answers = [v.asked.request for v in chosen], [v.answer for v in chosen]
            found.setdefault(op, []).append(diagnose_requests(requests, answers))
    return found


def verify(
    backend: Backend | Mapping[str, Any],
    pack: Pack,
    profile: str,
    *,
    ops: Collection[str] | None = None,
    known: Sequence[Known] = (),
    progress: Callable[[int], object] | None = None,
) -> Report:
    """A backend, or its answers by test, held to a profile's tests of a pack.

    backend: a function of a `Request`, or answers by the id of a test (missing ones count as failed).  ops: the
    operations to ask for, all if None.  known: deviations that are accepted.  progress: called with 1 a test.

    Raises ArgumentError for an unknown profile or operation, and where no test is left.

    >>> from .operations import evaluate
    >>> from .packs import level_one
    >>> verify(evaluate, level_one(), "onnx@21", ops=["dequantize"]).conforms
    True
    """
    unknown = sorted(set(ops or ()) - set(OPERATIONS))
    if unknown:
        raise ArgumentError(complaint(f"operation {', '.join(unknown)}", f"among {', '.join(OPERATIONS)}", "verify"))
    chosen = [(t, a) for t, a in pack.requests(profile) if ops is None or a.request.op in ops]
    if not chosen:
        raise ArgumentError(complaint(f"no test of {', '.join(ops or ())}", f"some that {profile} speaks of", "verify"))
    verdicts = []
    for test, asked in chosen:
        if isinstance(backend, Mapping):
            answer = backend.get(test.id, Failed("no answer"))
        else:
            answer = answer_of(backend, asked.request)
        verdicts.append(judge_answer(test, asked, answer, known))
        if progress is not None:
            progress(1)
    used = {v.findings[0] for v in verdicts if v.status == "excused"}
    stale = tuple(line for line in known if str(line) not in used and (ops is None or line.op in ops))
    effects = {flag: str(note["effect"]) for flag, note in pack.notes.items()}
    return Report(profile, tuple(verdicts), _diagnoses(verdicts), effects, stale)
