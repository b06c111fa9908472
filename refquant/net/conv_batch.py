"""The products of a Conv on a whole batch, and the two ways back, in the order of memory that suits them.

Letters: N images, C channels in, O out, G groups, K = (C/G) kh kw the inputs of one output, L = h w the output
positions; P the patches, W the weight as (G, O/G, K), Y = W P the products, U their cotangents.

With the images last in memory, a tap of all images is made of long runs, and the patches of a batch are one matrix a
group, P of shape (G, K, L N); so are Y and U, both (G, O/G, L N).  P is made for a block of positions at a time,
which stays in cache: then F = sum of U Y has the derivatives U P^T by W and, by P, W^T U, whose rows of a tap are
added onto it.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from .op import Array, Attrs, images_last
from .ops_pool import cropped, padded, views, window_shape

__all__ = ["CACHED", "conv", "conv_input", "conv_weight"]

CACHED = 2**18
"""Patch elements at a time, 1 MiB: measured to be about the fastest, since they are read back from cache."""

Block: TypeAlias = tuple[slice, slice, slice]
"""Some output positions of a tensor of shape (channels, h, w, N): all channels, some rows, some columns."""


def _blocks(h: int, w: int, each: int) -> Iterator[Block]:
    """All h x w positions, each of so many elements, about `CACHED` at a time: some rows, or a part of one."""
    rows = max(1, CACHED // max(1, each * w))
    columns = -(-w // max(1, round(each * w / CACHED)))
    for r in range(0, h, rows):
        for c in range(0, w, columns):
            yield slice(None), slice(r, min(r + rows, h)), slice(c, min(c + columns, w))


def _matrix(Z: Array, G: int) -> Array:
    """(channels, rows, columns, N) as (G, channels/G, ...): a view of a block, for its positions are one run."""
    return Z.reshape(G, Z.shape[0] // G, -1)


class _Windows(NamedTuple):
    """The windows over padded images: what every tap sees, each (C, h, w, N), and positions a few at a time."""

    taps: list[Array]
    blocks: list[Block]

    def patches(self, block: Block, G: int) -> Array:
        """P at a block of positions, shape (G, K, positions times images)."""
        if len(self.taps) == 1:
            return _matrix(self.taps[0][block], G)
        P = np.stack([tap[block] for tap in self.taps], axis=1)
        C, T, *some = P.shape
        return _matrix(P.reshape(C * T, *some), G)


def _windows(attrs: Attrs, X: Array, h: int, w: int) -> _Windows:
    taps = [view.transpose(1, 2, 3, 0) for view in views(attrs, X, h, w)]
    N, C = X.shape[:2]
    return _Windows(taps, list(_blocks(h, w, len(taps) * C * N)))


def conv(attrs: Attrs, weight: Array, x: Array) -> Array:
    """The output of a Conv without its bias, shape (N, O, h, w), images last in memory.

    weight: shape (O, C/G, kh, kw); x: (N, C, H, W).  About twice as quick as image by image.  A few roundings
    differ from that: BLAS may add up a product's terms in another order for another number of images.

    >>> window = {"kernel": (1, 2), "stride": (1, 1), "padding": (0, 0, 0, 1), "dilation": (1, 1), "groups": 1}
    >>> conv(window, np.array([[[[1.0, 10.0]]]]), np.array([[[[1.0, 2.0]]]])).tolist()
    [[[[21.0, 2.0]]]]
    """
    h, w = window_shape(attrs, x.shape[2], x.shape[3])
    G, O = attrs["groups"], len(weight)
    W = weight.reshape(G, O // G, -1)
    windows = _windows(attrs, padded(attrs, images_last(x), 0), h, w)
    Y = np.empty((O, h, w, len(x)), np.result_type(weight, x))
    for block in windows.blocks:
        np.matmul(W, windows.patches(block, G), out=_matrix(Y[block], G))
    return np.moveaxis(Y, -1, 0)


def conv_weight(attrs: Attrs, weight: Array, x: Array, u: Array) -> Array:
    """The derivative of F = sum of u conv(weight, x) by the weight, of its shape: U P^T.

    u: shape (N, O, h, w).  Of the weight only the shape is read.

    >>> window = {"kernel": (1, 2), "stride": (1, 1), "padding": (0, 0, 0, 1), "dilation": (1, 1), "groups": 1}
    >>> x, u = np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 1.0]]]])
    >>> conv_weight(window, np.zeros((1, 1, 1, 2)), x, u).tolist()
    [[[[3.0, 2.0]]]]
    """
    U, G, O = np.moveaxis(images_last(u), 0, -1), attrs["groups"], len(weight)
    windows = _windows(attrs, padded(attrs, images_last(x), 0), U.shape[1], U.shape[2])
    total = np.zeros((G, weight[0].size, O // G), np.result_type(x, u))
    for block in windows.blocks:
        total += windows.patches(block, G) @ _matrix(U[block], G).swapaxes(1, 2)  # (U P^T)^T: quicker, as O < K
    return total.swapaxes(1, 2).reshape(weight.shape)


def conv_input(attrs: Attrs, weight: Array, x: Array, u: Array) -> Array:
    """The derivative of F = sum of u conv(weight, x) by x, of its shape: W^T U, added onto the taps one by one.

    u: shape (N, O, h, w).  Of x only the shape is read.

    >>> window = {"kernel": (1, 2), "stride": (1, 1), "padding": (0, 0, 0, 1), "dilation": (1, 1), "groups": 1}
    >>> weight, u = np.array([[[[1.0, 10.0]]]]), np.array([[[[1.0, 1.0]]]])
    >>> conv_input(window, weight, np.zeros((1, 1, 1, 2)), u).tolist()
    [[[[1.0, 11.0]]]]
    """
    U, G, O = np.moveaxis(images_last(u), 0, -1), attrs["groups"], len(weight)
    rows = np.ascontiguousarray(np.moveaxis(weight.reshape(G, O // G, x.shape[1] // G, -1), -1, 0).swapaxes(2, 3))
    total = padded(attrs, images_last(np.zeros_like(x, np.result_type(weight, u))), 0)
    windows = _windows(attrs, total, U.shape[1], U.shape[2])
    multiply = np.multiply if O == G else np.matmul  # the product of a column and a row, which BLAS is slow at
    for block in windows.blocks:
        some = _matrix(U[block], G)
        for W, tap in zip(rows, windows.taps, strict=True):
            tap[block] += multiply(W, some).reshape(tap[block].shape)
    return cropped(attrs, total)
