"""BatchNorm: as networks run it, with the moments that training measured, and as it is trained, with the batch's own.

Letters, a channel: m mean, v variance, r = (v + eps)^(-1/2), x^ = (x - m) r, y = gamma x^ + beta; k = gamma r.
"""

from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from .op import (
    COUNT,
    POSITIVE,
    Array,
    Attrs,
    Op,
    Param,
    Params,
    Point,
    Rule,
    Shape,
    Slot,
    Tangents,
    by_channel,
    fit,
    images_last,
)

__all__ = ["BATCH_NORM", "BATCH_NORM_TRAINING", "Moments", "batch_norm_line"]


def _per_channel(attrs: Attrs) -> Shape:
    return (attrs["channels"],)


def _shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    C = attrs["channels"]
    fit(shapes[0][:1] == (C,), f"an input of shape {shapes[0]} per image", f"of channels={C} channels")
    return shapes[0]


ATTRS = {"channels": COUNT, "eps": POSITIVE}
PARAMS = {
    "gamma": Param(_per_channel),
    "beta": Param(_per_channel),
    "mean": Param(_per_channel, trained=False),
    "var": Param(_per_channel, signed=False, trained=False),
}


def _like(x: Array, v: Array) -> Array:
    """One number a channel, in x's type and broadcastable against it."""
    return v.astype(x.dtype, copy=False).reshape(-1, *(1,) * (x.ndim - 2))


def _sum(a: Array) -> Array:
    return np.asarray(by_channel(a).sum(axis=1))


def _dot(a: Array, b: Array) -> Array:
    """The sum of a b over all but the channels."""
    return np.asarray((by_channel(a)[:, None] @ by_channel(b)[:, :, None])[:, 0, 0])


# ---- with given moments: a line -------------------------------------------------------------------------------


def batch_norm_line(attrs: Attrs, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """(k, c) with gamma (x - mean) / sqrt(var + eps) + beta = k x + c, in float64, shapes (channels,).

    >>> k, c = batch_norm_line({"eps": 1.0}, {n: np.float32([v]) for n, v in zip(BATCH_NORM.params, (4, 1, 2, 3))})
    >>> k.tolist(), c.tolist()
    ([2.0], [-3.0])
    """
    gamma, beta, mean, var = (params[name].astype(np.float64) for name in ("gamma", "beta", "mean", "var"))
    k = gamma / np.sqrt(var + attrs["eps"])
    return k, beta - mean * k


def _batch_norm(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    k, c = (_like(x, v) for v in batch_norm_line(attrs, params))
    y: Array = x * k
    y += c
    return y


def _slopes(at: Point) -> dict[str, Array]:
    """The derivatives of k and m by the params that they have: k by gamma is r, and by v is -k / (2 (v + eps))."""
    gamma, v = (at.params[name].astype(np.float64) for name in ("gamma", "var"))
    r = 1 / np.sqrt(v + at.attrs["eps"])
    return {"k": gamma * r, "gamma": r, "var": -gamma * r**3 / 2}


def _line_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    x, by = at.inputs[0], _slopes(at)
    rows: dict[Slot, Callable[[], Array]] = {
        0: lambda: u * _like(x, by["k"]),
        "beta": lambda: _sum(u),
        "mean": lambda: -by["k"] * _sum(u),
        "gamma": lambda: by["gamma"] * _dot(u, x - _like(x, at.params["mean"])),
        "var": lambda: by["var"] * _dot(u, x - _like(x, at.params["mean"])),
    }
    return {slot: rows[slot]().astype(x.dtype, copy=False) for slot in wanted}


def _line_jvp(at: Point, v: Tangents) -> Array:
    x, by = at.inputs[0], _slopes(at)
    rows: dict[Slot, Callable[[Array], Array]] = {
        0: lambda t: t * _like(x, by["k"]),
        "beta": lambda t: np.broadcast_to(_like(x, t), x.shape),
        "mean": lambda t: np.broadcast_to(_like(x, -by["k"] * t), x.shape),
        "gamma": lambda t: _like(x, by["gamma"] * t) * (x - _like(x, at.params["mean"])),
        "var": lambda t: _like(x, by["var"] * t) * (x - _like(x, at.params["mean"])),
    }
    return reduce(np.add, [rows[slot](tangent) for slot, tangent in v.items()])


BATCH_NORM = Op(_shape, _batch_norm, Rule(_line_vjp, _line_jvp), ATTRS, PARAMS)


# ---- with the moments of the batch ----------------------------------------------------------------------------


class Moments(NamedTuple):
    """What a BatchNorm in training saw of each channel: mean and (biased) variance of so many values; (channels,)."""

    mean: Array
    var: Array
    values: int


def _record(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> tuple[Array, Moments]:
    """gamma (x - m) / sqrt(v + eps) + beta; no images have moments 0."""
    x = images_last(inputs[0])
    L = x.size // x.shape[1]
    mean = _sum(x) / max(1, L)
    y: Array = x - _like(x, mean)
    var = _dot(y, y) / max(1, L)
    y *= _like(x, params["gamma"] / np.sqrt(var + attrs["eps"]))
    y += _like(x, params["beta"])
    return y, Moments(mean, var, L)


def _normalized(at: Point) -> tuple[Array, Array]:
    """(x^, r), r broadcastable against x^."""
    x, moments = images_last(at.inputs[0]), at.memory
    r = _like(x, 1 / np.sqrt(moments.var + at.attrs["eps"]))
    normal: Array = x - _like(x, moments.mean)
    normal *= r
    return normal, r


def _project(normal: Array, r: Array, v: Array) -> Array:
    """r (v - mean v - x^ mean(x^ v)): the Jacobian of x^ by x, symmetric, times v."""
    L = max(1, v.size // v.shape[1])
    moved = normal * _like(v, _dot(normal, v) / -L)
    moved += v
    moved -= _like(v, _sum(v) / L)
    moved *= r
    return moved


def _training_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    (normal, r), u = _normalized(at), images_last(u)
    rows: dict[Slot, Callable[[], Array]] = {
        0: lambda: _project(normal, _like(u, at.params["gamma"]) * r, u),
        "gamma": lambda: _dot(u, normal),
        "beta": lambda: _sum(u),
    }
    return {slot: rows[slot]() if slot in rows else np.zeros_like(at.params[str(slot)]) for slot in wanted}


def _training_jvp(at: Point, v: Tangents) -> Array:
    normal, r = _normalized(at)
    rows: dict[Slot, Callable[[Array], Array]] = {
        0: lambda t: _project(normal, _like(t, at.params["gamma"]) * r, images_last(t)),
        "gamma": lambda t: _like(normal, t) * normal,
        "beta": lambda t: np.broadcast_to(_like(normal, t), normal.shape),
    }
    return reduce(np.add, [rows[slot](tangent) for slot, tangent in v.items() if slot in rows], np.zeros_like(normal))


BATCH_NORM_TRAINING = Op(
    _shape,
    lambda attrs, params, inputs: _record(attrs, params, inputs)[0],
    Rule(_training_vjp, _training_jvp),
    ATTRS,
    PARAMS,
    record=_record,
)
"""BatchNorm with the moments of the batch; its params `mean` and `var` are not read (see `Moments`)."""
