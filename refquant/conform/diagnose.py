"""From a backend's answers to the rule that it breaks.

A deviation explains answers if, on every element, it gives what the backend gave: all that are wrong, and all that
are right.  One deviation alone is tried first, then every pair.  What explains nothing is refuted with a witness, an
element at which it would have given something else: that is certain.  Explanations that are left are compared with
each other (`separate`); what tells two of them apart is the next input to try.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.spec import QuantSpec
from .deviations import DEVIATIONS, Deviation, applicable, pairs
from .diagnosis import Diagnosis, Explanation, Names, short
from .operations import OPERATIONS, Request, evaluate
from .separate import Change, agree, change_of, predict, told_apart

__all__ = ["check_inputs", "diagnose", "diagnose_requests"]

Array = NDArray[Any]
Outputs = Mapping[str, Array]

SHOWN = 5
"""Partial explanations that a diagnosis keeps."""

# ---- the search -----------------------------------------------------------------------------------------------


class _Score(NamedTuple):
    """Whether a deviation changes any element, how many wrong ones it gives, how many right ones it would not, and the
    first that speaks against it."""

    effective: bool
    explained: int
    broken: int
    witness: str


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Requests with what should have come, what was got, and which elements are right."""

    requests: Sequence[Request]
    base: Sequence[Outputs]
    got: Sequence[Outputs]
    right: Sequence[NDArray[np.bool_]]

    def score(self, deviation: Deviation) -> "_Score":
        """What a deviation alone does to all elements."""
        effective, explained, broken, witness = False, 0, 0, ""
        for r, base, got, right in zip(self.requests, self.base, self.got, self.right, strict=True):
            applies = applicable(r, deviation)
            predicted = predict(r, deviation.change) if applies else base
            effective = effective or (applies and not agree(r, predicted, base).all())
            same = agree(r, predicted, got)
            explained += int(np.sum(same & ~right))
            broken += int(np.sum(~same & right))
            if not witness and not same.all():
                witness = _witness(predicted, got, int(np.flatnonzero(~same)[0]))
        return _Score(effective, explained, broken, witness)

    def fits(self, change: Change, order: Sequence[int]) -> bool:
        """Whether a change gives every element; stops at the first request where it does not."""
        return all(bool(agree(self.requests[i], predict(self.requests[i], change), self.got[i]).all()) for i in order)


def _place(outputs: Outputs, element: int) -> tuple[str, tuple[int, ...]]:
    """The output and the index of an element of all outputs."""
    for name, a in outputs.items():
        if element < a.size:
            return name, tuple(int(i) for i in np.unravel_index(element, a.shape))
        element -= a.size
    raise IndexError(element)


def _witness(predicted: Outputs | None, got: Outputs, element: int) -> str:
    name, index = _place(got, element)
    p = None if predicted is None else predicted.get(name)
    would = "nothing" if p is None else f"shape {p.shape}" if p.shape != got[name].shape else short(p[index])
    return f"{name}{list(index) if index else ''}: would give {would}, got {short(got[name][index])}"


def _known(names: Names) -> tuple[int, int]:
    """Sorting: fewer deviations first, then those with more public reports."""
    return len(names), -sum(len(DEVIATIONS[name].threads) for name in names)


def diagnose_requests(requests: Sequence[Request], answers: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Diagnosis:
    """What a backend's answers to requests of one operation show.

    requests: at least one, all of one operation, under the same semantics apart from widths and granularity.
    answers: outputs by name, one mapping a request.  seed: of the probes.

    Raises ArgumentError for no requests, several operations, scales that are not positive, shapes that do not belong
    together, and outputs that are missing or unknown.
    """
    ops = {r.op for r in requests}
    if len(ops) != 1 or len(requests) != len(answers):
        text = f"{len(requests)} requests of {', '.join(sorted(ops)) or 'no operation'}, {len(answers)} answers"
        raise ArgumentError(complaint(text, "requests of one operation, an answer each", "diagnose"))
    base = [_right(request) for request in requests]
    got = [_named(r, b, a) for r, b, a in zip(requests, base, answers, strict=True)]
    right = [agree(r, b, g) for r, b, g in zip(requests, base, got, strict=True)]
    evidence = _Evidence(requests, base, got, right)
    op, elements = requests[0].op, sum(r.size for r in right)
    wrong = elements - sum(int(r.sum()) for r in right)
    if not wrong:
        return Diagnosis(op, elements, 0, (), (), {}, None, ())
    every = {name: evidence.score(d) for name, d in DEVIATIONS.items() if op in d.ops}
    scores = {name: score for name, score in every.items() if score.effective}
    whole: list[Names] = [(name,) for name, score in scores.items() if not score.witness]
    if not whole:  # one that shows nothing alone may matter beside another
        order = sorted(range(len(requests)), key=lambda i: -int(np.sum(~right[i])))
        possible = (pair for pair in pairs(every) if scores.keys() & set(pair))
        whole = [pair for pair in possible if evidence.fits(change_of(pair), order)]
    explanations, next_input = told_apart(requests, sorted(whole, key=_known), wrong, seed)
    partial = [Explanation((name,), score.explained, score.broken) for name, score in scores.items() if score.explained]
    partial = sorted(partial, key=lambda e: e.broken - e.explained)[: 0 if whole else SHOWN]
    refuted = {name: score.witness for name, score in scores.items() if score.witness}
    notes = tuple(_notes(requests, base, got))
    return Diagnosis(op, elements, wrong, explanations, tuple(partial), refuted, next_input, notes)


def _right(request: Request) -> Outputs:
    """What should have come; raises ArgumentError for scales and shapes that no rule takes."""
    where = f"diagnose({request.op!r})"
    for name, value in request.inputs.items():
        a = np.asarray(value)
        if name.endswith("scale") and not np.all((a > 0) & np.isfinite(a)):
            raise ArgumentError(complaint(f"{name}={short(a)}", "positive and finite", where))
    if request.op == "dequantize":
        codes = np.asarray(request.inputs["codes"])
        if np.any((codes < request.spec.qmin) | (codes > request.spec.qmax)):
            raise ArgumentError(complaint("codes off the grid", f"{request.spec.qmin} to {request.spec.qmax}", where))
    try:
        return evaluate(request)
    except (ValueError, IndexError):
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in request.inputs.items())
        raise ArgumentError(complaint(f"shapes {shapes}", "shapes that belong together", where)) from None


def _named(request: Request, base: Outputs, answer: Any) -> dict[str, Array]:
    if not isinstance(answer, Mapping):
        answer = {next(iter(base)): answer}
    if set(answer) != set(base):
        got = f"outputs {', '.join(map(str, answer)) or 'none'}"
        raise ArgumentError(complaint(got, f"{', '.join(base)}", f"diagnose({request.op!r})"))
    return {name: np.asarray(answer[name]) for name in base}


# ---- what wrong elements have in common -----------------------------------------------------------------------


def _notes(requests: Sequence[Request], base: Sequence[Outputs], got: Sequence[Outputs]) -> list[str]:
    """How far off the wrong codes are, and whether they lie on ties."""
    off: list[Array] = []
    ties = wrong = 0
    for r, b, g in zip(requests, base, got, strict=True):
        for name, should in b.items():
            if should.shape != g[name].shape:
                return [f"{name} has shape {g[name].shape}, should be {should.shape}"]
            if (should.dtype.kind in "iu") != (g[name].dtype.kind in "iu"):
                return [f"{name} is of {g[name].dtype}, should be {should.dtype}"]
            if should.dtype.kind in "iu" and g[name].dtype.kind in "iu":
                off.append((g[name].astype(np.int64) - should).ravel())
        if r.op == "quantize":
            apart = (b["codes"] != g["codes"]).ravel()
            tie = _differ_by_tie(r)
            wrong, ties = wrong + int(apart.sum()), ties + int(np.sum(apart & tie))
    notes = []
    if off:
        d = np.concatenate(off)
        d = d[d != 0]
        if d.size:
            low, high = int(d.min()), int(d.max())
            notes.append(f"all are off by {low:+d}" if low == high else f"they are off by {low:+d} to {high:+d}")
    if wrong:
        rest = wrong - ties
        notes.append(
            f"{ties} of the {wrong} lie exactly on ties"
            + (f"; the other {rest} are certain evidence against every rule that only moves ties" if rest else "")
        )
    return notes


def _differ_by_tie(request: Request) -> NDArray[np.bool_]:
    """Where the quotient, as the spec has it, is a tie: rounding up and rounding down ties part, off the ends."""
    spec = replace(request.spec, bits=32, signed=True, narrow=False, overflow="saturate", nan="zero")
    asked = Request("quantize", spec, request.inputs)
    up, down = (evaluate(asked, {"rounding": mode})["codes"] for mode in ("half_up", "half_down"))
    return np.asarray(up != down).ravel()


# ---- the door -------------------------------------------------------------------------------------------------


def diagnose(
    op: str,
    inputs: Any,
    outputs: Any,
    *,
    spec: QuantSpec,
    integer: IntegerSpec | None = None,
    options: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Diagnosis:
    """Which deviations of the catalogue give a backend's outputs.

    op: a row of `OPERATIONS`, such as "quantize", "requantize", "qlinear_conv".  inputs: the operation's first
    input, or all its inputs by name, or a list of such for several calls.  outputs: the backend's answer: an array, or
    arrays by name, or a list.  parameters: further inputs by name, the same for all calls (scale, zero_point, ...).
    spec, integer: the semantics that the backend should have.  options: what is no array (stride, rule, dtype).

    Raises ArgumentError for an unknown operation, inputs that are missing or unknown, and outputs that do not fit.

    >>> x = np.float32([0.5, 1.5, 2.5, -0.5, 0.2])
    >>> found = diagnose("quantize", x, [1, 2, 3, -1, 0], spec=QuantSpec(8), scale=1.0, zero_point=0)
    >>> found.verdict, [e.name for e in found.explanations]
    ('explained', ['ties away'])
    >>> diagnose("quantize", x, [0, 2, 2, 0, 0], spec=QuantSpec(8), scale=1.0, zero_point=0).conforms
    True
    """
    if op not in OPERATIONS:
        raise ArgumentError(complaint(f"op={op!r}", f"one of {', '.join(OPERATIONS)}", "diagnose"))
    many = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], Mapping)
    calls, answers = (inputs, outputs) if many else ([inputs], [outputs])
    first = OPERATIONS[op].inputs[0]
    requests = []
    for call in calls:
        given = dict(call) if isinstance(call, Mapping) else {first: call}
        arrays = {name: np.asarray(value) for name, value in {**given, **parameters}.items()}
        check_inputs(op, arrays)
        requests.append(Request(op, spec, arrays, options or {}, integer or IntegerSpec(accumulator_overflow="wrap")))
    return diagnose_requests(requests, list(answers))


def check_inputs(op: str, arrays: Outputs) -> None:
    """Raises ArgumentError for inputs that an operation needs and that are missing, and for others.

    >>> check_inputs("quantize", {"x": np.ones(1), "scale": np.ones(1), "zero_point": np.zeros(1)})
    """
    wanted = OPERATIONS[op].inputs
    if "..." in wanted:
        return
    known = {n.strip() for w in wanted for n in w.replace("|", ",").split(",")}
    if not all(_given(w, arrays) for w in wanted) or set(arrays) - known:
        raise ArgumentError(complaint(f"inputs {', '.join(arrays)}", f"{', '.join(wanted)}", f"diagnose({op!r})"))


def _given(wanted: str, arrays: Mapping[str, Array]) -> bool:
    """Whether an input, or one of its alternatives ("multiplier | input_scale, ..."), is there."""
    if wanted == "bias":
        return True
    return any(all(n.strip() in arrays for n in way.split(",")) for way in wanted.split("|"))
