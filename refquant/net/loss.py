"""Losses of an output against what it should be: value, cotangent, and product with the Hessian.

Letters: z the output, shape (N, ...); e = z - target; p = softmax(z), t = softmax of a target's logits, S the Hessian
of the loss by z.  Softmax is over all but the images, whose losses are averaged.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError, complaint
from .op import Array

__all__ = ["Loss", "cross_entropy", "divergence", "mean_power", "squared_error"]


class Loss(NamedTuple):
    """A loss at an output z: its value, its gradient by z (`cotangent`, of z's shape), and `curvature`, v -> S v."""

    value: float
    cotangent: Array
    curvature: Callable[[Array], Array]


def _check(fits: bool, got: str, should: str, where: str) -> None:
    if not fits:
        raise ArgumentError(complaint(got, should, where))


def _alike(z: Array, target: ArrayLike, where: str) -> Array:
    t = np.asarray(target)
    _check(t.shape == z.shape and z.size > 0, f"shapes {z.shape} and {t.shape}", "one shape, not empty", where)
    return t.astype(z.dtype, copy=False)


# ---- of reals -------------------------------------------------------------------------------------------------


def mean_power(z: Array, target: ArrayLike, power: float = 2.0, weights: ArrayLike | None = None) -> Loss:
    """The mean over all elements of w |z - target|^power.

    weights: w, broadcastable against z, >= 0; 1 by default.  power: at least 1.  At e = 0 the derivative of |e| is 0.

    Raises ArgumentError for other shapes, no elements, and another power; its curvature, for a power strictly
    between 1 and 2, whose second derivative at 0 is infinite.

    >>> loss = mean_power(np.array([[3.0, -1.0]]), np.array([[1.0, 0.0]]), power=4)
    >>> loss.value, loss.cotangent.tolist(), loss.curvature(np.ones((1, 2))).tolist()
    (8.5, [[16.0, -2.0]], [[24.0, 6.0]])
    """
    _check(power >= 1, f"power={power}", "at least 1", "mean_power")
    e = z - _alike(z, target, "mean_power")
    w = np.asarray(1.0 if weights is None else weights, z.dtype) / z.dtype.type(z.size)
    magnitude = np.abs(e)

    def curvature(v: Array) -> Array:
        _check(power == 1 or power >= 2, f"power={power}", "1, or at least 2", "curvature of mean_power")
        return np.zeros_like(v) if power == 1 else power * (power - 1) * w * magnitude ** (power - 2) * v

    value = float((w * magnitude**power).sum(dtype=np.float64))
    return Loss(value, power * w * magnitude ** (power - 1) * np.sign(e), curvature)


def squared_error(z: Array, target: ArrayLike, weights: ArrayLike | None = None) -> Loss:
    """The mean over all elements of w (z - target)^2; as `mean_power`, whose Hessian is then diagonal and constant.

    >>> loss = squared_error(np.array([[3.0, -1.0]]), np.array([[1.0, 0.0]]))
    >>> loss.value, loss.cotangent.tolist(), loss.curvature(np.ones((1, 2))).tolist()
    (2.5, [[2.0, -1.0]], [[1.0, 1.0]])
    """
    return mean_power(z, target, 2.0, weights)


# ---- of classes -----------------------------------------------------------------------------------------------


def _log_softmax(z: Array) -> Array:
    axes = tuple(range(1, z.ndim))
    shifted = z - z.max(axis=axes, keepdims=True)
    y: Array = shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True))
    return y


def _softmax_loss(z: Array, log_p: Array, values: Array, expected: Array) -> Loss:
    """The mean of values, one an image, whose derivative by z is p - expected."""
    axes, N, p = tuple(range(1, z.ndim)), z.dtype.type(len(z)), np.exp(log_p)

    def curvature(v: Array) -> Array:
        y: Array = p * (v - (p * v).sum(axis=axes, keepdims=True)) / N
        return y

    return Loss(float(values.mean(dtype=np.float64)), (p - expected) / N, curvature)


def cross_entropy(z: Array, labels: ArrayLike) -> Loss:
    """The mean over images of -log softmax(z)[label], with S = (diag(p) - p p^T) / N an image.

    z: logits, shape (N, classes).  labels: integers below the number of classes, shape (N,).

    Raises ArgumentError for other shapes, labels beyond, and no images.

    >>> loss = cross_entropy(np.log([[1.0, 3.0]]), [1])
    >>> float(np.exp(-loss.value).round(12)), loss.cotangent.round(12).tolist()
    (0.75, [[0.25, -0.25]])
    """
    y = np.asarray(labels)
    got, should = f"labels of type {y.dtype} and shape {y.shape}", f"integers, one for each of {len(z)} rows of logits"
    _check(y.dtype.kind in "iu" and z.ndim == 2 and y.shape == z.shape[:1] and z.size > 0, got, should, "cross_entropy")
    classes = z.shape[1]
    _check(bool(((y >= 0) & (y < classes)).all()), f"labels up to {y.max()}", f"in 0..{classes - 1}", "cross_entropy")
    log_p, right = _log_softmax(z), y[:, None] == np.arange(classes)
    return _softmax_loss(z, log_p, -log_p[right], right)


def divergence(z: Array, target: ArrayLike) -> Loss:
    """The mean over images of KL(t || p) = sum of t log(t / p), with S = (diag(p) - p p^T) / N an image.

    z, target: logits of one shape (N, ...).  It is 0 where they are equal up to one number an image, and then, to
    second order, half of dz^T S dz: distillation without labels.

    Raises ArgumentError for other shapes and no images.

    >>> loss = divergence(np.log([[1.0, 3.0]]), np.log([[2.0, 2.0]]))
    >>> float(np.exp(2 * loss.value).round(12)), loss.cotangent.round(12).tolist()  # log(4 / 3) / 2
    (1.333333333333, [[-0.25, 0.25]])
    """
    log_t, log_p = _log_softmax(_alike(z, target, "divergence")), _log_softmax(z)
    t = np.exp(log_t)
    values = (t * (log_t - log_p)).sum(axis=tuple(range(1, z.ndim)))
    return _softmax_loss(z, log_p, values, t)
