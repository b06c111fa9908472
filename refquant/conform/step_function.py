"""A scalar rule on all 2^32 inputs of a 32-bit type, as the step function that its definition makes it.

Letters: x a float32 or int32, t the inputs at which the code changes, ascending.

Division by s > 0 (a product with a factor > 0), each rounding, adding z and saturating are nondecreasing, so the code
is a nondecreasing function of x: equal codes at both ends of an interval of inputs mean that code on all of it.  The
t are found by bisection on the array form and certified by the definition (`golden`), which is asked at both ends of
every step.  No answer of the array form is left in the result: its errors can only make the certificate fail.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, CertificateError, complaint, one_of
from ..quant.integer_spec import IntegerSpec
from ..quant.spec import QuantSpec
from .golden import golden
from .operations import Request, evaluate
from .wire import semantics_to_json

__all__ = ["SCALAR", "ScalarRule", "Steps", "steps"]

Array = NDArray[Any]


class _Names(NamedTuple):
    first: str
    scale: str
    output: str
    dtype: type[np.float32] | type[np.int32]
    result: type[np.float32] | type[np.int32]


SCALAR: dict[str, _Names] = {
    "quantize": _Names("x", "scale", "codes", np.float32, np.int32),
    "fake_quantize": _Names("x", "scale", "y", np.float32, np.float32),
    "requantize": _Names("acc", "multiplier", "codes", np.int32, np.int32),
}
"""Operations that map one 32-bit number to another: what goes in, its scale, what comes out, and both types."""

WIDEST = 16
"""Bits above which a rule has too many steps to ask the definition at each."""


@dataclass(frozen=True)
class ScalarRule:
    """An operation of `SCALAR` with its parameters: a function of one 32-bit number.

    scale: of `requantize` the multiplier; of the others held in float32.

    Raises ArgumentError for an operation that is none of these, a scale that is not finite and > 0, codes of more
    than 16 bits, and semantics whose codes do not rise with x: stochastic rounding, overflow that wraps or raises.

    >>> rule = ScalarRule("quantize", QuantSpec(8), 0.5)
    >>> rule.request(np.float32([1, 2])).inputs["scale"]
    array(0.5, dtype=float32)
    """

    op: str
    spec: QuantSpec
    scale: float
    zero_point: float = 0
    integer: IntegerSpec = field(default_factory=lambda: IntegerSpec(accumulator_overflow="wrap"))

    def __post_init__(self) -> None:
        one_of(self.op, SCALAR, "op", "ScalarRule")
        if self.spec.rounding == "stochastic" or self.spec.overflow != "saturate":
            got = f"rounding={self.spec.rounding}, overflow={self.spec.overflow}"
            raise ArgumentError(complaint(got, "deterministic, and saturate", "ScalarRule"))
        if self.spec.bits > WIDEST:
            raise ArgumentError(complaint(f"bits={self.spec.bits}", f"at most {WIDEST}", "ScalarRule"))
        if not (np.isfinite(self._scale) and self._scale > 0):
            raise ArgumentError(complaint(f"scale={self.scale}", "finite and > 0", "ScalarRule"))

    @property
    def names(self) -> _Names:
        """The operation's row of `SCALAR`."""
        return SCALAR[self.op]

    @property
    def _scale(self) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(self.scale, np.float64 if self.op == "requantize" else np.float32)

    def request(self, x: Array) -> Request:
        """The question of what these inputs become."""
        z = np.asarray(self.zero_point if self.zero_point % 1 else int(self.zero_point))
        return Request(
            self.op,
            self.spec,
            {self.names.first: x, self.names.scale: self._scale, "zero_point": z},
            integer=self.integer,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, equal exactly for equal rules."""
        more = {"op": self.op, "scale": float(self._scale).hex(), "zero_point": self.zero_point}
        return {**more, **semantics_to_json(self.spec, self.integer)}


# ---- inputs in ascending order --------------------------------------------------------------------------------


def _ends(rule: ScalarRule) -> tuple[int, int]:
    """The places of the least and the greatest input: those of -inf and inf, or of the ends of int32."""
    return (-(2**31), 2**31 - 1) if rule.names.dtype == np.int32 else (-0x7F800000, 0x7F800000)


def _at(rule: ScalarRule, place: NDArray[np.int64]) -> Array:
    """The inputs at places in ascending order: of floats, the sign and the bits of the magnitude."""
    if rule.names.dtype == np.int32:
        return place.astype(np.int32)
    return (np.abs(place).astype(np.uint32) | np.where(place < 0, 1 << 31, 0).astype(np.uint32)).view(np.float32)


# ---- steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Steps:
    """at: inputs at which the answer changes, ascending.  answers: before the first, and from each on.  nan: what NaN
    gives, None where the rule refuses it.  edges: both ends of every step, the inputs that are hardest."""

    at: Array
    answers: Array
    nan: Array | None
    edges: Array

    def __call__(self, x: Array) -> Array:
        """The answers to any inputs; those to NaN are meaningless where `nan` is None."""
        found = self.answers[np.searchsorted(self.at, x, side="right")]
        return found if self.nan is None or x.dtype.kind != "f" else np.where(np.isnan(x), self.nan, found)


def _codes(rule: ScalarRule) -> ScalarRule:
    return replace(rule, op="quantize") if rule.op == "fake_quantize" else rule


def _jumps(rule: ScalarRule) -> NDArray[np.int64]:
    """The places where the codes of the array form change, by bisection for all codes at once."""
    k = np.arange(rule.spec.qmin + 1, rule.spec.qmax + 1)
    low, high = (np.full(k.size, v, np.int64) for v in _ends(rule))
    high += 1  # not reached
    while np.any(low < high):
        middle = (low + high) >> 1
        reached = evaluate(rule.request(_at(rule, np.minimum(middle, _ends(rule)[1]))))["codes"] >= k
        open_ = low < high
        high, low = np.where(open_ & reached, middle, high), np.where(open_ & ~reached, middle + 1, low)
    return np.unique(low[(low > _ends(rule)[0]) & (low <= _ends(rule)[1])])


def steps(rule: ScalarRule) -> Steps:
    """The rule as a step function, by definition.

    Raises CertificateError if the definition changes inside a step, which would be an error of refquant.

    >>> at = steps(ScalarRule("quantize", QuantSpec(2), 1.0))
    >>> at.at.tolist(), at.answers.tolist()
    ([-1.4999998807907104, -0.5, 0.5000000596046448], [-2, -1, 0, 1])
    """
    codes = _codes(rule)
    jumps = _jumps(codes)
    ends = _ends(rule)
    left, right = (_at(rule, np.array(v, np.int64)) for v in ([ends[0], *jumps], [*(jumps - 1), ends[1]]))
    first, last = (golden(codes.request(v))["codes"] for v in (left, right))
    if np.any(first != last) or np.any(np.diff(first) <= 0):
        i = int(np.argmax((first != last) | np.append(np.diff(first) <= 0, False)))
        got = f"codes {first[i]} at {left[i]!r} and {last[i]} at {right[i]!r}"
        raise CertificateError(complaint(got, "one code on each step", f"{rule.op}, step {i}", "report this"))
    nan = None
    if rule.names.dtype == np.float32 and rule.spec.nan != "raise":
        nan = golden(rule.request(np.full(1, np.nan, np.float32)))[rule.names.output]
    answers = golden(rule.request(left))[rule.names.output].astype(rule.names.result)
    return Steps(left[1:], answers, nan, np.concatenate([left, right]))
