"""Whether two rules are the same function: by the inputs at which their codes step.

A rule that never falls as its input grows is given by the least input of every code.  Floats of one type are ordered
as integers are, so that input is found by bisection, a step a bit; two rules with equal steps are equal everywhere,
and two that differ differ between two steps (proofs/11_conformance.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.granularity import PerChannel, PerTensor
from .operations import Request, evaluate, knobs

__all__ = ["comparable", "first_difference", "from_order", "steps_of", "to_order"]

Array = NDArray[Any]

_STEPS = ("rounding", "grid", "overflow", "zero_point_order")
MONOTONE = {
    "quantize": (*_STEPS, "operand", "scale", "quotient", "clip", "infinity", "zero point"),
    "requantize": (*_STEPS, "requantize", "factor", "multiplier", "high ties", "shift ties"),
}
"""operation -> choices that leave a saturating rule monotone, infinities aside, and element by element."""

CODES = {
    "quantize": "quantize",
    "fake_quantize": "quantize",
    "requantize": "requantize",
    "qlinear_matmul": "requantize",
    "qlinear_conv": "requantize",
}
"""operation -> the one that gives its codes, of which its result is a function."""

INPUT = {"quantize": "x", "requantize": "acc"}
"""operation -> the input along which its codes never fall."""


# ---- floats in order ------------------------------------------------------------------------------------------


def to_order(x: Array) -> NDArray[np.int64]:
    """Floats as integers in the same order; -0 and 0 are one.

    >>> to_order(np.float32([-0.0, 0.0, 1e-45, -1e-45])).tolist()
    [0, 0, 1, -1]
    """
    bits = x.view({2: np.int16, 4: np.int32, 8: np.int64}[x.dtype.itemsize]).astype(np.int64)
    magnitude = bits & ((1 << (8 * x.dtype.itemsize - 1)) - 1)
    return np.where(bits < 0, -magnitude, magnitude)


def from_order(n: NDArray[np.int64], dtype: Any) -> Array:
    """The floats of a type that `to_order` sends to n.

    >>> from_order(np.array([-1, 0, 1]), np.float16).tolist()
    [-5.960464477539063e-08, 0.0, 5.960464477539063e-08]
    """
    kind = np.dtype(dtype)
    magnitude = np.abs(n).astype({2: np.int16, 4: np.int32, 8: np.int64}[kind.itemsize]).view(kind)
    return np.asarray(np.where(n < 0, -magnitude, magnitude))


def _ends(kind: np.dtype[Any]) -> tuple[int, int]:
    if kind.kind == "f":
        top = int(to_order(np.array([np.finfo(kind).max], kind))[0])
        return -top, top
    return -(2**31), 2**31 - 1  # accumulators


def _values(n: NDArray[np.int64], kind: np.dtype[Any]) -> Array:
    return from_order(n, kind) if kind.kind == "f" else n


# ---- steps ----------------------------------------------------------------------------------------------------


def steps_of(f: Callable[[Array], Array], low: int, high: int, kind: Any) -> NDArray[np.int64]:
    """For every code c in low..high - 1, the place in order of the least finite input whose code is above c.

    f: never falls.  Where no input's code is above c, the place after the greatest input.

    >>> steps_of(np.rint, 0, 2, np.float16).tolist() == (to_order(np.float16([0.5, 1.5])) + [1, 0]).tolist()
    True
    """
    kind = np.dtype(kind)
    first, last = _ends(kind)
    c = np.arange(low, high)
    l, h = np.full(c.shape, first - 1), np.full(c.shape, last + 1)  # code <= c at l, > c at h
    while np.any(h - l > 1):
        m = l + (h - l) // 2
        above = f(_values(np.clip(m, first, last), kind)) > c
        l, h = np.where(above, l, m), np.where(above, m, h)
    return h


# ---- rules ----------------------------------------------------------------------------------------------------


def _codes(request: Request) -> Request:
    """The request of codes that a result is a function of; for layers one accumulator a scale."""
    op, i = CODES[request.op], request.inputs
    if op == "quantize" or request.op == op:
        return Request(op, request.spec, i, request.options, request.integer)
    a, b = ("a", "b") if "a" in i else ("x", "w")
    names = ("input_scale", f"{a}_scale"), ("weight_scale", f"{b}_scale"), ("output_scale", "y_scale")
    arrays = [np.asarray(i[name]).ravel() for _, name in names]
    inputs = dict(zip((to for to, _ in names), np.broadcast_arrays(*arrays), strict=True))
    rest = {"acc": np.zeros(inputs["input_scale"].shape, np.int64), "zero_point": np.asarray(i["y_zero_point"])}
    return Request(op, replace(request.spec, granularity=PerChannel(0)), {**inputs, **rest}, {}, request.integer)


def _saturates(request: Request, change: Mapping[str, Any]) -> bool:
    k = {**knobs(request.spec, request.integer), **change}
    return bool(k["overflow"] == "saturate" or k["clip"] == "reals first")


def comparable(request: Request, changes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rules with these changes are monotone functions of one input, element by element.

    >>> from ..quant.spec import QuantSpec
    >>> request = Request("quantize", QuantSpec(8), {})
    >>> comparable(request, [{"rounding": "floor"}]), comparable(request, [{"overflow": "wrap"}])
    (True, False)
    """
    allowed = MONOTONE.get(CODES.get(request.op, ""), ())
    return bool(allowed) and all(set(c) <= set(allowed) and _saturates(request, c) for c in changes)


def _one_by_one(request: Request) -> Iterator[Request]:
    """The request with one scale and one zero point, for each that an element has."""
    name = INPUT[CODES[request.op]]
    shape = np.asarray(request.inputs[name]).shape
    others = {n: np.asarray(a) for n, a in request.inputs.items() if n != name}
    grain = request.spec.granularity
    wide = {n: np.broadcast_to(grain.spread(a, shape) if a.shape else a, shape).ravel() for n, a in others.items()}
    spec = replace(request.spec, granularity=PerTensor())
    seen = dict.fromkeys(zip(*(a.tolist() for a in wide.values()), strict=True))
    for values in seen:
        one = {n: np.asarray(v, others[n].dtype) for n, v in zip(wide, values, strict=True)}
        yield Request(request.op, spec, {**one, name: request.inputs[name]}, request.options, request.integer)


def _specials(kind: np.dtype[Any], nan: bool) -> Array:
    return np.array([np.inf, -np.inf, -0.0, *([np.nan] if nan else [])], kind)


def first_difference(request: Request, a: Mapping[str, Any], b: Mapping[str, Any]) -> Request | None:
    """A request of one element on which the rules with changes a and b differ; None if they are one function.

    request: `comparable` under both changes.  Its parameters stay; of all inputs of its type, that of least magnitude
    is taken at which a code steps in one rule only.  For a layer the request is to requantize an accumulator.
    """
    core = _codes(request)
    name = INPUT[core.op]
    kind = np.asarray(core.inputs[name]).dtype if core.op == "quantize" else np.dtype(np.int64)
    op = request.op if core.op == "quantize" else core.op
    for one in _one_by_one(core):

        def asked(v: Array, op: str = op, one: Request = one) -> Request:
            return Request(op, one.spec, {**one.inputs, name: v}, one.options, one.integer)

        def rule(change: Mapping[str, Any], v: Array, asked: Callable[..., Request] = asked) -> Array:
            return evaluate(asked(v, core.op), change)["codes"]

        low, high = request.spec.qmin, request.spec.qmax
        p, q = (steps_of(lambda v, c=c: rule(c, v), low, high, kind) for c in (a, b))  # type: ignore[misc]
        places = np.minimum(p, q)[p != q]
        x = _values(places[np.argsort(np.abs(places))], kind)
        if kind.kind == "f":
            x = np.concatenate([x, _specials(kind, request.spec.nan != "raise")])
        for v in x[rule(a, x) != rule(b, x)]:
            if _outputs(asked(v[None]), a) != _outputs(asked(v[None]), b):
                return asked(v[None])
    return None


def _outputs(request: Request, change: Mapping[str, Any]) -> list[bytes]:
    return [a.tobytes() for a in evaluate(request, change).values()]
