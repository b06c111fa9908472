"""Whether an answer is right: exactly, within what rounding allows, or by property.

Letters: u the unit roundoff of the answer's float type, n operations, M the sum of magnitudes, gamma_n = n u / (1 - n
u).

Codes and reals of codes are right exactly, with the sign of zero.  A sum whose order is free lies within gamma_n M of
the exact one (theory of rounding errors: Higham 2002, section 3.1).  A scale is right if no scale errs less than it
by more than rounding; an allocation if its choices fit the budget and err as little as the best.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.quantizer import quantize_exact
from .operations import Request
from .rules_scalar import Outputs

__all__ = ["Expected", "faults", "gamma"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Expected:
    """The outputs of a request.  slack: for outputs that are sums, (M, n) of each."""

    outputs: Outputs
    slack: Mapping[str, tuple[Array, int]] = field(default_factory=dict)


def gamma(n: int, dtype: Any) -> float:
    """n u / (1 - n u).

    >>> gamma(1, np.float64) < 1.2e-16
    True
    """
    u = float(np.finfo(dtype).eps) / 2
    return n * u / (1 - n * u)


# ---- arrays against arrays ------------------------------------------------------------------------------------


def _shown(v: Any) -> str:
    return f"{float(v).hex()} ({v})" if np.asarray(v).dtype.kind == "f" else str(v)


def _first(name: str, wrong: Array, got: Array, should: Array, note: str = "") -> list[str]:
    where = np.argwhere(wrong)
    if not len(where):
        return []
    i = tuple(where[0].tolist())
    count = f"{len(where)} of {wrong.size} differ" if wrong.size > 1 else "it differs"
    return [f"{name}{list(i) if i else ''}: got {_shown(got[i])}, should be {_shown(should[i])}{note}; {count}"]


def _numbers(name: str, got: Any, should: Array) -> Array | str:
    """The answer as an array of the wanted shape and kind, or what is wrong with it."""
    a = np.asarray(got)
    kinds = "iu" if should.dtype.kind in "iu" else "f"
    if a.dtype.kind not in kinds:
        return f"{name}: got an array of {a.dtype}, should be {'integers' if kinds == 'iu' else 'floats'}"
    if a.shape != should.shape:
        return f"{name}: got shape {a.shape}, should be {should.shape}"
    return a


def _exact(name: str, got: Any, should: Array) -> list[str]:
    a = _numbers(name, got, should)
    if isinstance(a, str):
        return [a]
    if should.dtype.kind in "iu":
        return _first(name, a != should, a, should)
    same = (a == should) & (np.signbit(a) == np.signbit(should)) | (np.isnan(a) & np.isnan(should))
    return _first(name, ~same, a, should)


def _within(name: str, got: Any, should: Array, slack: tuple[Array, int]) -> list[str]:
    a = _numbers(name, got, should)
    if isinstance(a, str):
        return [a]
    if a.dtype not in (np.float32, np.float64):  # a narrower type would set itself a wider bound
        return [f"{name}: got an array of {a.dtype}, should be float32 or float64"]
    radius = gamma(slack[1], a.dtype) * slack[0] + gamma(1, np.float64) * np.abs(should)
    far = ~(np.abs(a.astype(np.float64) - should) <= radius)
    return _first(name, far, a, should, f" to within {np.max(radius, initial=0.0):.3g}")


# ---- by property ----------------------------------------------------------------------------------------------


def _squared_error(x: list[float], scale: float, request: Request) -> tuple[Fraction, Fraction]:
    """By definition, exactly: the sum of (x - s q)^2, and that of (|x| + |s q|)^2."""
    error, size = Fraction(0), Fraction(0)
    for v in x:
        real = quantize_exact(v, scale, 0, request.spec) * Fraction(scale)
        error += (Fraction(v) - real) ** 2
        size += (abs(Fraction(v)) + abs(real)) ** 2
    return error, size


def _scale(request: Request, expected: Expected, got: Mapping[str, Any]) -> list[str]:
    """Optimal, its objective what it errs and its bound below the optimum, to within rounding.

    A sum of n squares, or its form A - 2 s B + s^2 C, is off by at most gamma_(n + 4) times the sum of (|x| + |s q|)^2.
    """
    scale, objective, bound = (float(np.asarray(got[n])) for n in ("scale", "objective", "lower_bound"))
    if not all(np.isfinite(v) for v in (scale, objective, bound)) or scale <= 0:
        return [f"got {scale}, {objective}, {bound}, should be finite, and the scale > 0"]
    x = np.asarray(request.inputs["x"], np.float64).tolist()
    best = Fraction(float(expected.outputs["objective"]))
    true, size = _squared_error(x, scale, request)
    slack = Fraction(gamma(len(x) + 4, np.float64)) * size
    rows = {
        f"scale: errs {float(true)}, the best errs {float(best)}": true - best,
        f"lower_bound: got {bound}, a scale errs {float(best)}": Fraction(bound) - best,
        f"objective: got {objective}, is {float(true)}": abs(true - Fraction(objective)),
    }
    return [text for text, gap in rows.items() if gap > slack]


def _allocation(request: Request, expected: Expected, got: Mapping[str, Any]) -> list[str]:
    error, cost, budget = (np.asarray(request.inputs[n], np.float64) for n in ("error", "cost", "budget"))
    chosen = np.asarray(got["choices"])
    if chosen.shape != (len(error),) or chosen.dtype.kind not in "iu":
        return [f"choices: got {chosen.dtype} of shape {chosen.shape}, should be {len(error)} integers"]
    if not np.all((chosen >= 0) & (chosen < error.shape[1])):
        return [f"choices: got {chosen.tolist()}, should be from 0 to {error.shape[1] - 1}"]
    rows = np.arange(len(error))
    spent, total, best = cost[rows, chosen].sum(), error[rows, chosen].sum(), float(expected.outputs["error"])
    return [
        *([] if spent <= budget else [f"choices: cost {spent}, the budget is {float(budget)}"]),
        *([] if total <= best else [f"choices: err {total}, the best err {best}"]),
        *([] if float(np.asarray(got["error"])) == total else [f"error: got {got['error']}, is {total}"]),
    ]


PROPERTIES: dict[str, Callable[[Request, Expected, Mapping[str, Any]], list[str]]] = {
    "solve_scale": _scale,
    "allocate": _allocation,
}
"""operation -> what is wrong with an answer, where several are right."""


def faults(request: Request, expected: Expected, got: Any) -> list[str]:
    """What is wrong with an answer, one sentence an output; nothing if it is right.

    got: arrays by name, or one array where the operation has one output.

    >>> from ..quant.spec import QuantSpec
    >>> request = Request("quantize", QuantSpec(8), {})
    >>> faults(request, Expected({"codes": np.array([1, 2])}), {"codes": np.array([1, 3])})
    ['codes[1]: got 3, should be 2; 1 of 2 differ']
    """
    names = tuple(expected.outputs)
    if not isinstance(got, Mapping):
        if len(names) > 1 or request.op == "network":
            return [f"got {type(got).__name__}, should be outputs by name: {', '.join(names)}"]
        got = {names[0]: got}
    missing, more = [n for n in names if n not in got], [str(n) for n in got if n not in names]
    if missing or more:
        return [f"got outputs {', '.join(map(str, got)) or 'none'}, should be {', '.join(names)}"]
    try:
        if request.op in PROPERTIES:
            return PROPERTIES[request.op](request, expected, got)
    except (TypeError, ValueError, OverflowError) as error:
        return [f"outputs {', '.join(names)}: {error}"]
    found: list[str] = []
    for name, should in expected.outputs.items():
        slack = expected.slack.get(name)
        found += _exact(name, got[name], should) if slack is None else _within(name, got[name], should, slack)
    return found
