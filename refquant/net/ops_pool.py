"""Windows that slide over images, and the ops that pool them.

Letters: N images, C channels, H x W pixels in, h x w out, t a tap: one position (i, j) of the kernel.
A window op is a reduction over its taps, each a strided view of the padded input with shape (N, C, h, w); its
transpose adds to the same views of an image of zeros.
Where several taps hold the maximum of a window, it moves with the first of them, in the order of `taps`.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import reduce

import numpy as np

from .op import (
    FLAG,
    PADDING,
    PAIR,
    Array,
    Attrs,
    Op,
    Params,
    Point,
    Rule,
    Shape,
    Slot,
    Tangents,
    fit,
    images_last,
    optional,
)

__all__ = [
    "AVERAGE_POOL",
    "GLOBAL_AVERAGE_POOL",
    "MAX_POOL",
    "WINDOW",
    "cropped",
    "image",
    "padded",
    "taps",
    "views",
    "window_shape",
]

WINDOW = {
    "kernel": PAIR,
    "stride": PAIR,
    "padding": optional(PADDING, (0, 0, 0, 0)),
    "dilation": optional(PAIR, (1, 1)),
}
"""The attributes of a window: kernel and stride, required; padding [top, left, bottom, right] and dilation."""


def image(shape: Shape) -> Shape:
    """The shape (C, H, W) itself.

    Raises Misfit for any other number of axes.

    >>> image((3, 28, 28))
    (3, 28, 28)
    """
    fit(len(shape) == 3, f"an input of shape {shape} per image", "of shape (channels, height, width)")
    return shape


def _extents(attrs: Attrs) -> tuple[int, int]:
    """The pixels from the first tap to the last, both included."""
    (kh, kw), (dh, dw) = attrs["kernel"], attrs["dilation"]
    return dh * (kh - 1) + 1, dw * (kw - 1) + 1


def window_shape(attrs: Attrs, H: int, W: int) -> tuple[int, int]:
    """How many windows fit down and across: floor((H + top + bottom - extent) / stride) + 1, and so for W.

    Raises Misfit where none does.

    >>> window_shape({"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1)}, 28, 7)
    (14, 3)
    """
    (top, left, bottom, right), (eh, ew), (sh, sw) = attrs["padding"], _extents(attrs), attrs["stride"]
    down, across = H + top + bottom - eh, W + left + right - ew
    got, should = f"a window of {eh} x {ew} pixels", f"at most {H + top + bottom} x {W + left + right}"
    fit(down >= 0 and across >= 0, got, f"{should}, the padded input")
    return down // sh + 1, across // sw + 1


def padded(attrs: Attrs, x: Array, fill: float) -> Array:
    """The images with their padding, whose pixels are `fill`; x itself where there is none.

    >>> padded({"padding": (0, 1, 0, 0)}, np.float32([[[[5]]]]), 7).tolist()
    [[[[7.0, 5.0]]]]
    """
    top, left, bottom, right = attrs["padding"]
    if not top + left + bottom + right:
        return x
    N, C, H, W = x.shape
    X = np.full_like(x, fill, shape=(N, C, H + top + bottom, W + left + right))  # in the memory order of x
    X[:, :, top : top + H, left : left + W] = x
    return X


def cropped(attrs: Attrs, X: Array) -> Array:
    """The images without their padding, the inverse of `padded`: a view.

    >>> cropped({"padding": (0, 1, 0, 0)}, np.float32([[[[7, 5]]]])).tolist()
    [[[[5.0]]]]
    """
    top, left, bottom, right = attrs["padding"]
    return X[:, :, top : X.shape[2] - bottom, left : X.shape[3] - right]


def views(attrs: Attrs, X: Array, h: int, w: int) -> Iterator[Array]:
    """For each position of the kernel, row by row, what h x w windows see of padded images X: shape (N, C, h, w).

    See `taps` for an example.
    """
    (kh, kw), (sh, sw), (dh, dw) = attrs["kernel"], attrs["stride"], attrs["dilation"]
    for i in range(0, dh * kh, dh):
        for j in range(0, dw * kw, dw):
            yield X[:, :, i : i + sh * (h - 1) + 1 : sh, j : j + sw * (w - 1) + 1 : sw]


def taps(attrs: Attrs, x: Array, fill: float) -> Iterator[Array]:
    """For each position of the kernel, row by row, what it sees in every window: views of shape (N, C, h, w).

    x has shape (N, C, H, W); pixels beyond the image are `fill`.

    >>> window = {"kernel": (1, 2), "stride": (1, 1), "padding": (0, 0, 0, 1), "dilation": (1, 1)}
    >>> [tap.ravel().tolist() for tap in taps(window, np.float32([[[[1, 2]]]]), 9)]
    [[1.0, 2.0], [2.0, 9.0]]
    """
    return views(attrs, padded(attrs, x, fill), *window_shape(attrs, x.shape[2], x.shape[3]))


def _onto_taps(attrs: Attrs, x: Array, parts: Iterator[Array]) -> Array:
    """The transpose of `taps`: parts, one a tap, added up where the taps of x saw them; of x's shape."""
    total = padded(attrs, np.zeros_like(x), 0)
    for view, part in zip(views(attrs, total, *window_shape(attrs, x.shape[2], x.shape[3])), parts, strict=True):
        view += part
    return cropped(attrs, total)


# ---- MaxPool --------------------------------------------------------------------------------------------------


def _pool_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    C, H, W = image(shapes[0])
    (top, left, bottom, right), (eh, ew) = attrs["padding"], _extents(attrs)
    some = max(top, bottom) < eh and max(left, right) < ew and attrs["dilation"] == (1, 1)
    some = some or attrs["padding"] == (0, 0, 0, 0)
    fit(some, f"padding={attrs['padding']}", "less than the kernel and undilated, so that no window is all padding")
    return C, *window_shape(attrs, H, W)


def _max_pool(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    return reduce(np.maximum, taps(attrs, inputs[0], -np.inf))


def _first_maxima(at: Point) -> Iterator[Array]:
    """For each tap, the windows whose maximum it is and no earlier tap is; a NaN is no maximum."""
    free = np.ones_like(at.output, bool)
    for tap in taps(at.attrs, at.inputs[0], -np.inf):
        first = tap == at.output
        first &= free
        free ^= first
        yield first


def _max_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    u = images_last(u)
    return {0: _onto_taps(at.attrs, at.inputs[0], (u * first for first in _first_maxima(at)))}


def _max_jvp(at: Point, v: Tangents) -> Array:
    moved = zip(taps(at.attrs, v[0], 0), _first_maxima(at), strict=True)
    return reduce(np.add, (tap * first for tap, first in moved))


MAX_POOL = Op(_pool_shape, _max_pool, Rule(_max_vjp, _max_jvp), WINDOW)


# ---- AveragePool, GlobalAvgPool -------------------------------------------------------------------------------


def _counted(attrs: Attrs, x: Array) -> Array:
    """The pixels that each window divides by, shape (1, 1, h, w)."""
    real = np.ones((1, 1, *x.shape[2:]), x.dtype)
    return reduce(np.add, taps(attrs, real, float(attrs["count_include_pad"])))


def _average_pool(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    total: Array = reduce(np.add, taps(attrs, x, 0))
    return total / _counted(attrs, x)


def _average_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    x, (kh, kw) = at.inputs[0], at.attrs["kernel"]
    share = images_last(u) / _counted(at.attrs, x)
    return {0: _onto_taps(at.attrs, x, (share for _ in range(kh * kw)))}


def _average_jvp(at: Point, v: Tangents) -> Array:
    return _average_pool(at.attrs, {}, [v[0]])


AVERAGE_POOL = Op(
    _pool_shape,
    _average_pool,
    Rule(_average_vjp, _average_jvp),
    {**WINDOW, "count_include_pad": optional(FLAG, False)},
)


def _global_average_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    return image(shapes[0])[0], 1, 1


def _global_average(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    mean: Array = inputs[0].mean(axis=(2, 3), keepdims=True)
    return mean


def _global_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    x = at.inputs[0]
    _, _, H, W = x.shape
    return {0: np.broadcast_to(images_last(u) / (H * W), x.shape)}


GLOBAL_AVERAGE_POOL = Op(
    _global_average_shape, _global_average, Rule(_global_vjp, lambda at, v: _global_average({}, {}, [v[0]]))
)
