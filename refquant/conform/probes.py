"""Inputs that might tell two rules apart: a request's own parameters, other data."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .case import floats_beside
from .operations import Request

__all__ = ["probes"]

Array = NDArray[Any]
Generator = np.random.Generator


def _with(request: Request, **inputs: Any) -> Request:
    return Request(request.op, request.spec, {**request.inputs, **inputs}, request.options, request.integer)


def _reals(request: Request, rng: Generator) -> Iterator[Request]:
    """x in steps of its scale: next to ties, at the ends, beyond, tiny; of the same shape."""
    x = np.asarray(request.inputs["x"])
    s = np.asarray(request.inputs["scale"], np.float64)
    spec = request.spec
    S = spec.granularity.spread(s, x.shape) if s.shape else s
    z = float(np.asarray(request.inputs["zero_point"], np.float64).ravel()[0])
    low, high = spec.qmin - z, spec.qmax - z
    steps = [
        rng.integers(int(low) - 2, int(high) + 3, x.shape) + 0.5,
        rng.uniform(low - 2, high + 2, x.shape),
        np.full(x.shape, low - 0.5),
        np.full(x.shape, high + 0.5),
        rng.integers(-3, 4, x.shape) + 0.5,
        rng.uniform(-1, 1, x.shape) * 2.0**33,
        rng.uniform(-1, 1, x.shape) * 2.0**31 * 1.5,
    ]
    with np.errstate(over="ignore", under="ignore"):
        for t in steps:
            beside = floats_beside(t * S, x.dtype)
            for i in range(3):
                yield _with(request, x=np.ascontiguousarray(beside[..., i]))
    tiny = np.finfo(x.dtype).smallest_subnormal
    yield _with(request, x=(rng.integers(-200, 200, x.shape) * tiny).astype(x.dtype))
    specials = [np.inf, -np.inf, -0.0, *([np.nan] if spec.nan != "raise" else [])]
    yield _with(request, x=rng.choice(np.array(specials, x.dtype), x.shape))


def _accumulators(request: Request, rng: Generator) -> Iterator[Request]:
    """acc next to ties of the product, at its ends, and anywhere."""
    acc = np.asarray(request.inputs["acc"])
    i = request.inputs
    f = np.asarray(i["multiplier"] if "multiplier" in i else i["input_scale"] * i["weight_scale"] / i["output_scale"])
    middle = float(np.median(f))
    for _ in range(4):
        k = rng.integers(-140, 140, acc.shape) + 0.5
        for d in (-1, 0, 1):
            yield _with(request, acc=np.clip(np.rint(k / middle) + d, -(2**31), 2**31 - 1).astype(np.int64))
    yield _with(request, acc=rng.integers(-(2**31), 2**31, acc.shape))
    yield _with(request, acc=rng.choice(np.array([-(2**31), 2**31 - 1, 2**24 + 1, -(2**24) - 1]), acc.shape))


def _ranges(request: Request, rng: Generator) -> Iterator[Request]:
    """Ranges whose zero point lies on a tie or beside it, ranges that begin or end at 0 or beside it, and any."""
    many = "lo" in request.inputs
    like = np.asarray(request.inputs["lo" if many else "x"])
    steps, shape = request.spec.qmax - request.spec.qmin, (like.shape if many else (64,))
    for dyadic in (True, False, False):
        s = 2.0 ** rng.integers(-6, 3, shape) if dyadic else rng.uniform(0.01, 1, shape)
        k = rng.integers(0, steps, shape) + 0.5
        low, high = (-k * s).astype(like.dtype), ((steps - k) * s).astype(like.dtype)
        for d in (-1, 0, 1):
            yield from _of_ranges(request, np.nextafter(low, low + np.asarray(d, like.dtype)), high, rng)
        yield from _of_ranges(request, (low * 0).astype(like.dtype), high, rng)
        yield from _of_ranges(request, low, (high * 0).astype(like.dtype), rng)
        yield from _of_ranges(request, high, (2 * high).astype(like.dtype), rng)


def _of_ranges(request: Request, low: Array, high: Array, rng: Generator) -> Iterator[Request]:
    """Requests with these ranges: of their ends, or of tensors that have them."""
    if "lo" in request.inputs:
        yield _with(request, lo=low, hi=high)
        return
    for l, h in zip(low[:8], high[:8], strict=True):
        x = rng.uniform(float(l), float(h), 16).astype(low.dtype)
        yield _with(request, x=np.concatenate([[l, h], np.clip(x, l, h)]).astype(low.dtype))


def _redrawn(request: Request, rng: Generator) -> Iterator[Request]:
    """Every array of more than one element drawn anew from its own range, or from its ends."""
    for extreme in (False, True):
        changed: dict[str, Array] = {}
        for name, value in request.inputs.items():
            a = np.asarray(value)
            if a.size < 2 or name.endswith(("scale", "scales", "zero_point", "error", "cost")):
                continue
            low, high = (int(a.min()), int(a.max())) if a.dtype.kind in "iu" else (a.min(), a.max())
            if a.dtype.kind in "iu":
                drawn = rng.choice(np.array([low, high]), a.shape) if extreme else rng.integers(low, high + 1, a.shape)
            else:
                drawn = rng.choice(np.array([low, high]), a.shape) if extreme else rng.uniform(low, high, a.shape)
            changed[name] = drawn.astype(a.dtype)
        yield _with(request, **changed)


_PROBES: dict[str, Callable[[Request, Generator], Iterator[Request]]] = {
    "quantize": _reals,
    "fake_quantize": _reals,
    "gradient": _reals,
    "requantize": _accumulators,
    "range_parameters": _ranges,
    "dynamic_quantize": _ranges,
}


def probes(request: Request, rng: Generator, rounds: int = 8) -> Iterator[Request]:
    """Requests with the same semantics and parameters and other data, round after round.

    >>> from ..quant.spec import QuantSpec
    >>> request = Request("requantize", QuantSpec(8), {"acc": np.array([1]), "multiplier": 0.5, "zero_point": 0})
    >>> next(probes(request, np.random.default_rng(0))).op
    'requantize'
    """
    for _ in range(rounds):
        yield from _PROBES.get(request.op, _redrawn)(request, rng)
