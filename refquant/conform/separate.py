"""Rules compared with answers, and with each other: where they agree, and what tells them apart."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..quant.granularity import PerTensor
from .deviations import DEVIATIONS
from .diagnosis import Explanation, Names, NextInput
from .golden import slack_of
from .judge import gamma
from .operations import Request, evaluate
from .probes import probes
from .thresholds import comparable, first_difference

__all__ = ["Change", "agree", "change_of", "predict", "separating", "told_apart"]

Array = NDArray[Any]
Change: TypeAlias = Mapping[str, Any]
Outputs = Mapping[str, Array]

# ---- agreement ----------------------------------------------------------------------------------------------------

RELATIVE = {"solve_scale": 1e-9, "allocate": 0.0}
"""Outputs of solvers that count as one: rules that differ give scales that differ far more."""


def agree(request: Request, predicted: Outputs | None, got: Outputs) -> NDArray[np.bool_]:
    """For every element of all outputs, whether a prediction is what was got; a crash predicts nothing."""
    slack = slack_of(request) if request.op == "gradient" else {}
    parts = []
    for name, g in got.items():
        p = None if predicted is None else predicted.get(name)
        if p is None or p.shape != g.shape or (p.dtype.kind in "iu") != (g.dtype.kind in "iu"):
            parts.append(np.zeros(g.size, bool))
            continue
        same = (p == g) | ((p != p) & (g != g))
        if name in slack:
            magnitude, n = slack[name]
            same = np.abs(p - g) <= 2 * gamma(n, g.dtype) * magnitude
        elif request.op in RELATIVE and g.dtype.kind == "f":
            same = np.abs(p - g) <= RELATIVE[request.op] * np.abs(p)
        elif g.dtype.kind == "f" and p.dtype.kind == "f":
            same &= (np.signbit(p) == np.signbit(g)) | (p != p)
        parts.append(np.asarray(same).ravel())
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def predict(request: Request, change: Change) -> Outputs | None:
    """The outputs of a backend that makes these choices; None where it would crash."""
    try:
        return evaluate(request, change)
    except (ArithmeticError, ValueError, IndexError):
        return None


def change_of(names: Iterable[str]) -> Change:
    """The choices of deviations together."""
    return {key: value for name in names for key, value in DEVIATIONS[name].change.items()}


# ---- what tells explanations apart ----------------------------------------------------------------------------


def _differ(request: Request, a: Change, b: Change) -> bool:
    p, q = predict(request, a), predict(request, b)
    if p is None or q is None:
        return (p is None) != (q is None)
    return not agree(request, p, q).all()


SAME_QUOTIENTS = {"exact", "float64"}
"""Quotients of float32 numbers that round to the same codes of up to 29 bits (proofs/01_rounding.py)."""


def _one_by_theorem(request: Request, a: Change, b: Change) -> bool:
    """Whether changes differ in the quotient alone, in a way that no float32 input shows."""
    quotients = {c.get("quotient", request.spec.quotient) for c in (a, b)}
    rest = [{key: value for key, value in c.items() if key != "quotient"} for c in (a, b)]
    narrow = all(
        np.asarray(v).dtype in (np.float16, np.float32) for n, v in request.inputs.items() if n in ("x", "scale")
    )
    small = request.spec.bits <= 16 and request.spec.overflow == "saturate"
    return rest[0] == rest[1] and quotients <= SAME_QUOTIENTS and narrow and small


def separating(requests: Sequence[Request], a: Names, b: Names, seed: int) -> tuple[Request | None, bool]:
    """A request on which explanations differ, None where none was found; and whether that answer is certain.

    >>> from ..quant.spec import QuantSpec
    >>> request = Request("quantize", QuantSpec(8), {"x": np.float32([1]), "scale": np.float32(0.3), "zero_point": 0})
    >>> separating([request], ("quotient exact",), ("quotient float64",), 0)
    (None, True)
    """
    if all(_one_by_theorem(r, change_of(a), change_of(b)) for r in requests):
        return None, True
    certain = True
    for r in requests:
        both = [change_of(a), change_of(b)]
        if comparable(r, both):
            found = first_difference(r, *both)
            if found is not None:
                return found, True
        else:
            certain = False
    rng = np.random.default_rng(seed)
    for r in requests:
        for probe in probes(r, rng, 2):
            if _differ(probe, change_of(a), change_of(b)):
                return _one_element(probe, change_of(a), change_of(b)), True
    return None, certain


_ELEMENTWISE = {"quantize": "x", "fake_quantize": "x", "requantize": "acc", "dequantize": "codes"}


def _one_element(request: Request, a: Change, b: Change) -> Request:
    """The request with one element only, where an operation goes element by element and one tells."""
    name = _ELEMENTWISE.get(request.op)
    plain = request.spec.granularity == PerTensor()
    if name is None or not plain or any(np.asarray(v).size != 1 for n, v in request.inputs.items() if n != name):
        return request
    for v in np.asarray(request.inputs[name]).ravel():
        one = Request(request.op, request.spec, {**request.inputs, name: v[None]}, request.options, request.integer)
        if _differ(one, a, b):
            return one
    return request


def told_apart(
    requests: Sequence[Request], whole: Sequence[Names], wrong: int, seed: int
) -> tuple[tuple[Explanation, ...], NextInput | None]:
    """The explanations, those that are proved to be one together, and of the inputs that separate two the one on
    which most of them differ."""
    kept: list[tuple[Names, list[Names]]] = []
    telling: list[Request] = []
    for names in whole:
        home = None
        for first, same in kept:
            request, certain = separating(requests, first, names, seed)
            if request is None and certain:
                home = same
                break
            telling += [] if request is None else [request]
        if home is None:
            kept.append((names, []))
        else:
            home.append(names)
    explanations = tuple(Explanation(names, wrong, 0, tuple(same)) for names, same in kept)
    if not telling:
        return explanations, None
    answers = [{e.name: predict(r, change_of(e.deviations)) or {} for e in explanations} for r in telling]
    best = int(np.argmax([_distinct(answer.values()) for answer in answers]))
    return explanations, NextInput({n: np.asarray(a) for n, a in telling[best].inputs.items()}, answers[best])


def _distinct(answers: Iterable[Outputs]) -> int:
    return len({tuple(a.tobytes() for a in outputs.values()) for outputs in answers})
