"""Conv and Gemm.

Letters: N images, C channels in, O out, G groups, K = (C/G) kh kw the inputs of one output,
L = h w the output positions, P the patches, shape (N, G, K, L); Gemm has G = L = 1.
Then an output is W P + b, with W of shape (G, O/G, K).
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from .conv_batch import CACHED, conv, conv_input, conv_weight
from .op import COUNT, Array, Attrs, Op, Param, Params, Point, Rule, Shape, Slot, Tangents, by_channel, fit, optional
from .ops_pool import WINDOW, image, taps, window_shape

__all__ = ["CONV", "GEMM", "patches"]


def patches(attrs: Attrs, x: Array) -> Array:
    """The inputs of every output of a Conv or a Gemm, shape (N, G, K, L).

    attrs: those of the node.  x: the node's input, shape (N, C, H, W) for Conv, (N, in_features) for Gemm.
    K runs over input channel, kernel row, kernel column, as in an OIHW weight; the pixels of padding are 0.
    So `weight.reshape(G, O // G, K) @ patches` is the output without bias, shape (N, G, O/G, L).

    >>> patches({"in_features": 2, "out_features": 1}, np.float32([[1, 2]])).shape
    (1, 1, 2, 1)
    """
    if "in_features" in attrs:
        return x[:, None, :, None]
    seen = list(taps(attrs, x, 0))
    N, C, h, w = seen[0].shape
    P = np.stack(seen, axis=2) if len(seen) > 1 else seen[0]
    G = attrs["groups"]
    return P.reshape(N, G, C // G * len(seen), h * w)


# ---- the derivative of both -----------------------------------------------------------------------------------


class _Products(NamedTuple):
    """The form F = sum of u y over the products y = W P, linear in u, W and x, by what it is differentiated by."""

    by_u: Callable[[Attrs, Array, Array], Array]  # (attrs, weight, x): the products themselves
    by_weight: Callable[[Attrs, Array, Array, Array], Array]  # (attrs, weight, x, u), so too the next
    by_x: Callable[[Attrs, Array, Array, Array], Array]


def _derivative(form: _Products) -> Rule:
    """The rule of y = W P + b."""

    def vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
        here = at.attrs, at.params["weight"], at.inputs[0], u
        rows: dict[Slot, Callable[[], Array]] = {
            0: lambda: form.by_x(*here),
            "weight": lambda: form.by_weight(*here),
            "bias": lambda: by_channel(u).sum(axis=1),
        }
        return {slot: rows[slot]() for slot in wanted}

    def jvp(at: Point, v: Tangents) -> Array:
        rows: dict[Slot, Callable[[Array], Array]] = {
            0: lambda x: form.by_u(at.attrs, at.params["weight"], x),
            "weight": lambda W: form.by_u(at.attrs, W, at.inputs[0]),
            "bias": lambda b: np.broadcast_to(b.reshape(-1, *(1,) * (at.output.ndim - 2)), at.output.shape),
        }
        return reduce(np.add, [rows[slot](tangent) for slot, tangent in v.items()])

    return Rule(vjp, jvp)


# ---- Conv -----------------------------------------------------------------------------------------------------


def _conv_weight(attrs: Attrs) -> Shape:
    return attrs["out_channels"], attrs["in_channels"] // attrs["groups"], *attrs["kernel"]


def _conv_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    C, H, W = image(shapes[0])
    I, O, G = attrs["in_channels"], attrs["out_channels"], attrs["groups"]  # the papers' letters
    fit(C == I, f"an input of {C} channels", f"of in_channels={I}")
    fit(I % G == 0 and O % G == 0, f"groups={G}", f"a divisor of in_channels={I} and out_channels={O}")
    return O, *window_shape(attrs, H, W)


def _depthwise(attrs: Attrs, weight: Array, x: Array) -> Array:
    """One input channel a group: a sum over taps, since a matrix product of one row is slow; shape (N, O, h, w).

    In memory the images come last meanwhile: then loops are as long as the batch, not as a row of pixels.
    """
    x = np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    O, _, kh, kw = weight.shape
    W = weight.reshape(1, attrs["groups"], -1, kh * kw, 1, 1)
    total = None
    for t, tap in enumerate(taps(attrs, x, 0)):
        term = tap[:, :, None] * W[:, :, :, t]
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None  # a kernel has a tap
    return np.ascontiguousarray(total.reshape(len(x), O, *total.shape[-2:]))


def _by_patches(attrs: Attrs, weight: Array, x: Array) -> Array:
    """W P for a few images at a time, each image a product of its own, so their number changes no bit."""
    N, O, G = len(x), len(weight), attrs["groups"]
    W = weight.reshape(G, O // G, -1)
    h, w = window_shape(attrs, *x.shape[2:])
    Y = np.empty((N, G, O // G, h * w), x.dtype)
    some = max(1, CACHED // (G * W.shape[2] * h * w))
    for n in range(0, N, some):
        np.matmul(W, patches(attrs, x[n : n + some]), out=Y[n : n + some])
    return Y.reshape(N, O, h, w)


def _conv(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    depthwise = 1 < attrs["groups"] == attrs["in_channels"]
    y = (_depthwise if depthwise else _by_patches)(attrs, params["weight"], inputs[0])
    if "bias" in params:
        y += params["bias"][:, None, None]
    return y


def _conv_macs(attrs: Attrs, shape: Shape) -> int:
    kh, kw = attrs["kernel"]
    K: int = attrs["in_channels"] // attrs["groups"] * kh * kw
    return math.prod(shape) * K


def _conv_record(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> tuple[Array, None]:
    y = conv(attrs, params["weight"], inputs[0])
    if "bias" in params:
        y += params["bias"][:, None, None]
    return y, None


CONV = Op(
    _conv_shape,
    _conv,
    _derivative(_Products(conv, conv_weight, conv_input)),
    {"in_channels": COUNT, "out_channels": COUNT, **WINDOW, "groups": optional(COUNT, 1)},
    {"weight": Param(_conv_weight), "bias": Param(lambda attrs: (attrs["out_channels"],), optional=True)},
    macs=_conv_macs,
    linear=True,
    record=_conv_record,
)


# ---- Gemm -----------------------------------------------------------------------------------------------------


def _gemm_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    wanted = (attrs["in_features"],)
    fit(shapes[0] == wanted, f"an input of shape {shapes[0]} per image", f"of shape {wanted}, in_features")
    return (attrs["out_features"],)


def _gemm(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    y: Array = inputs[0] @ params["weight"].T
    if "bias" in params:
        y += params["bias"]
    return y


GEMM = Op(
    _gemm_shape,
    _gemm,
    _derivative(_Products(lambda _, W, x: x @ W.T, lambda _, W, x, u: u.T @ x, lambda _, W, x, u: u @ W)),
    {"in_features": COUNT, "out_features": COUNT},
    {
        "weight": Param(lambda attrs: (attrs["out_features"], attrs["in_features"])),
        "bias": Param(lambda attrs: (attrs["out_features"],), optional=True),
    },
    macs=lambda attrs, shape: attrs["in_features"] * attrs["out_features"],
    linear=True,
)
