"""Upper bounds on the spectral norms of linear maps, proved in floating point.

Letters: |A| the spectral norm, the largest |A x| / |x|; G = A A^T; K a kernel, shape (O, C, kh, kw), K_hat(w) the
matrix sum over taps of K_tap exp(-i w . tap) at a frequency w.

A singular value decomposition, and power iteration more so, may fall short of the norm.  `norm_bound` takes its word
for nothing: that t I - G is positive definite, so that |A|^2 <= t, is shown by a Cholesky factorization that runs to
its end, whose backward error is bounded (Higham 2002, theorem 10.3; Rump 2006).

The norm of a convolution is not that of its kernel as a matrix, which may be sqrt(kh kw) smaller.  Zero-padded images
convolved at stride 1 are part of a circular convolution on a torus large enough that nothing wraps, whose norm is the
largest |K_hat(w)| over the torus' frequencies (Sedghi, Gupta and Long 2019); a stride only drops outputs.

Proofs: proofs/08_bounds.py.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import UNIT
from ..net.op import Attrs, Shape
from .rounding_error import TINY, gamma

__all__ = ["conv_norm_bound", "norm_bound", "overlap"]

Reals = NDArray[np.float64]

TRIGONOMETRY = 32 * UNIT
"""How far a computed exp(-2 pi i m / n), 0 <= m < n, may be off: 6 pi u for the angle, and some ulps of sin and cos."""


def norm_bound(A: Reals) -> Reals:
    """An upper bound on the spectral norm of each matrix, shape (..., m, n) to (...), within 1e-6 or so of it.

    Zero matrices have 0, as have empty ones.  Source: as the module says.

    >>> A = np.array([[3.0, 4.0]])
    >>> bool(5 <= norm_bound(A) < 5.00001)
    True
    """
    if 0 in A.shape[-2:]:
        return np.zeros(A.shape[:-2])
    if A.shape[-2] > A.shape[-1]:
        A = np.swapaxes(A, -1, -2)
    m, n = A.shape[-2:]
    exponent = np.frexp(np.max(np.abs(A), axis=(-1, -2)))[1]  # scaled to largest elements in [1/2, 1): no underflow
    A = np.ldexp(A, -exponent[..., None, None])
    G = A @ np.swapaxes(A, -1, -2)
    energy = np.sum(A * A, axis=(-1, -2)) * (1 + gamma(m * n + 4))  # |A|_F^2, which is at least |A|^2
    guess = np.max(np.linalg.eigvalsh(G), axis=-1, initial=0.0)
    t = np.asarray(np.minimum(energy, guess * (1 + 2.0**-22) + 2.0**-30 * energy))
    rest = t[..., None, None] * np.eye(m) - G
    try:
        np.linalg.cholesky(rest[energy > 0])
    except np.linalg.LinAlgError:  # the guess was wrong
        return _unscaled(np.sqrt(energy) * (1 + gamma(4)), exponent)
    # R^T R = rest + D with |D| <= gamma(m + 1) |R^T| |R|, whose norm is at most gamma(m + 1) trace(R^T R) (1 + ...)
    trace = m * t + energy
    off = 2 * gamma(m + 2) * trace + gamma(n + 4) * energy + 4 * UNIT * (t + energy)
    return _unscaled(np.sqrt(t + off) * (1 + gamma(4)), exponent)


def _unscaled(v: Reals, exponent: NDArray[np.int_]) -> Reals:
    """v 2^exponent, rounded up where it is subnormal."""
    found = np.ldexp(v, exponent)
    return np.where((v > 0) & (found < TINY["float64"]), np.nextafter(found, np.inf), found)


def overlap(attrs: Attrs) -> int:
    """In how many windows of a Conv or a pool a pixel may be: per axis ceil(k gcd(s, d) / s), stride s, dilation d.

    >>> overlap({"kernel": (3, 3), "stride": (2, 2), "dilation": (1, 1)})
    4
    """
    each = zip(attrs["kernel"], attrs["stride"], attrs["dilation"], strict=True)
    return math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in each)


def _frequencies(attrs: Attrs, shape: Shape) -> Iterator[tuple[NDArray[np.int64], int]]:
    """By axis: what frequency 0, 1, ... of the torus times each tap is, modulo its size; and the size."""
    for size, k, d in zip(shape[1:], attrs["kernel"], attrs["dilation"], strict=True):
        n = size + d * (k - 1) if k > 1 else 1
        yield np.arange(n)[:, None] * (d * np.arange(k)) % n, n


def conv_norm_bound(weight: Reals, attrs: Attrs, shape: Shape) -> float:
    """An upper bound on the norm of a Conv on images of a shape (C, H, W), any padding with zeros, stride, groups.

    weight: shape (O, C/G, kh, kw).  The smaller of two bounds: that of the torus, and sqrt(overlap) times the norm of
    the kernel as a matrix, which is better where the stride is large.

    >>> window = {"kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    >>> 8.64 < conv_norm_bound(np.ones((1, 1, 3, 3)), window, (1, 28, 28)) < 9.001  # the kernel's own norm is 3
    True
    """
    W = weight.reshape(attrs["groups"], -1, *weight.shape[1:])
    by_windows = norm_bound(W.reshape(*W.shape[:2], -1)) * math.sqrt(overlap(attrs)) * (1 + gamma(2))
    return float(min(np.max(by_windows), _torus_bound(W, attrs, shape)))


def _torus_bound(W: Reals, attrs: Attrs, shape: Shape) -> float:
    (down, H), (across, V) = _frequencies(attrs, shape)
    kinds, best = [np.exp(-2j * np.pi * m / n) for m, n in ((down, H), (across, V))], 0.0
    mass = np.sqrt(np.sum(np.sum(np.abs(W), axis=(-1, -2)) ** 2, axis=(1, 2)).max())  # at least |K_hat|_F
    taps = W.shape[-1] * W.shape[-2]
    off = mass * (2 * TRIGONOMETRY + gamma(4 * taps + 8)) * (1 + gamma(W[0].size + 8))
    for row in kinds[0][: H // 2 + 1]:  # K_hat(-w) is the conjugate of K_hat(w)
        part = np.einsum("gocij,i->gocj", W, row)
        K = np.einsum("gocj,vj->vgoc", part, kinds[1])
        best = max(best, float(norm_bound(_real(K)).max()))
    return float((best + off) * (1 + gamma(4)))


def _real(K: NDArray[np.complex128]) -> Reals:
    """The real matrices [[A, -B], [B, A]] of complex ones A + i B: of the same norm."""
    return np.block([[K.real, -K.imag], [K.imag, K.real]])
